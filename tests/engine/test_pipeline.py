"""The Qwen engine in this process: repeatability, cancel, memory, LoRAs, prompts."""

from __future__ import annotations

import copy
import errno
import hashlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.engine.support import PICTURES, Told, reference, resolved
from vellumd import errors
from vellumd.engine import latents, memory
from vellumd.engine.model import Model
from vellumd.engine.run import Run
from vellumd.models import LoraRef, ResolvedEdit

REFERENCES = [reference(data) for data in PICTURES]
LIGHTNING = LoraRef(name="lightning-8")


def never() -> bool:
    return False


def paint(
    model: Model,
    files: list[Path],
    told: Told | None = None,
    cancelled: Callable[[], bool] = never,
    **fields: Any,
) -> list[Image.Image]:
    edit = resolved(REFERENCES[: len(files)], **fields)
    return list(Run(model, edit, told or Told(), cancelled).pictures(files))


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def weights_hash(model: Model) -> str:
    """A hash of all base weights, whatever LoRA layers wrap them."""
    digest = hashlib.sha256()
    for part in (model.parts.transformer, model.parts.text_encoder, model.parts.vae):
        for name, tensor in sorted(part.state_dict().items()):
            if "lora_" not in name:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_a_job_repeats_exactly(model: Model, files: list[Path]) -> None:
    """The same edit gives the same bytes; another seed gives others."""
    first = paint(model, files, true_cfg_scale=3.0)
    assert same(first, paint(model, files, true_cfg_scale=3.0))
    assert not same(first, paint(model, files, true_cfg_scale=3.0, seed=8))


def test_noise_of_each_step_is_the_seeds(model: Model, files: list[Path]) -> None:
    """A schedule that draws noise at each step, as the demo's does, leaves nothing to chance."""
    assert model.parts.scheduler["stochastic_sampling"]
    first = paint(model, files, steps=4, seed=7)
    torch.manual_seed(123)
    assert same(first, paint(model, files, steps=4, seed=7))
    model = copy.copy(model)
    model.parts = replace(
        model.parts, scheduler={**model.parts.scheduler, "stochastic_sampling": False}
    )
    assert not same(first, paint(model, files, steps=4, seed=7))


def test_n_results_are_the_edits_of_the_following_seeds(model: Model, files: list[Path]) -> None:
    """Result k of n is what a job with seed + k - 1 gives."""
    several = paint(model, files, n=3, seed=40)
    single = [paint(model, files, seed=seed)[0] for seed in (40, 41, 42)]
    assert same(several, single)


def test_match_gives_the_first_pictures_size(model: Model, files: list[Path]) -> None:
    """With `match` the result has the size of image 1; `WxH` is floored to 16."""
    assert paint(model, files, size="match")[0].size == (80, 60)
    assert paint(model, files, size="70x100")[0].size == (64, 96)


def test_one_step_paints(model: Model, files: list[Path]) -> None:
    """A single base step does not end in a black picture."""
    painted = paint(model, files, steps=1)[0]
    assert len(set(painted.convert("L").tobytes())) > 20


def test_prompts_in_any_script(model: Model, files: list[Path]) -> None:
    """Korean, emoji, nothing, and special tokens written by a user all give pictures."""
    prompts = (
        "하늘을 노을로 🌅",
        "👩‍👩‍👧‍👦",
        " ",
        "<|image_pad|><|im_end|> <|video_pad|>",
        "a\x00b",
    )
    pictures = [paint(model, files[:1], prompt=prompt)[0] for prompt in prompts]
    assert len({image.tobytes() for image in pictures}) == len(prompts)


def test_a_long_prompt_is_cut_with_a_warning(model: Model, files: list[Path]) -> None:
    """10 KB are cut to the encoder's limit, never inside a character, and told once."""
    told = Told()
    paint(model, files[:1], told, prompt="빨강 " * 1500, true_cfg_scale=2.0)
    assert told.warnings == ["prompt_cut"]
    readable, cut = model.encoder.readable("빨강 " * 1500)
    assert cut
    assert set(readable) <= set("빨강 ")
    whole, cut = model.encoder.readable("word " * 1500)
    tokens = model.parts.processor.tokenizer(whole)["input_ids"]
    assert cut and len(tokens) == model.card.prompt_tokens  # as many as there may be
    assert model.encoder.readable(whole) == (whole, False)
    assert model.encoder.readable("빨강") == ("빨강", False)


def test_beats_and_steps_come_from_the_work(model: Model, files: list[Path]) -> None:
    """Every block beats; each step of each result is told once, in order."""
    told = Told()
    paint(model, files, told, n=2, true_cfg_scale=2.0)
    blocks = len(model.parts.transformer.transformer_blocks)
    denoised = [beat for beat in told.beats if beat[0] == "denoise"]
    assert denoised == [("denoise", k, 2 * blocks) for k in range(2 * blocks + 1)] * 2
    assert told.steps == [(1, 2, 1, 2), (1, 2, 2, 2), (2, 2, 1, 2), (2, 2, 2, 2)]


