"""The engine process over its real pipes, with a torch-free engine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.engine.support import SECONDS, Child, encoded, picture
from vellumd import protocol
from vellumd.models import LoraRef
from vellumd.store import story

PICTURE = encoded(picture(40, 30))


@pytest.fixture(scope="module")
def child(spawn: Callable[..., Child]) -> Child:
    """A child that has loaded."""
    child = spawn()
    child.until(protocol.Ready)
    return child


def test_torch_free_until_an_engine_wants_it(spawn: Callable[..., Child]) -> None:
    """Hello, then load beats, then Ready; nothing of torch is imported by the worker."""
    child = spawn()
    frames = child.until(protocol.Ready)
    assert isinstance(frames[0], protocol.Hello)
    assert frames[0].pid == child.process.pid
    assert frames[-1].capabilities.notes == ()


def test_beats_do_not_drown_the_pipe(spawn: Callable[..., Child]) -> None:
    """500 beats in an instant become a few, the first of each phase among them."""
    beats = [f for f in spawn().until(protocol.Ready) if isinstance(f, protocol.Beat)]
    assert {beat.phase for beat in beats} == {"import", "load"}
    assert next(beat for beat in beats if beat.phase == "load").done == 0
    assert len(beats) < 50


def test_results_are_files_told_twice(child: Child) -> None:
    """`Done` and `result.json` say the same, and the files are what they say."""
    done = child.run("told", [PICTURE], n=2, seed=11)
    folder = child.spool / "told"
    written = json.loads((folder / "result.json").read_text())
    assert written.pop("loras") == []
    assert written == done.model_dump(mode="json", exclude={"type", "job"})
    assert [result.seed for result in done.results] == [11, 12]
    assert {"decode inputs", "denoise", "write"} <= set(done.timings)
    for result in done.results:
        data = (folder / result.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == result.sha256
        assert len(data) == result.bytes
        assert Image.open(io.BytesIO(data)).size == (result.width, result.height)
    assert sorted(path.name for path in folder.iterdir()) == [
        "input-1.png", "result-1.png", "result-2.png", "result.json",
    ]  # fmt: skip


def test_what_took_part_is_told(child: Child) -> None:
    """The picture and `result.json` name the files of LoRAs; where none is told, what was asked."""
    style = {"name": "style", "scale": 0.5, "file": "style.safetensors", "sha256": "0" * 64}
    told = [style, {"name": "inside", "scale": 1.0}]
    for prompt, expected in (("loras", told), ("plain", [{"name": "style", "scale": 0.5}])):
        child.run(prompt, [PICTURE], prompt=prompt, loras=(LoraRef(name="style", scale=0.5),))
        folder = child.spool / prompt
        with Image.open(folder / "result-1.png") as result:
            assert json.loads(result.info["vellumd"])["loras"] == expected
        left = story.result(folder)
        assert left is not None
        assert [one.name for one in left.loras] == (["style", "inside"] if told == expected else [])
        assert all(one.sha256 == "0" * 64 for one in left.loras if one.file)


def test_leftovers_of_an_attempt_are_replaced(child: Child) -> None:
    """What a killed attempt left is gone; the folder holds this attempt alone."""
    frame = child.edit("again", [PICTURE])
    folder = child.spool / "again"
    for name in ("result-1.png", "result-2.png", "result.json", ".result-1.png.99.tmp"):
        (folder / name).write_bytes(b"old")
    child.send(frame)
    done = child.until(protocol.Done)[-1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "input-1.png", "result-1.png", "result.json",
    ]  # fmt: skip
    assert json.loads((folder / "result.json").read_text())["results"][0]["sha256"] == (
        done.results[0].sha256
    )


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("fail", "internal"),
        ("full", "storage_full"), ("unclosed", "storage_full"), ("scratch", "storage_full"),
        ("black", "bad_output"), ("nan", "bad_output"),
        ("memory", "out_of_memory"), ("driver", "out_of_memory"), ("host", "out_of_memory"),
        ("processor", "out_of_memory"), ("handle", "out_of_memory"),
    ],
)  # fmt: skip
def test_a_failed_edit_is_coded(child: Child, prompt: str, code: str) -> None:
    """The answer has a code and no text of the exception; the next edit works."""
    failed = child.run(f"failed-{prompt}", [PICTURE], prompt=prompt)
    assert (failed.type, failed.code) == ("failed", code)
    assert "secret" not in failed.message
    assert not (child.spool / f"failed-{prompt}" / "result.json").exists()
    assert child.run(f"after-{prompt}", [PICTURE]).type == "done"


@pytest.mark.parametrize(
    ("prompt", "unstored"), [("full", True), ("unclosed", True), ("scratch", False)]
)
def test_only_a_result_is_worth_waiting_for_room(child: Child, prompt: str, unstored: bool) -> None:
    """A full disk under the engine's own files is a failure like any other, and says so."""
    failed = child.run(f"room-{prompt}", [PICTURE], prompt=prompt)
    assert failed.unstored is unstored
    assert ("result" in failed.message) is unstored
    assert ("temporary files" in failed.message) is not unstored


