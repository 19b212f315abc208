"""The warm-up: done in idle time, given up for an edit, and never the end of an engine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.engine.support import Child, Told, encoded, picture, reference, resolved
from vellumd import errors, protocol
from vellumd.engine import pipeline, start, triton_probe
from vellumd.engine.pipeline import QwenEngine
from vellumd.models import ResolvedEdit
from vellumd.protocol import Beat, Done, Init, Ready, Warm

PICTURE = encoded(picture(40, 30))
Spawn = Callable[..., Child]


def codes(done: Any) -> list[str]:
    return [notice.code for notice in done.warnings]


def warming(spawn: Spawn, warm: str, *, allowed: bool = True) -> Child:
    """A child whose engine warms up in that way."""
    child = spawn(engine=None)
    child.send(
        Init(
            engine="tests.engine.engines:warming", settings={"warm": warm}, spool=child.spool,
            cache=child.spool / "cache", warm_up=allowed,
        )
    )  # fmt: skip
    return child


def test_ready_before_warm(spawn: Spawn) -> None:
    """Ready comes first, then the warm-up's signs of life, its seconds, and idleness."""
    child = warming(spawn, "short")
    assert child.until(Ready)[-1].capabilities.warms_up
    *beats, warm = child.until(Warm)
    assert {beat.phase for beat in beats} == {protocol.WARM_UP}
    assert warm.seconds >= 0
    assert child.until(Beat)[-1].phase == "idle"
    assert codes(child.run("warm", [PICTURE])) == []


def test_an_edit_breaks_in(spawn: Spawn) -> None:
    """An endless warm-up holds no edit up; the first is told apart, and it begins anew."""
    child = warming(spawn, "long")
    for job, told in (("first", ["engine_cold"]), ("second", [])):
        while child.until(Beat)[-1].phase != protocol.WARM_UP:
            pass
        assert codes(child.run(job, [PICTURE])) == told


def test_the_first_edit_is_the_first_that_is_done(spawn: Spawn) -> None:
    """One that failed warmed nothing up, as far as anybody knows."""
    child = warming(spawn, "long")
    child.until(Ready)
    assert codes(child.run("failed", [PICTURE], prompt="fail")) == ["engine_cold"]
    assert codes(child.run("done", [PICTURE])) == ["engine_cold"]
    assert codes(child.run("next", [PICTURE])) == []


@pytest.mark.parametrize(("warm", "allowed"), [("fail", True), ("long", False)])
def test_edits_do_without(spawn: Spawn, warm: str, allowed: bool) -> None:
    """A warm-up that fails, or is not wanted by the daemon, is no reason to make no edits."""
    child = warming(spawn, warm, allowed=allowed)
    child.until(Warm if allowed else Ready)
    done = child.run("edit", [PICTURE])
    assert isinstance(done, Done)
    assert codes(done) == ["engine_cold"]


def test_a_lost_card_ends_the_process(spawn: Spawn) -> None:
    """As in an edit: nothing runs on it any more."""
    assert warming(spawn, "sticky").ended() == 70


def engine(cache: Path, **settings: Any) -> QwenEngine:
    made = QwenEngine(Init(engine="", settings=settings, spool=cache, cache=cache))
    assert made.load(Told()).warms_up is bool(settings.get("warm_up"))
    return made


@pytest.mark.parametrize("after", [None, 2, 9])
def test_nothing_of_the_warm_up_passes_on(tmp_path: Path, after: int | None) -> None:
    """Whole or broken off, in turbo too: the next edit gives the bytes it always gives."""
    file = tmp_path / "in.png"
    file.write_bytes(encoded(picture(128, 128)))
    asked = resolved([reference(file.read_bytes())], tier="turbo", true_cfg_scale=2.0, steps=2)

    def edit(made: QwenEngine) -> bytes:
        return next(made.edit(asked, [file], Told(), lambda: False)).tobytes()

    told = Told()
    warmed = engine(tmp_path, warm_up=True, tier="turbo")
    if after is None:
        warmed.warm_up(told, lambda: False)
        assert told.steps == [(1, 1, 1, 2), (1, 1, 2, 2)]
    else:
        with pytest.raises(errors.Cancelled):
            warmed.warm_up(told, lambda: len(told.beats) >= after)
    assert edit(warmed) == edit(engine(tmp_path, tier="turbo"))


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_compiled_sees_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """Else the first edit of another one would wait for a compiler; kernels are for all."""
    made: list[tuple[int, int]] = []

    class Told:
        """In place of a run."""

        def __init__(self, model: object, edit: ResolvedEdit, *_: object) -> None:
            made.append((edit.images[0].width, edit.images[0].height))

        def pictures(self, files: list[Path]) -> list[object]:
            return []

    monkeypatch.setattr(pipeline, "Run", Told)
    one = QwenEngine(
        Init(engine="", settings={"compile": compiled}, spool=tmp_path, cache=tmp_path)
    )
    monkeypatch.setattr(one, "_model", SimpleNamespace(loras=SimpleNamespace(names=tuple)))
    one.warm_up(None, lambda: False)  # type: ignore[arg-type]
    assert made == [(128, 128), (128, 64)][: 1 + compiled]


def test_what_is_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the engine's cache, unless the variables of torch and Triton say otherwise."""
    monkeypatch.setattr(os, "environ", {"TRITON_CACHE_DIR": "elsewhere"})
    start.keep_compiled(tmp_path)
    assert os.environ == {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TRITON_CACHE_DIR": "elsewhere",
    }  # fmt: skip


def test_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is compiled lies in temporary folders, since without any Triton compiles nothing."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    start.keep_compiled(tmp_path / "file")
    assert os.environ.keys() == start.COMPILED.keys()
    homes = set(map(Path, os.environ.values()))
    assert len(homes) == 2 and all(home.parent == tmp_path and home.is_dir() for home in homes)
    assert "can be kept" in caplog.text
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    start.keep_compiled(tmp_path / "file")
    assert os.environ == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of half a kernel
@pytest.mark.parametrize("kind", [".json", ".cubin"])
@pytest.mark.parametrize("left", [b"", bytes(64)], ids=["empty", "zeros"])
def test_a_cache_that_lost_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, left: bytes
) -> None:
    """What is left of files as a loss of power leaves them is compiled anew."""
    home = tmp_path / start.COMPILED["TRITON_CACHE_DIR"]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(home))
    source = ASTSource(triton_probe.double, {"source": "*fp32", "target": "*fp32",
                                             "size": "constexpr"}, {"size": 64})  # fmt: skip

    def cubin() -> bytes:
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        return bytes(made.asm["cubin"])

    whole = cubin()
    (file,) = (file for file in home.rglob(f"double*{kind}"))
    file.write_bytes(left)
    with contextlib.suppress(ValueError):  # as what is no JSON is told
        assert cubin() != whole
    start.keep_compiled(tmp_path)
    assert cubin() == whole
    assert file.read_bytes() != left