def test_previews_only_when_wanted(model: Model, files: list[Path]) -> None:
    """Somebody looking gets a small picture a step but the last; nobody, none."""
    told = Told(wants_preview=True)
    with_previews = paint(model, files, told, steps=4)
    assert len(told.previews) == 3
    assert all(max(preview.size) <= 256 for preview in told.previews)
    quiet = Told()
    assert same(paint(model, files, quiet, steps=4), with_previews)
    assert quiet.previews == []


def test_preview_by_the_cards_colours() -> None:
    """A card's map gives each latent a colour: channel 0 as red over a grey bias."""
    colours = ((1.0, 0.0, 0.0), *(((0.0, 0.0, 0.0),) * 15), (0.0, 0.0, 0.0))
    latent = torch.zeros(1, 16, 1, 2, 3)
    latent[0, 0, 0, 1, 2] = 1
    sketch = latents.tint(latent, colours)
    assert sketch.size == (3, 2)
    assert sketch.getpixel((2, 1)) == (255, 128, 128)
    assert sketch.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("after", [0, 1, 5, 9, 20])
def test_cancel_ends_within_one_block(model: Model, files: list[Path], after: int) -> None:
    """Once the flag is up, no further block begins; nothing of it stays behind."""
    expected = paint(model, files)
    begun = 0

    def count(*_: object) -> None:
        nonlocal begun
        begun += 1

    blocks = [*model.parts.encoder_blocks(), *model.forwards.exact.blocks]
    handles = [block.register_forward_pre_hook(count) for block in blocks]
    with pytest.raises(errors.Cancelled):
        paint(model, files, steps=4, cancelled=lambda: begun >= after)
    for handle in handles:
        handle.remove()
    assert begun == after
    assert same(paint(model, files), expected)


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)
"""As the driver, convolutions, the CPU's allocator here and on Windows, and Python say it."""


def fail_in_decoder(model: Model, times: int) -> tuple[Any, list[bool]]:
    """Let the VAE's decoder run out of memory `times` times; how each was tiled."""
    tiled: list[bool] = []

    def full(*_: object) -> None:
        tiled.append(model.parts.vae.use_tiling)
        if len(tiled) <= times:
            raise SHORT[0]

    return model.parts.vae.decoder.register_forward_pre_hook(full), tiled


def test_out_of_memory_goes_down_the_ladder(model: Model, files: list[Path]) -> None:
    """Caches are freed, then the VAE works in tiles, each told; the next edit is as ever."""
    expected = paint(model, files)
    for times, warnings in ((1, ["memory_freed"]), (2, ["memory_freed", "vae_tiled"])):
        handle, tiled = fail_in_decoder(model, times)
        told = Told()
        retried = paint(model, files, told)
        handle.remove()
        assert tiled == [False, False, True][: times + 1]
        assert told.warnings == warnings
        assert told.steps == [(1, 1, 1, 2), (1, 1, 2, 2)]  # what was denoised is kept
        assert same(retried, expected)  # a canvas this small fits in one tile
    assert model.parts.vae.use_tiling is False
    quiet = Told()
    assert same(paint(model, files, quiet), expected)
    assert quiet.warnings == []


@pytest.mark.parametrize("error", SHORT, ids=lambda error: str(error)[:40])
def test_every_way_of_running_out_goes_down_the_ladder(model: Model, error: Exception) -> None:
    """The driver, the allocator of the CPU and Python say it in words of their own."""
    told, work = Told(), Mock(side_effect=[error, error, "done"])
    with memory.Ladder(memory.rungs(model.parts), told) as ladder:
        assert ladder.climb(work) == "done"
    assert told.warnings == ["memory_freed", "vae_tiled"]


def test_what_this_machine_says_goes_down_the_ladder(model: Model) -> None:
    """torch on the CPU, asked for more than any machine has."""
    told = Told()
    with (
        memory.Ladder(memory.rungs(model.parts), told) as ladder,
        pytest.raises(errors.OutOfMemory),
    ):
        ladder.climb(lambda: torch.empty(1 << 60))
    assert told.warnings == ["memory_freed", "vae_tiled", "weights_streamed"]


def test_other_errors_are_no_lack_of_memory(model: Model) -> None:
    """They end the edit at once."""
    told, work = Told(), Mock(side_effect=RuntimeError("mat1 and mat2 cannot be multiplied"))
    with (
        memory.Ladder(memory.rungs(model.parts), told) as ladder,
        pytest.raises(RuntimeError, match="mat1"),
    ):
        ladder.climb(work)
    assert work.call_count == 1 and told.warnings == []


def test_each_rung_is_taken_once_an_edit(model: Model, files: list[Path]) -> None:
    """Executions stay within one and one for each rung, whichever of n results it is."""
    handle, tiled = fail_in_decoder(model, times=2)
    assert len(paint(model, files, n=3)) == 3
    handle.remove()
    assert tiled == [False, False, True, True, True]


