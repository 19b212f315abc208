"""The core's settings, one group a section; each key with its unit and reason.

`sources.py` merges TOML, .env, environment and command line into what is validated
here; each plugin validates its own section with its own model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vellumd import catalogue, platform
from vellumd.models import EditOptions, Tier

DEFAULT_PLUGINS = ("http",)
"""Plugins that run without a section: the one place where the core names one."""


class Group(BaseModel):
    """A section: unknown keys are errors, values do not change while running."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class PathText:
    """Marks a text that is a path, relative to whatever names it, unless it is in `names`."""

    names: tuple[str, ...] = ()


Share = Annotated[float, Field(ge=0, le=1)]


class EngineSettings(Group):
    """Which engine and model edit, and how they are watched."""

    name: str = Field("qwen-image-edit", description="The engine; plugins can bring others.")
    model: Annotated[str, PathText(("demo", *catalogue.MODELS))] = Field(
        "demo",
        description="A model folder in the diffusers layout, a single .safetensors file of a "
        "transformer (ComfyUI's, LightX2V's), a name that `vellumd fetch` knows, or demo for the "
        "embedded toy model.",
    )
    base: Annotated[str, PathText(tuple(catalogue.MODELS))] | None = Field(
        None,
        description="Folder in the diffusers layout that holds what a single file lacks: "
        "processor, scheduler, each part's config.json, and text encoder and VAE unless they "
        "lie beside the file as ComfyUI keeps them. Unset, the nearest one above the file.",
    )
    zero_cond_t: bool | None = Field(
        None,
        description="Whether the model was trained with zero_cond_t: true for "
        "Qwen-Image-Edit-2511, false for older ones. Unset, config.json or a mark in the file "
        "tells; a wrong value makes worse edits, silently.",
    )
    causal: bool | None = Field(
        None,
        description="Whether the model was trained so that each reference picture looks at "
        "nothing but itself, as Qwen-Image-Edit-Causal: then pictures are computed once an edit, "
        "exactly. Unset, the class in the transformer's config.json tells; a wrong value makes "
        "worse edits, silently.",
    )
    tier: Tier = Field(
        "standard", description="Precision of edits: reference, standard, swift or turbo."
    )
    recipe: Literal["auto", "fp8-rows", "fp8-tensor", "fp8-weights", "bf16"] = Field(
        "auto",
        description="How the transformer's weights are held and multiplied: auto times a block by "
        "each that runs, at the first start on a card, and takes the fastest within the tier; the "
        "others force one (docs/precision.md).",
    )
    keep: tuple[str, ...] = Field(
        (),
        description="Ends of names of linears that FP8 recipes leave in bfloat16 beyond those "
        "they always leave, e.g. img_mlp.net.2, should fine structure suffer.",
    )
    vram_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Gigabytes (10^9 bytes) of the card that vellumd may use, enforced; unset, "
        "what other programs leave at the start. What does not fit is streamed from the host's "
        "memory.",
    )
    ram_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Gigabytes of the host's memory for weights that are streamed; unset, what "
        "is free at the start. Below that they are read from an artefact as they are needed, "
        "through 1 GB.",
    )
    artifact_dir: Path | None = Field(
        None,
        description="Folder in which `vellumd convert` puts artefacts and the engine looks for "
        "them, 28 GB each; unset, `artifacts` in the user's cache folder.",
    )
    preset: str | None = Field(
        None,
        description="Preset of requests that name none; if empty, the model's own or `balanced`.",
    )
    devices: tuple[int, ...] = Field(
        (0,), min_length=1, max_length=1, description="GPUs to use; the CPU where there is none."
    )
    forward: Literal["own", "stock"] = Field(
        "own",
        description="The forward of the transformer, and of the VAE on a GPU: vellumd's own, or "
        "diffusers'.",
    )
    attention: Literal["auto", "fa3", "cudnn", "flash", "math"] = Field(
        "auto", description="Attention kernel; auto takes the first of them that runs."
    )
    kernels: Literal["auto", "triton", "plain"] = Field(
        "auto",
        description="What runs between matrix products: auto takes Triton's kernels where they "
        "run and agree with plain PyTorch's, which take over where one fails later.",
    )
    compile: bool = Field(
        False,
        description="Have torch compile the blocks in place of `kernels`: the first edit of each "
        "size then takes some seconds more.",
    )
    warm_up: bool | None = Field(
        None,
        description="Whether the engine makes a small edit for itself once it is loaded, so that "
        "the first job finds kernels chosen and compiled; jobs do not wait for it. Unset, on "
        "a card and with `compile`.",
    )
    turbo_every: int = Field(
        2,
        ge=1,
        description="Tier turbo computes the reference pictures anew in every so-many-th step, "
        "from the first on; the others use their keys and values again.",
    )
    turbo_kv: Literal["auto", "whole", "int8"] = Field(
        "auto",
        description="How tier turbo keeps keys and values: whole, 12.6 GB a prompt with three "
        "pictures of a megapixel, or the pictures' as int8, 4.6 GB; auto takes whole where the "
        "memory plan has room, then int8. An edit that has room for neither is made without.",
    )
    turbo_guided: tuple[Share, Share] = Field(
        (0.0, 1.0),
        description="Shares of the steps between which tier turbo is guided by the negative "
        "prompt; [0, 1] is all of them.",
    )
    cache_mb: int = Field(
        256,
        ge=0,
        description="Megabytes (10^6 bytes) of the card's memory for embeddings and latents of "
        "pictures and prompts that were used before; 0 keeps none.",
    )
    idle_unload_s: float = Field(
        0,
        ge=0,
        description="Seconds without an edit after which the engine is unloaded, so that other "
        "programs have the card; the next job loads it again. 0 keeps it loaded.",
    )
    stall_s: float = Field(
        120,
        gt=0,
        description="Seconds without a sign of life after which the engine counts as hung "
        "(five times as long while loading). A guided step may take 35 s on a small card.",
    )
    loras: dict[str, Annotated[str, PathText()]] = Field(
        default_factory=dict, description="LoRA files by role, e.g. lightning-8 = 'file'."
    )

    @field_validator("turbo_guided")
    @classmethod
    def _ascend(cls, shares: tuple[float, float]) -> tuple[float, float]:
        if shares[0] > shares[1]:  # no step would be guided, and no word of it
            raise ValueError("the second share is less than the first")
        return shares


