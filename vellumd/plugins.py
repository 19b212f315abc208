"""Which plugins run: entry points walked by name, imported only if enabled, checked.

A plugin that cannot be right refuses the start, naming its distribution and the
remedy; nothing is skipped in silence.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import pluggy
from pydantic import BaseModel

from vellumd import containment, hookspecs, sources
from vellumd.errors import ConfigError
from vellumd.hookspecs import GROUP, EngineSpec, TransportSpec
from vellumd.models import Job, JobEvent
from vellumd.settings import Settings

log = logging.getLogger(__name__)

HOOKS = [name for name in vars(hookspecs) if name.startswith("vellumd_")]
SPEC_HOOKS = {TransportSpec: "vellumd_transports", EngineSpec: "vellumd_engines"}
BUILTIN_ENGINE = EngineSpec("qwen-image-edit", "vellumd.engine.start:create")


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
    """What the enabled plugins bring, by name; `providers` are their distributions."""

    plugins: tuple[Plugin, ...]
    transports: dict[str, TransportSpec]
    engines: dict[str, EngineSpec]
    observers: tuple[tuple[str, Callable[[Job, JobEvent], None]], ...] = field(repr=False)
    providers: dict[str, str] = field(default_factory=dict)

    def tell(self, job: Job, event: JobEvent) -> None:
        """Call every `vellumd_job_event`; one that raises harms nobody else."""
        for name, observe in self.observers:
            try:
                with containment.plugin(name):
                    observe(job, event)
            except BaseException:  # extension modules raise such, and sys.exit does
                log.exception("plugin %s failed in vellumd_job_event", name)

    def validate_section(self, name: str, model: type[BaseModel], settings: Settings) -> BaseModel:
        """The section `[plugins.<name>]` as `model`; raises `ConfigError` for a wrong one."""
        section = f"plugins.{name}"
        try:
            return sources.validate_section(model, settings.plugins.get(name, {}), section)
        except ConfigError as error:
            provider = self.providers.get(name, "vellumd itself")
            raise ConfigError(f"{error.message}\n[{section}] belongs to {provider}.") from None

    def packages(self) -> dict[str, str]:
        """Plugin names by the package, or single module, that their code is in."""
        modules = {p.name: p.module.partition(":")[0] for p in self.plugins if p.enabled}
        return {module.rpartition(".")[0] or module: name for name, module in modules.items()}


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
    transports, transport_providers = _collect(manager, TransportSpec, active)
    engines, engine_providers = _collect(manager, EngineSpec, active, [BUILTIN_ENGINE])
    return Plugins(
        plugins=tuple(_describe(point, point.name in wanted) for point in points),
        transports=transports,
        engines=engines,
        observers=tuple(
            (implementation.plugin_name, _by_argument(implementation))
            for implementation in manager.hook.vellumd_job_event.get_hookimpls()
        ),
        providers={**engine_providers, **transport_providers},
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # extension modules raise such, and sys.exit does
        log.exception("plugin %s", point.name)
        raise _broken(point, f"cannot be imported ({type(error).__name__})") from error
    try:
        manager.register(module, name=point.name)
    except pluggy.PluginValidationError as error:
        raise _broken(point, f"has a wrong hook: {error.args[0].splitlines()[-1]}") from error
    except ValueError as error:
        raise _broken(point, "is the module of another plugin") from error
    for name in vars(module):
        if name in HOOKS and inspect.iscoroutinefunction(getattr(module, name)):
            raise _broken(point, f"has an async hook, which nobody would await: {name}")
        if name.startswith("vellumd_") and name not in HOOKS and callable(getattr(module, name)):
            near = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"; perhaps {near[0]!r} was meant" if near else ""
            raise _broken(point, f"has a hook that does not exist: {name}{hint}")


def _broken(point: importlib.metadata.EntryPoint, what: str) -> ConfigError:
    return ConfigError(
        f"The plugin {point.name!r} of {_provider(point)} {what}. Upgrade or uninstall it, or "
        f"set plugins.{point.name}.enabled = false."
    )


Spec = TypeVar("Spec", TransportSpec, EngineSpec)


def _collect(
    manager: pluggy.PluginManager,
    kind: type[Spec],
    points: dict[str, importlib.metadata.EntryPoint],
    builtin: Iterable[Spec] = (),
) -> tuple[dict[str, Spec], dict[str, str]]:
    """The specs that all plugins bring, and who brings each, by name.

    Raises `ConfigError` for two of one name and for what is no spec.
    """
    hook = SPEC_HOOKS[kind]
    specs = {spec.name: spec for spec in builtin}
    providers = dict.fromkeys(specs, "vellumd itself")
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        point = points[implementation.plugin_name]
        try:
            offered = list(implementation.function())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            log.exception("plugin %s", point.name)
            raise _broken(point, f"failed in {hook} ({type(error).__name__})") from error
        for spec in offered:
            if not isinstance(spec, kind):
                raise _broken(point, f"returns from {hook} what is no {kind.__name__}")
            if wrong := _wrong_field(spec):
                raise _broken(point, f"returns from {hook} a spec whose {wrong}")
            if spec.name in specs:
                rival = providers[spec.name]
                raise _broken(point, f"brings {spec.name!r}, which {rival} brings too")
            specs[spec.name], providers[spec.name] = spec, _provider(point)
    return specs, providers


def _wrong_field(spec: TransportSpec | EngineSpec) -> str:
    """Which field of a spec cannot be used, and what it has to be; empty if none."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", str(spec.name)):
        return "name is not one of small letters, digits, _ and -"
    model = spec.settings_model
    optional = isinstance(spec, EngineSpec) and model is None
    if not optional and not (isinstance(model, type) and issubclass(model, BaseModel)):
        return "settings_model is no pydantic model"
    if isinstance(spec, TransportSpec) and not callable(spec.factory):
        return "factory cannot be called"
    if isinstance(spec, EngineSpec) and ":" not in str(spec.factory):
        return "factory is not package.module:name"
    return ""


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
