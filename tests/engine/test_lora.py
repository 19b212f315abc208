"""LoRAs as tensors: every dialect of one LoRA means the same change of the weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.layouts import Tensors
from vellumd import errors, model_card
from vellumd.engine import loading, lora
from vellumd.engine.lora import Branched
from vellumd.engine.model import Model
from vellumd.memory_plan import Plan
from vellumd.models import LoraRef
from vellumd.weights.lora import PEFT_KEY

ALPHA = 8.0


@pytest.fixture(scope="module")
def own() -> Tensors:
    """The demo's LoRA, of rank 16, with an alpha that is not its rank."""
    (file,) = (model_card.DEMO_FOLDER / "loras").glob("*.safetensors")
    found = load_file(file)
    return {n: torch.tensor(ALPHA) if n.endswith(".alpha") else t for n, t in found.items()}


def renamed(own: Tensors, name: Callable[[str], str], *, peft: bool = False) -> Tensors:
    """`own` under other names; `peft`: without alphas, A and B."""
    made: Tensors = {}
    for key, tensor in own.items():
        module, _, rest = key.partition(".lora_") if ".lora_" in key else key.rpartition(".")
        rest = f"lora_{rest}" if ".lora_" in key else rest
        if peft:
            rest = rest.replace("down", "A").replace("up", "B")
        if not (peft and rest == "alpha"):
            made[f"{name(module)}.{rest}"] = tensor
    return made


def read(file: Path, model: Model) -> dict[str, lora.Pair]:
    """The pairs in `file`, as they fit the demo."""
    return lora.read(file, model.parts.model.transformer, torch.device("cpu"))


def deltas(pairs: dict[str, lora.Pair]) -> dict[str, Tensor]:
    """What is added to each weight."""
    return {name: pair.scale * pair.up.float() @ pair.down.float() for name, pair in pairs.items()}


