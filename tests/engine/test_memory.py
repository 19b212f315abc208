"""Budgets: the plan for every size of card, and weights that move without changing an edit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import layouts
from tests.engine.support import Told, encoded, picture, reference, resolved
from vellumd import artefact, memory_plan, model_card, platform, protocol
from vellumd.engine import (
    convert,
    loading,
    lora,
    memory,
    pinned,
    pipeline,
    placing,
    precision,
    streaming,
    tables,
)
from vellumd.engine.berths import Berths
from vellumd.engine.model import Model
from vellumd.engine.reading import Reader
from vellumd.engine.run import Run
from vellumd.engine.shelf import Shelf
from vellumd.engine.weights import dense
from vellumd.memory_plan import GB, Machine, Plan, Sizes
from vellumd.models import LoraRef
from vellumd.settings import EngineSettings
from vellumd.weights import header
from vellumd.weights.checkpoint import Weight
from vellumd.weights.model import open_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DEMO = model_card.DEMO_FOLDER
REAL = Sizes(
    block=227_000_000, blocks=60, rest=int(0.15e9), modulation=int(13.6e9),
    encoder_layer=466_000_000, encoder=int(15.5e9), embedding=int(1.09e9), vae=int(0.25e9),
    in_files=True,
)  # fmt: skip
"""Qwen-Image-Edit-2511 as FP8, the encoder in bfloat16."""
SMALL_ENCODER = Sizes(
    block=227_000_000, blocks=60, rest=int(0.15e9), modulation=int(13.6e9),
    encoder_layer=233_000_000, encoder=int(7.2e9), embedding=int(0.54e9), vae=int(0.25e9),
)  # fmt: skip
ROOM = 64 * GB
RESULTS = Path(__file__).parents[1] / "bench" / "results" / "card_h200"


# the plan


@pytest.mark.parametrize(
    ("vram", "sizes", "encoder", "tabled"),
    [
        (80, REAL, "resident", False),
        (40, REAL, "resident", True),
        (32, SMALL_ENCODER, "resident", True),
        (23, SMALL_ENCODER, "offloaded", True),
        (24, REAL, "streamed", True),
        (18, REAL, "streamed", True),
    ],
)
def test_whole_blocks(vram: float, sizes: Sizes, encoder: str, tabled: bool) -> None:
    """While the blocks fit, the encoder makes room; an 80 GB card keeps everything."""
    found = memory_plan.plan(sizes, Machine(int(vram * GB), ROOM))
    assert (found.encoder, found.tabled, found.streamed) == (encoder, tabled, 0)
    assert found.fits and found.vram <= vram * GB
    assert not found.tiled and not found.ring


@pytest.mark.parametrize("vram", [16, 12, 8, 6, 4.7])
def test_blocks_are_streamed_as_few_as_need_be(vram: float) -> None:
    """Below 18 GB some blocks come from the host; one block less would not fit."""
    found = memory_plan.plan(REAL, Machine(int(vram * GB), ROOM))
    assert found.streamed > memory_plan.SLOTS and found.encoder == "streamed"
    assert found.fits and found.vram <= vram * GB
    fewer = Plan("streamed", found.streamed - 1, tabled=True)
    assert memory_plan.peak(REAL, fewer) > vram * GB
    numbers = memory_plan.spread(60, found.streamed)
    assert len(set(numbers)) == found.streamed and max(numbers) < 60


def test_segments_that_do_not_grow() -> None:
    """What an allocator cannot use there is left out of all that is planned."""
    grows, pieces = (
        memory_plan.plan(REAL, Machine(16 * GB, ROOM, expandable=expandable))
        for expandable in (True, False)
    )
    assert pieces.fits and pieces.streamed > grows.streamed
    assert pieces.vram <= 16 * GB - memory_plan.PIECES


@pytest.mark.parametrize(
    ("one", "growth"),
    [
        (Plan(), {"block": 60, "rest": 1, "modulation": 1, "encoder": 1, "vae": 1, "lora": 2}),
        (Plan(tabled=True, encoder="offloaded"),
         {"block": 60, "rest": 1, "modulation": 0, "encoder": 0, "vae": 1, "lora": 2}),
        (Plan(tabled=True, encoder="streamed", streamed=40),
         {"block": 20 + 2, "rest": 1, "encoder": 0, "encoder_layer": 2, "vae": 1, "lora": 2}),
    ],
)  # fmt: skip
def test_everything_that_is_on_the_card_counts(one: Plan, growth: dict[str, int]) -> None:
    """While denoising: once, each block, or as often as it is copied."""
    sizes = replace(REAL, lora=GB)
    before = memory_plan.denoising(sizes, one)
    for name, times in growth.items():
        larger = replace(sizes, **{name: getattr(sizes, name) + 1000})
        assert memory_plan.denoising(larger, one) - before == 1000 * times, name


def test_the_smallest_plan() -> None:
    """What fits nowhere is told; the VAE works in tiles first."""
    found = memory_plan.plan(REAL, Machine(2 * GB, ROOM))
    assert found.tiled and found.streamed == 60 and not found.fits


@pytest.mark.parametrize(("card", "home"), [(34, "resident"), (34, "offloaded"), (24, "streamed")])
def test_an_encoder_stays_where_it_is(card: int, home: memory_plan.Encoder) -> None:
    """The transformer alone is exchanged: blocks make room where another plan moved the encoder."""
    machine = Machine(card * GB, ROOM)
    found = memory_plan.plan(replace(REAL, lora=int(0.85e9)), machine, encoder=home)
    assert found.encoder == home and found.fits and found.vram <= card * GB
    assert bool(found.streamed) == (home == "resident")


def test_what_the_encoder_takes_of_the_host_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 12 GB of a card with 32 of the host would read from files after the first exchange."""
    left = SimpleNamespace(available=int(14.5 * GB))
    monkeypatch.setattr(platform, "memory", lambda: left)
    monkeypatch.setattr(placing, "sizes_of", lambda *_: REAL)
    settings, home = EngineSettings(vram_budget_gb=12), Plan(encoder="streamed", streamed=28)

    def found(home: Plan | None, settings: EngineSettings = settings) -> Plan:
        given = cast(Any, None), cast(Any, object()), precision.ROWS, CPU
        return placing.plan(settings, *given, home=home)

    assert found(None).ring and not found(home).ring
    assert found(replace(home, ring=True)).ring
    # Beside a ring, which a swap lets go of and makes anew, the host keeps the embedding.
    left.available = memory_plan.RING + GB // 10
    assert found(replace(home, ring=True)).fits and not found(None).fits
    assert found(home, settings.model_copy(update={"ram_budget_gb": 14.5})).ring


