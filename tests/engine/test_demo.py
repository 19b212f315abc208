"""Edits of the demo model through the engine process: sizes, alpha, EXIF, masks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.engine.support import Child, encoded, picture
from vellumd import protocol
from vellumd.models import LoraRef

PLAIN = encoded(picture(128, 96))


@pytest.fixture(scope="module")
def child(spawn: Callable[..., Child]) -> Child:
    """A child that has loaded the demo."""
    child = spawn("vellumd.engine.start:create", model="demo")
    ready = child.until(protocol.Ready)[-1]
    assert ready.capabilities.model == "demo"
    assert "lightning-8" in ready.capabilities.loras
    return child


@pytest.fixture
def edit(child: Child, request: pytest.FixtureRequest) -> Callable[..., tuple[Any, Image.Image]]:
    """Does an edit; its `Done` and its first picture."""

    def run(*pictures: bytes, **fields: Any) -> tuple[Any, Image.Image]:
        job = request.node.name.replace("/", "-")
        done = child.run(job, pictures, **fields)
        assert done.type == "done", child.log.decode()
        result = Image.open(child.spool / job / done.results[0].file)
        result.load()
        assert result.size == (done.results[0].width, done.results[0].height)
        return done, result

    return run


def codes(done: Any) -> list[str]:
    return [warning.code for warning in done.warnings]


@pytest.mark.parametrize(
    ("size", "expected"),
    [("match", (128, 96)), ("auto", (160, 96)), ("fit:0.02", (128, 96)), ("100x70", (96, 64))],
)
def test_sizes(edit: Any, size: str, expected: tuple[int, int]) -> None:
    """match and fit give image 1's size, auto the model's area, WxH is floored to 16."""
    done, result = edit(PLAIN, size=size)
    assert result.size == expected
    assert codes(done) == ["demo_model"]


def test_a_large_picture_is_enlarged_with_a_warning(edit: Any) -> None:
    """Where the input has over 1.5 times the canvas's sides, what is painted is enlarged."""
    done, result = edit(encoded(picture(320, 240)))
    assert result.size == (320, 240)
    assert "enlarged" in codes(done)


def test_exif_orientation(edit: Any) -> None:
    """A portrait stored lying down comes back upright, in its own format if asked."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(128, 96), "JPEG", exif=exif)
    done, result = edit(data, output={"format": "same"})
    assert result.size == (96, 128)
    assert done.results[0].type == "image/jpeg"


def test_alpha_is_flattened_with_a_warning(edit: Any) -> None:
    """An RGBA input gives an RGB result unless its alpha is wanted back."""
    transparent = picture(128, 96)
    transparent.putalpha(128)
    done, result = edit(encoded(transparent))
    assert result.mode == "RGB"
    assert "alpha_flattened" in codes(done)


def test_alpha_is_reapplied(edit: Any) -> None:
    """With `reapply` the result has image 1's alpha, and nothing is warned about."""
    transparent = picture(128, 96)
    alpha = Image.linear_gradient("L").resize((128, 96))
    transparent.putalpha(alpha)
    done, result = edit(encoded(transparent), output={"alpha": "reapply"})
    assert result.mode == "RGBA"
    assert result.getchannel("A").tobytes() == alpha.tobytes()
    assert codes(done) == ["demo_model"]


def test_mask_leaves_the_rest_alone(edit: Any) -> None:
    """Outside the mask the pixels are the input's, inside they are not."""
    original = picture(200, 120)
    mask = Image.new("L", original.size, 0)
    mask.paste(255, (100, 0, 200, 120))
    _, result = edit(encoded(original), mask=encoded(mask))
    assert result.size == original.size
    difference = ImageChops.difference(original, result.convert("RGB"))
    assert difference.crop((0, 0, 80, 120)).getbbox() is None
    assert difference.crop((120, 0, 200, 120)).getbbox() is not None


def test_warnings_of_the_request(edit: Any) -> None:
    """Four pictures, a faster tier and 10 KB of prompt each say what became of them."""
    done, _ = edit(*[PLAIN] * 4, tier="swift", prompt="더 밝게 " * 1000)
    assert sorted(codes(done)) == ["demo_model", "many_images", "prompt_cut", "tier_lowered"]


def test_lightning_and_guidance(edit: Any) -> None:
    """The default preset's way: eight Lightning steps with guidance, results in order."""
    done, _ = edit(
        PLAIN, PLAIN, n=2, steps=8, true_cfg_scale=3.0, scheduler="lightning",
        loras=(LoraRef(name="lightning-8"),),
    )  # fmt: skip
    assert [result.n for result in done.results] == [1, 2]
    assert len({result.sha256 for result in done.results}) == 2
    assert {"encode", "denoise", "decode", "write"} <= set(done.timings)


def test_the_same_job_gives_the_same_bytes(child: Child) -> None:
    """Two runs of one job agree in every byte of result and hash."""
    first, second = (child.run("twice", [PLAIN], seed=3) for _ in range(2))
    assert first.results == second.results


def test_progress_and_previews(child: Child) -> None:
    """Steps count up with a falling estimate; previews come only while somebody looks."""
    child.send(protocol.Preview(on=True))
    child.send(child.edit("seen", [PLAIN], steps=4))
    frames = child.until(protocol.Done)
    steps = [frame.progress for frame in frames if isinstance(frame, protocol.Step)]
    assert [(step.step, step.steps) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[-1].eta_s == 0
    previews = [frame for frame in frames if isinstance(frame, protocol.PreviewImage)]
    assert [preview.step for preview in previews] == [1, 2, 3]
    child.send(protocol.Preview(on=False))
    child.send(child.edit("unseen", [PLAIN], steps=4))
    assert not any(isinstance(f, protocol.PreviewImage) for f in child.until(protocol.Done))


def test_cancel_and_failure_leave_nothing_behind(child: Child) -> None:
    """After a cancelled and a failed edit, an edit gives the bytes it gave before."""
    before = child.run("before", [PLAIN])
    child.send(child.edit("long", [PLAIN], steps=100))
    child.until(protocol.Step)
    child.send(protocol.Cancel(job="long"))
    assert child.until(protocol.Done, protocol.Failed)[-1].code == "cancelled"
    unknown = child.run("unknown", [PLAIN], loras=(LoraRef(name="not-here"),))
    assert unknown.code == "unknown_lora"
    after = child.run("after", [PLAIN], output={"embed": "none"})
    plain = child.run("plain", [PLAIN], output={"embed": "none"})
    assert after.results == plain.results
    assert _pixels(child, "after") == _pixels(child, "before")
    assert before.results[0].seed == after.results[0].seed


def _pixels(child: Child, job: str) -> bytes:
    return Image.open(io.BytesIO((child.spool / job / "result-1.png").read_bytes())).tobytes()


def test_result_json_is_whole(child: Child) -> None:
    """`result.json` holds what adoption after a crash needs."""
    child.run("whole", [PLAIN])
    body = json.loads((child.spool / "whole" / "result.json").read_text())
    assert set(body) == {"results", "elapsed_s", "timings", "warnings", "loras"}