def test_a_failure_tells_what_was_tried(child: Child) -> None:
    """The warnings of an edit that failed come with its failure, with their texts."""
    failed = child.run("tried", [PICTURE], prompt="memory")
    assert [warning.code for warning in failed.warnings] == ["memory_freed"]
    assert failed.warnings[0].message


def test_a_broken_input_costs_no_engine_time(child: Child) -> None:
    """A picture that ends early is `bad_image` before the engine is asked."""
    child.send(child.edit("broken", [PICTURE, PICTURE[:-40]]))
    frames = child.until(protocol.Failed)
    assert frames[-1].code == "bad_image"
    assert frames[-1].message.startswith("images.1: ")
    assert "denoise" not in {f.phase for f in frames if isinstance(f, protocol.Beat)}


@pytest.mark.parametrize(("name", "field"), [("input-2.png", "images.1"), ("mask.png", "mask")])
def test_a_changed_input_costs_no_engine_time(child: Child, name: str, field: str) -> None:
    """A picture that is whole, but not the one that came in, is told and not edited."""
    frame = child.edit(f"changed-{field}", [PICTURE, PICTURE], mask=PICTURE)
    (child.spool / f"changed-{field}" / name).write_bytes(encoded(picture(40, 30, seed=1)))
    child.send(frame)
    frames = child.until(protocol.Failed)
    assert (frames[-1].code, frames[-1].message.split(":")[0]) == ("expired", field)
    assert "denoise" not in {f.phase for f in frames if isinstance(f, protocol.Beat)}


def test_cancel_reaches_a_running_edit(child: Child) -> None:
    """A running edit ends as `cancelled`, writes nothing, and the next one runs."""
    child.send(child.edit("wait", [PICTURE], prompt="wait"))
    while getattr(child.until(protocol.Beat)[-1], "phase", "") != "denoise":
        pass
    child.send(protocol.Cancel(job="wait"))
    assert child.until(protocol.Done, protocol.Failed)[-1].code == "cancelled"
    assert not (child.spool / "wait" / "result.json").exists()
    assert child.run("after-wait", [PICTURE]).type == "done"


def test_an_idle_child_answers_a_probe(child: Child) -> None:
    """The thread that edits answers with an idle beat: it is not stuck."""
    child.send(protocol.Probe())
    assert child.until(protocol.Beat)[-1].phase == "idle"


def test_cancel_of_another_job_is_nothing(child: Child) -> None:
    """A late or early cancel touches only the job it names."""
    child.send(protocol.Cancel(job="told"))
    child.send(protocol.Cancel(job="never"))
    assert child.run("untouched", [PICTURE]).type == "done"


def test_previews_are_small_jpegs(child: Child) -> None:
    """A preview above the frame's limit is made smaller, a small one arrives as it is."""
    child.send(child.edit("large", [PICTURE], prompt="large"))
    previews = [f for f in child.until(protocol.Done) if isinstance(f, protocol.PreviewImage)]
    assert len(previews) == 2
    for preview in previews:
        data = b64decode(preview.jpeg)
        assert len(data) <= protocol.PREVIEW_MAX
        assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_stray_prints_do_not_break_frames(child: Child) -> None:
    """Python's and C's prints land in the log; frames go on."""
    assert child.run("print", [PICTURE], prompt="print").type == "done"
    deadline = time.monotonic() + 10
    while b"a stray puts" not in child.log and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"a stray print" in child.log
    assert b"a stray puts" in child.log


