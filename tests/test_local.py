"""Edits without a daemon: the same road, in a folder that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vellumd import errors, local
from vellumd.models import JobStatus, Progress
from vellumd.preset_file import FILE, PresetFile
from vellumd.settings import Preset
from vellumd.store.spool import sha256_of


async def test_edits_in_a_session(
    make_settings: Callable[..., Any], picture: Callable[..., bytes], tmp_path: Path
) -> None:
    """Two edits with one engine; progress is shown; a failure is told by the job."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    seen: list[Progress] = []
    async with local.session(make_settings(), seen.append) as session:
        job, (file,) = await session.edit([photo], {"prompt": "invert", "steps": 2})
        assert sha256_of(file) == job.results[0].sha256
        job, files = await session.edit([photo], {"prompt": "black", "steps": 1})
        assert job.status is JobStatus.FAILED and job.error and not files
    # Steps are live only: those of an edit that fails at once may go unseen.
    assert seen[0].steps == 2
    assert not file.exists()
    assert not (make_settings().store.dir).exists()


async def test_an_engine_that_cannot_load_ends_the_edit(
    make_settings: Callable[..., Any], picture: Callable[..., bytes], tmp_path: Path
) -> None:
    """A daemon tries again and keeps the job; a command would wait for ever without a word."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    async with asyncio.timeout(60):
        async with local.session(make_settings({"load_error": "model_invalid"})) as session:
            for _ in range(2):
                with pytest.raises(errors.ModelInvalid):
                    await session.edit([photo], {"prompt": "invert", "steps": 2})


async def test_saved_presets_count_without_a_daemon(
    make_settings: Callable[..., Any], picture: Callable[..., bytes], tmp_path: Path
) -> None:
    """`--preset` knows what was saved while a daemon ran; its file is only read."""
    photo, settings = tmp_path / "photo.png", make_settings()
    photo.write_bytes(picture())
    settings.store.dir.mkdir()
    file = settings.store.dir / FILE
    PresetFile(file).save("mine", Preset(prompt="invert", steps=3))
    async with local.session(settings) as session:
        job, _ = await session.edit([photo], {"preset": "mine"})
    assert job.status is JobStatus.DONE and job.request and job.request.steps == 3
    assert list(settings.store.dir.iterdir()) == [file]