class Preset(EditOptions):
    """A named set of edit options; a request's own fields win over it."""


class Limits(Group):
    """What a request may ask for."""

    max_images: int = Field(4, ge=1, le=16, description="Reference pictures in one edit.")
    queue: int = Field(10_000, ge=1, description="Jobs waiting before intake answers queue_full.")
    max_pixels: int = Field(
        40_000_000, ge=256, description="Pixels of one input, decoded; guards the memory."
    )
    min_side: int = Field(16, ge=1, description="Pixels; smaller inputs crash encoders.")
    max_side: int = Field(16_384, ge=16, description="Pixels of an input's longer side.")
    max_prompt: int = Field(16_384, ge=1, description="Bytes of a prompt in UTF-8.")


class StoreSettings(Group):
    """Where jobs and pictures are kept."""

    dir: Path = Field(
        default_factory=platform.data_dir,
        description="Folder of the database and the pictures; unset, the user's data folder, or "
        "$STATE_DIRECTORY where systemd gives one.",
    )
    retention_days: float = Field(
        14,
        ge=0,
        description="Days from a job's end until its pictures and its prompt are removed; 0 "
        "removes them when the result was delivered, or after an hour. What was not delivered "
        "stays.",
    )
    max_gb: float = Field(
        20,
        gt=0,
        description="Gigabytes (10^9 bytes) of pictures; beyond, the oldest ended jobs lose "
        "their inputs, then their results. If none can go, intake answers storage_full.",
    )
    reserve_gb: float = Field(
        2,
        ge=0,
        description="Gigabytes that the disk must have left; below, intake answers "
        "storage_full. Results of waiting jobs still need room.",
    )


class DaemonSettings(Group):
    """The daemon itself."""

    public_url: str | None = Field(
        None,
        description="Address under which others reach this daemon, http://.. or https://..; "
        "answers then hold links.",
    )
    stop_s: float = Field(
        20, gt=0, description="Seconds a running edit gets to finish when the daemon stops."
    )

    @field_validator("public_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url and not re.fullmatch(r"(?i:https?)://[^/?#@\s]+[^?#\s]*", url):
            raise ValueError("must begin with http:// or https:// and name a machine")
        return url


class LogSettings(Group):
    """What is logged, and where."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level.")
    format: Literal["text", "json"] = Field("text", description="One line a record.")
    file: Path | None = Field(None, description="File to append to; standard error if unset.")


class Settings(Group):
    """All of the core's sections."""

    engine: EngineSettings = EngineSettings()
    presets: dict[str, Preset] = Field(default_factory=dict)
    limits: Limits = Limits()
    store: StoreSettings = Field(default_factory=StoreSettings)
    daemon: DaemonSettings = DaemonSettings()
    log: LogSettings = LogSettings()
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="One section a plugin, validated by the plugin's model."
    )

    def enabled_plugins(self) -> list[str]:
        """Plugins with a section, and the default ones, unless `enabled = false`."""
        names = [*DEFAULT_PLUGINS, *(n for n in self.plugins if n not in DEFAULT_PLUGINS)]
        return [name for name in names if self.plugins.get(name, {}).get("enabled", True)]
