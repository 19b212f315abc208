"""`vellumd doctor`: check this machine, the model and the configuration."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vellumd.cli.main import FAILED, OK, load_settings

if TYPE_CHECKING:
    from vellumd.hookspecs import Check
    from vellumd.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Print every finding; `FAILED` if something must be mended."""
    loaded = load_settings(args)
    for warning in loaded.warnings:
        print(f"note  {warning}")
    print(f"      settings from: {', '.join(loaded.sources) or 'the defaults'}")
    findings = []
    for check in examine(loaded.settings):
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.text}", flush=True)
        findings.append(check.ok)
    failed = findings.count(False)
    print(f"{len(findings)} checks, {failed} to mend")
    return FAILED if failed else OK


def examine(settings: Settings) -> Iterator[Check]:
    """All checks, quick ones first."""
    from vellumd.cli import checks

    yield from checks.interpreter()
    yield from checks.positions()
    yield from checks.store(settings)
    yield from checks.model(settings)
    yield from checks.loras(settings)
    yield daemon(settings)
    yield from asyncio.run(of_plugins(settings))
    yield from checks.card()


def daemon(settings: Settings) -> Check:
    """Whether a daemon runs on this data folder."""
    from vellumd.cli import client
    from vellumd.hookspecs import Check

    running = client.announced(settings)
    text = f"a daemon answers at {running.url}" if running else "no daemon runs on this data folder"
    return Check(True, text)


async def of_plugins(settings: Settings) -> Iterable[Check]:
    """What the enabled plugins check: ports, brokers, folders."""
    from vellumd import plugins

    found: list[Check] = []
    loaded = plugins.load(settings.enabled_plugins())
    for name, spec in loaded.transports.items():
        valid = loaded.validate_section(name, spec.settings_model, settings)
        for check in spec.checks:
            found += await check(valid)
    return found
