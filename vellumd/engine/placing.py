"""A memory plan carried out: what is read to where, and what moves while an edit runs."""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vellumd import memory_plan, platform
from vellumd.artefact import Artefact
from vellumd.engine import memory
from vellumd.engine.berths import Berths
from vellumd.engine.precision import BLOCKS, KEPT, Recipe, is_small
from vellumd.engine.reading import DTYPES
from vellumd.engine.streaming import Filed, Held, Host, Offloaded, Ring, Stored, Streamed, layout
from vellumd.engine.weights import Fit
from vellumd.memory_plan import GB, Kept, KeysValues, Machine, Plan, Sizes
from vellumd.settings import EngineSettings
from vellumd.weights.checkpoint import Checkpoint
from vellumd.weights.header import Place
from vellumd.weights.model import Model

LAYERS, VISION = "model.language_model.layers.", "model.visual.blocks."
EMBEDDING = "model.language_model.embed_tokens."
KINDS: dict[str, tuple[Kept, ...]] = {
    "auto": ("whole", "int8"), "whole": ("whole",), "int8": ("int8",),
}  # fmt: skip
"""What `engine.turbo_kv` allows, best first."""


def plan(
    settings: EngineSettings,
    model: Model,
    ready: Artefact | None,
    recipe: Recipe,
    device: torch.device,
    lora: int = 0,
    home: Plan | None = None,
) -> Plan:
    """The plan for this machine; all resident on a CPU, unless a budget is set to try it.

    `lora`: bytes of the files of LoRAs that are to run beside the weights. `home`: the plan by
    which the encoder lies already, when the transformer alone is exchanged.
    """
    if device.type == "cpu" and settings.vram_budget_gb is None:
        return Plan(tabled=ready is not None)
    width = 2 if device.type == "cuda" else 4
    sizes = sizes_of(model, ready, recipe, settings.keep, width)
    hosted = 0
    if home is not None and home.encoder != "resident":
        hosted = sizes.embedding if home.ring else sizes.encoder
    return memory_plan.plan(
        replace(sizes, lora=lora),
        machine(settings, device, recipe, hosted),
        KINDS[settings.turbo_kv],
        turbo=settings.tier == "turbo",
        tabled=ready is not None,
        encoder=None if home is None else home.encoder,
    )


def machine(
    settings: EngineSettings, device: torch.device, recipe: Recipe, hosted: int = 0
) -> Machine:
    """What this machine has, within the budgets; it multiplies by `recipe`.

    `hosted`: bytes of the host that are planned for and taken already.
    """
    vram, capability = 0, None
    if device.type == "cuda":
        vram = memory.left(device)
        capability = torch.cuda.get_device_capability(device)
    if settings.vram_budget_gb is not None:
        vram = int(settings.vram_budget_gb * GB)
    ram = settings.ram_budget_gb
    available = platform.memory().available + hosted if ram is None else int(ram * GB)
    return Machine(
        vram, available, capability=capability, recipe=recipe.name,
        expandable=memory.expandable(device),
    )  # fmt: skip


def sizes_of(
    model: Model, ready: Artefact | None, recipe: Recipe, keep: Sequence[str], width: int
) -> Sizes:
    """Bytes of everything as it will be held, from headers alone; `width` is a float's."""
    blocks = int(model.configs["transformer"]["num_layers"])
    block = rest = modulation = 0
    for name, weight in model.transformer.weights.items():
        module = name.rpartition(".")[0]
        count = weight.place.count
        small = recipe.linear is not None and len(weight.place.shape) == 2
        if name.startswith(BLOCKS) and module.endswith(KEPT):
            modulation += count * width
        elif not name.startswith(BLOCKS):
            rest += count * width
        elif small and is_small(module, keep):
            block += count + 4 * weight.place.shape[0]
        else:
            block += count * width
    config = model.configs["transformer"]
    heads, head = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    layers: Counter[str] = Counter()
    for name, weight in model.text_encoder.weights.items():
        if name.startswith(LAYERS):
            layers[name.removeprefix(LAYERS).partition(".")[0]] += weight.place.count
    return Sizes(
        block=block // blocks,
        blocks=blocks,
        rest=rest,
        modulation=modulation,
        encoder_layer=max(layers.values()) * width,
        encoder=model.text_encoder.count * width,
        embedding=model.text_encoder.weights[f"{EMBEDDING}weight"].place.count * width,
        vae=model.vae.count * width,
        in_files=ready is not None and width == 2 and is_as_held(model.text_encoder),
        kv=keys_values(heads, head, blocks, width),
    )


def keys_values(heads: int, head: int, blocks: int, width: int) -> KeysValues:
    """Bytes of a token's keys and values, `heads` of `head` channels, in all `blocks`."""
    return KeysValues(2 * heads * head * width * blocks, 2 * heads * (head + width) * blocks)


def is_as_held(checkpoint: Checkpoint) -> bool:
    """Whether the layers of an encoder lie in the file as a card holds them."""
    return all(
        weight.place.dtype == "BF16"
        for name, weight in checkpoint.weights.items()
        if name.startswith((LAYERS, VISION))
    )


@dataclass
class Placed:
    """What moves while edits run."""

    blocks: Streamed | None = None
    encoder: list[Streamed] = field(default_factory=list)
    offloaded: Offloaded | None = None
    ring: Ring | None = None
    """What blocks and layers that are read from files pass through."""

    def encoding(self) -> contextlib.AbstractContextManager[None]:
        """Within it the text encoder is where it can be used."""
        return self.offloaded or contextlib.nullcontext()


