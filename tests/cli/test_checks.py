"""What doctor finds: each fault of a model folder is named, a sound one passes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from vellumd import platform
from vellumd.cli import checks
from vellumd.hookspecs import Check
from vellumd.settings import EngineSettings, Settings, StoreSettings


def safetensors(file: Path, names: list[str], cut: int = 0) -> None:
    """Write a weight file of two-byte tensors, `cut` bytes short."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: {"dtype": "BF16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
        for i, name in enumerate(names)
    }
    header = json.dumps(tensors).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(2 * len(names))
    file.write_bytes(data[: len(data) - cut])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model folder of one part, with a Lightning LoRA."""
    model = tmp_path / "model"
    safetensors(model / "transformer/diffusion_pytorch_model-00001-of-00001.safetensors", ["a"])
    files: dict[str, Any] = {
        "model_index.json": {"_class_name": "P", "transformer": ["diffusers", "T"]},
        "transformer/config.json": {"zero_cond_t": True},
        "transformer/diffusion_pytorch_model.safetensors.index.json": {
            "weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}
        },
    }
    for name, value in files.items():
        (model / name).write_text(json.dumps(value))
    lora = "loras/Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors"
    safetensors(model / lora, ["x.lora_A.weight"])
    return model


def settings(model: Path, **loras: Path) -> Settings:
    """Settings with that model and those LoRAs."""
    named = {role.replace("_", "-"): str(file) for role, file in loras.items()}
    return Settings(engine=EngineSettings(model=str(model), loras=named))


def faults(found: list[Check]) -> list[str]:
    """The texts of what must be mended."""
    return [check.text for check in found if not check.ok]


def test_a_sound_folder_passes(folder: Path) -> None:
    """Card, parts, headers, flag and LoRA of a whole folder are all right."""
    found = [*checks.model(settings(folder)), *checks.loras(settings(folder))]
    assert faults(found) == []
    assert any("zero_cond_t is set" in check.text for check in found)
    assert any("lightning scheduler" in check.text for check in found)


def test_the_demo_passes_and_says_what_it_is() -> None:
    """Without a model the demo is named as such."""
    (found,) = checks.model(Settings())
    assert found.ok
    assert "model demo (a toy: " in found.text


@pytest.mark.parametrize("cut", [1, 2, 200])
def test_a_cut_file_is_found(folder: Path, cut: int) -> None:
    """A download that ended early is seen from header and size, without loading it."""
    file = next((folder / "transformer").glob("*.safetensors"))
    safetensors(file, ["a"] * 1, cut=min(cut, file.stat().st_size))
    (fault,) = faults(list(checks.model(settings(folder))))
    assert fault == f"transformer: {file.name} damaged; download again"


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 64, struct.pack("<Q", 4) + b"nono"])
def test_garbage_is_no_header(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no safetensors file give no header and no exception."""
    (tmp_path / "x").write_bytes(data)
    assert checks.header(tmp_path / "x") is None


def test_a_missing_shard_is_found(folder: Path) -> None:
    """The index names files; one that is not there is told."""
    next((folder / "transformer").glob("*.safetensors")).unlink()
    assert faults(list(checks.model(settings(folder)))) == [
        "transformer: 1 weight files are missing; download them"
    ]


