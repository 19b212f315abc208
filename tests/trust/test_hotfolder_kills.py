"""SIGKILL at every step from claim to done: nothing is lost and nothing comes twice."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Record
from tests.plugins.hotfolder.conftest import encoded, files_of
from vellumd.testing.process import DaemonProcess

KILLER = Path(__file__).parents[1] / "fixtures" / "killer"
TIMES = {"settle_s": 0.05, "scan_s": 0.2, "incomplete_s": 0.1}


@dataclass(frozen=True)
class Order:
    """Files of an inbox, and what has to lie where in the end."""

    name: str
    files: dict[str, bytes]
    outbox: set[str]
    failed: set[str]


ORDERS = [
    Order("picture", {"a.txt": b"invert", "a.png": encoded(1)}, {"a.png"}, set()),
    Order("failure", {"a.txt": b"fail", "a.png": encoded(1)}, set(), {"a.error.txt"}),
    Order(
        "folder",
        {
            "set/job.json": b'{"prompt": "invert", "n": 2}',
            "set/1.png": encoded(1),
            "set/2.png": encoded(2),
        },
        {"set_1.png", "set_2.png"},
        set(),
    ),
]


class Life:
    """One order through daemons that die."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.root, self.steps = folder, folder / "root", folder / "steps"
        self.daemon = DaemonProcess(folder, "hotfolder", {"root": self.root, **TIMES})
        self._monkeypatch = monkeypatch

    def start(self, fatal: int) -> None:
        """Start a daemon that dies before its step number `fatal`; 0 lives."""
        with self._monkeypatch.context() as patch:
            known = os.environ["PYTHONPATH"]
            patch.setenv("PYTHONPATH", f"{KILLER}{os.pathsep}{known}")
            patch.setenv("VELLUMD_KILLER", f"{self.folder}{os.sep}|{fatal}|{self.steps}")
            self.daemon.start()

    def put(self, order: Order) -> None:
        """The files of an order."""
        for path in order.files:
            file = self.root / "inbox" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(order.files[path])

    def names(self, part: str) -> set[str]:
        return files_of(self.root / part)

    def over(self) -> bool:
        """Whether all was brought to its end.

        A folder that is moved while it is listed looks empty, hence the second look, and
        the look for what came out of it.
        """
        came = self.names("outbox") | self.names("failed")
        return bool(came) and not any(self.names("inbox") or self._claimed() for _ in range(2))

    def _claimed(self) -> list[Path]:
        return list((self.root / ".work").glob("*/*"))

    def until_dead(self) -> None:
        self.daemon.until(lambda: not self.daemon.alive or self.over(), "the end of it")


def count_steps(life: Life, order: Order) -> int:
    """How many steps an order takes; all of it happened once."""
    life.put(order)
    life.start(0)
    life.daemon.until(life.over, "the end of it")
    time.sleep(0.2)
    life.daemon.kill()
    return len(life.steps.read_text().splitlines())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_a_kill_at_every_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
    order: Order,
    record: Record,
) -> None:
    """Each step in full, a tenth of them otherwise: one job, one result, one original.

    A life can be over before its step: the number of looks varies. Most are not.
    """
    (tmp_path / "0").mkdir()
    steps = count_steps(Life(tmp_path / "0", monkeypatch), order)
    assert steps > 20
    seed = random.SystemRandom().randrange(2**32)
    chosen = range(1, steps + 1)
    if not full:
        chosen = sorted(random.Random(seed).sample(chosen, steps // 10))
    killed = 0
    for step in chosen:
        (tmp_path / str(step)).mkdir()
        life = Life(tmp_path / str(step), monkeypatch)
        told = f"seed {seed}, step {step} of {steps}"
        try:
            life.put(order)
            life.start(step)
            life.until_dead()
            died = not life.daemon.alive
            killed += died
            last = life.steps.read_text().splitlines()[-1]
            told += f": {last}"
            if died:
                life.daemon.kill()
                life.start(0)
                life.daemon.until(life.over, f"the end of it ({told})")
            assert life.daemon.stop(15) == 0, told
            assert life.daemon.kept() == 1, told
            assert life.daemon.count("executed") <= 2, told
            originals = set(order.files)
            assert life.names("outbox") == order.outbox, told
            assert life.names("failed") == (order.failed and order.failed | originals), told
            assert life.names("done") == (set() if order.failed else originals), told
        finally:
            life.daemon.close()
    figures = {"seed": seed, "order": order.name, "steps": steps, "kills": killed}
    record(f"hotfolder-kills-{order.name}", figures)
    assert killed >= len(chosen) / 2, figures