class Placing:
    """Where the weights of one load go; as a context, it ends its threads."""

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        blocks: int,
        placed: Placed,
        *,
        transformer_as_held: bool,
        encoder_as_held: bool,
        read: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`blocks`: how many the transformer has. What moves is added to `placed`. `.._as_held`:
        whether those, or the layers of the encoder, lie in their files just as a card holds them.

        `read` is told the bytes of blocks that are read here.
        """
        self.plan = plan
        self.device = device
        self.placed = placed
        self._transformer_as_held = transformer_as_held
        self._encoder_as_held = encoder_as_held
        self._read = read
        count = min(plan.streamed, blocks)
        numbers = memory_plan.spread(blocks, count) if count else []
        self._streamed = tuple(f"{BLOCKS}{number}." for number in numbers)
        self._berths = Berths(device)

    def __enter__(self) -> Placing:
        return self

    def __exit__(self, *_: object) -> None:
        self._berths.close()

    def skips(self, name: str) -> bool:
        """Whether the weight `name` is not read with the others: blocks that move are read to
        where they stay, or as they are needed.
        """
        if name.rpartition(".")[0].endswith(KEPT) and self.plan.tabled:
            return True
        if name.startswith((LAYERS, VISION)):
            return self._encoder_as_held and self.plan.encoder == "streamed"
        return self._transformer_as_held and name.startswith(self._streamed)

    def transformer_fit(self, transformer: Any, fit: Fit) -> Fit:
        """`fit`, with blocks that are streamed moved to the host as they come."""
        if not self._transformer_as_held:
            self._berth(transformer, self._streamed)
        return self._berths.filling(fit)

    def encoder_fit(self, text_encoder: Any, fit: Fit) -> Fit:
        """`fit`, with what is not to stay on the device moved to the host as it comes."""
        if self.plan.encoder == "streamed":
            words = text_encoder.model.language_model.embed_tokens
            self._berths.add(EMBEDDING, layout(words), pinned=False)
            if not self._encoder_as_held:
                self._berth(text_encoder, [*_layers(text_encoder), *_vision(text_encoder)])
        elif self.plan.encoder == "offloaded":
            for part in layout(text_encoder):
                self._berths.add(part.name, [replace(part, name="", offset=0)])
        return self._berths.filling(fit)

    def transformer(self, transformer: Any, checkpoint: Checkpoint) -> None:
        """Have the transformer's streamed blocks streamed; `checkpoint` is what was read."""
        if self._streamed:
            self.placed.blocks = self._streaming(
                transformer, self._streamed, checkpoint, as_held=self._transformer_as_held
            )

    def encoder(self, text_encoder: Any, checkpoint: Checkpoint) -> None:
        """Have the text encoder where the plan says."""
        if self.plan.encoder == "resident":
            text_encoder.to(self.device)
            return
        for module in text_encoder.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
        if self.plan.encoder == "offloaded":
            self.placed.offloaded = Offloaded(text_encoder, self.device)
            return
        for prefixes in (_layers(text_encoder), _vision(text_encoder)):
            self.placed.encoder.append(
                self._streaming(text_encoder, prefixes, checkpoint, as_held=self._encoder_as_held)
            )
        embed_on_host(text_encoder.model.language_model.embed_tokens, self.device)

    def _berth(self, model: torch.nn.Module, prefixes: Sequence[str]) -> None:
        for prefix in prefixes:
            self._berths.add(prefix, layout(_block(model, prefix)))

    def _streaming(
        self,
        model: torch.nn.Module,
        prefixes: Sequence[str],
        checkpoint: Checkpoint,
        *,
        as_held: bool,
    ) -> Streamed:
        blocks = [_block(model, prefix) for prefix in prefixes]
        host: Host
        if not as_held:
            host = Held([self._berths.memory(prefix) for prefix in prefixes])
        else:
            stored = [_stored(checkpoint, prefix, block)
                      for prefix, block in zip(prefixes, blocks, strict=True)]  # fmt: skip
            if self.plan.ring:
                self.placed.ring = self.placed.ring or Ring(self.device)
                host = Filed(stored, self.placed.ring)
            else:
                host = Held.of_files(stored, self.device, self._read)
        return Streamed(blocks, host, self.device)


def _layers(text_encoder: Any) -> list[str]:
    """What the names of weights begin with, for each layer of the language model."""
    return [f"{LAYERS}{n}." for n in range(len(text_encoder.model.language_model.layers))]


def _vision(text_encoder: Any) -> list[str]:
    """The same for each block of the vision tower."""
    return [f"{VISION}{n}." for n in range(len(text_encoder.model.visual.blocks))]


def _block(model: torch.nn.Module, prefix: str) -> torch.nn.Module:
    return model.get_submodule(prefix.removesuffix("."))


def _stored(checkpoint: Checkpoint, prefix: str, block: torch.nn.Module) -> Stored:
    """Where the parameters of `block` lie, whose names begin with `prefix`."""
    found = [(part, _place(checkpoint, prefix + part.name)) for part in layout(block)]
    for part, place in found:
        assert (DTYPES[place.dtype], place.nbytes) == (part.dtype, part.nbytes)
    return found


def _place(checkpoint: Checkpoint, name: str) -> Place:
    """Where the parameter `name` lies; a scale belongs to its weight."""
    module, _, kind = name.rpartition(".")
    if kind == "scale":
        scale = checkpoint.weights[f"{module}.weight"].scale
        assert scale is not None
        return scale
    return checkpoint.weights[name].place


def embed_on_host(embedding: torch.nn.Module, device: torch.device) -> None:
    """Look words up in the host's memory: a gigabyte of which an edit reads a few rows."""

    def before(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(arg.to("cpu") for arg in args)

    def after(_: torch.nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.to(device)

    embedding.register_forward_pre_hook(before)
    embedding.register_forward_hook(after)
