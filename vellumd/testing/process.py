"""A real daemon in a process of its own, with one door and the stand-in for the model."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from vellumd import platform
from vellumd.settings import DEFAULT_PLUGINS
from vellumd.testing import standin

START_S = 60.0
"""Seconds a daemon gets to open its doors."""
WAIT_S = 15.0
"""Seconds that anything else may take before it counts as lost."""
PAUSE_S = 0.01


class DaemonProcess:
    """`vellumd serve` in `folder` with the door `plugin`; started and killed at will.

    `settings` is the door's section, `more` are keys of others, by section. What the daemon
    says is in `folder/log`.
    """

    def __init__(
        self,
        folder: Path,
        plugin: str,
        settings: Mapping[str, object],
        more: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.folder = folder
        self.plugin = plugin
        self._settings = settings
        self._more = more or {}
        self._process: subprocess.Popen[bytes] | None = None
        _install_standin(folder / "site")

    def start(self) -> None:
        """Start it and wait until its doors are open."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vellumd", "serve", *self._options()],
                env={**os.environ, "PYTHONPATH": self._path()},
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
                **platform.own_group(),
            )
        too_late = threading.Timer(START_S, self._process.kill)
        too_late.start()
        assert self._process.stdout is not None
        opened = self._process.stdout.readline()
        too_late.cancel()
        assert opened, f"the daemon did not start:\n{(self.folder / 'log').read_text()}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing in it gets to do anything more."""
        assert self._process is not None
        self._process.kill()
        self._ended(WAIT_S)

    def stop(self, seconds: float) -> int:
        """Ask it to end as a service manager does; its exit code within `seconds`."""
        assert self._process is not None
        self._process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        return self._ended(seconds)

    @property
    def alive(self) -> bool:
        """Whether it runs: for senders that would wait for one that was killed."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Leave nothing running."""
        if self.alive:
            self.kill()

    def _ended(self, seconds: float) -> int:
        assert self._process is not None and self._process.stdout is not None
        code = self._process.wait(seconds)
        self._process.stdout.close()
        return code

    # what goes on inside

    def hold(self) -> None:
        """Let no edit finish until `release`."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        """Let edits finish."""
        (self.folder / "hold").unlink()

    def kill_at(self, event: str, act: Callable[[], object]) -> None:
        """Do `act`, and kill the daemon exactly after the next `event` of a job."""
        before = self.count(event)
        (self.folder / "freeze").write_text(event)
        acting = threading.Thread(target=act)
        acting.start()
        self.until(lambda: self.count(event) > before, f"the event {event}")
        self.kill()
        acting.join(WAIT_S)
        (self.folder / "freeze").unlink()

    def jobs(self) -> set[str]:
        """Ids of all jobs so far."""
        return {job for job, _, _ in standin.history(self.folder)}

    def count(self, what: str) -> int:
        """How often something happened: an event's type, or `executed` by the engine."""
        return sum(happened == what for _, happened, _ in standin.history(self.folder))

    def kept(self) -> int:
        """Jobs in the store; to be asked while no daemon runs."""
        return self._rows("SELECT id FROM jobs")

    def crashed(self) -> bool:
        """Whether the door had to be opened again, so that all its senders were cut off."""
        return "; opened again in " in (self.folder / "log").read_text("utf-8")

    def owed(self) -> int:
        """Replies that are not confirmed; to be asked while no daemon runs."""
        return self._rows("SELECT number FROM deliveries WHERE state IN ('waiting', 'pending')")

    def _rows(self, query: str) -> int:
        with closing(sqlite3.connect(self.folder / "data" / "jobs.sqlite")) as store:
            return len(store.execute(query).fetchall())

    def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for something; raises `TimeoutError` naming it."""
        end = time.monotonic() + WAIT_S
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not come within {WAIT_S:.0f} s")
            time.sleep(PAUSE_S)

    # how it is started

    def _options(self) -> list[str]:
        sections: dict[str, Mapping[str, object]] = {
            **{f"plugins.{name}": {"enabled": False} for name in DEFAULT_PLUGINS},
            f"plugins.{self.plugin}": {"enabled": True, **self._settings},
            f"plugins.{standin.NAME}": {"folder": self.folder},
            "engine": {"name": standin.NAME},
            "store": {"dir": self.folder / "data"},
            "daemon": {"stop_s": 0.5},
        }
        for section, options in self._more.items():
            sections[section] = {**sections.get(section, {}), **options}
        return [
            f"--{section}.{key}={_text(value)}"
            for section, options in sections.items()
            for key, value in options.items()
        ]

    def _path(self) -> str:
        known = os.environ.get("PYTHONPATH")
        return os.pathsep.join([str(self.folder / "site"), *([known] if known else [])])


def _install_standin(site: Path) -> None:
    """Register the stand-in as any distribution is, for the processes that see `site`."""
    info = site / "vellumd_standin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vellumd-standin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vellumd]\n{standin.NAME} = vellumd.testing.standin\n")


def _text(value: object) -> str:
    """A setting as the command line takes it."""
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value)


PORTS = range(20_000, 32_000)
"""Below what systems give to port 0 and to connections (Linux from 32768, others from 49152)."""
_numbers = itertools.count(random.SystemRandom().randrange(len(PORTS)))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now.

    Nor does a system give it to somebody else before it is used, or while a daemon that had it
    is started again.
    """
    for number in itertools.islice(_numbers, len(PORTS)):
        port = PORTS[number % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