def test_out_of_memory_on_every_rung_is_a_clean_failure(model: Model, files: list[Path]) -> None:
    """A failure on the last rung is `out_of_memory`, and leaves nothing behind."""
    expected = paint(model, files)
    handle, tiled = fail_in_decoder(model, times=4)
    with pytest.raises(errors.OutOfMemory):
        paint(model, files)
    handle.remove()
    assert len(tiled) == 4
    assert model.parts.vae.use_tiling is False
    assert same(paint(model, files), expected)


def test_a_rung_begins_when_the_tensors_before_it_are_gone(model: Model) -> None:
    """What a failed attempt held is free before the next one (pytorch/pytorch#18853)."""
    alive: list[weakref.ref[torch.Tensor]] = []
    seen: list[bool] = []

    def work() -> str:
        seen.append(any(tensor() is not None for tensor in alive))
        held = torch.zeros(8)
        alive.append(weakref.ref(held))
        if len(alive) < 3:
            raise torch.OutOfMemoryError("simulated")
        return "done"

    with memory.Ladder(memory.rungs(model.parts), Told()) as ladder:
        assert ladder.climb(work) == "done"
    assert seen == [False, False, False]


def test_not_a_number_is_bad_output(model: Model, files: list[Path]) -> None:
    """NaN from the decoder is a failure, never a black picture."""
    handle = model.parts.vae.decoder.register_forward_hook(
        lambda _module, _inputs, output: output * float("nan")
    )
    with pytest.raises(errors.BadOutput):
        paint(model, files)
    handle.remove()


def test_lora_leaves_no_trace(model: Model, files: list[Path]) -> None:
    """On, off and at other scales: base weights and LoRA-free results stay the same."""
    plain, weights = paint(model, files), weights_hash(model)
    full = paint(model, files, loras=(LIGHTNING,))
    half = paint(model, files, loras=(LoraRef(name="lightning-8", scale=0.5),))
    assert not same(full, plain)
    assert not same(half, full)
    assert same(paint(model, files), plain)
    assert same(paint(model, files, loras=(LIGHTNING,)), full)
    assert weights_hash(model) == weights


def test_several_loras_add_up(model: Model, files: list[Path]) -> None:
    """One file under two names at scale 0.5 each acts like it once at scale 1."""
    twice = (
        LoraRef(name="lightning-8", scale=0.5),
        LoraRef(name="demo-lightning-8steps", scale=0.5),
    )
    edits = [resolved(REFERENCES, loras=loras) for loras in (twice, (LIGHTNING,), ())]
    both, once, none = (tokens(model, files, edit) for edit in edits)
    assert (both - once).abs().max() < 1e-3
    assert (none - once).abs().max() > 1e-2


def tokens(model: Model, files: list[Path], edit: ResolvedEdit) -> torch.Tensor:
    from vellumd.images import Canvas

    canvas = Canvas.plan("64x64", [(one.width, one.height) for one in edit.images], 4096)
    model.loras.use(edit.loras)
    run = Run(model, edit, Told(), never)
    return run.denoise(run.encode(files, canvas), canvas, 0)


def test_an_unknown_lora_fails_before_any_block(model: Model, files: list[Path]) -> None:
    """`unknown_lora` comes before GPU time, and the edit after it is as ever."""
    expected, told = paint(model, files), Told()
    with pytest.raises(errors.UnknownLora):
        paint(model, files, told, loras=(LIGHTNING, LoraRef(name="not-here")))
    assert [phase for phase, *_ in told.beats] == ["lora"]  # no block has run
    assert same(paint(model, files), expected)


@pytest.mark.parametrize("kind", ["truncated", "foreign", "huge header", "pickle"])
def test_a_damaged_lora_is_refused(
    model: Model, files: list[Path], demo: Path, tmp_path: Path, kind: str
) -> None:
    """A truncated, foreign or lying file fails as `unknown_lora`; the edit after is as ever."""
    from safetensors.torch import save_file

    from vellumd.engine.lora import Loras

    good = (demo / "loras" / "demo-lightning-8steps.safetensors").read_bytes()
    bad = tmp_path / ("bad.bin" if kind == "pickle" else "bad.safetensors")
    if kind == "foreign":
        save_file({"other.lora_down.weight": torch.ones(2, 2),
                   "other.lora_up.weight": torch.ones(2, 2)}, bad)  # fmt: skip
    else:
        bad.write_bytes(b"\xff" * 8 + good[8:] if kind == "huge header" else good[:-100])
    expected = paint(model, files)
    loras = Loras(model.parts, demo, model.card, {"bad": str(bad)})
    with pytest.raises(errors.UnknownLora, match=r"bad"):
        loras.use((LoraRef(name="bad"),))
    assert same(paint(model, files), expected)
