"""Edits whose caller waits for the picture: each is made once, however often it is asked for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from vellumd import EditRequest, Job, TransportContext, errors, new_job_id

ATTACH = timedelta(minutes=10)
"""How long after a job's end its unreceived answer waits for the same body again."""
_DIGEST = re.compile("[0-9a-f]{64}")
WAIT_S = 15
"""Seconds between two looks whether the caller is still there."""


class Unanswered:
    """Jobs whose answer nobody has received yet, by digest of the request.

    One small file each, so that a restart does not forget them. Only the newest
    `MOST` are kept.
    """

    MOST = 1000

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        # What others put there is no file of ours, such as a file manager's notes.
        files = [file for file in folder.iterdir() if _DIGEST.fullmatch(file.name)]
        files.sort(key=lambda file: file.stat().st_mtime)
        found = ((file.name, file.read_text("ascii", "replace")) for file in files)
        # A power cut can leave a file without its text.
        self._jobs = {digest: job_id for digest, job_id in found if job_id}

    def job_of(self, digest: str) -> str | None:
        """The job that was made for this request and not yet received."""
        return self._jobs.get(digest)

    def expect(self, digest: str, job_id: str) -> None:
        """The request of `digest` is answered by `job_id` from now on.

        Raises `StorageFull` and the like where that cannot be written down.
        """
        self._jobs.pop(digest, None)
        self._jobs[digest] = job_id
        try:
            (self._folder / digest).write_text(job_id, encoding="ascii")
        except OSError as error:
            self.received(digest, job_id)
            raise errors.disk_error(error) from error
        if len(self._jobs) > self.MOST:
            oldest = next(iter(self._jobs))
            self.received(oldest, self._jobs[oldest])

    def received(self, digest: str, job_id: str) -> None:
        """The answer has left: the same request is a new job."""
        if self._jobs.get(digest) == job_id:
            del self._jobs[digest]
            (self._folder / digest).unlink(missing_ok=True)


class Stopped(errors.EngineUnavailable):
    """The daemon ends before the job: the answer is still to come."""


class Waiting:
    """The callers of one door that wait for their pictures."""

    def __init__(self, context: TransportContext, folder: Path) -> None:
        self._context = context
        self._unanswered = Unanswered(folder)
        self._callers: dict[str, list[web.Request]] = {}

    @asynccontextmanager
    async def job(
        self, request: web.Request, edit: EditRequest, *, again: bool
    ) -> AsyncIterator[Job]:
        """The job that `request` is answered by, while the block answers.

        It is the one of an equal request whose answer never left: if its caller is gone or,
        with `again`, whoever still seems to wait for it. A block that ends, or raises an error
        of ours, has answered; one that loses its caller has not, nor has one with `Stopped`.
        """
        digest = edit.digest()
        await self._forget_old(digest)
        known = self._unanswered.job_of(digest)
        attaches = known is not None and (again or self._is_alone(known))
        job_id = known if known and attaches else new_job_id()
        with self._calling(job_id, request):
            job = await self._submit(edit, digest, job_id, new=not attaches)
            try:
                yield job
            except Stopped:
                raise
            except errors.VellumError:
                self._unanswered.received(digest, job_id)
                raise
        self._unanswered.received(digest, job_id)

    async def ended(self, request: web.Request, job: Job) -> Job:
        """The job once it has ended; it goes on if the caller does not.

        Raises `Stopped` where the daemon ends first: asked again, the next one answers.
        """
        clock = asyncio.get_running_loop().time
        while not job.status.terminal:
            if request.transport is None:
                raise ConnectionResetError("the caller left; its answer waits")
            until = clock() + WAIT_S
            job = await self._context.jobs.wait(job.id, WAIT_S)
            if not job.status.terminal and clock() < until:
                raise Stopped(
                    "The daemon is stopping; the next one makes the edit.", retry_after=10
                )
        return job

    async def _submit(self, edit: EditRequest, digest: str, job_id: str, *, new: bool) -> Job:
        """The job under an id that is written down before it is made.

        So neither a crash nor a second caller in between makes two.
        """
        if not new:
            return await self._context.jobs.submit(edit, job_id=job_id)
        self._unanswered.expect(digest, job_id)
        try:
            return await self._context.jobs.submit(edit, job_id=job_id)
        except errors.VellumError:
            self._unanswered.received(digest, job_id)
            raise

    async def _forget_old(self, digest: str) -> None:
        """An answer that nobody came for in time is none any more."""
        if known := self._unanswered.job_of(digest):
            try:
                ended = (await self._context.jobs.get(known)).ended
            except errors.NotFound:  # not yet accepted
                return
            except errors.Expired:
                self._unanswered.received(digest, known)
                return
            if ended is not None and datetime.now(UTC) - ended >= ATTACH:
                self._unanswered.received(digest, known)

    @contextmanager
    def _calling(self, job_id: str, request: web.Request) -> Iterator[None]:
        callers = self._callers.setdefault(job_id, [])
        callers.append(request)
        try:
            yield
        finally:
            callers.remove(request)
            if not callers:
                self._callers.pop(job_id, None)

    def _is_alone(self, job_id: str) -> bool:
        """Whether nobody waits for the job's answer any more."""
        return all(caller.transport is None for caller in self._callers.get(job_id, ()))