def test_short_memory_of_the_host() -> None:
    """Weights that lie ready in files need no copies in memory, others do."""
    short = Machine(12 * GB, 8 * GB, capability=(9, 0))
    found = memory_plan.plan(REAL, short)
    assert found.ring and found.fits
    assert found.ram == memory_plan.RING + REAL.embedding
    assert memory_plan.RING <= 1 * GB
    bare = memory_plan.plan(SMALL_ENCODER, short)
    assert not bare.ring and not bare.fits
    roomy = memory_plan.plan(REAL, Machine(12 * GB, ROOM))
    assert not roomy.ring and roomy.ram > 15 * GB


@pytest.mark.parametrize(("ram", "encoder"), [(8, "streamed"), (16, "offloaded")])
def test_an_encoder_that_the_host_has_no_room_for(ram: int, encoder: str) -> None:
    """A card of 32 GB that a desktop uses: whole, it waits in memory or nowhere."""
    card = int(31.5 * GB)
    found = memory_plan.plan(REAL, Machine(card, ram * GB))
    assert found.encoder == encoder and found.fits and found.ram <= ram * GB
    assert found.ring == (encoder == "streamed")
    # It is there already when blocks go beside it.
    beside = memory_plan.plan(REAL, Machine(28 * GB, 16 * GB), encoder="offloaded")
    assert beside.ring and beside.ram == REAL.encoder + memory_plan.RING
    stays = memory_plan.plan(REAL, Machine(card, ram * GB), encoder="offloaded")
    assert (stays.encoder, stays.streamed) == ("offloaded", 0)
    bare = memory_plan.plan(replace(REAL, in_files=False), Machine(card, ram * GB))
    assert bare.encoder == "offloaded" and bare.fits == (ram > 15.5)


def test_expected_seconds() -> None:
    """As measured on an H200 (`card_h200/edits.json`); blocks hide behind three references."""
    edits = json.loads((RESULTS / "edits.json").read_text())
    resident = memory_plan.plan(REAL, Machine(80 * GB, ROOM, 54e9, (9, 0))).seconds
    assert resident is not None
    assert resident[3] == pytest.approx(edits["standard"]["edit_s"], rel=0.05)
    assert resident[1] == pytest.approx(edits["1 reference, standard"]["edit_s"], rel=0.05)
    streamed = memory_plan.plan(REAL, Machine(8 * GB, ROOM, 54e9, (9, 0))).seconds
    encoder = memory_plan.plan(REAL, Machine(18 * GB, ROOM, 54e9, (9, 0))).seconds
    assert streamed is not None and encoder is not None
    assert streamed[3] == encoder[3] <= 1.1 * resident[3]
    slow = memory_plan.plan(REAL, Machine(8 * GB, ROOM, 6e9, (9, 0))).seconds
    assert slow is not None and slow[1] > 2 * streamed[1]  # an old slot: the link decides
    assert memory_plan.plan(REAL, Machine(80 * GB, ROOM, capability=(7, 5))).seconds is None


def test_seconds_of_cards_that_nobody_measured_are_cautious() -> None:
    """As if without FP8 products, FA3 and Triton; never quicker than what was measured allows."""

    def of(capability: tuple[int, int], recipe: str = "fp8-rows") -> float:
        card = Machine(80 * GB, ROOM, 54e9, capability, recipe)
        seconds = memory_plan.plan(REAL, card).seconds
        assert seconds is not None
        return seconds[3]

    assert of((12, 0)) == pytest.approx(79, abs=1)  # the predecessor's whole edit: 89 s, by its log
    assert of((8, 9)) == pytest.approx(100, abs=1)
    assert of((8, 6)) == pytest.approx(232, abs=1)
    assert of((9, 0), "bf16") == pytest.approx(11.5, abs=0.2)  # 0.703 s a forward on an H200
    assert of((9, 0), "fp8-weights") > of((9, 0), "bf16") > of((9, 0))


@pytest.mark.parametrize(
    ("vram", "budget", "encoder"), [(141, "resident", "resident"), (18, "18 GB", "streamed")]
)
def test_planned_memory_is_what_a_card_took(vram: float, budget: str, encoder: str) -> None:
    """Out of an artefact with Lightning inside, three references, on an H200.

    CUDA's own is not in what torch measures. The plan is for bfloat16 too, which takes 0.2 GB more.
    """
    own = memory_plan.CONTEXT + 0.2 * GB
    memory = json.loads((RESULTS / "memory-second.json").read_text())
    measured = memory[budget]["edits"]["3 references"]["peak_gb"]
    found = memory_plan.plan(REAL, Machine(int(vram * GB), ROOM), tabled=True)
    assert (found.encoder, found.streamed, found.tabled) == (encoder, 0, True)
    assert (found.vram - own) / GB == pytest.approx(measured, abs=0.3)
    assert found.vram - memory_plan.CONTEXT > (measured - 0.1) * GB