def test_a_missing_part_is_found(folder: Path) -> None:
    """model_index.json names the parts; a folder that is not there is told."""
    index = {"transformer": ["diffusers", "T"], "vae": ["diffusers", "V"], "x": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert faults(list(checks.model(settings(folder)))) == [
        "vae: its folder is missing; download it again"
    ]


def test_a_missing_flag_is_found(folder: Path) -> None:
    """zero_cond_t has to be true: without it edits get worse silently."""
    (folder / "transformer/config.json").write_text("{}")
    (fault,) = faults(list(checks.model(settings(folder))))
    assert fault.startswith("zero_cond_t is not true")


def test_no_model_folder(tmp_path: Path) -> None:
    """A model folder that is not there, or is none, is told."""
    assert "no model folder" in faults(list(checks.model(settings(tmp_path / "no"))))[0]
    assert "model_index.json is missing" in faults(list(checks.model(settings(tmp_path))))[0]


def test_loras_are_checked_against_their_role(folder: Path, tmp_path: Path) -> None:
    """A wrong number of steps, a wrong role, a damaged and a missing file are told."""
    four = tmp_path / "Lightning-4steps.safetensors"
    safetensors(four, ["x.lora_A.weight"])
    plain = tmp_path / "plain.safetensors"
    safetensors(plain, ["x.weight"])
    named = settings(folder, lightning_8=four, style=four, odd=plain, gone=tmp_path / "gone")
    assert sorted(faults(list(checks.loras(named)))) == [
        "LoRA gone: its file is missing; correct [engine.loras]",
        "LoRA lightning-8: the file is made for 4 steps",
        "LoRA odd: plain.safetensors is damaged or no LoRA",
        "LoRA style: a Lightning file needs the role lightning-4",
    ]


def stored(folder: Path, **fields: Any) -> list[Check]:
    """What is found about a data folder."""
    return list(checks.store(Settings(store=StoreSettings(dir=folder, **fields))))


def test_the_data_folder_is_tried(tmp_path: Path) -> None:
    """Written, fsynced, locked and measured, beside a folder that is not there yet; no traces."""
    found = stored(tmp_path / "new/data")
    assert faults(found) == []
    assert ["fsync of 64 KiB took" in found[0].text, "locks hold" in found[1].text] == [True] * 2
    assert "2 GB of them kept free (store.reserve_gb)" in found[2].text
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, a disk below its reserve, locks that do not hold, an fsync that fails."""
    (tmp_path / "file").write_text("")
    (fault,) = faults(stored(tmp_path / "file/data"))
    assert "cannot be written" in fault and "store.dir" in fault
    (fault,) = faults(stored(tmp_path, reserve_gb=1e9))
    assert "no job is accepted" in fault
    with monkeypatch.context() as patched:
        patched.setattr(platform, "lock_folder", NoLock)
        (fault,) = faults(stored(tmp_path))
        assert "locks do not hold" in fault

    def broken(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(platform, "fsync_dir", broken)
    (fault,) = faults(stored(tmp_path))
    assert "cannot be written (Input/output error)" in fault


class NoLock:
    """A lock as some network disks grant it: to everybody."""

    def __init__(self, path: Path) -> None: ...

    def release(self) -> None: ...


def test_packages_are_compared_by_number() -> None:
    """10 is newer than 9, and a local version such as +cu130 does not count."""
    assert checks._numbers("0.10.1") > checks._numbers("0.9.9")
    assert checks._numbers("2.10.0+cu130") == (2, 10, 0)


def test_old_and_missing_packages_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor names the package, its version and the remedy."""
    monkeypatch.setitem(checks.PACKAGES, "pluggy", "99")
    monkeypatch.setitem(checks.ENGINE_PACKAGES, "no-such-package", "1")
    found = faults(list(checks.interpreter()))
    assert any("pluggy" in text and "older than 99" in text for text in found)
    assert any("no-such-package is missing" in text for text in found)


@pytest.mark.parametrize(
    ("says", "driver", "ok", "text"),
    [
        ('["13.0", true, "Card"]', True, True, "torch uses Card with CUDA 13.0"),
        ("[null, false, null]", True, False, "a torch without CUDA"),
        ('["13.0", false, null]', True, False, "update the driver"),
        ("[null, false, null]", False, True, "edits run on the CPU"),
        ("nonsense", False, False, "cannot be imported"),
    ],
)
def test_card_and_torch_have_to_fit(
    monkeypatch: pytest.MonkeyPatch, says: str, driver: bool, ok: bool, text: str
) -> None:
    """What the child says of torch is held against the driver that is there."""
    monkeypatch.setattr(checks, "TORCH_SAYS", f"print({says!r})")
    monkeypatch.setattr(platform, "nvidia_driver", lambda: driver)
    (found,) = checks.card()
    assert (found.ok, text in found.text) == (ok, True)
