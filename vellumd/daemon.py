"""The daemon: everything put together, started in order, let go of in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import vellumd
from vellumd import announcement, containment, errors, keys, model_card, platform, plugins
from vellumd.context import ResultLinks, TransportContext
from vellumd.events import EventBus
from vellumd.executor import STORE_RETRY_S, Executor
from vellumd.hookspecs import EngineSpec, Transport, TransportSpec
from vellumd.jobs import Jobs
from vellumd.lag import LagAlarm
from vellumd.metrics import Metrics
from vellumd.mistakes import Mistakes
from vellumd.model_card import ModelCard
from vellumd.models import JobEvent, notice
from vellumd.plugins import Plugins
from vellumd.protocol import Init
from vellumd.settings import Settings
from vellumd.store.retention import Retention
from vellumd.store.room import Room, writable
from vellumd.store.spool import Spool
from vellumd.store.store import Store
from vellumd.supervisor import EngineState, Supervisor
from vellumd.transports import Transports
from vellumd.watchdog import Part

log = logging.getLogger("vellumd")

THREADS = 8
"""Threads for file work; more of them win nothing, the interpreter lock is what they wait for."""


class LockedStoreError(errors.ConfigError):
    """Another daemon uses the data folder."""


class Daemon:
    """One daemon on one data folder. `run` serves until `stop` is called.

    Raises `ConfigError` when made, before anything is touched.
    """

    def __init__(self, settings: Settings, plugins_loaded: Plugins | None = None) -> None:
        self.settings = settings
        self.plugins = plugins_loaded or plugins.load(settings.enabled_plugins())
        self._sections = validate_sections(settings, self.plugins)
        self.card = read_card(settings)
        self.transports = Transports(self.plugins.transports.values(), self._open)
        self.keys = keys.Keyring(settings.store.dir / keys.FILE)
        self.lag = LagAlarm(self.plugins.packages())
        self.metrics = Metrics()
        self._links = ResultLinks()
        self._stop = asyncio.Event()

    @property
    def urls(self) -> list[str]:
        """Addresses that the transports announced."""
        return self.transports.urls

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for the end."""
        return self._stop.is_set()

    async def stopped(self) -> None:
        """Wait until somebody asked for the end."""
        await self._stop.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Daemon]:
        """Run while the block runs; entered once all transports are open.

        Also where somebody asked for the end before that: see `stopping`.
        """
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.run(), name="daemon")
            started = tasks.create_task(self.transports.started.wait(), name="started")
            await asyncio.wait([serving, started], return_when=asyncio.FIRST_COMPLETED)
            try:
                if not (serving.done() and serving.exception()):
                    yield self
            finally:
                started.cancel()
                self.stop()

    async def run(self) -> None:
        """Open the store, serve, and on `stop` let go of everything in order."""
        folder = self.settings.store.dir
        lock = take_lock(folder)
        try:
            with self.lag.watching():
                await self._serve(folder)
        finally:
            announcement.take_back(folder)
            lock.release()

    async def _serve(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, "vellumd-io"))
        loop.set_task_factory(containment.make_task)
        self.bus = EventBus()
        self.bus.observers.append(self.metrics.observe)
        spool = Spool(folder / "spool", self.settings.limits)
        store = await Store.open(folder / "jobs.sqlite", self.bus.publish, spool=spool)
        self.room = Room(spool.root, spool.usage, self.settings.store)
        self.rebuilt = store.rebuilt
        self.jobs = Jobs(self.settings, self.card, store, spool, self.bus, self.room)
        for trouble in self.jobs.presets.troubles():
            log.warning("%s", trouble)
        retention = self._retention(store, spool)
        self.supervisor = Supervisor(
            self._init(folder),
            self.settings.engine.stall_s,
            idle_unload_s=self.settings.engine.idle_unload_s,
            on_state=log_state,
        )
        self.bus.on_previews = self.supervisor.show_previews
        self.executor = Executor(self.jobs, self.supervisor)
        try:
            if left := await self.jobs.recover():
                log.info("%d job(s) were running when the last daemon ended", left)
            self.metrics.waiting(await store.waiting())
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(self.supervisor.run(), name="supervisor"),
                    tasks.create_task(self.executor.run(), name="executor"),
                    tasks.create_task(retention.run(), name="retention"),
                    tasks.create_task(store.watch(), name="store"),
                    tasks.create_task(self.metrics.watch_loop(), name="metrics"),
                ]
                if self.plugins.observers:
                    work.append(tasks.create_task(self._observe(), name="observers"))
                doors = tasks.create_task(self.transports.run(), name="transports")
                await self._stop.wait()
                self.jobs.closing = True
                await self.executor.drain(self.settings.daemon.stop_s)
                self.jobs.end_waits()
                doors.cancel()
                await asyncio.wait([doors])
                for task in work:
                    task.cancel()
        finally:
            await store.close()

    # the engine

    def _init(self, folder: Path) -> Init:
        spec = self.plugins.engines[self.settings.engine.name]
        return Init(
            engine=spec.factory,
            settings=self.settings.engine.model_dump(mode="json"),
            options=self._sections[spec.name].model_dump(mode="json")
            if spec.name in self._sections
            else {},
            device=str(self.settings.engine.devices[0]),
            spool=(folder / "spool").absolute(),
            cache=platform.cache_dir(),
            limits=self.settings.limits.model_dump(mode="json"),
        )

    def parts(self) -> list[Part]:
        """What must not stand still while the daemon runs."""
        return [
            Part("executor", self.executor.sign, self.settings.engine.stall_s),
            Part("supervisor", self.supervisor.sign, self.supervisor.silent_s),
        ]

    # the transports

    def _open(self, spec: TransportSpec) -> Transport:
        folder = self.settings.store.dir / "plugins" / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        context = TransportContext(
            name=spec.name,
            settings=self._sections[spec.name],
            dir=folder,
            jobs=self.jobs,
            info=self.info,
            sample=self._sample,
            control=self.executor,
            keys=self.keys,
            metrics=lambda: self.metrics.text(self.info()),
            links=self._links,
            on_count=self.metrics.count,
            on_report=self.transports.report,
            on_announce=self._announce,
        )
        return spec.factory(context)

    def _announce(self, name: str, url: str, key_file: Path | None) -> None:
        self.transports.announce(name, url, key_file)
        first = self.urls[0]
        key_file = self.transports.key_files.get(first)
        told = announcement.Announcement(os.getpid(), first, key_file)
        try:
            announcement.write(self.settings.store.dir, told)
        except OSError as error:  # a full disk: who is asked over the network still answers
            log.error(
                "commands here need --url: %s cannot be written (%s)", announcement.FILE, error
            )

    def _sample(self, name: str) -> Path:
        """See `TransportContext.sample`."""
        if name not in self.card.pictures:
            raise errors.NotFound("The model has no sample of this name.")
        return model_card.folder(self.settings.engine.model) / self.card.pictures[name]

    # what goes on beside

    async def _observe(self) -> None:
        """Tell plugins what happened, with the job as it is by then."""
        since: int | None = None
        while True:
            try:
                async with aclosing(self.jobs.events(None, since, previews=False)) as events:
                    async for event in events:
                        if event.seq is not None:
                            await self._tell(event)
                            since = event.seq
            except (errors.StorageFull, errors.EngineUnavailable) as error:
                log.warning("the observers wait: %s", error.message)
                await asyncio.sleep(STORE_RETRY_S)

    async def _tell(self, event: JobEvent) -> None:
        with suppress(errors.NotFound, errors.Expired):
            self.plugins.tell(await self.jobs.get(event.job_id), event)

    def _retention(self, store: Store, spool: Spool) -> Retention:
        give_up_s = {name: spec.give_up_s for name, spec in self.plugins.transports.items()}
        retention = Retention(store, spool, self.room, self.settings.store, give_up_s)
        self.jobs.deliveries.on_settled = retention.delivered
        return retention

    def info(self) -> dict[str, Any]:
        """See `TransportContext.info`."""
        engine = self.supervisor.state
        capabilities = engine.capabilities
        return {
            **self._facts,
            "presets": {
                name: preset.model_dump(mode="json", exclude_none=True)
                for name, preset in self.jobs.presets.named.items()
            },
            "tiers": list(capabilities.tiers) if capabilities else [],
            "engine": {
                "state": engine.state,
                "ready": engine.ready,
                "loaded": engine.loaded,
                "reason": engine.reason,
                "phase": engine.phase,
                "done": engine.done,
                "of": engine.of,
                "warming": engine.warming,
                "warm_up_s": engine.warm_up_s,
                "restarts": engine.restarts,
                "capabilities": capabilities.model_dump(mode="json") if capabilities else None,
            },
            "queue": {**self.jobs.queue(), "held": self.executor.held},
            "transports": self.transports.public(),
            "store": self.room.public(),
            "warnings": [notice("store_rebuilt").model_dump()] if self.rebuilt else [],
            "loop": self.lag.seen.public(),
        }

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What `info` says that does not change while the daemon runs."""
        return {
            "version": vellumd.__version__,
            "model": self.card.name,
            "demo": self.card.demo,
            "note": self.card.note,
            "knows": self.card.knows,
            "samples": [
                {
                    "prompt": sample.prompt,
                    "images": [place.rpartition("/")[2] for place in sample.images],
                }
                for sample in self.card.samples
            ],
            "default_preset": self.jobs.presets.default,
            "loras": sorted({*self.card.loras, *self.settings.engine.loras}),
            "limits": {
                **self.settings.limits.model_dump(mode="json"),
                "max_area": self.card.largest_area,
            },
            "public_url": self.settings.daemon.public_url,
        }


def validate_sections(settings: Settings, loaded: Plugins) -> dict[str, BaseModel]:
    """Each plugin's settings, by section. Raises `ConfigError`, also for an unknown engine."""
    if settings.engine.name not in loaded.engines:
        raise errors.ConfigError(
            f"engine.name: there is no engine {settings.engine.name!r}; there is "
            f"{', '.join(loaded.engines)}. Correct it, or enable the plugin that brings it."
        )
    specs: list[TransportSpec | EngineSpec] = [
        *loaded.transports.values(),
        *loaded.engines.values(),
    ]
    sections: dict[str, BaseModel] = {}
    with Mistakes() as mistakes:
        for spec in specs:
            if (model := spec.settings_model) is not None:
                with mistakes.noted():
                    sections[spec.name] = loaded.validate_section(spec.name, model, settings)
    return sections


def read_card(settings: Settings) -> ModelCard:
    """The model's card; a default one for a missing model, so that intake stays open."""
    try:
        return model_card.of(settings.engine)
    except errors.ModelMissing:
        return ModelCard(name=Path(settings.engine.model).name)


def take_lock(folder: Path) -> platform.FileLock:
    """The lock on a data folder, which is made if missing.

    Raises `LockedStoreError` if another daemon has it, `ConfigError` if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not writable(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return platform.lock_folder(folder)
    except OSError as error:
        raise errors.ConfigError(
            f"store.dir: {folder} cannot be written ({error.strerror}). Correct it."
        ) from None
    except platform.LockedError:
        raise LockedStoreError(
            f"Another daemon already uses {folder}. Stop it, or give this one its own folder "
            "with --store.dir."
        ) from None


def log_state(state: EngineState) -> None:
    """One line a change of the engine's state."""
    log.info("engine %s%s", state.state, f": {state.reason}" if state.reason else "")