def test_an_artefact_has_tables_for_modulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the weights that they stand for are counted nowhere, and turbo has their room."""
    card = Machine(60 * GB, ROOM)
    weights, tables = memory_plan.plan(TURBO, card), memory_plan.plan(TURBO, card, tabled=True)
    assert not weights.tabled and tables.tabled
    assert weights.vram - tables.vram == REAL.modulation
    assert weights.room is not None and tables.room is not None
    assert tables.room - weights.room == REAL.modulation
    assert "25.2 GB with 3" in tables.kept and "as int8 with 3" in weights.kept
    # From the artefact to the plan.
    monkeypatch.setattr(placing, "sizes_of", lambda *_: TURBO)
    monkeypatch.setattr(placing, "machine", lambda *_: card)
    for ready, expected in ((None, weights), (object(), tables)):
        found = placing.plan(
            EngineSettings(), cast(Any, None), cast(Any, ready), precision.ROWS,
            torch.device("cuda"),
        )  # fmt: skip
        assert found == expected


def test_loras_beside_the_weights_are_planned() -> None:
    """Lightning without an artefact: 47.3 GB on an H200, where its 43.0 were loaded before."""
    beside = replace(REAL, lora=int(0.85e9))
    found = memory_plan.plan(beside, Machine(141 * GB, ROOM))
    assert (found.vram - memory_plan.CONTEXT) / GB == pytest.approx(47.27, abs=0.3)
    for vram in (8, 12, 16, 18):
        found = memory_plan.plan(beside, Machine(vram * GB, ROOM))
        assert found.fits and found.vram <= vram * GB
        assert found.streamed > memory_plan.plan(REAL, Machine(vram * GB, ROOM)).streamed
    assert not memory_plan.plan(beside, Machine(6 * GB, ROOM)).fits  # there it has to be inside


def test_loras_inside_the_weights_take_no_room(tmp_path: Path) -> None:
    """Only files of LoRAs that the artefact lacks are counted, at the scale that is inside."""
    (first, second) = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    for file, count in ((first, 3), (second, 5)):
        save_file({"weight": torch.zeros(count)}, file)
    settings = EngineSettings(loras={"one": str(first), "two": str(second)})
    shelf = Shelf(settings, model_card.read("demo"), [], precision.ROWS)
    loras = LoraRef(name="one"), LoraRef(name="two", scale=0.5)
    sizes = [file.stat().st_size for file in (first, second)]
    assert shelf.beside(None, loras) == sum(sizes)
    assert shelf.beside(None, ()) == 0

    def having(*fused: tuple[Path, float]) -> Any:
        inside = {(artefact.Stamp.of(file), scale) for file, scale in fused}
        return SimpleNamespace(fuses=lambda: inside)

    assert shelf.beside(having((first, 1.0)), loras) == sizes[1]
    assert shelf.beside(having((first, 1.0), (second, 0.5)), loras) == 0
    assert shelf.beside(having((second, 1.0)), loras) == sum(sizes)


TURBO = replace(REAL, kv=placing.keys_values(24, 128, 60, 2))


@pytest.mark.parametrize(
    ("vram", "kinds", "words"),
    [
        (80, ("whole", "int8"), "12.4 GB with 1, 18.8 GB with 2, 25.2 GB with 3"),
        (40, ("whole", "int8"), "3.1 GB as int8 with 1, 6.1 GB as int8 with 2, exact with 3"),
        (80, ("int8",), "3.1 GB as int8 with 1, 6.1 GB as int8 with 2, 9.2 GB as int8 with 3"),
        (18, ("whole",), "exact with 1, exact with 2, exact with 3"),
    ],
)
def test_what_turbo_keeps_is_planned(
    vram: float, kinds: tuple[memory_plan.Kept, ...], words: str
) -> None:
    """Keys and values of a guided edit take what is left; the plan says how, or that not."""
    found = memory_plan.plan(TURBO, Machine(int(vram * GB), ROOM), kinds)
    assert found.kept == f"turbo keeps keys and values: {words}"
    assert str(found).endswith(found.kept)
    assert found.room == int(vram * GB) - memory_plan.denoising(TURBO, found)
    # They lie beside all else, and change no other part of the plan.
    bare = memory_plan.plan(REAL, Machine(int(vram * GB), ROOM))
    assert replace(found, kept="") == replace(bare, kept="")


def test_the_encoder_makes_room_for_turbo() -> None:
    """Where edits are turbo by default; blocks are not streamed for it."""
    machine = Machine(40 * GB, ROOM)
    found = memory_plan.plan(TURBO, machine, turbo=True)
    assert (found.encoder, found.streamed) == ("offloaded", 0)
    assert "9.2 GB as int8 with 3" in found.kept and found.vram <= machine.vram
    small = Machine(20 * GB, ROOM)
    assert memory_plan.plan(TURBO, small, turbo=True) == memory_plan.plan(TURBO, small)


def test_the_plan_in_a_line() -> None:
    """What capabilities and log say."""
    line = str(memory_plan.plan(REAL, Machine(12 * GB, 8 * GB, 25e9, (12, 0))))
    for words in ("blocks streamed", "encoder streamed", "from tables", "read from files", "GB"):
        assert words in line
    assert "s with 1 and " in line and "s with 3 pictures" in line
    assert str(Plan()).startswith("transformer resident, encoder resident")


def test_sizes_come_from_headers() -> None:
    """Nothing is loaded to make a plan; recipes and keep-list count."""
    model = open_model(DEMO)
    plain = placing.sizes_of(model, None, precision.PLAIN, (), 2)
    small = placing.sizes_of(model, None, precision.ROWS, (), 2)
    kept = placing.sizes_of(model, None, precision.ROWS, ("img_mlp.net.2",), 2)
    assert small.block < kept.block < plain.block
    blocks = plain.block * plain.blocks + plain.rest + plain.modulation
    assert blocks == model.transformer.nbytes
    parts = loading.load(DEMO, CPU, lambda *_: None, precision.ROWS, dtype=torch.bfloat16)
    held = sum(p.nbytes for p in parts.transformer.transformer_blocks[0].parameters())
    mods = sum(
        p.nbytes for _, m in tables.modulations(parts.transformer) for p in m.parameters()
    )  # fmt: skip
    assert small.block == held - mods // 5


def test_sizes_of_an_older_configuration(tmp_path: Path) -> None:
    """transformers wrote the language model's keys beside `vision_config` once."""
    folder = Path(shutil.copytree(model_card.DEMO_FOLDER, tmp_path / "model"))
    file = folder / "text_encoder/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config.pop("text_config"), **config}))
    expected = placing.sizes_of(open_model(model_card.DEMO_FOLDER), None, precision.PLAIN, (), 2)
    assert placing.sizes_of(open_model(folder), None, precision.PLAIN, (), 2) == expected
    layers = [w.place.count for n, w in open_model(folder).text_encoder.weights.items()
              if n.startswith(f"{placing.LAYERS}0.")]  # fmt: skip
    assert expected.encoder_layer == 2 * sum(layers)


