"""What doctor says of artefacts: each that the engine will pass over is told, with why."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.weights import files
from vellumd import artefact
from vellumd.artefact import Fused, Manifest, Order, Shard, Stamp
from vellumd.cli import artefact_checks
from vellumd.hookspecs import Check
from vellumd.settings import EngineSettings, Settings
from vellumd.weights.model import open_model

NAME = "Qwen-Image-Edit-2511"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model."""
    return files.model_folder(tmp_path / NAME)


@pytest.fixture
def home(tmp_path: Path, folder: Path) -> Path:
    """The artefacts' folder, with one of the model that has a LoRA inside."""
    home = tmp_path / "artefacts"
    lora = Stamp(name="lightning.safetensors", size=1, mtime_ns=1, header="")
    source = artefact.source_of(open_model(folder).transformer.files)
    order = Order(source=source, fused=(Fused(file=lora, scale=0.5),))
    file = files.write(home / "one/transformer/rest.safetensors", {"x.weight": ("BF16", (2,))})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    shards = {"transformer/rest.safetensors": Shard(size=file.stat().st_size, sha256=digest)}
    manifest = Manifest(
        order=order, key=order.key, model=NAME, fp8_source=False, hashes={}, files=shards
    )
    (home / "one" / artefact.MANIFEST).write_text(manifest.model_dump_json())
    return home


def told(folder: Path, home: Path, *, hashes: bool = False, **engine: object) -> list[Check]:
    """What is said of the artefacts in `home`."""
    found = EngineSettings.model_validate({"model": str(folder), "artifact_dir": home, **engine})
    return list(artefact_checks.artefacts(Settings(engine=found), hashes=hashes))


def test_one_that_fits(folder: Path, home: Path) -> None:
    """What is inside is told; with hashes, that nothing has changed."""
    (one,) = told(folder, home)
    assert one == Check(True, "artefact one: lightning.safetensors at 0.5 inside, 0.0 GB")
    (one,) = told(folder, home, hashes=True)
    assert one.ok and one.text.endswith("as it was written to the byte")


def test_none(folder: Path, tmp_path: Path) -> None:
    """No fault, but told, with what makes one."""
    (one,) = told(folder, tmp_path / "nowhere")
    assert one.ok and "no artefact of this model" in one.text and "vellumd convert" in one.text
    assert list(artefact_checks.artefacts(Settings())) == []


def test_a_source_that_has_changed(folder: Path, home: Path) -> None:
    """The engine passes the artefact over without a word."""
    os.utime(folder / "transformer/model.safetensors", ns=(1, 1))
    stale, none = told(folder, home)
    assert (
        stale.ok and "artefact one is not used: it was made of other files, by size" in stale.text
    )
    assert "no artefact of this model" in none.text


def test_another_keep_list(folder: Path, home: Path) -> None:
    """It is part of the key as well."""
    (one,) = told(folder, home, keep=("img_mlp.net.2",))
    assert one.ok and "it was made with engine.keep = []" in one.text


def test_what_is_damaged(folder: Path, home: Path) -> None:
    """A flipped bit is found by its hash, a header at once, a lost file by its size."""
    file = home / "one/transformer/rest.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"\1")
    (one,) = told(folder, home)
    assert one.ok
    (one,) = told(folder, home, hashes=True)
    assert not one.ok and "The artefact one is damaged" in one.text
    file.write_bytes(data[:9] + b"XX" + data[11:])
    (one,) = told(folder, home)
    assert not one.ok and "garbled header" in one.text and "Remove its folder" in one.text
    file.write_bytes(data[:-1])
    none, one = told(folder, home)
    assert not one.ok and "artefact one lacks files" in one.text
    assert "no artefact of this model" in none.text


def test_one_that_is_not_finished(folder: Path, home: Path) -> None:
    """It goes on where it was."""
    (home / "two.part").mkdir()
    _, one = told(folder, home)
    assert one.ok and "two.part is not finished" in one.text
