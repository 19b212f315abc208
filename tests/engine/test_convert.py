"""Artefacts: made once in little memory, found again, swapped, as good as the gate wants."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import layouts, numerics
from tests.engine.support import Told, encoded, picture, reference, resolved
from vellumd import artefact, errors, model_card, protocol
from vellumd.cli.convert import scaled
from vellumd.engine import (
    convert,
    converting,
    hashes,
    linears,
    loading,
    lora,
    pipeline,
    precision,
    shards,
    tables,
)
from vellumd.engine.model import Model
from vellumd.models import LoraRef
from vellumd.settings import EngineSettings
from vellumd.weights import shapes
from vellumd.weights.model import open_model

CPU = torch.device("cpu")
DEMO = model_card.DEMO_FOLDER
LORA = DEMO / "loras" / "demo-lightning-8steps.safetensors"


def conversion(folder: Path = DEMO, *loras: Path, keep: tuple[str, ...] = ()) -> convert.Conversion:
    card = model_card.read("demo")
    return convert.Conversion(open_model(folder), card, [convert.Lora(f) for f in loras], keep)


def made(target: Path, *loras: Path) -> artefact.Artefact:
    conversion(DEMO, *loras).run(target, lambda *_: None)
    return next(one for one in artefact.found(target.parent) if one.folder == target)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two artefacts of the demo: as it is, and with its LoRA inside."""
    folder = tmp_path_factory.mktemp("artifacts")
    made(folder / "plain")
    made(folder / "lightning", LORA)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# what is inside