def test_the_machine_within_its_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a card what others leave, with what is ours already, unless the settings say less."""
    card = {"free": int(79.9 * GB), "ours": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (card["free"], 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: card["ours"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(memory, "expandable", lambda _: False)
    cuda = torch.device("cuda")
    whole = placing.machine(EngineSettings(), cuda, precision.ROWS)
    assert not whole.expandable
    assert (whole.vram, whole.capability) == (80 * GB, (9, 0)) and whole.ram > 0
    assert whole.recipe == "fp8-rows"
    card.update(free=50 * GB, ours=10 * GB)
    shared = placing.machine(EngineSettings(), cuda, precision.ROWS)
    assert shared.vram == 60 * GB + memory_plan.CONTEXT  # not free, and planned for
    settings = EngineSettings(vram_budget_gb=12, ram_budget_gb=8)
    less = placing.machine(settings, cuda, precision.ROWS)
    assert (less.vram, less.ram) == (12 * GB, 8 * GB)


def test_the_allocator_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses what goes beyond it; without a budget it is left alone."""
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 80 * GB))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, _: told.append(share)
    )
    memory.limit(torch.device("cuda"), 12)
    memory.limit(torch.device("cuda"), 200)
    memory.limit(torch.device("cuda"), None)
    memory.limit(CPU, 12)
    assert told == [pytest.approx(0.15), 1.0]


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A card whose allocator only notes how it is set."""
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(platform, "maps_card_memory", lambda: True)
    for name in memory.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    memory.expandable.cache_clear()
    yield told
    memory.expandable.cache_clear()


def test_the_budget_holds_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else what is read would already go beyond it."""
    told: list[tuple[torch.device, float | None]] = []
    monkeypatch.setattr(memory, "limit", lambda *given: told.append(given))
    monkeypatch.setattr(loading, "load", Mock(side_effect=ZeroDivisionError))
    settings = {"vram_budget_gb": 4}
    init = protocol.Init(engine="", settings=settings, spool=tmp_path, cache=tmp_path)
    with pytest.raises(ZeroDivisionError):
        pipeline.create(init).load(Told())
    assert told == [(CPU, 4)]


def test_segments_grow_where_they_can(segments: list[str]) -> None:
    """Once for a process; a CPU has none."""
    assert memory.expandable(CUDA) and memory.expandable(CUDA) and memory.expandable(CPU)
    assert segments == ["expandable_segments:True"]


