"""What lies where while a model edits: a plan from sizes and budgets, made before loading.

A pure function of figures, without torch: the engine carries it out, capabilities and doctor
show it. GB are 10^9 bytes. Figures are of docs/performance.md, for three references unless
said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

GB = 10**9

TOKENS = {1: 8_430, 2: 12_729, 3: 17_066}
"""Tokens of an edit by references, at 1 megapixel and some text."""
PICTURE = 4_104
"""Tokens of one picture in it."""
PROMPTS = 2
"""A guided edit's."""
LINEAR_FLOPS, ATTENTION_FLOPS = 13.59e9, 0.737e6
"""Of one forward: times the tokens, times their square."""
STEPS = 8
"""Guided ones: what `balanced` takes. Both prompts pass a block at once, so it is streamed once."""
FIXED_S = 0.2
"""Encoder, VAE and the host's work of such an edit on an H200 with everything in its memory: 0.20
with one reference, 0.30 with three."""

ACTIVATIONS = 2.1 * GB
"""Beside the weights while denoising three references; grows with the tokens. 1.76 with FP8
products, 1.96 in bfloat16 (`card_h200/reference.json`), and what a weight takes that is cast."""
BRANCHES = 0.4 * GB
"""The same of LoRAs that run beside the weights."""
BRANCHED = 2
"""Copies of such LoRAs: as they are in their files, and as branches at their scales."""
ENCODING = 0.5 * GB
"""The same while encoding."""
DECODING, DECODING_TILED = 1.4 * GB, 0.4 * GB
"""The VAE at work on 1 megapixel, whole and in tiles."""
CONTEXT = 0.8 * GB
"""CUDA's own, kernels and all: 0.78 on an H200."""
PIECES = 0.8 * GB
"""What an allocator cannot use whose segments do not grow: 0.7 on an H200."""
RING = 1 * GB
"""Pinned memory where the host has no room for whole weights."""
SLOTS = 2
"""Buffers that blocks are streamed through: one is read while the next is filled."""

HOPPER = 9, 0
NOMINAL = {HOPPER: 989e12, (12, 0): 210e12, (8, 9): 165e12, (8, 6): 71e12}
"""Dense bfloat16 FLOP a second by compute capability, as NVIDIA tells them of the H100 and H200,
the RTX 5090, 4090 and 3090."""
SHARES = {"fp8-rows": 0.90, "bf16": 0.64}
"""What a forward reaches of it on an H200 by recipe, measured: FP8 products beyond bfloat16's. With
three references 0.90, with one 1.01."""
CAUTIOUS = 0.44
"""Likewise without FP8 products, FA3 and Triton: what runs on every card, and so what is expected
of those that nobody measured. The predecessor reached 0.52 on an RTX 5090, by its log."""

Encoder = Literal["resident", "offloaded", "streamed"]
Kept = Literal["whole", "int8"]
"""How keys and values that are used again are held: all rows as they are, or the references'
rounded to int8."""


