"""Damaged, incomplete and foreign model folders, and the demo's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from vellumd import errors
from vellumd.engine import loading, weights
from vellumd.engine.encode import PREFIX_TOKENS, TEMPLATE
from vellumd.engine.model import Model

CPU = torch.device("cpu")


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo to damage."""
    return Path(shutil.copytree(demo, tmp_path / "model"))


def truncate(folder: Path) -> None:
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])


def only_pickle(folder: Path) -> None:
    file = next((folder / "transformer").glob("*.safetensors"))
    torch.save({"a": torch.ones(1)}, file.with_suffix(".bin"))
    file.unlink()


def encoder_only_pickle(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"img_in.weight": "lost.safetensors"}}
    name = "diffusion_pytorch_model.safetensors.index.json"
    (folder / "transformer" / name).write_text(json.dumps(index))


def garbled_config(folder: Path) -> None:
    (folder / "vae/config.json").write_text("{")


def grow(file: Path, key: str, by: int) -> None:
    """Make a number of a config larger."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: config[key] + by}))


def other_size(folder: Path) -> None:
    grow(folder / "vae/config.json", "base_dim", 16)


def fewer_blocks(folder: Path) -> None:
    grow(folder / "transformer/config.json", "num_layers", -1)


def more_blocks(folder: Path) -> None:
    grow(folder / "transformer/config.json", "num_layers", 1)


def more_layers(folder: Path) -> None:
    config = json.loads((folder / "text_encoder/config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"]["layer_types"].append("full_attention")
    (folder / "text_encoder/config.json").write_text(json.dumps(config))


def no_processor(folder: Path) -> None:
    shutil.rmtree(folder / "processor")


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncate, "transformer"),
        (only_pickle, "transformer"),
        (encoder_only_pickle, "text_encoder"),
        (lost_shard, "lost.safetensors"),
        (garbled_config, "vae"),
        (other_size, "vae"),
        (fewer_blocks, "transformer"),
        (more_blocks, "transformer"),
        (more_layers, "text_encoder"),
        (no_processor, "processor"),
        (no_scheduler, "scheduler"),
        (no_index, "model_index.json"),
    ],
)
def test_a_damaged_model_is_refused(copy: Path, damage: Callable[[Path], None], part: str) -> None:
    """Whatever is wrong, loading ends with `model_invalid` that names the part, no path."""
    damage(copy)
    with pytest.raises(errors.ModelInvalid, match=part) as caught:
        loading.load(copy, CPU, lambda *_: None)
    assert str(copy.parent) not in caught.value.message


def test_a_whole_model_loads(copy: Path) -> None:
    """Undamaged, the copy loads: the refusals above are for their reasons."""
    beats: list[tuple[str, int, int]] = []
    parts = loading.load(copy, CPU, lambda *beat: beats.append(beat))
    assert parts.dtype is torch.float32
    assert not any(tensor.is_meta for tensor in parts.transformer.parameters())
    phase, done, of = beats[-1]
    assert phase == "load"
    assert done <= of


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), errors.OutOfMemory),
        (MemoryError("The host has no 0.2 GB of memory left."), errors.OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), errors.OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), errors.OutOfMemory),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), torch.AcceleratorError),
        (RuntimeError("anything"), errors.ModelInvalid),
    ],
)
def test_what_is_full_or_lost_is_no_damaged_model(
    demo: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    """What to do is another thing each time: fewer gigabytes, another process, another download."""
    monkeypatch.setattr(weights, "fill", Mock(side_effect=error))
    with pytest.raises(told) as caught:
        loading.load(demo, CPU, lambda *_: None)
    assert caught.type is told


def test_the_sentinel_is_no_weight(copy: Path) -> None:
    """`__index_timestep_zero__` is accepted and is no tensor of the model."""
    from safetensors.torch import load_file, save_file

    file = next((copy / "transformer").glob("*.safetensors"))
    save_file({**load_file(file), "__index_timestep_zero__": torch.empty(0)}, file)
    assert loading.load(copy, CPU, lambda *_: None).transformer.config.zero_cond_t


def test_the_demo_has_the_real_templates_prefix(model: Model) -> None:
    """The template before the user's part is 64 tokens, and any script round-trips."""
    words = model.parts.processor.tokenizer
    prefix = words(TEMPLATE.split("{}")[0]).input_ids
    assert len(prefix) == PREFIX_TOKENS
    for text in ("한국어 🌅 prompt", "\u200b\x00ÿ"):
        assert words.decode(words(text).input_ids) == text


def test_how_fast_it_was_read() -> None:
    """Progress is MiB of the whole; afterwards gigabytes a second, and each part's seconds."""
    beats: list[tuple[str, int, int]] = []
    read = loading.Read(lambda *told: beats.append(told), total=4 << 30)
    read(1 << 30)
    read(3 << 30)
    assert beats == [("load", 1024, 4096), ("load", 4096, 4096)]
    read.seconds, read.parts = 2.0, {"vae": 0.5}
    assert str(read) == "4.29 GB of weights in 2.0 s, 2.1 GB/s (vae 0.5 s)"
