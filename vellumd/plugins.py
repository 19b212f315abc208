"""Which plugins run: entry points walked by name, imported only if enabled, checked.

A plugin that cannot be right refuses the start, naming its distribution and the
remedy; nothing is skipped in silence.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pluggy

from vellumd import hookspecs
from vellumd.errors import ConfigError
from vellumd.hookspecs import GROUP, EngineSpec, TransportSpec
from vellumd.models import Job, JobEvent

log = logging.getLogger(__name__)

HOOKS = [name for name in vars(hookspecs) if name.startswith("vellumd_")]
BUILTIN_ENGINE = EngineSpec("qwen-image-edit", "vellumd.engine.pipeline:create")


@dataclass(frozen=True)
class Plugin:
    """An installed plugin: entry-point name, the distribution that brings it, its state."""

    name: str
    distribution: str
    version: str
    module: str
    enabled: bool


@dataclass(frozen=True)
class Plugins:
    """What the enabled plugins bring, by name."""

    plugins: tuple[Plugin, ...]
    transports: dict[str, TransportSpec]
    engines: dict[str, EngineSpec]
    observers: tuple[tuple[str, Callable[[Job, JobEvent], None]], ...] = field(repr=False)

    def tell(self, job: Job, event: JobEvent) -> None:
        """Call every `vellumd_job_event`; one that raises harms nobody else."""
        for name, observe in self.observers:
            try:
                observe(job, event)
            except Exception:
                log.exception("plugin %s failed in vellumd_job_event", name)


def load(enabled: Iterable[str]) -> Plugins:
    """Import the enabled plugins and ask what they bring. Raises `ConfigError`."""
    wanted = list(enabled)
    points = entry_points()
    _check_names(points, wanted)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    active = {point.name: point for point in points if point.name in wanted}
    for point in active.values():
        _register(manager, point)
    return Plugins(
        plugins=tuple(_describe(point, point.name in wanted) for point in points),
        transports=_collect(manager, "vellumd_transports", active),
        engines=_collect(manager, "vellumd_engines", active, [BUILTIN_ENGINE]),
        observers=tuple(
            (implementation.plugin_name, _by_argument(implementation))
            for implementation in manager.hook.vellumd_job_event.get_hookimpls()
        ),
    )


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """All installed entry points of the group, by name; none is imported."""
    found = importlib.metadata.entry_points(group=GROUP)
    unique = {(point.name, point.value, _provider(point)): point for point in found}
    return sorted(unique.values(), key=lambda point: (point.name, _provider(point)))


def _check_names(points: list[importlib.metadata.EntryPoint], wanted: list[str]) -> None:
    names = [point.name for point in points]
    for point in points:
        if names.count(point.name) > 1 and point.name in wanted:
            rivals = " and ".join(_provider(p) for p in points if p.name == point.name)
            raise ConfigError(
                f"Two plugins are called {point.name!r}: {rivals}. Uninstall one of them."
            )
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"[plugins.{name}] is configured, but no such plugin is installed.{hint} "
                f"Install its package, or remove the section."
            )


def _register(manager: pluggy.PluginManager, point: importlib.metadata.EntryPoint) -> None:
    """Import a plugin and take its hooks; raises `ConfigError` for a broken one."""
    try:
        module = point.load()
        manager.register(module, name=point.name)
    except pluggy.PluginValidationError as error:
        raise _broken(point, f"has a wrong hook: {error.args[0].splitlines()[-1]}") from error
    except Exception as error:
        log.exception("plugin %s", point.name)
        raise _broken(point, f"cannot be imported ({type(error).__name__})") from error
    for name in vars(module):
        if name.startswith("vellumd_") and name not in HOOKS and callable(getattr(module, name)):
            near = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"; perhaps {near[0]!r} was meant" if near else ""
            raise _broken(point, f"has a hook that does not exist: {name}{hint}")


def _broken(point: importlib.metadata.EntryPoint, what: str) -> ConfigError:
    return ConfigError(
        f"The plugin {point.name!r} of {_provider(point)} {what}. Upgrade or uninstall it, or "
        f"set plugins.{point.name}.enabled = false."
    )


def _collect(
    manager: pluggy.PluginManager,
    hook: str,
    points: dict[str, importlib.metadata.EntryPoint],
    builtin: Iterable[Any] = (),
) -> dict[str, Any]:
    """The specs that all plugins return from `hook`, by name; `ConfigError` for two of one."""
    specs: dict[str, Any] = {spec.name: spec for spec in builtin}
    owners = dict.fromkeys(specs, "vellumd itself")
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        point = points[implementation.plugin_name]
        try:
            offered = list(implementation.function())
        except Exception as error:
            log.exception("plugin %s", point.name)
            raise _broken(point, f"failed in {hook} ({type(error).__name__})") from error
        for spec in offered:
            if not isinstance(spec, (TransportSpec, EngineSpec)):
                raise _broken(point, f"returns from {hook} what is no spec")
            if spec.name in specs:
                rival = owners[spec.name]
                raise _broken(point, f"brings {spec.name!r}, which {rival} brings too")
            specs[spec.name], owners[spec.name] = spec, _provider(point)
    return specs


def _by_argument(implementation: pluggy.HookImpl) -> Callable[[Job, JobEvent], None]:
    """Call a hook function with the arguments that it names, as pluggy does."""

    def call(job: Job, event: JobEvent) -> None:
        given = {"job": job, "event": event}
        implementation.function(*(given[name] for name in implementation.argnames))

    return call


def _provider(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _describe(point: importlib.metadata.EntryPoint, enabled: bool) -> Plugin:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
    return Plugin(point.name, name, version, point.value, enabled)
