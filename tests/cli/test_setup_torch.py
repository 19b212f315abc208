"""Which torch `make setup` chooses, and that it never waits long for an answer."""

from __future__ import annotations

import socket
import time

import pytest

from vellumd.cli import setup_torch
from vellumd.cli.setup_torch import choose


def no_probe(index: str) -> bool:
    """A probe that must not happen."""
    raise AssertionError(index)


def test_an_installed_torch_is_kept() -> None:
    """Whatever it is, nothing is probed and nothing installed."""
    choice = choose("linux", "2.12.0+cpu", True, no_probe)
    assert (choice.install, choice.line) == (False, "torch 2.12.0+cpu is installed and kept.")


def test_linux_with_a_driver_takes_the_default_index() -> None:
    """There the default wheels have CUDA."""
    choice = choose("linux", None, True, no_probe)
    assert (choice.install, choice.index) == (True, None)
    assert "CUDA, about 3 GB: an NVIDIA driver was found" in choice.line


@pytest.mark.parametrize(
    ("system", "driver", "flavour"), [("linux", False, "/cpu"), ("win32", True, "/cu130")]
)
def test_other_wheels_come_from_pytorchs_own_index(system: str, driver: bool, flavour: str) -> None:
    """CPU wheels on Linux, CUDA wheels on Windows."""
    choice = choose(system, None, driver, lambda index: True)
    assert choice.index is not None
    assert choice.index.endswith(flavour)
    assert "PyTorch's own index" in choice.line


@pytest.mark.parametrize("driver", [False, True])
def test_out_of_reach_falls_back(driver: bool) -> None:
    """The default index has to do, and the line says why."""
    choice = choose("win32", None, driver, lambda index: False)
    assert (choice.install, choice.index) == (True, None)
    assert "did not answer within 5 s" in choice.line


def test_a_silent_index_costs_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers is given up after the probe's time."""
    monkeypatch.setattr(setup_torch, "PROBE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not setup_torch.answers(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 20  # as long as it is silent


def test_a_refusing_index_is_out_of_reach() -> None:
    """A closed port counts as no answer at once."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert not setup_torch.answers(f"http://127.0.0.1:{port}")