PEFT = {
    PEFT_KEY: json.dumps({"transformer.r": 16, "transformer.lora_alpha": ALPHA}),
}
DIALECTS: dict[str, tuple[Callable[[str], str], bool]] = {
    "comfy": (lambda module: f"diffusion_model.{module}", False),
    "kohya": (lambda module: f"lora_unet_{module.replace('.', '_')}", False),
    "diffusers": (lambda module: f"transformer.{module}", True),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(model: Model, own: Tensors, tmp_path: Path, dialect: str) -> None:
    """Alpha over rank counts in each, also where peft's settings tell it."""
    save_file(own, tmp_path / "own.safetensors")
    name, peft = DIALECTS[dialect]
    made = renamed(own, name, peft=peft)
    save_file(made, tmp_path / "other.safetensors", metadata=PEFT if peft else None)
    expected = deltas(read(tmp_path / "own.safetensors", model))
    found = deltas(read(tmp_path / "other.safetensors", model))
    assert len(found) == 60
    assert all(torch.equal(found[module], delta) for module, delta in expected.items())
    # The whole change is half of what alpha = rank would make of it.
    first = next(iter(found))
    up, down = own[f"{first}.lora_up.weight"], own[f"{first}.lora_down.weight"]
    assert torch.allclose(found[first], 0.5 * up.float() @ down.float())


@pytest.mark.parametrize("dialect", ["comfy", "kohya"])
def test_diffusers_reads_the_same(model: Model, own: Tensors, tmp_path: Path, dialect: str) -> None:
    """diffusers' own converter comes to the same change of the weights."""
    made = renamed(own, DIALECTS[dialect][0])
    save_file(made, tmp_path / "x.safetensors")
    found = deltas(read(tmp_path / "x.safetensors", model))
    theirs = QwenImageLoraLoaderMixin.lora_state_dict(dict(made))
    assert 2 * len(found) == len(theirs)
    for module, delta in found.items():
        down = theirs[f"transformer.{module}.lora_A.weight"].float()
        up = theirs[f"transformer.{module}.lora_B.weight"].float()
        assert torch.allclose(up @ down, delta, rtol=0.02, atol=1e-4)


def test_one_of_another_model(model: Model, own: Tensors, tmp_path: Path) -> None:
    """An edit that names it ends in a sentence, and the next one is as before."""
    (tmp_path / "loras").mkdir()
    save_file({f"{n}x": t for n, t in own.items()}, tmp_path / "loras" / "other.safetensors")
    loras = lora.Loras(model.parts, tmp_path, model.card, {})
    assert loras.names() == ("other",)
    with pytest.raises(errors.UnknownLora, match=r"other\.safetensors"):
        loras.use([LoraRef(name="other")])
    loras.use([])
    with pytest.raises(errors.UnknownLora):
        loras.use([LoraRef(name="gone")])


def test_one_that_changes_a_table(model: Model, demo: Path, tmp_path: Path) -> None:
    """Modulation that comes from tables is no linear any more; it is said how to have it."""
    parts = loading.load(demo, torch.device("cpu"), lambda *_: None, plan=Plan(tabled=True))
    module, width = "transformer_blocks.0.img_mod.1", parts.transformer.inner_dim
    halves = {"down": torch.ones(2, width), "up": torch.ones(6 * width, 2)}
    file = tmp_path / "x.safetensors"
    save_file({f"{module}.lora_{half}.weight": tensor for half, tensor in halves.items()}, file)
    assert module in read(file, model)
    loras = lora.Loras(parts, demo, model.card, {"x": str(file)})
    with pytest.raises(errors.UnknownLora, match=r"is a table here: fuse it with .vellumd convert"):
        loras.use([LoraRef(name="x")])


def test_the_same_again_is_left_as_it_is(model: Model) -> None:
    """Two edits in a row with the same LoRAs move no branch; whatever differs does."""
    loras, role = model.loras, LoraRef(name="lightning-8")
    loras.use([])

    def branches() -> list[torch.nn.Module]:
        modules = model.parts.transformer.modules()
        return [module for module in modules if isinstance(module, Branched)]

    loras.use([role])
    first = branches()
    loras.use([role])
    assert first and all(a is b for a, b in zip(first, branches(), strict=True))
    loras.use([role.model_copy(update={"scale": 0.5})])
    assert not {*map(id, first)} & {*map(id, branches())}
    with pytest.raises(errors.UnknownLora):
        loras.use([LoraRef(name="gone")])
    assert not branches()
    loras.use([role.model_copy(update={"scale": 0.5})])
    assert len(branches()) == len(first)
    loras.use([])
    assert not branches()


def test_a_file_that_is_replaced(model: Model, own: Tensors, tmp_path: Path) -> None:
    """Under its own name, with its own size: the next edit has the new one, and says so."""
    home = tmp_path / "loras"
    home.mkdir()
    file, branch = home / "style.safetensors", "transformer_blocks.0.attn.to_q"
    loras = lora.Loras(model.parts, tmp_path, model.card, {})

    def put(strength: float) -> str:
        part = home / "part"
        save_file({n: strength * t if ".lora_up" in n else t for n, t in own.items()}, part)
        part.replace(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def used() -> tuple[Tensor, lora.UsedLora]:
        loras.use([LoraRef(name="style", scale=0.5)])
        (told,) = loras.used()
        return model.parts.transformer.get_submodule(branch).up.clone(), told

    model.loras.use([])
    first, second = put(1), put(1)
    assert first == second
    one, told = used()
    assert told == lora.UsedLora(name="style", scale=0.5, file=file.name, sha256=first)
    other = put(2)
    two, told = used()
    assert (told.sha256, told.file) == (other, file.name)
    assert torch.equal(two, 2 * one)
    put(3)  # while an edit runs with the one before
    assert loras.used()[0].sha256 is None
    file.unlink()
    with pytest.raises(errors.UnknownLora):
        loras.use([LoraRef(name="style", scale=0.5)])
    assert not loras.used()
    assert not [m for m in model.parts.transformer.modules() if isinstance(m, Branched)]


def test_half_a_lora_stays_nowhere(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory runs out among the branches, the next edit without LoRAs has none of them."""
    loras, made, role = model.loras, lora.Branched.__init__, LoraRef(name="lightning-8")
    begun: list[object] = []

    def full(branch: Branched, *given: Any) -> None:
        begun.append(branch)
        if len(begun) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made(branch, *given)

    loras.use([])
    monkeypatch.setattr(lora.Branched, "__init__", full)
    with pytest.raises(torch.OutOfMemoryError):
        loras.use([role])
    loras.use([])
    assert not [one for one in model.parts.transformer.modules() if isinstance(one, Branched)]


def test_only_the_last_edits_loras_stay(model: Model, tmp_path: Path) -> None:
    """Others go when a new one comes, so that memory stays bounded; without any, all are kept."""
    copied = shutil.copy(next((model_card.DEMO_FOLDER / "loras").iterdir()), tmp_path)
    loras = lora.Loras(model.parts, model_card.DEMO_FOLDER, model.card, {"other": Path(copied)})
    role, other = LoraRef(name="lightning-8"), LoraRef(name="other")

    def kept() -> list[Path]:
        return sorted(version.file.parent for version in loras._loaded)

    shipped = model_card.DEMO_FOLDER / "loras"
    for wanted, stay in (((role,), [shipped]), ((), [shipped]), ((other,), [tmp_path])):
        loras.use(wanted)
        assert kept() == stay
    loras.use((role, other))
    assert kept() == sorted([shipped, tmp_path])
    loras.use(())
