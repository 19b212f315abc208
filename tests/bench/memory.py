"""Budgets on a GPU: peak memory and seconds of every plan against the predecessor's method.

    python -m tests.bench.memory --folder /dev/shm/model --out tests/bench/results/memory_h100.json
    python -m tests.bench.memory --demo --folder /tmp/demo      # does the script run?

Needs 58 GB for the random model of `tests.bench.full_size` (made if it is not there) and 28 GB
for an artefact of it. In one process, one after the other: the predecessor's method
(transformer cast to FP8 without scales, cast back layer by layer, LoRA beside it), then ours
resident, within 24, 16, 12, 8 and 6 GB, and within 8 GB of the host's memory. The result
within a budget must be the resident one's to the bit. Converts `--blocks` of the 60 and says
how long all would take, with the memory that it really took.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.bench import record
from vellumd import model_card
from vellumd.engine import convert, loading, pipeline
from vellumd.engine.report import PipeReport
from vellumd.models import ImageRef, LoraRef, ResolvedEdit
from vellumd.protocol import Init
from vellumd.weights.model import open_model

BUDGETS = 24, 16, 12, 8, 6
REFERENCES = 1, 3
SIZE = 736, 1011


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--demo", action="store_true", help="the demo instead of the real size")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.demo:
        torch.set_num_threads(1)
    if not (args.folder / "model_index.json").is_file():
        build(args.folder, args.demo)
    bench = Bench(args.folder, args.demo)
    figures: dict[str, Any] = {
        "convert": bench.convert(args.blocks),
        "predecessor": None if args.demo else bench.predecessor(),
        "resident": bench.ours(),
    }
    resident = figures["resident"]["edits"]
    for budget in BUDGETS:
        found = bench.ours(vram_budget_gb=0.001 if args.demo else budget)
        compare(found["edits"], resident)
        figures[f"{budget} GB"] = found
    found = bench.ours(vram_budget_gb=0.001 if args.demo else 12, ram_budget_gb=8)
    compare(found["edits"], resident)
    figures["12 GB, 8 GB of the host"] = found
    record.keep(figures, args.out)


def build(folder: Path, demo: bool) -> None:
    """The random model, or a copy of the demo."""
    if demo:
        shutil.copytree(model_card.DEMO_FOLDER, folder)
        return
    from tests.bench import full_size

    full_size.build(folder)


def compare(edits: dict[str, Any], resident: dict[str, Any]) -> None:
    """Note against the resident run: the time, and whether it is the same picture."""
    for name, found in edits.items():
        found["of_resident"] = round(found["edit_s"] / resident[name]["edit_s"], 3)
        found["same"] = found["sha256"] == resident[name]["sha256"]


class Bench:
    """One model and its artefacts."""

    def __init__(self, folder: Path, demo: bool) -> None:
        self.folder = folder
        self.demo = demo
        self.cuda = torch.cuda.is_available()
        self.artefacts = folder.with_name(f"{folder.name}-artifacts")
        self.file = folder / "input.png"
        Image.effect_noise(SIZE, 90).convert("RGB").save(self.file)
        lora = next((folder / "loras").glob("*.safetensors"))
        self.lora = convert.Lora(lora)

    def convert(self, blocks: int) -> dict[str, Any]:
        """Make the artefact that the edits want; the time of `blocks` blocks, scaled."""
        model = open_model(self.folder)
        card = model_card.read(str(self.folder))
        job = convert.Conversion(model, card, [self.lora])
        target = self.artefacts / job.name
        began, marks = time.perf_counter(), [(0.0, 0)]

        def beat(done: int, of: int) -> None:
            marks.append((time.perf_counter() - began, done))

        with watched_memory() as memory:
            job.run(target, beat)
        seconds = time.perf_counter() - began
        number = model.configs["transformer"]["num_layers"]
        share = next((at for at, done in marks if done >= marks[-1][1] * blocks / number), seconds)
        return {
            "told_before": str(job.needs()),
            "seconds": round(seconds, 1),
            f"seconds_of_{blocks}_blocks_scaled": round(share * number / blocks, 1),
            "own_memory_gb": round(memory[0] / 1e9, 2),
            "artefact_gb": round(
                sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e9, 2
            ),
        }

    def ours(self, **budgets: float) -> dict[str, Any]:
        """Load within the budgets, then edit with each number of references."""
        settings = {
            "model": str(self.folder), "artifact_dir": str(self.artefacts), **budgets,
            **({"recipe": "fp8-weights"} if self.demo else {}),
        }  # fmt: skip
        device = "cuda:0" if self.cuda else "cpu"
        init = Init(
            engine="", settings=settings, device=device, spool=self.folder, cache=self.folder
        )
        engine = pipeline.create(init)
        capabilities = engine.load(PipeReport(lambda frame: None, preview=lambda: False))
        try:
            return {
                "plan": capabilities.memory_plan,
                "recipe": capabilities.recipe,
                "load_s": capabilities.load_s,
                "edits": {f"{count} references": self.edit(engine, count) for count in REFERENCES},
            }
        finally:
            engine.unload()
            self.reset()

    def reset(self) -> None:
        """Nothing of the run before is left."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)

    def edit(self, engine: Any, references: int) -> dict[str, Any]:
        """The second of two edits of 8 Lightning steps, guided by 3.0."""
        picture = ImageRef(sha256="0" * 64, width=SIZE[0], height=SIZE[1])
        wanted = ResolvedEdit(
            model="random", prompt="make it snow " * 40, images=(picture,) * references, steps=8,
            true_cfg_scale=3.0, seed=1, scheduler="lightning", size="fit:0.1" if self.demo else
            "match", loras=(LoraRef(name="lightning-8"),),
        )  # fmt: skip
        for _ in range(2):
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            report = PipeReport(lambda frame: None, preview=lambda: False)
            began = time.perf_counter()
            (result,) = engine.edit(wanted, [self.file] * references, report, lambda: False)
            seconds = time.perf_counter() - began
        timings = report.timings()
        return {
            "edit_s": round(seconds, 3),
            "forward_s": round(timings["denoise"] / 16, 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else None,
            "sha256": hashlib.sha256(result.tobytes()).hexdigest()[:16],
            "timings_s": timings,
        }

    def predecessor(self) -> dict[str, Any]:
        """The transformer as the predecessor holds it; encoder and VAE wait on the host.

        Diffusers' layerwise casting: e4m3 without scales, cast to bfloat16 for each call.
        """
        parts = loading.load(
            self.folder, torch.device("cpu"), lambda *_: None, dtype=torch.bfloat16
        )
        transformer = parts.transformer
        transformer.load_lora_adapter(_adapter(self.lora.file), prefix=None)
        transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16
        )
        began = time.perf_counter()
        transformer.to("cuda")
        torch.cuda.synchronize()
        found: dict[str, Any] = {"to_card_s": round(time.perf_counter() - began, 2)}
        from tests.bench.precision import GRID, fed

        for count in REFERENCES:
            feed = fed(transformer, GRID, count, 650 if count == 3 else 222, torch.device("cuda"))
            feed = {
                name: value.bfloat16() if isinstance(value, torch.Tensor) else value
                for name, value in feed.items()
            }
            torch.cuda.reset_peak_memory_stats()
            times = []
            with torch.inference_mode():
                for _ in range(5):
                    began = time.perf_counter()
                    transformer(**feed, return_dict=False)
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - began)
            found[f"{count} references"] = {
                "forward_s": round(sorted(times[1:])[1], 4),
                "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            }
        del transformer, parts
        self.reset()
        return found


def _adapter(file: Path) -> dict[str, torch.Tensor]:
    """The LoRA under peft's names; its alpha is its rank."""
    from safetensors.torch import load_file

    named = {}
    for name, tensor in load_file(file).items():
        if not name.endswith(".alpha"):
            name = name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
            named[name.removeprefix("transformer.")] = tensor.bfloat16()
    return named


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """The most that this process' own memory grew by, files left out; one number."""
    grown, over = [0], threading.Event()

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before = own()

    def watch() -> None:
        while not over.wait(0.01):
            grown[0] = max(grown[0], own() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    main()
