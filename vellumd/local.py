"""Edits without a running daemon: the same queue, store and engine in a folder that goes away.

One code path: this is a daemon with no doors, so that what works there works here.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vellumd import errors, plugins, preset_file
from vellumd.daemon import Daemon
from vellumd.models import ENDS, EditRequest, ImageRef, Job, Progress
from vellumd.settings import Settings

SOURCE = "local"


class Session:
    """A loaded engine for edits of this process."""

    def __init__(self, daemon: Daemon, show: Callable[[Progress], None]) -> None:
        self._daemon = daemon
        self._jobs = daemon.jobs
        self._show = show

    async def edit(
        self, pictures: list[Path], options: dict[str, Any], *, mask: Path | None = None
    ) -> tuple[Job, list[Path]]:
        """Edit and wait; the ended job and its files, which go away with the session.

        `options` are fields of `EditRequest`. Raises the errors of a request, and why no
        engine can be had; a failed edit is told by the job's `error`.
        """
        fields = dict(options)
        fields["images"] = [await self._stage(path) for path in pictures]
        if mask:
            fields["mask"] = await self._stage(mask)
        job = await self._jobs.submit(EditRequest.parse(fields), SOURCE)
        await self._end_of(job.id)
        job = await self._jobs.get(job.id)
        return job, [await self._jobs.result(job.id, result.n) for result in job.results]

    async def _end_of(self, job_id: str) -> None:
        """Wait for the job's end. Nobody waits here for a broken engine to be mended."""
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(job_id), name="job")
            failing = tasks.create_task(self._daemon.supervisor.failed(), name="engine failure")
            await asyncio.wait([following, failing], return_when=asyncio.FIRST_COMPLETED)
            ended = following.done()
            following.cancel()
            failing.cancel()
        if not ended:
            raise failing.result()

    async def _follow(self, job_id: str) -> None:
        """Show the job's steps until it has ended."""
        async with aclosing(self._jobs.events(job_id, 0, previews=False)) as events:
            async for event in events:
                if event.type == "step":
                    self._show(Progress.model_validate(event.data))
                elif event.type in ENDS:
                    return

    async def _stage(self, picture: Path) -> ImageRef:
        try:
            return await self._jobs.staging.put(picture, picture.name)
        except errors.VellumError as error:
            raise errors.from_code(error.code, f"{picture}: {error.message}") from None


@asynccontextmanager
async def session(
    settings: Settings, show: Callable[[Progress], None] = lambda progress: None
) -> AsyncIterator[Session]:
    """Start an engine for some edits, and end it. `show` gets the progress of each."""
    with tempfile.TemporaryDirectory(prefix="vellumd-", ignore_cleanup_errors=True) as folder:
        with suppress(FileNotFoundError):  # what was saved at the daemon counts here, too
            shutil.copyfile(settings.store.dir / preset_file.FILE, Path(folder) / preset_file.FILE)
        store = settings.store.model_copy(update={"dir": Path(folder)})
        daemon = Daemon(
            settings.model_copy(update={"store": store}),
            replace(plugins.load(settings.enabled_plugins()), transports={}),
        )
        async with daemon.running():
            yield Session(daemon, show)