def test_what_an_artefact_holds(home: Path) -> None:
    """Block linears by row, the keep-list in bfloat16, everything once and hashed."""
    whole = load_file(DEMO / "transformer" / "diffusion_pytorch_model.safetensors")
    manifest = artefact.Manifest.model_validate_json((home / "plain/manifest.json").read_bytes())
    held: dict[str, torch.Tensor] = {}
    for name, shard in manifest.files.items():
        data = (home / "plain" / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
        if name != artefact.TABLES:
            held |= load_file(home / "plain" / name)
    assert {name for name in held if not name.endswith("_scale")} == set(whole)
    for name, tensor in whole.items():
        if precision.is_small(name.removesuffix(".weight")) and tensor.dim() == 2:
            found = linears.whole(held[name], held[f"{name}_scale"], torch.float32)
            assert numerics.distance(found, tensor) < 0.03
        else:
            assert torch.equal(held[name], tensor)
    source = DEMO / "transformer" / "diffusion_pytorch_model.safetensors"
    assert manifest.hashes == {
        f"transformer/{source.name}": hashlib.sha256(source.read_bytes()).hexdigest()
    }


def test_a_lora_is_added_before_rounding(home: Path) -> None:
    """Weights and LoRA are added in float32 and rounded once; the files say what is inside."""
    whole = load_file(DEMO / "transformer" / "diffusion_pytorch_model.safetensors")
    added = load_file(LORA)
    name = "transformer_blocks.1.img_mlp.net.2"
    up, down = (added[f"{name}.lora_{half}.weight"].float() for half in ("up", "down"))
    exact = whole[f"{name}.weight"].float() + up @ down * float(added[f"{name}.alpha"]) / len(down)
    held = load_file(home / "lightning/transformer/block-01.safetensors")
    rounded, scale = linears.by_row(exact)
    assert torch.equal(held[f"{name}.weight"].float(), rounded.float())
    assert torch.equal(held[f"{name}.weight_scale"], scale)


def test_the_hatch_keeps_more(tmp_path: Path) -> None:
    """`engine.keep` leaves a linear in bfloat16, and makes another key."""
    more = conversion(keep=("img_mlp.net.2",))
    assert more.order.key != conversion().order.key
    more.run(tmp_path / "more", lambda *_: None)
    held = load_file(tmp_path / "more/transformer/block-00.safetensors")
    assert held["transformer_blocks.0.img_mlp.net.2.weight"].dtype is torch.bfloat16
    assert held["transformer_blocks.0.txt_mlp.net.2.weight"].dtype is linears.FP8


def test_from_fp8_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers stay what they are, a LoRA is refused, and it is said what brings quality back."""
    folder = layouts.predecessor(tmp_path / "fp8").model
    with pytest.raises(errors.ModelInvalid, match="FP8 already"):
        conversion(folder, LORA)
    engine = EngineSettings(model=str(folder))
    target = tmp_path / "artefact"
    converting.make(converting.Wanted(engine=engine, target=target))
    assert "only by converting the bfloat16 model" in " ".join(capsys.readouterr().err.split())
    stored = load_file(next((folder / "transformer").glob("*.safetensors")))
    held = load_file(target / "transformer/block-02.safetensors")
    name = "transformer_blocks.2.attn.to_q.weight"
    assert torch.equal(held[name].float(), stored[name].float())
    assert held[f"{name}_scale"].eq(1).all()


# tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_times_that_are_close_are_told_apart(dtype: torch.dtype) -> None:
    """By a single number of 3,072 that is the next one; products of them round more than that."""
    keys = (30 * torch.randn(64, generator=torch.Generator().manual_seed(1))).repeat(3072 // 64)
    keys = keys.to(dtype).repeat(64, 1)
    diagonal = keys.diagonal()
    diagonal += torch.finfo(dtype).eps * diagonal
    one = SimpleNamespace(keys=keys, rows={"one": torch.arange(64)})
    assert tables.Tabled(one, "one")(keys).tolist() == list(range(64))  # type: ignore[arg-type]


def test_tables_are_exact_at_equal_row_counts(model: Model) -> None:
    """In the place of the linears they change no bit (class B)."""
    transformer = loading.load(DEMO, CPU, lambda *_: None).transformer
    feed = {
        "hidden_states": torch.randn(1, 32, 64),
        "encoder_hidden_states": torch.randn(1, 9, 192),
        "img_shapes": [[(1, 4, 4), (1, 4, 4)]],
    }
    times = torch.tensor([1.0, 0.75, 0.3])

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [
                transformer(**feed, timestep=time.expand(1), return_dict=False)[0] for time in times
            ]

    stock = run()
    names = [name for name, _ in tables.modulations(transformer)]
    table = tables.Tables(transformer, tables.in_checkpoint(open_model(DEMO).transformer, CPU))
    assert table.cover(times, lambda *_: None)
    assert not table.cover(times, lambda *_: None)
    assert all(torch.equal(one, other) for one, other in zip(stock, run(), strict=True))
    # All rows at once are rounded otherwise (class C).
    rows = model.parts.transformer.get_submodule(names[3])(table.keys)
    assert torch.allclose(rows, table.rows[names[3]], rtol=1e-4, atol=1e-5)


def test_a_table_forgets_schedules_and_keeps_its_own(home: Path) -> None:
    """Memory stays bounded however many schedules are asked for."""
    parts = loaded(home, "plain")
    table = parts.table
    assert table is not None
    fixed = list(table.times)
    for number in range(40):
        table.cover(torch.linspace(0.1, 0.9, 8) + number / 1000, lambda *_: None)
    assert table.times[: len(fixed)] == fixed
    assert len(table.times) <= len(fixed) + tables.EXTRA
    assert all(len(rows) == len(table.times) == len(table.keys) for rows in table.rows.values())


def test_the_shipped_schedule_reads_no_modulation(home: Path) -> None:
    """Lightning's times, as a card rounds them, are in the artefact."""
    parts = loaded(home, "plain")
    assert parts.table is not None
    times = convert.times(torch.bfloat16)
    assert len(times) == 8
    assert not parts.table.cover(times, lambda *_: None)


def loaded(home: Path, name: str, recipe: precision.Recipe = precision.WEIGHTS) -> loading.Parts:
    ready = next(one for one in artefact.found(home) if one.folder.name == name)
    return loading.load(DEMO, CPU, lambda *_: None, recipe, ready=ready)


# making it


def test_kill_it_and_go_on(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between any two files, it goes on behind the last; the bytes are the same."""
    target, write = tmp_path / "plain", shards.write
    written: list[str] = []

    def stop_at_third(file: Path, *args: Any) -> artefact.Shard:
        written.append(file.name)
        if len(written) % 3 == 0:
            file.with_name(f"{file.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(file, *args)

    monkeypatch.setattr(shards, "write", stop_at_third)
    runs = 0
    while not target.exists():
        runs += 1
        try:
            conversion().run(target, lambda *_: None)
        except KeyboardInterrupt:
            assert not target.exists()
            assert list(artefact.found(tmp_path)) == []
    assert runs == 4
    assert len(written) == len(set(written)) + runs - 1  # each twice at most
    assert digests(target) == digests(home / "plain")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["plain"]


def test_a_torn_line_costs_one_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it wrote down a finished file, and stopped again later: what was written down
    after that line is taken all the same."""
    target, write, written = tmp_path / "plain", shards.write, list[str]()

    def stop_at_fourth(file: Path, *args: Any) -> artefact.Shard:
        written.append(file.name)
        if len(written) in (4, 8):
            raise KeyboardInterrupt
        return write(file, *args)

    monkeypatch.setattr(shards, "write", stop_at_fourth)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            conversion().run(target, lambda *_: None)
        with (target.with_name("plain.part") / convert.JOURNAL).open("a") as journal:
            journal.write('{"name": "transf')
    conversion().run(target, lambda *_: None)
    assert len(written) == len(set(written)) + 3  # two that were stopped, one of the torn line
    assert digests(target) == digests(home / "plain")


def test_what_somebody_spoilt_is_made_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished file that was cut or taken away while nothing ran."""
    target, part = tmp_path / "plain", tmp_path / "plain.part"
    monkeypatch.setattr(convert.Conversion, "_tables", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        conversion().run(target, lambda *_: None)
    monkeypatch.undo()
    with (part / "transformer/block-01.safetensors").open("r+b") as cut:
        cut.truncate(1000)
    (part / "transformer/block-02.safetensors").unlink()
    conversion().run(target, lambda *_: None)
    assert digests(target) == digests(home / "plain")


def test_another_order_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished for other LoRAs is not taken for this."""
    target, write = tmp_path / "one", shards.write
    monkeypatch.setattr(convert.Conversion, "_tables", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        conversion().run(target, lambda *_: None)
    monkeypatch.undo()
    names: list[str] = []
    monkeypatch.setattr(
        shards, "write", lambda file, *args: names.append(file) or write(file, *args)
    )
    conversion(DEMO, LORA).run(target, lambda *_: None)
    assert len(names) == 8


def test_a_short_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a byte of the source is read, with figures."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    monkeypatch.setattr(convert, "Reader", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(errors.StorageFull, match=r"needs 0\.0 GB more and 1 GB to spare"):
        conversion().run(tmp_path / "a", lambda *_: None)


def test_what_is_there_stays(tmp_path: Path, home: Path) -> None:
    """A whole artefact is not made twice; another folder is not written over, nor taken for it."""
    before = (home / "plain/manifest.json").stat().st_mtime_ns
    assert conversion().run(home / "plain", lambda *_: None) == home / "plain"
    assert (home / "plain/manifest.json").stat().st_mtime_ns == before
    (tmp_path / "photos").mkdir()
    for other in (tmp_path / "photos", home / "lightning"):
        with pytest.raises(errors.ConfigError, match="not this artefact whole"):
            conversion().run(other, lambda *_: None)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on files' sizes")
def test_a_disk_that_fills_up(tmp_path: Path, home: Path) -> None:
    """A write that fails in its thread ends the run with all threads; no half file is taken."""
    import resource

    size = max(shard.size for shard in next(artefact.found(home)).manifest.files.values())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            conversion().run(tmp_path / "plain", lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = [thread.name.partition("_")[0] for thread in threading.enumerate()]
    assert not {"hash", "write", "weights"} & {*names}
    assert made(tmp_path / "plain") and digests(tmp_path / "plain") == digests(home / "plain")


def test_a_card_that_fills_up(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is rounded on the CPU, with what was written before left as it is."""
    card, read, by_row, written = torch.device("cuda", 0), lora.read, linears.by_row, []
    monkeypatch.setattr(convert, "device_for_rounding", lambda: card)
    reader = convert.Conversion._reader
    monkeypatch.setattr(convert.Conversion, "_reader", lambda job, _: reader(job, CPU))
    monkeypatch.setattr(lora, "read", lambda file, of, _: read(file, of, CPU))

    def full(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        written.append(job._device)
        if len(written) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return by_row(weight)

    monkeypatch.setattr(linears, "by_row", full)
    target, job = tmp_path / "lightning", conversion(DEMO, LORA)
    job.run(target, lambda *_: None)
    assert written[:20] == [card] * 20 and {*written[20:]} == {CPU}
    assert digests(target) == digests(home / "lightning")
    monkeypatch.setattr(linears, "by_row", lambda _: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match="memory"):  # the machine's own: nothing is left
        conversion().run(tmp_path / "plain", lambda *_: None)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), torch.AcceleratorError("busy")]
)
def test_a_card_without_room_for_a_context(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Even asking how full it is fails; then the CPU rounds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", Mock(side_effect=error))
    assert convert.device_for_rounding() == CPU


@pytest.mark.timeout(60)
def test_hashing_ends_with_the_work(tmp_path: Path) -> None:
    """A terabyte is not read to its end by whom nobody waits for; a small file's hash is right."""
    large, small = tmp_path / "large", tmp_path / "small"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    small.write_bytes(b"bytes" * 1_000_000)
    with pytest.raises(ZeroDivisionError), hashes.Hashes([large, large]):
        raise ZeroDivisionError
    with hashes.Hashes([small]) as found:
        assert found.found() == {hashes.told(small): hashlib.sha256(small.read_bytes()).hexdigest()}
    (tmp_path / "lost").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError), hashes.Hashes([tmp_path / "lost"]) as found:
        found.found()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.part"), "a.part: No space left"),
        (MemoryError(), "memory ran out"),
        (KeyboardInterrupt(), "stopped"),
    ],
    ids=str,
)
def test_what_the_machine_refuses_is_told(
    error: BaseException,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In a line, with what to do; no traceback."""
    monkeypatch.setattr(convert.Conversion, "run", Mock(side_effect=error))
    assert converting.main(['{"engine": {"model": "demo"}}']) != 0
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"vellumd: {told}")


def test_a_card_is_named_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits on it beside knows how much of it is taken."""
    job = conversion()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    job._device = torch.device("cuda", 0)
    assert str(job.needs()).endswith("rounds with up to 3 GB of NVIDIA H200")


@pytest.mark.parametrize(
    ("fused", "loras", "said"),
    [
        (None, [("lightning-8", 1.0), (str(LORA), 1.0)], "are the same LoRA"),
        (None, [("lightning-8", 1.0), ("lightning-8", 0.5)], "are the same LoRA"),
        ("lightning-4", [("lightning-8", 1.0)], "is inside the model's weights"),
        (None, [("gone", 1.0)], "There is no LoRA 'gone'"),
    ],
)
def test_loras_that_would_count_twice(
    fused: str | None,
    loras: list[tuple[str, float]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Are refused before anything is read."""
    card = model_card.read("demo").model_copy(update={"fused": fused})
    monkeypatch.setattr(model_card, "of", lambda _: card)
    wanted = converting.Wanted(engine=EngineSettings(model="demo"), loras=tuple(loras))
    with pytest.raises(errors.UnknownLora, match=said):
        converting.make(wanted)


@pytest.mark.parametrize("scale", ["nan", "inf", "0", "-0.0", "4.1", "-9"])
def test_scales_that_cannot_be(scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says which there are; a file's name may hold the sign."""
    from vellumd.cli import main

    with pytest.raises(SystemExit, match="2"):
        main.main(["convert", "demo", "--lora", f"lightning-8={scale}"])
    assert "a scale is from -4 to 4" in capsys.readouterr().err
    assert scaled("a=b.safetensors") == ("a=b.safetensors", 1.0)
    assert scaled("a=b.safetensors=-0.5") == ("a=b.safetensors", -0.5)


def test_one_at_a_time(tmp_path: Path) -> None:
    """Two conversions into one folder would tear each other's files."""
    from vellumd import platform

    lock = platform.FileLock(tmp_path / convert.LOCK)
    with pytest.raises(errors.ConfigError, match="Another process"):
        conversion().run(tmp_path / "a", lambda *_: None)
    lock.release()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo with a transformer of 240 MB in its place, as long as it is needed."""
    folder = Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("large") / "model"))
    config = json.loads((folder / "transformer/config.json").read_text())
    config |= {"num_attention_heads": 18, "num_layers": 10}
    config["joint_attention_dim"] = 192
    (folder / "transformer/config.json").write_text(json.dumps(config))
    tensors = {
        name: torch.full(shape, 0.01, dtype=torch.bfloat16)
        for name, shape in shapes.transformer(config).items()
    }
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    yield folder
    shutil.rmtree(folder)


def own_memory() -> int:
    """Bytes of this process that are no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small(large: Path, tmp_path: Path) -> None:
    """Of 240 MB neither source nor artefact is ever held: blocks come and go."""
    job = conversion(large)
    size = job.needs().reads
    assert size > 200e6
    before, most, over = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, own_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        job.run(tmp_path / "large", lambda *_: None)
    finally:
        over.set()
        watcher.join()
    print(f"{most / 1e6:.0f} MB for a source of {size / 1e6:.0f} MB")
    assert most < 0.6 * size


@pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL")
def test_sigkill(large: Path, tmp_path: Path) -> None:
    """The command killed in the middle leaves nothing running, the same one completes, and
    finished files are not touched."""
    target = tmp_path / "out"
    wanted = converting.Wanted(engine=EngineSettings(model=str(large)), target=target)
    child = subprocess.Popen(
        [sys.executable, "-m", "vellumd", "convert", str(large), str(target)],
        stderr=subprocess.PIPE,
    )
    journal = target.with_name("out.part") / convert.JOURNAL
    deadline = time.monotonic() + 120
    while not journal.is_file() or len(journal.read_text().splitlines()) < 4:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    _, said = child.communicate(timeout=60)  # until what it started has ended too
    assert b"reads 0.2 GB" in said and b"takes about" in said
    assert b"rounds with the CPU" in said
    assert not target.exists()
    finished = [json.loads(line)["name"] for line in journal.read_text().splitlines()[1:4]]
    times = {name: (journal.parent / name).stat().st_mtime_ns for name in finished}
    assert converting.make(wanted) == target
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == times
    assert next(artefact.found(tmp_path)).folder == target


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`vellumd convert demo DST --lora ROLE=SCALE` prints where the artefact is."""
    from vellumd.cli import main

    target = tmp_path / "made"
    assert main.main(["convert", "demo", str(target), "--lora", "lightning-8=0.5"]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(target)
    assert "GB written" in err
    again = converting.Wanted(engine=EngineSettings(), target=target, loras=(("lightning-8", 0.5),))
    assert converting.main([again.model_dump_json()]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(target)
    assert err == "demo: was made before, of the same files\n"
    (fused,) = next(artefact.found(tmp_path)).manifest.order.fused
    assert (fused.file.name, fused.scale) == (LORA.name, 0.5)
    assert converting.main(['{"engine": {"model": "/nowhere"}}']) == 1
    assert "There is no model" in capfd.readouterr().err


# finding it


def test_it_is_found_by_its_key(home: Path, tmp_path: Path) -> None:
    """Without reading weights; a source that changed, or a file that is lost, ends that."""
    source = artefact.source_of(open_model(DEMO).transformer.files)
    stamp = artefact.Stamp.of(LORA)

    def best(*wanted: tuple[artefact.Stamp, float], of: Any = source) -> str | None:
        one = artefact.best(artefact.found(home), of, (), wanted)
        return one.folder.name if one else None

    assert best() == "plain"
    assert best((stamp, 1.0)) == "lightning"
    assert best((stamp, 0.5)) == "plain"  # the LoRA runs beside it
    assert best((stamp, 1.0), (stamp.model_copy(update={"name": "b"}), 1.0)) == "lightning"
    changed = tuple(one.model_copy(update={"mtime_ns": 1}) for one in source)
    assert best(of=changed) is None
    assert artefact.best(artefact.found(home), source, ("img_mlp.net.2",), ()) is None
    other = Path(shutil.copytree(home, tmp_path / "other"))
    for name, key, value in (("plain", "key", "0" * 64), ("lightning", "order", {"format": 0})):
        file = other / name / artefact.MANIFEST
        told = json.loads(file.read_bytes())
        told[key] = {**told[key], **value} if isinstance(value, dict) else value
        file.write_text(json.dumps(told))
    assert list(artefact.found(other)) == []
    copy = Path(shutil.copytree(home, tmp_path / "copy"))
    (copy / "plain/transformer/block-00.safetensors").unlink()
    (copy / "lightning/manifest.json").write_text("{")
    (copy / "a file").write_text("")
    assert list(artefact.found(copy)) == []
    assert list(artefact.found(tmp_path / "nowhere")) == []


@pytest.fixture
def engine(home: Path) -> Callable[..., pipeline.QwenEngine]:
    def start(**settings: Any) -> pipeline.QwenEngine:
        settings = {"recipe": "fp8-weights", "artifact_dir": str(home), **settings}
        init = protocol.Init(engine="", settings=settings, spool=home, cache=home)
        return pipeline.create(init)

    return start


def test_presets_swap_artefacts(engine: Callable[..., pipeline.QwenEngine], tmp_path: Path) -> None:
    """An edit gets the artefact with its LoRA inside; the swap is told and leaves no trace."""
    file = tmp_path / "in.png"
    file.write_bytes(encoded(picture(64, 64)))
    image = reference(file.read_bytes())
    running = engine()

    def edit(told: Told, *loras: LoraRef) -> bytes:
        asked = resolved([image], loras=loras, scheduler="lightning" if loras else "base", steps=4)
        (result,) = running.edit(asked, [file], told, lambda: False)
        return result.tobytes()

    def inside() -> str:
        assert running._model is not None and running._model.parts.ready is not None
        return running._model.parts.ready.folder.name

    capabilities = running.load(Told())
    assert capabilities.recipe == "fp8-weights"
    assert inside() == "lightning"  # what the demo's default preset wants
    role = LoraRef(name="lightning-8")
    quiet, swapped = Told(), Told()
    first = edit(quiet, role)
    assert not [beat for beat in quiet.beats if beat[0] == "swap"]
    plain = edit(swapped)
    assert inside() == "plain"
    assert [beat for beat in swapped.beats if beat[0] == "swap"]
    assert [beat for beat in swapped.beats if beat[0] == "modulation"]  # base: not tabled
    assert plain != first
    assert edit(Told(), role) == first
    assert edit(Told()) == plain
    half = edit(Told(), LoraRef(name="lightning-8", scale=0.5))
    assert inside() == "plain"
    assert half not in (first, plain)
    running.unload()


def test_an_exchange_that_fails_is_tried_anew(
    engine: Callable[..., pipeline.QwenEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a card that was full for a moment would end each edit until the next start."""
    file = tmp_path / "in.png"
    file.write_bytes(encoded(picture(64, 64)))
    running, role = engine(), LoraRef(name="lightning-8")

    def edit(*loras: LoraRef) -> bytes:
        image = reference(file.read_bytes())
        asked = resolved([image], loras=loras, scheduler="lightning" if loras else "base", steps=2)
        (result,) = running.edit(asked, [file], Told(), lambda: False)
        return result.tobytes()

    running.load(Told())
    first = edit(role)
    exchange = loading.exchange
    monkeypatch.setattr(loading, "exchange", Mock(side_effect=errors.OutOfMemory("full")))
    for loras in ((), (role,)):
        with pytest.raises(errors.OutOfMemory):
            edit(*loras)
    monkeypatch.setattr(loading, "exchange", exchange)
    assert edit(role) == first != edit()
    running.unload()
    with pytest.raises(errors.EngineUnavailable):
        edit(role)


def test_without_artefacts_the_model_is_rounded(
    engine: Callable[..., pipeline.QwenEngine], tmp_path: Path
) -> None:
    """As it is loaded, and nothing is written anywhere; bf16 never looks for artefacts."""
    running = engine(artifact_dir=str(tmp_path))
    capabilities = running.load(Told())
    assert running._model is not None and running._model.parts.ready is None
    assert any("no artefact fits" in note for note in capabilities.notes)
    assert list(tmp_path.iterdir()) == []
    exact = engine(recipe="bf16")
    exact.load(Told())
    assert exact._model is not None and exact._model.parts.ready is None


def test_a_damaged_artefact_is_named(
    engine: Callable[..., pipeline.QwenEngine], home: Path, tmp_path: Path
) -> None:
    """Its files are called as a model's are, so nobody would know what to take away."""
    copy = Path(shutil.copytree(home, tmp_path / "copy"))
    running = engine(artifact_dir=str(copy))
    notes = running.load(Told()).notes
    assert "the transformer comes from the artefact lightning" in notes
    file = copy / "lightning/transformer/block-00.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:20] + b"XXXX" + data[24:])
    with pytest.raises(errors.ModelInvalid, match=r"The artefact lightning is damaged.*Remove"):
        engine(artifact_dir=str(copy)).load(Told())
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    one = next(one for one in artefact.found(copy) if one.folder.name == "lightning")
    one.check()
    with pytest.raises(errors.ModelInvalid, match=r"lightning is damaged.*what was written"):
        one.check(hashes=True)
    file.write_bytes(data)
    one.check(hashes=True)


def test_the_usual_place() -> None:
    """Beside what else can be made again."""
    from vellumd import platform

    assert artefact.home(EngineSettings().artifact_dir) == platform.cache_dir() / "artifacts"
