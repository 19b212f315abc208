"""`vellumd doctor`: check this machine, the model and the configuration. Takes no job."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vellumd.cli.main import FAILED, OK, load_settings

if TYPE_CHECKING:
    from vellumd.hookspecs import Check
    from vellumd.settings import Settings
    from vellumd.sources import Loaded

log = logging.getLogger(__name__)

CHECK_S = 30.0
"""Seconds that a check of a plugin may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much to check, and how to tell it."""
    parser.add_argument(
        "--edit", action="store_true", help="also edit one picture with the demo and compare it"
    )
    parser.add_argument(
        "--hashes", action="store_true", help="also read artefacts whole, and compare their hashes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Tell every finding; `FAILED` if something must be mended."""
    loaded = load_settings(args)
    found = []
    for about, check in examine(loaded, edit=args.edit, hashes=args.hashes):
        found.append({"about": about, "ok": check.ok, "text": check.text})
        if not args.json:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {about:<9} {check.text}", flush=True)
    failed = sum(not finding["ok"] for finding in found)
    if args.json:
        print(json.dumps({"checks": found, "failed": failed}, indent=1))
    else:
        print(f"{len(found)} checks, {failed} to mend")
    return FAILED if failed else OK


def examine(
    loaded: Loaded, *, edit: bool = False, hashes: bool = False
) -> Iterator[tuple[str, Check]]:
    """All checks, quick ones first, each with what it is about."""
    from vellumd.cli import artefact_checks, checks, golden, model_checks, outlook

    settings = loaded.settings
    for about, found in (
        ("settings", sources(loaded)),
        ("packages", checks.interpreter()),
        ("packages", checks.positions()),
        ("data", checks.store(settings)),
        ("model", model_checks.model(settings)),
        ("model", model_checks.loras(settings)),
        ("model", artefact_checks.artefacts(settings, hashes=hashes)),
        ("presets", model_checks.presets(settings)),
        ("daemon", daemon(settings)),
        ("plugins", of_plugins(settings)),
        ("card", checks.card()),
        ("card", outlook.outlook(settings)),
    ):
        yield from ((about, check) for check in found)
    if edit:
        yield "edit", asyncio.run(golden.edit())


def sources(loaded: Loaded) -> Iterator[Check]:
    """Where the settings come from, and what was noticed while reading them."""
    from vellumd.hookspecs import Check

    yield Check(True, f"from {', '.join(loaded.sources) or 'the defaults'}")
    for warning in loaded.warnings:
        yield Check(True, f"note: {warning}")


def daemon(settings: Settings) -> Iterator[Check]:
    """Whether a daemon runs on this data folder."""
    from vellumd.cli import client
    from vellumd.hookspecs import Check

    running = client.announced(settings)
    text = f"one answers at {running.url}" if running else "none runs on this data folder"
    yield Check(True, text)


def of_plugins(settings: Settings) -> Iterable[Check]:
    """What the enabled plugins check: ports, brokers, folders."""
    return asyncio.run(_of_plugins(settings))


async def _of_plugins(settings: Settings) -> list[Check]:
    from vellumd import plugins
    from vellumd.hookspecs import Check

    found: list[Check] = []
    loaded = plugins.load(settings.enabled_plugins())
    for name, spec in loaded.transports.items():
        valid = loaded.validate_section(name, spec.settings_model, settings)
        for check in spec.checks:
            try:
                async with asyncio.timeout(CHECK_S):
                    found += map(_finding, await check(valid))
            except (KeyboardInterrupt, asyncio.CancelledError):
                raise
            except BaseException:  # extension modules raise such, and sys.exit does
                log.exception("a check of %s", name)
                text = f"{name}: its check broke off; tell the plugin's author what is said above"
                found.append(Check(False, text))
    return found


def _finding(told: Check) -> Check:
    """A finding as the table needs it; raises for what is none."""
    from vellumd.hookspecs import Check

    return Check(bool(told.ok), str(told.text))