def test_a_sticky_cuda_error_ends_the_child(spawn: Callable[..., Child]) -> None:
    """A lost CUDA context is not reused: the child ends with a status that is not 0."""
    child = spawn()
    child.until(protocol.Ready)
    child.send(child.edit("sticky", [PICTURE], prompt="sticky"))
    while child.next() is not None:
        pass
    assert child.ended() > 0


@pytest.mark.parametrize("prompt", ["hang", ""])
def test_end_of_stdin_ends_the_child(spawn: Callable[..., Child], prompt: str) -> None:
    """Without a daemon the child ends at once, in the middle of an edit too."""
    child = spawn()
    child.until(protocol.Ready)
    if prompt:
        child.send(child.edit("hang", [PICTURE], prompt=prompt))
        while getattr(child.until(protocol.Beat)[-1], "phase", "") != "denoise":
            pass
    assert child.process.stdin
    started = time.monotonic()
    child.process.stdin.close()
    assert child.ended() == 0
    assert time.monotonic() - started < 5


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")
def test_ctrl_c_is_the_daemons_business(spawn: Callable[..., Child]) -> None:
    """A terminal's SIGINT does not end the child; the daemon decides."""
    child = spawn()
    child.until(protocol.Ready)
    child.process.send_signal(signal.SIGINT)
    assert child.run("sigint", [PICTURE]).type == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_orphan_ends(tmp_path: Path) -> None:
    """When the daemon is killed, the child is gone within seconds, hung or not."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'vellumd.engine'],\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        orphan = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(orphan):
        time.sleep(0.01)
    assert not _alive(orphan)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_oom_killer_is_offered_the_child(child: Child) -> None:
    """Where the machine's memory runs out, the daemon is not the first to go."""
    score = Path(f"/proc/{child.process.pid}/oom_score_adj").read_text()
    assert int(score) > int(Path("/proc/self/oom_score_adj").read_text())


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("engine", "settings", "code"),
    [
        ("tests.engine.engines:missing", {}, "model_missing"),
        ("tests.engine.engines:broken", {}, "internal"),
        ("tests.engine.engines:nothing", {}, "internal"),
        ("no.such.module:create", {}, "internal"),
        ("vellumd.engine.start:create", {"model": "/no/such/folder"}, "model_missing"),
    ],
)
def test_an_engine_that_cannot_load_says_why(
    spawn: Callable[..., Child], engine: str, settings: dict[str, str], code: str
) -> None:
    """One `Fatal` with the code, without path or exception, then the child ends."""
    child = spawn(engine, **settings)
    fatal = child.until(protocol.Fatal)[-1]
    assert fatal.code == code
    assert "secret" not in fatal.message
    assert "/" not in fatal.message
    assert child.ended() == 1


def test_a_garbled_model_is_fatal(spawn: Callable[..., Child], tmp_path: Path) -> None:
    """A folder that holds no model ends in `model_invalid`."""
    child = spawn("vellumd.engine.start:create", model=str(tmp_path))
    assert child.until(protocol.Fatal)[-1].code == "model_invalid"
    assert child.ended() == 1


def test_garbage_on_stdin_ends_the_child(spawn: Callable[..., Child]) -> None:
    """A pipe out of step is not guessed at."""
    child = spawn(None)
    assert child.process.stdin
    child.process.stdin.write(struct.pack(">I", 5) + b"hello")
    child.process.stdin.flush()
    assert child.ended() > 0


def test_a_foreign_protocol_is_refused(spawn: Callable[..., Child], tmp_path: Path) -> None:
    """Daemon and engine of different versions do not try to work together."""
    child = spawn(None)
    child.send(
        protocol.Init(
            protocol=99,
            engine="tests.engine.engines:create",
            settings={},
            spool=tmp_path,
            cache=tmp_path,
        )
    )
    assert isinstance(child.next(), protocol.Fatal)


def test_worker_imports_no_torch() -> None:
    """The worker's own modules, imported afresh, bring in nothing heavy."""
    code = (
        "import sys, vellumd.engine.worker\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'safetensors'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
