"""All that a transport gets: its settings, a log, a folder, the jobs, the deliveries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, JsonValue

from vellumd.jobs import JobFilter, Jobs, Page
from vellumd.keys import Keyring
from vellumd.models import Delivery, EditRequest, ImageRef, Job, JobEvent
from vellumd.presets import NamedPreset, Presets

REPORT_MAX = 500
"""Characters of a report that are kept: it can quote what a stranger sent."""


class TransportJobs:
    """The jobs as one transport sees them: what it submits bears its name as source."""

    def __init__(self, jobs: Jobs, source: str) -> None:
        self._jobs = jobs
        self._source = source

    async def submit(
        self,
        request: EditRequest,
        *,
        key: str | None = None,
        job_id: str | None = None,
        reply: JsonValue = None,
    ) -> Job:
        """Accept `request`: when this returns, the job survives any crash.

        `key` is the sender's idempotency key: the same key with an equal request gives
        the same job, with another request raises `IdempotencyMismatch`. `job_id` is a
        UUIDv7 made beforehand (`vellumd.new_job_id`), deduplicating likewise. `reply`
        (≤ 4 KiB of JSON, private) asks for a `Delivery` when the job has ended; for a job
        that is known already, too: another reply is owed as well, the same one again, also
        while its delivery is out.
        Raises the errors of the request, `QueueFull` and `StorageFull`.
        """
        return await self._jobs.submit(request, self._source, key=key, job_id=job_id, reply=reply)

    async def get(self, job_id: str) -> Job:
        """The job; raises `NotFound`, and `Expired` once retention removed it."""
        return await self._jobs.get(job_id)

    async def find(self, key: str) -> Job:
        """The job that this transport submitted under `key`; raises `NotFound`."""
        return await self._jobs.find(self._source, key)

    async def list(self, wanted: JobFilter | None = None, cursor: str | None = None) -> Page:
        """Jobs, newest first; `Page.next` is the cursor of the following page."""
        return await self._jobs.list(wanted or JobFilter(), cursor)

    async def cancel(self, job_id: str) -> Job:
        """End the job if it has not ended; a running one stops within one block."""
        return await self._jobs.cancel(job_id)

    async def retry(self, job_id: str) -> Job:
        """A new job with the same request, `retry_of` set."""
        return await self._jobs.retry(job_id, self._source)

    async def set_priority(self, job_id: str, priority: int) -> Job:
        """Move a queued job; higher runs first, −100 to 100."""
        return await self._jobs.set_priority(job_id, priority)

    async def delete(self, job_id: str) -> None:
        """Forget an ended job and its pictures; raises `NotDone` for others."""
        await self._jobs.delete(job_id)

    async def result(self, job_id: str, n: int = 1) -> Path:
        """File of result `n`, whose bytes are the ones that were made.

        Raises `NotDone`, `NotFound`, `Expired` (also when it was damaged) or the job's error.
        """
        return await self._jobs.result(job_id, n)

    async def input(self, job_id: str, n: int = 1) -> Path:
        """File of input `n`; raises `NotFound` or `Expired`."""
        return await self._jobs.input(job_id, n)

    async def mask(self, job_id: str) -> Path:
        """File of the mask; raises `NotFound` for a job without one, or `Expired`."""
        return await self._jobs.mask(job_id)

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job when it has ended, `seconds` have passed or the daemon stops."""
        return await self._jobs.wait(job_id, seconds)

    def events(
        self,
        job_id: str | None = None,
        since: int | None = None,
        *,
        previews: bool = False,
        keep: Callable[[JobEvent], bool] | None = None,
    ) -> AsyncGenerator[JobEvent, None]:
        """Events of one job or all: durable ones after `since`, then live ones.

        Without `since` it begins with what happens next. No durable event is missed or
        repeated; of steps and previews a slow reader gets the newest, and those which
        `keep` picks: few, since they wait in memory.
        """
        return self._jobs.events(job_id, since, previews=previews, keep=keep)


class TransportPresets:
    """The named edit options: those that ship, those of the configuration, those saved here."""

    def __init__(self, presets: Presets) -> None:
        self._presets = presets

    def list(self) -> tuple[NamedPreset, ...]:
        """All presets: `name`, `origin`, `usable`, `options`; the saved ones last."""
        return self._presets.list()

    def get(self, name: str) -> NamedPreset:
        """One preset; raises `NotFound`."""
        return self._presets.get(name)

    async def save(self, name: str, options: dict[str, Any]) -> NamedPreset:
        """Keep edit options under a name, for every door; on disk when this returns.

        Another preset saved under that name is replaced. Raises the errors of the options,
        `PresetFixed` for a name that ships or is configured and for the default, `PresetsFull`,
        `StorageFull`.
        """
        return await asyncio.to_thread(self._presets.save, name, options)

    async def delete(self, name: str) -> None:
        """Forget a saved preset; jobs that used it keep what it said.

        Raises `NotFound`, and `PresetFixed` for others than saved ones and for the default.
        """
        await asyncio.to_thread(self._presets.delete, name)


class Control(Protocol):
    """What a transport can do to the queue and the engine."""

    async def pause(self) -> None:
        """Start no more jobs until `resume`, also after a restart; a running one goes on."""

    async def resume(self) -> None:
        """Start jobs again."""

    async def load(self) -> None:
        """Start an unloaded engine; try one that failed again at once."""

    async def unload(self) -> None:
        """End the engine, after its edit if it has one; the next job loads it again."""


class ResultLinks:
    """How results are addressed: told by the door that serves them, handed on by the others."""

    def __init__(self) -> None:
        self.make: Callable[[str, int], str | None] = lambda job_id, n: None


