"""What doctor finds of interpreter, packages, card and data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vellumd import platform
from vellumd.cli import checks
from vellumd.hookspecs import Check
from vellumd.settings import Settings, StoreSettings


def faults(found: list[Check]) -> list[str]:
    """The texts of what must be mended."""
    return [check.text for check in found if not check.ok]


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
        (
            '["13.0", ["Card", 24000000000, [8, 9]]]',
            True,
            True,
            "torch uses Card, 24 GB, with CUDA 13.0",
        ),
        ("[null, null]", True, False, "a torch without CUDA"),
        ('["13.0", null]', True, False, "update the driver"),
        ("[null, null]", False, True, "edits run on the CPU"),
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


@pytest.mark.parametrize(("version", "ok"), [("4.57.1", False), ("5.23.0", True)])
def test_the_encoders_positions(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    """Before 5 transformers place no pictures: prompts would be understood otherwise, silently."""
    monkeypatch.setattr(checks.metadata, "version", lambda _: version)
    (found,) = checks.positions()
    assert found.ok == ok and "mm_token_type_ids" in found.text
