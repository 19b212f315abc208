"""vellumd: an image-edit daemon that keeps Qwen-Image-Edit on one GPU for everyone.

This module is the public face for plugin authors and scripts: what is named in `_FACE`
is kept stable, everything else is internal. Names load on first use, so importing
vellumd costs nothing and never brings torch in by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vellumd import addresses as addresses
    from vellumd import errors as errors
    from vellumd import images as images
    from vellumd import models as models
    from vellumd import platform as platform
    from vellumd import sending as sending
    from vellumd.context import TransportContext as TransportContext
    from vellumd.engine.library import QwenImageEditEngine as QwenImageEditEngine
    from vellumd.hookspecs import Check as Check
    from vellumd.hookspecs import EngineSpec as EngineSpec
    from vellumd.hookspecs import Transport as Transport
    from vellumd.hookspecs import TransportSpec as TransportSpec
    from vellumd.hookspecs import hookimpl as hookimpl
    from vellumd.jobs import JobFilter as JobFilter
    from vellumd.jobs import Page as Page
    from vellumd.keys import Keyring as Keyring
    from vellumd.models import Delivery as Delivery
    from vellumd.models import EditRequest as EditRequest
    from vellumd.models import ImageRef as ImageRef
    from vellumd.models import Job as Job
    from vellumd.models import JobEvent as JobEvent
    from vellumd.models import JobStatus as JobStatus
    from vellumd.models import new_job_id as new_job_id
    from vellumd.protocol import Capabilities as Capabilities
    from vellumd.protocol import Engine as Engine
    from vellumd.protocol import Init as Init
    from vellumd.protocol import Report as Report

__version__ = "0.1.0"

_MODULES = ("addresses", "errors", "images", "models", "platform", "sending")
_FACE = {
    "context": ("TransportContext",),
    "engine.library": ("QwenImageEditEngine",),
    "hookspecs": ("Check", "EngineSpec", "Transport", "TransportSpec", "hookimpl"),
    "jobs": ("JobFilter", "Page"),
    "keys": ("Keyring",),
    "models": (
        "Delivery", "EditRequest", "ImageRef", "Job", "JobEvent", "JobStatus", "new_job_id",
    ),
    "protocol": ("Capabilities", "Engine", "Init", "Report"),
}  # fmt: skip
_HOME = {name: module for module, names in _FACE.items() for name in names}

__all__ = ["__version__", *_MODULES, *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"vellumd.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"vellumd.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vellumd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