def test_segments_of_windows_and_wsl(segments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried there; a kernel's name tells WSL."""
    monkeypatch.setattr(platform, "maps_card_memory", lambda: False)
    assert not memory.expandable(CUDA) and segments == []


def test_a_driver_that_refuses_pages(segments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first memory asked of it tells; the allocator is set back."""

    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA driver error: unknown error")

    monkeypatch.setattr(torch, "ones", refuses)
    assert not memory.expandable(CUDA)
    assert segments == ["expandable_segments:True", "expandable_segments:False"]


@pytest.mark.parametrize(("value", "grows"), [
    ("expandable_segments:True", True), ("expandable_segments:False", False),
    ("max_split_size_mb:512", False),
])  # fmt: skip
def test_who_set_the_allocator_has_chosen(
    value: str, grows: bool, segments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own variable is left to say."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", value)
    assert memory.expandable(CUDA) is grows and segments == []


# streaming


def blocks_of(count: int) -> list[torch.nn.Module]:
    """Not all of one size, as where `engine.keep` names linears of one block."""
    numbers = torch.Generator().manual_seed(count)
    blocks = []
    for number in range(count):
        wide = 40 if number == 1 else 8
        block = torch.nn.Sequential(
            torch.nn.Linear(8, wide), torch.nn.Tanh(), torch.nn.Linear(wide, 8)
        )
        for parameter in block.parameters():
            parameter.data = torch.randn(parameter.shape, generator=numbers)
        blocks.append(block.requires_grad_(False))
    return blocks


def run(blocks: list[torch.nn.Module], order: list[int] | None = None) -> torch.Tensor:
    x = torch.ones(3, 8)
    for number in order or range(len(blocks)):
        x = blocks[number](x)
    return x


def held(blocks: list[torch.nn.Module], tmp_path: Path) -> streaming.Host:
    return streaming.Held.of(blocks, CPU)


def filed(blocks: list[torch.nn.Module], tmp_path: Path) -> streaming.Host:
    """A ring of two buffers, whatever the number of blocks."""
    return streaming.Filed(in_file(blocks, tmp_path), streaming.Ring(CPU, 1))


def from_file(blocks: list[torch.nn.Module], tmp_path: Path) -> streaming.Held:
    """Read by several threads to where they stay; each is told."""
    sizes: list[int] = []
    made = streaming.Held.of_files(in_file(blocks, tmp_path), CPU, read=sizes.append)
    assert sizes == [sum(p.nbytes for p in block.parameters()) for block in blocks]
    return made


def in_file(blocks: list[torch.nn.Module], tmp_path: Path) -> list[streaming.Stored]:
    """`blocks` in a file of them."""
    tensors = {
        f"{n}.{name}": p.data for n, b in enumerate(blocks) for name, p in b.named_parameters()
    }
    save_file(tensors, tmp_path / "blocks.safetensors")
    places = header.read(tmp_path / "blocks.safetensors").tensors
    return [
        [(part, places[f"{n}.{part.name}"]) for part in streaming.layout(block)]
        for n, block in enumerate(blocks)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("host", [held, filed, from_file])
def test_streaming_changes_no_bit(host: Callable[..., Any], count: int, tmp_path: Path) -> None:
    """Forward after forward, in order, broken off, or in any other order."""
    blocks = blocks_of(count)
    orders = [list(range(count)), list(range(count))[::-1], [0], [count - 1, 0, count // 2], [0, 0]]
    orders += orders
    expected = [run(blocks, order) for order in orders]
    stream = streaming.Streamed(blocks, host(blocks, tmp_path), CPU)
    assert [torch.equal(run(blocks, o), e) for o, e in zip(orders, expected, strict=True)] == [
        True
    ] * len(orders)
    assert len(memory_of(blocks)) == min(count, memory_plan.SLOTS)  # they really share two buffers
    stream.close()
    assert torch.equal(run(blocks), expected[0])
    assert len(memory_of(blocks)) == count


def memory_of(blocks: list[torch.nn.Module]) -> set[int]:
    return {p.untyped_storage().data_ptr() for block in blocks for p in block.parameters()}


def test_a_block_that_fails_stops_nothing(tmp_path: Path) -> None:
    """A cancel in the middle leaves the next forward right."""
    blocks = blocks_of(5)
    expected = run(blocks)
    stream = streaming.Streamed(blocks, filed(blocks, tmp_path), CPU)
    handle = blocks[3][1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(blocks)
    handle.remove()
    assert torch.equal(run(blocks), expected)
    stream.close()


def test_half_a_copy_is_not_taken_for_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails in the middle has spoilt what the buffer held; the next forward reads it."""
    blocks = blocks_of(4)
    expected = run(blocks)
    host = held(blocks, tmp_path)
    stream, copy, failed = streaming.Streamed(blocks, host, CPU), host.copy, list[int]()

    def half(number: int, target: torch.Tensor) -> None:
        copy(number, target)
        if number == 2 and not failed:
            failed.append(number)
            target[len(target) // 2 :].zero_()
            raise ZeroDivisionError

    monkeypatch.setattr(host, "copy", half)
    with pytest.raises(ZeroDivisionError):
        run(blocks)
    assert torch.equal(run(blocks), expected)
    stream.close()


def berthed(blocks: list[streaming.Stored], card: torch.device) -> streaming.Held:
    """Each block's weights brought to a berth of its own."""
    berths, weights = Berths(card), []
    for number, block in enumerate(blocks):
        berths.add(f"{number}.", [part for part, _ in block])
        weights += [Weight(f"{number}.{part.name}", place) for part, place in block]
    fit = berths.filling(dense(torch.float32))
    with Reader(CPU) as reader:
        for stored in reader.tensors(weights):
            fit(stored)
    berths.close()
    return streaming.Held([berths.memory(f"{number}.") for number in range(len(blocks))])


def ringed(blocks: list[streaming.Stored], card: torch.device) -> streaming.Filed:
    return streaming.Filed(blocks, streaming.Ring(card))


@pytest.mark.parametrize("host", [streaming.Held.of_files, ringed, berthed])
def test_a_system_that_pins_nothing(
    host: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary memory stands in, for blocks that stay, for a ring and for berths."""
    refused = []

    def register(address: int, size: int, device: torch.device) -> int:
        refused.append(size)
        return 2

    monkeypatch.setattr(pinned, "register", register)
    blocks = in_file(blocks_of(4), tmp_path)
    made = host(blocks, torch.device("cuda"))
    wanted = streaming.Held.of_files(blocks, CPU).bytes_of(2)
    for part, _ in blocks[2]:
        assert torch.equal(part.of(made.bytes_of(2)), part.of(wanted))
    made.close()
    assert len(refused) == (1 if host is ringed else len(blocks))


def test_kinds_of_blocks_share_a_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte in all, however often one ends where the other is not yet done reading ahead,
    and also when larger blocks come after smaller ones."""
    made: list[int] = []

    def on_host(size: int, device: torch.device) -> torch.Tensor:
        assert len(ring._memory) == 0  # what was there is gone before
        made.append(size)
        return pinned.on_host(size, device)

    monkeypatch.setattr(streaming, "on_host", on_host)
    ring, kinds, expected, streams = streaming.Ring(CPU, 12_000), [], [], []
    for number, count in enumerate((3, 9, 4)):
        kinds.append(blocks_of(count))
        expected.append(run(kinds[-1]))
        (folder := tmp_path / f"{number}").mkdir()
        host = streaming.Filed(in_file(kinds[-1], folder), ring)
        streams.append(streaming.Streamed(kinds[-1], host, CPU))
    for kind in (0, 1, 2, 0, 2, 1, 1, 0):
        assert torch.equal(run(kinds[kind]), expected[kind])
    assert len(made) == 2 and made[0] < made[1] <= 12_000
    assert streaming.Ring(CPU)._most == memory_plan.RING
    streams[1].drop()
    assert torch.equal(run(kinds[0]), expected[0])
    for stream in (streams[0], streams[2]):
        stream.drop()


def brings(host: streaming.Filed, number: int) -> bool:
    """Whether a copy of the block `number` is what lies in its file."""
    target = torch.zeros(host._size, dtype=torch.uint8)
    host.copy(number, target)
    wanted = host.bytes_of(number)
    return torch.equal(target[: len(wanted)], wanted)


def test_a_ring_that_found_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the larger blocks of another transformer: what it is lent to next gets enough."""
    ring, stored = streaming.Ring(CPU), in_file(blocks_of(6), tmp_path)
    host = streaming.Filed(stored[:3], ring)
    with monkeypatch.context() as full:
        full.setattr(streaming, "on_host", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            streaming.Filed(stored, ring)
    assert brings(host, 1)
    host.close()


def test_a_ring_ends_with_what_it_was_lent_to(tmp_path: Path) -> None:
    """Else a transformer that is exchanged for one that fits would leave a gigabyte pinned."""
    ring, stored = streaming.Ring(CPU), in_file(blocks_of(6), tmp_path)
    hosts = [streaming.Filed(some, ring) for some in (stored[:3], stored)]
    assert brings(hosts[0], 0)
    hosts[1].close()
    assert len(ring._memory) == 0
    assert brings(hosts[0], 1)
    hosts[0].close()
    assert len(ring._memory) == 0


def test_every_buffer_reads_ahead(tmp_path: Path) -> None:
    """After each block, not only when all of them are free again."""
    host = streaming.Filed(in_file(blocks_of(9), tmp_path), streaming.Ring(CPU, 20_000))
    target = torch.zeros(host._size, dtype=torch.uint8)
    assert host._count > 2
    for number in [*range(9), 0, 1]:
        host.copy(number, target)
        assert list(host._staged) == [(number + n) % 9 for n in range(1, host._count + 1)]
    host.close()


def test_a_read_ahead_that_failed_is_tried_again(tmp_path: Path) -> None:
    """Hours may lie between it and the edit that wants the block."""
    host = streaming.Filed(in_file(blocks_of(5), tmp_path), streaming.Ring(CPU, 1))
    file = tmp_path / "blocks.safetensors"
    whole = file.read_bytes()
    assert brings(host, 0)
    wait(host._staged[1][1] + host._staged[2][1])
    file.write_bytes(b"")
    host.copy(1, torch.zeros(host._size, dtype=torch.uint8))
    wait(host._staged[3][1])
    file.write_bytes(whole)
    assert all(brings(host, number) for number in (2, 3, 4))
    host.close()


def test_half_an_encoder_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a card is full in the middle of it: what an edit tries next needs the room."""
    encoder = blocks_of(1)[0]
    offloaded = streaming.Offloaded(encoder, CPU)
    home, moved, to = memory_of([encoder]), [], torch.Tensor.to

    def until_full(tensor: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        moved.append(tensor)
        if len(moved) > 2:
            raise torch.OutOfMemoryError("simulated")
        return to(tensor, *given, **options)

    monkeypatch.setattr(torch.Tensor, "to", until_full)
    with pytest.raises(torch.OutOfMemoryError), offloaded:
        pass
    assert len(moved) == 3 and memory_of([encoder]) == home


def test_a_read_waits_for_the_copy_before_it(tmp_path: Path) -> None:
    """Also where the read that waited for it was never begun: a card may still copy then."""
    host = streaming.Filed(in_file(blocks_of(8), tmp_path), streaming.Ring(CPU, 1))
    target = torch.zeros(host._size, dtype=torch.uint8)
    host.copy(0, target)
    waited: list[int] = []
    host._skip()
    for buffer in host._free:
        address = buffer.data_ptr()
        event = SimpleNamespace(synchronize=partial(waited.append, address))
        host._copied[address] = cast(Any, event)
    buffers = [buffer.data_ptr() for buffer in host._free]
    pool, host._pool = host._pool, cast(Any, SimpleNamespace(submit=lambda *_: Future()))
    host._stage(3)
    host._skip()
    host._pool = pool
    assert not waited
    host.copy(5, target)
    host.close()
    assert set(waited) == set(buffers)


def test_a_file_that_is_lost_is_told(tmp_path: Path) -> None:
    """Not read wrongly: each edit ends with what is wrong, until the file is there again."""
    from vellumd import errors

    blocks = blocks_of(4)
    expected = run(blocks)
    stream = streaming.Streamed(blocks, filed(blocks, tmp_path), CPU)
    file = tmp_path / "blocks.safetensors"
    whole = file.read_bytes()
    file.write_bytes(b"")
    for order in ([0, 1], [2, 3], [0, 1], [3], [1]):
        with pytest.raises(errors.ModelInvalid, match="cut short"):
            run(blocks, order)
    file.write_bytes(whole)
    assert torch.equal(run(blocks), expected)
    stream.drop()


# edits by every plan

PLANS = {
    "encoder offloaded": Plan(tabled=True, encoder="offloaded"),
    "some blocks streamed": Plan(tabled=True, encoder="streamed", streamed=3),
    "all streamed, VAE in tiles": Plan(tabled=True, encoder="streamed", streamed=5, tiled=True),
}


def edits(parts: loading.Parts, tmp_path: Path, tiled: bool = False) -> list[bytes]:
    """An edit, one with a LoRA, and the first again."""
    card = model_card.read("demo").model_copy(update={"canvas_area": 4096, "vision_area": 4096})
    loras = lora.Loras(parts, DEMO, card, {})
    model = Model(parts, loras, card, plan=Plan(tiled=tiled))
    file = tmp_path / "input.png"
    file.write_bytes(encoded(picture(80, 60)))
    image = reference(file.read_bytes())
    role = LoraRef(name="lightning-8")
    made = []
    for wanted in ((), (role,), ()):
        edit = resolved([image], loras=wanted, true_cfg_scale=2.0)
        (result,) = Run(model, edit, Told(), lambda: False).pictures([file])
        made.append(result.tobytes())
    return made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    parts = loading.load(DEMO, CPU, lambda *_: None, precision.WEIGHTS, plan=Plan(tabled=True))
    return edits(parts, tmp_path_factory.mktemp("resident"))


def test_tables_paint_the_same(expected: list[bytes], tmp_path: Path) -> None:
    """One level apart at most: products of as many rows as there are steps may round otherwise,
    and do on one thread."""
    parts = loading.load(DEMO, CPU, lambda *_: None, precision.WEIGHTS)
    for made, tabled in zip(edits(parts, tmp_path), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(made, tabled, strict=True)) <= 1


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_paints_the_same(name: str, expected: list[bytes], tmp_path: Path) -> None:
    """To the bit as with everything resident, LoRAs beside streamed blocks included."""
    plan = PLANS[name]
    parts = loading.load(DEMO, CPU, lambda *_: None, precision.WEIGHTS, plan=plan)
    assert (parts.placed.blocks is not None) == bool(plan.streamed)
    assert (parts.placed.offloaded is not None) == (plan.encoder == "offloaded")
    assert edits(parts, tmp_path, plan.tiled) == expected
    assert expected[0] == expected[2] != expected[1]


def test_blocks_from_files_paint_the_same(tmp_path: Path) -> None:
    """In bfloat16 as on a card: out of an artefact, encoder and blocks through the ring,
    and in the host's memory; with a block that is larger than the others."""
    card, keep = model_card.read("demo"), ("transformer_blocks.1.img_mlp.net.2",)
    convert.Conversion(open_model(DEMO), card, keep=keep).run(tmp_path / "a", lambda *_: None)
    (ready,) = artefact.found(tmp_path)
    read, moved = list[int](), list[int]()

    def painted(plan: Plan) -> list[bytes]:
        parts = loading.load(
            DEMO, CPU, lambda *_: None, precision.ROWS, keep, ready, plan, torch.bfloat16
        )
        read.append(parts.read.done)
        moving = *parts.transformer.transformer_blocks, *parts.encoder_blocks()
        moved.append(sum(p.nbytes for block in moving for p in block.parameters()))
        assert (parts.placed.blocks is not None) == bool(plan.streamed)
        return edits(parts, tmp_path)

    resident = painted(Plan(tabled=True))
    for ring in (True, False):
        plan = Plan(tabled=True, encoder="streamed", streamed=5, ring=ring)
        assert painted(plan) == resident
    # What goes through the ring is read when an edit comes.
    assert read == [read[0], read[0] - moved[0], read[0]]


def test_swaps_and_cancels_beside_a_ring(tmp_path: Path) -> None:
    """To larger blocks and back, the first time in vain; wherever an edit breaks off, encoder and
    blocks find their own bytes in what they share."""
    from vellumd import errors

    card = model_card.read("demo").model_copy(update={"canvas_area": 4096, "vision_area": 4096})
    (file := tmp_path / "input.png").write_bytes(encoded(picture(80, 60)))
    edit = resolved([reference(file.read_bytes())], true_cfg_scale=2.0)
    keeps: dict[str, tuple[str, ...]] = {"small": (), "large": ("attn.to_q", "img_mlp.net.2")}
    wanted, found = dict[str, bytes](), dict[str, artefact.Artefact]()

    def painted(parts: loading.Parts, looks: int | None = None) -> bytes:
        cancelled = partial(next, iter([False] * (looks or 0)), looks is not None)
        model = Model(parts, lora.Loras(parts, DEMO, card, {}), card)
        (result,) = Run(model, edit, Told(), cancelled).pictures([file])
        return result.tobytes()

    def loaded(kind: str, plan: Plan) -> loading.Parts:
        given = precision.ROWS, keeps[kind], found[kind], plan, torch.bfloat16
        return loading.load(DEMO, CPU, lambda *_: None, *given)

    for kind, keep in keeps.items():
        convert.Conversion(open_model(DEMO), card, keep=keep).run(
            tmp_path / kind / "a", lambda *_: None
        )
        (found[kind],) = artefact.found(tmp_path / kind)
        wanted[kind] = painted(loaded(kind, Plan(tabled=True)))
    assert wanted["small"] != wanted["large"]
    plan = Plan(tabled=True, encoder="streamed", streamed=5, ring=True)
    parts = loaded("small", plan)
    assert parts.placed.ring is not None
    for looks in range(2, 20, 4):
        with pytest.raises(errors.Cancelled):
            painted(parts, looks)
        assert painted(parts) == wanted["small"]
    parts.placed.ring.clear()  # it comes again in the middle of an edit
    assert painted(parts) == wanted["small"]

    def exchanged(parts: loading.Parts, kind: str) -> loading.Parts:
        given = precision.ROWS, keeps[kind], found[kind], plan
        return loading.exchange(parts, lambda *_: None, *given)

    for kind in ("large", "small"):
        assert parts.placed.blocks is not None
        parts.placed.blocks.drop()
        bare = replace(parts, transformer=None, table=None)
        shard = sorted(found[kind].transformer.glob("*.safetensors"))[-1]
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1])
        with pytest.raises(errors.ModelInvalid):
            exchanged(bare, kind)
        shard.write_bytes(whole)
        parts = exchanged(bare, kind)
        assert painted(parts) == wanted[kind]


def test_an_encoder_of_several_types(tmp_path: Path) -> None:
    """What lies otherwise than it is held, be it one bias, is not read to where it waits."""
    made = layouts.folder(tmp_path).model
    (file,) = (made / "text_encoder").glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.visual.blocks.0.attn.proj.bias"] = torch.full((64,), 1 / 3)
    save_file(tensors, file)

    def painted(plan: Plan) -> list[bytes]:
        parts = loading.load(made, CPU, lambda *_: None, plan=plan, dtype=torch.bfloat16)
        return edits(parts, tmp_path)

    assert painted(Plan(encoder="streamed")) == painted(Plan())


def test_what_lies_as_it_is_held_is_read_to_where_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an artefact only blocks that are rounded pass the card: the encoder is three
    quarters of what 12 GB cards stream, and needs no way there and back."""
    direct: list[int] = []
    of_files = streaming.Held.of_files

    def counting(blocks: Any, *given: Any) -> streaming.Held:
        direct.append(len(blocks))
        return of_files(blocks, *given)

    monkeypatch.setattr(streaming.Held, "of_files", counting)

    def painted(plan: Plan) -> list[bytes]:
        given: Any = {"plan": plan, "dtype": torch.bfloat16}
        parts = loading.load(DEMO, CPU, lambda *_: None, precision.ROWS, **given)
        return edits(parts, tmp_path)

    resident = painted(Plan(tabled=True))
    config = open_model(DEMO).configs["text_encoder"]
    for plan in PLANS.values():
        assert painted(plan) == resident
    layers = [config["text_config"]["num_hidden_layers"], config["vision_config"]["depth"]]
    assert direct == layers * sum(plan.encoder == "streamed" for plan in PLANS.values())


def test_a_budget_makes_the_engine_stream(tmp_path: Path) -> None:
    """From the setting to the blocks: the plan is told in capabilities, the edit is the same."""
    file = tmp_path / "input.png"
    file.write_bytes(encoded(picture(80, 60)))
    edit = resolved([reference(file.read_bytes())])

    def painted(**settings: Any) -> tuple[protocol.Capabilities, bytes]:
        settings = {"artifact_dir": str(tmp_path / "none"), **settings}
        init = protocol.Init(engine="", settings=settings, spool=tmp_path, cache=tmp_path)
        engine = pipeline.create(init)
        capabilities = engine.load(Told())
        (result,) = engine.edit(edit, [file], Told(), lambda: False)
        engine.unload()
        return capabilities, result.tobytes()

    whole, first = painted()
    tight, second = painted(vram_budget_gb=1, ram_budget_gb=1)
    assert "transformer resident" in whole.memory_plan
    assert "5 blocks streamed, encoder streamed" in tight.memory_plan
    assert first == second


def test_the_ladder_streams_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When freeing and tiling did not help, the blocks stream for the rest of the edit, unless the
    host has no room for them or they do so already."""
    parts = loading.load(DEMO, CPU, lambda *_: None, precision.WEIGHTS)
    blocks = list(parts.transformer.transformer_blocks)
    seen: list[bool] = []

    def work() -> str:
        seen.append(len({p.data_ptr() for b in blocks for p in b.parameters()}) < 5 * 20)
        if len(seen) < 4:
            raise torch.OutOfMemoryError("simulated")
        return "done"

    before = edits(parts, tmp_path)[0]
    told = Told()
    with memory.Ladder(memory.rungs(parts), told) as ladder:
        assert ladder.climb(work) == "done"
    assert seen == [False, False, False, True]
    assert told.warnings == ["memory_freed", "vae_tiled", "weights_streamed"]
    assert edits(parts, tmp_path)[0] == before
    streams = loading.load(DEMO, CPU, lambda *_: None, plan=Plan(tabled=True, streamed=5))
    assert len(memory.rungs(streams)) == 2
    for told_by_system, rungs in (((10**6, 10**5), 2), ((0, 0), 3)):
        host = platform.Memory(*told_by_system)
        monkeypatch.setattr(platform, "memory", lambda host=host: host)
        assert len(memory.rungs(parts)) == rungs