class TransportContext:
    """What the daemon hands to `TransportSpec.factory`."""

    def __init__(
        self,
        name: str,
        settings: BaseModel,
        dir: Path,
        jobs: Jobs,
        info: Callable[[], dict[str, Any]],
        sample: Callable[[str], Path],
        control: Control,
        keys: Keyring,
        metrics: Callable[[], Awaitable[bytes]],
        links: ResultLinks,
        on_count: Callable[[str, str, int], None],
        on_report: Callable[[str, bool, str], None],
        on_announce: Callable[[str, str, Path | None], None],
    ) -> None:
        self.name = name
        self.settings: Any = settings
        self.log = logging.getLogger(f"vellumd.{name}")
        self.dir = dir
        self.jobs = TransportJobs(jobs, name)
        self.presets = TransportPresets(jobs.presets)
        self.control = control
        self.keys = keys
        """The named keys of `vellumd keys`: a door that strangers can reach asks for one."""
        self._jobs = jobs
        self._info = info
        self._sample = sample
        self._metrics = metrics
        self._links = links
        self._on_count = on_count
        self._on_report = on_report
        self._on_announce = on_announce

    def info(self) -> dict[str, Any]:
        """Version, model, presets, tiers, limits and health, as JSON values.

        Keys: `version`, `model` (card name), `demo` (bool), `note`, `knows` (what the model
        can do, or null), `samples` (edits to try: `prompt` and `images`, names for `sample`),
        `presets` (name → options), `default_preset`, `tiers`, `loras`, `limits` (those of the
        settings, and `max_area`: pixels of the largest result), `public_url`, `engine`
        (`state` loading | ready | restarting | failed | unloaded, `ready` bool: a job that
        comes now is edited, `loaded` bool: at once, `reason`, `phase`, `done`, `of`,
        `warming` bool: loaded but not warmed up, so that the first edit takes longer,
        `warm_up_s`: seconds the warm-up took, null before its end, `restarts`, `capabilities`
        or null), `queue` (`queued`, `running`, `held`: why no job
        is started, empty | paused | storage_full | stopping), `transports` (name → `{ok, text,
        urls, crashes}`), `store` (`open` bool, `writable` bool, `reason`, `used_bytes`,
        `limit_bytes`, `free_bytes`, `reserve_bytes`), `warnings` (list of `{code, message}`),
        `loop` (`alarms`, `worst_s`, `last`: how often something blocked the daemon, the
        longest, what it was).
        """
        return self._info()

    def sample(self, name: str) -> Path:
        """The file of a picture that `info()["samples"]` names; raises `NotFound` for others."""
        return self._sample(name)

    async def metrics(self) -> bytes:
        """The daemon's figures in Prometheus' text format 0.0.4 (docs/operations.md)."""
        return await self._metrics()

    def count(self, event: str, times: int = 1) -> None:
        """Count something that happened at this door, among the daemon's figures.

        It is `vellumd_transport_events_total`, by door and event; 0 makes the event known
        before it happens.
        """
        self._on_count(self.name, event, times)

    def serve_results(self, address: Callable[[str, int], str]) -> None:
        """Tell that this door serves results: `address(job_id, n)` is a URL without a key.

        Only for URLs that senders elsewhere can open (`daemon.public_url`).
        """
        self._links.make = address

    def link(self, job_id: str, n: int = 1) -> str | None:
        """The URL that opens result `n` while it is kept; None where no door serves results."""
        return self._links.make(job_id, n)

    def report(self, ok: bool, text: str) -> None:
        """Tell in one sentence how this door is; shown by `/readyz`, `info` and the log."""
        if not isinstance(text, str):
            raise TypeError(f"report(ok, text): text must be a str, not {type(text).__name__}")
        self._on_report(self.name, bool(ok), text[:REPORT_MAX])

    def announce(self, url: str, key_file: Path | None = None) -> None:
        """Tell the address under which this door is open, and what file holds its key.

        Commands on this machine find both, and use the key if they may read the file.
        """
        if not isinstance(url, str):
            raise TypeError(f"announce(url): url must be a str, not {type(url).__name__}")
        self._on_announce(self.name, url, key_file)

    def check_room(self) -> None:
        """Raises `StorageFull` or `EngineUnavailable` while nothing more may come in.

        For doors that keep what they are sent in files of their own; `stage` asks itself.
        """
        self._jobs.staging.check_room()

    async def stage(self, picture: bytes | Path | AsyncIterator[bytes], name: str = "") -> ImageRef:
        """Put a picture into the spool: checked for format, limits and wholeness.

        Of a large stream only a piece is in memory at a time. The picture is kept for an
        hour, or as long as a job uses it. Raises `BadImage`, `UnsupportedFormat`,
        `ImageTooLarge` or `StorageFull`.
        """
        return await self._jobs.staging.put(picture, name)

    async def staged(self, sha256: str) -> ImageRef:
        """The picture staged within the last hour under this hash; raises `NotFound`."""
        return await self._jobs.staging.find(sha256)

    def follow(self, wanted: JobFilter | None = None, *, reply: JsonValue) -> None:
        """Have each job that comes from now on delivered here, too, whoever submits it.

        `wanted` says which jobs, all by default, but not by status; `reply` comes with their
        deliveries, as that of `submit` does. Called in the factory it misses no job, since
        all doors are made before one is open, and a door that crashed is still followed for.
        A job that is wanted twice with the same `reply` is delivered once. Who deletes a job
        takes it from its followers, and from nobody else.
        """
        self._jobs.follow(self.name, wanted or JobFilter(), reply)

    def deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Ended jobs that this transport owes an answer, oldest first, for ever."""
        return self._jobs.deliveries.of(self.name)
