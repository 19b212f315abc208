"""Before torch is imported a model is looked at, and its files are asked for."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.weights import files
from vellumd import errors, model_card, platform
from vellumd.engine import start
from vellumd.protocol import Init
from vellumd.settings import EngineSettings

REFUSED = """
import json, sys, time
from vellumd import errors
from vellumd.engine import start
from vellumd.protocol import Init
began = time.thread_time()
try:
    start.create(Init.model_validate_json(sys.argv[1]))
except errors.VellumError as error:
    told = [error.code, error.message, time.thread_time() - began, "torch" in sys.modules]
    print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("model.safetensors", b"GGUF" + bytes(64), "is GGUF"),
        ("model.ckpt", b"PK\x03\x04" + bytes(64), "is a pickle"),
        ("model.safetensors", files.packed(files.transformer()), "is cut short by"),
    ],
)
def test_refused_before_torch(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    """A file that cannot be loaded is named within a second of work, with no torch imported."""
    (tmp_path / name).write_bytes(data)
    (tmp_path / "model_index.json").write_text("{}")
    init = Init(engine="", settings={"model": str(tmp_path / name)}, spool=tmp_path, cache=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, init.model_dump_json()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    code, message, seconds, torch = json.loads(done.stdout)
    assert (code, torch) == ("model_invalid", False)
    assert said in message
    assert seconds < 1


def test_files_are_asked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as half of the free memory reaches, and no further."""
    asked: list[tuple[str, int]] = []

    def read_ahead(file: Path, most: int) -> int:
        asked.append((file.name, most))
        return 60

    monkeypatch.setattr(platform, "memory", lambda: platform.Memory(1000, 200))
    monkeypatch.setattr(platform, "read_ahead", read_ahead)
    start.fetch([tmp_path / name for name in "abc"])
    assert asked == [("a", 100), ("b", 40)]


def test_the_models_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a load will read, by a thread of its own, which nobody waits for."""
    from vellumd import engine

    asked: queue.Queue[tuple[Path, ...]] = queue.Queue()
    monkeypatch.setattr(start, "fetch", asked.put)
    monkeypatch.setattr(start, "keep_compiled", lambda _: None)
    monkeypatch.setitem(sys.modules, "vellumd.engine.pipeline", Mock())
    monkeypatch.setattr(engine, "pipeline", Mock(), raising=False)
    start.create(Init(engine="", settings={}, spool=tmp_path, cache=tmp_path))
    assert asked.get(timeout=10) == model_card.opened(EngineSettings()).files


def test_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's beginning, never more than was allowed; a missing one, or a system that
    cannot be asked, is no error."""
    (tmp_path / "x").write_bytes(bytes(1000))
    assert platform.read_ahead(tmp_path / "x", 10**9) == 1000
    assert platform.read_ahead(tmp_path / "x", 300) == 300
    assert platform.read_ahead(tmp_path / "gone", 300) == 0
    monkeypatch.delattr(os, "posix_fadvise")
    assert platform.read_ahead(tmp_path / "x", 300) == 0


def test_memory_is_known() -> None:
    """Some is free, and not more than there is."""
    found = platform.memory()
    assert 0 < found.available <= found.total


def test_the_demo_is_opened_at_once() -> None:
    """Three parts' headers are read in a moment."""
    began = time.thread_time()
    assert model_card.opened(EngineSettings()).zero_cond_t
    assert time.thread_time() - began < 1
    with pytest.raises(errors.ModelMissing):
        model_card.opened(EngineSettings(model="/no/such"))