@dataclass(frozen=True)
class KeysValues:
    """Bytes of one token's keys and values in all blocks, by how they are kept.

    `int8` with its scales, one for each head.
    """

    whole: int
    int8: int

    def needed(self, kept: Kept, tokens: int, references: int, prompts: int) -> int:
        """Bytes for a forward of `tokens`, `references` of them pictures to look at."""
        return prompts * (self.whole * tokens if kept == "whole" else self.int8 * references)

    def fitting(
        self, room: int | None, tokens: int, references: int, prompts: int, kinds: tuple[Kept, ...]
    ) -> Kept | None:
        """The first of `kinds` that fits into `room` bytes; without a limit the first."""
        for kept in kinds:
            if room is None or self.needed(kept, tokens, references, prompts) <= room:
                return kept
        return None


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model as it will be held.

    `rest` is what the transformer has outside its blocks, `modulation` what tables stand for.
    `encoder_layer` is the largest, `encoder` all of them with the `embedding`. `in_files`:
    blocks and layers lie in files just as they are held, so they can be read from there.
    `lora` is what LoRAs that are not inside the weights have in their files.
    """

    block: int
    blocks: int
    rest: int
    modulation: int
    encoder_layer: int
    encoder: int
    embedding: int
    vae: int
    lora: int = 0
    in_files: bool = False
    kv: KeysValues = KeysValues(0, 0)


@dataclass(frozen=True)
class Machine:
    """Bytes of the card and of the host that may be used, bytes a second between them.

    `capability` is the card's compute capability; None leaves expected seconds out. `recipe` is
    how it multiplies. `expandable`: segments of the card's memory grow, so none of it is lost.
    """

    vram: int
    ram: int
    link: float = 25e9
    capability: tuple[int, int] | None = None
    recipe: str = "fp8-rows"
    expandable: bool = True

    @property
    def room(self) -> int:
        """Bytes of the card that can be filled."""
        return self.vram if self.expandable else int(self.vram - PIECES)


@dataclass(frozen=True)
class Plan:
    """Where everything lies.

    `streamed`: blocks of the transformer that come from the host at each forward. `tabled`:
    modulation is answered from tables. `ring`: the host holds nothing of what is streamed, which
    is read from files through one ring of pinned buffers. `tiled`: the VAE works in tiles.
    `vram` and `ram` are expected peaks in bytes, `seconds` those of an edit with 1 and 3
    references by `balanced`. `room`: bytes that tier turbo may keep keys and values in, beside
    all else; None where nothing limits it. `kept` is what it says of that in words.
    """

    encoder: Encoder = "resident"
    streamed: int = 0
    tabled: bool = False
    ring: bool = False
    tiled: bool = False
    vram: int = 0
    ram: int = 0
    seconds: Mapping[int, float] | None = None
    fits: bool = True
    room: int | None = None
    kept: str = ""

    def __str__(self) -> str:
        """One line for the log and for capabilities."""
        parts = [
            "transformer resident" if not self.streamed else f"{self.streamed} blocks streamed",
            f"encoder {self.encoder}",
            *(["modulation from tables"] if self.tabled else []),
            *(["weights read from files as they are needed"] if self.ring else []),
            *(["VAE in tiles"] if self.tiled else []),
            f"about {self.vram / GB:.1f} GB of the card, {self.ram / GB:.1f} GB of memory",
        ]
        if self.seconds:
            times = " and ".join(
                f"{seconds:.0f} s with {count}" for count, seconds in self.seconds.items()
            )
            parts.append(f"a balanced edit: about {times} pictures")
        if self.kept:
            parts.append(self.kept)
        return ", ".join(parts)


def plan(
    sizes: Sizes,
    machine: Machine,
    kinds: tuple[Kept, ...] = ("whole", "int8"),
    *,
    turbo: bool = False,
    tabled: bool = False,
    encoder: Encoder | None = None,
) -> Plan:
    """The quickest plan that fits; if none does, the smallest one, with `fits` false.

    In the order of what it costs: modulation from tables, the encoder moved in for each
    edit, the encoder streamed, blocks streamed (as few as need be), the VAE in tiles.
    An encoder that lies in files and has no room in the host's memory is streamed at once: only
    layers can be read as they are needed.
    `kinds`: how turbo may keep keys and values, best first. Where `turbo` is what edits are
    unless they say otherwise, the encoder makes room for them; blocks never do. `tabled`:
    modulation comes from tables however much room there is, since an artefact has no other.
    `encoder`: where it lies already, and stays.
    """
    free = [
        *([] if tabled else [Plan()]),
        Plan(tabled=True),
        Plan(tabled=True, encoder="offloaded"),
        Plan(tabled=True, encoder="streamed"),
    ]
    if sizes.in_files and sizes.encoder > machine.ram and encoder is None:
        free = [one for one in free if one.encoder != "offloaded"]
    resident = [one for one in free if encoder in (None, one.encoder)]
    moving = encoder or "streamed"
    wanted = [
        *resident,
        *(
            Plan(tabled=True, encoder=moving, streamed=count)
            for count in range(SLOTS + 1, sizes.blocks + 1)
        ),
        Plan(tabled=True, encoder=moving, streamed=sizes.blocks, tiled=True),
    ]
    kept = sizes.kv.needed(kinds[-1], TOKENS[3], 3 * PICTURE, PROMPTS) if turbo else 0
    roomy = [one for one in resident if denoising(sizes, one) + kept <= machine.room]
    fitting = [one for one in [*roomy, *wanted] if peak(sizes, one) <= machine.room]
    found = fitting[0] if fitting else wanted[-1]
    return _with_figures(sizes, machine, found, kinds)


def peak(sizes: Sizes, one: Plan, references: int = 3) -> int:
    """Bytes of the card that `one` needs at its fullest moment."""
    resident = sizes.encoder if one.encoder == "resident" else 0
    encoding = 0 if one.encoder == "streamed" else sizes.encoder
    return max(
        int(held(sizes, one) + encoding + ENCODING),
        denoising(sizes, one, references),
        int(held(sizes, one) + resident + (DECODING_TILED if one.tiled else DECODING)),
    )


def held(sizes: Sizes, one: Plan) -> float:
    """Bytes that are on the card all the time, but for an encoder that is resident.

    Buffers that blocks and layers are streamed through are never let go.
    """
    streamed = SLOTS * sizes.block if one.streamed else 0
    encoder = SLOTS * sizes.encoder_layer if one.encoder == "streamed" else 0
    return (
        CONTEXT + sizes.rest + (sizes.blocks - one.streamed) * sizes.block + streamed + encoder
        + (0 if one.tabled else sizes.modulation) + sizes.vae + BRANCHED * sizes.lora
    )  # fmt: skip


def denoising(sizes: Sizes, one: Plan, references: int = 3) -> int:
    """Bytes while denoising; those that turbo keeps come on top."""
    resident = sizes.encoder if one.encoder == "resident" else 0
    working = ACTIVATIONS + (BRANCHES if sizes.lora else 0)
    return int(held(sizes, one) + resident + working * TOKENS[references] / TOKENS[3])


def kept_words(kv: KeysValues, room: int | None, kinds: tuple[Kept, ...]) -> str:
    """What tier turbo can do with `room` bytes, in words: guided, by references."""
    told = []
    for count, tokens in TOKENS.items():
        given = tokens, count * PICTURE, PROMPTS
        kept = kv.fitting(room, *given, kinds)
        size = kv.needed(kept or kinds[-1], *given) / GB
        words = {"whole": f"{size:.1f} GB", "int8": f"{size:.1f} GB as int8", None: "exact"}
        told.append(f"{words[kept]} with {count}")
    return f"turbo keeps keys and values: {', '.join(told)}"


def _with_figures(sizes: Sizes, machine: Machine, one: Plan, kinds: tuple[Kept, ...]) -> Plan:
    """`one` with what the host does for it, and with what it is expected to take."""
    whole = one.streamed * sizes.block + (0 if one.encoder == "resident" else sizes.encoder)
    ring = sizes.in_files and whole > machine.ram
    stays = {"resident": 0, "offloaded": sizes.encoder, "streamed": sizes.embedding}[one.encoder]
    ram = stays + min(RING, whole - stays) if ring else whole
    vram, room = peak(sizes, one), max(0, machine.room - denoising(sizes, one))
    return replace(
        one,
        ring=ring,
        vram=vram,
        ram=int(ram),
        seconds=expected(sizes, machine, one),
        fits=vram <= machine.room and ram <= machine.ram,
        room=room,
        kept=kept_words(sizes.kv, room, kinds) if sizes.kv.whole else "",
    )


def expected(sizes: Sizes, machine: Machine, one: Plan) -> dict[int, float] | None:
    """Seconds of an edit by references, None for a card that no figure is known of."""
    if machine.capability not in NOMINAL:
        return None
    nominal = NOMINAL[machine.capability]
    rate = nominal * share(machine.capability, machine.recipe)
    moved = {"resident": 0, "offloaded": sizes.encoder, "streamed": 2 * sizes.encoder}
    streaming = one.streamed * sizes.block / machine.link
    fixed = FIXED_S * NOMINAL[HOPPER] / nominal + moved[one.encoder] / machine.link
    return {
        count: round(STEPS * max(PROMPTS * forward(count, rate), streaming) + fixed, 1)
        for count in (1, 3)
    }


def share(capability: tuple[int, int], recipe: str) -> float:
    """What a forward reaches of the card's nominal rate: as measured, else as is sure."""
    return SHARES.get(recipe, CAUTIOUS) if capability == HOPPER else CAUTIOUS


def forward(references: int, rate: float) -> float:
    """Seconds of one forward at `rate` FLOP a second."""
    tokens = TOKENS[references]
    return (LINEAR_FLOPS * tokens + ATTENTION_FLOPS * tokens**2) / rate


def spread(blocks: int, streamed: int) -> list[int]:
    """Which of `blocks` are streamed: evenly among them, so that each copy has time."""
    return [number * blocks // streamed for number in range(streamed)]
