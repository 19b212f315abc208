"""Memory that a card copies from: exact, full before it is pinned, let go of once and last."""

import contextlib
import gc
import logging
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.support import Told, encoded, picture, reference, resolved
from vellumd import artefact, errors, model_card, protocol
from vellumd.artefact import Artefact
from vellumd.engine import (
    berths,
    convert,
    faults,
    loading,
    pinned,
    pipeline,
    precision,
    streaming,
)
from vellumd.engine.reading import THREADS, StoredTensor
from vellumd.engine.weights import dense
from vellumd.memory_plan import Encoder, Plan
from vellumd.weights.checkpoint import Weight
from vellumd.weights.header import Place
from vellumd.weights.model import open_model

CARD, CPU = torch.device("cuda"), torch.device("cpu")


class Driver:
    """Stands in for the card's: what it was asked, and what memory held at that time."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal = refusal
        self.asked: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.asked.append(("register", address, size, flags))
        return self.refusal

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.asked.append(("unregister", address))
        return 0

    def sizes(self) -> list[int]:
        """Bytes of each piece that is pinned now."""
        sizes = {asked[1]: asked[2] for asked in self.asked if asked[0] == "register"}
        return [sizes[address] for address in self.held()]

    def held(self) -> list[int]:
        """Where what is pinned lies now; nothing is let go of that is not."""
        held, self.most = list[int](), 0
        for what, address, *_ in self.asked:
            held.append(address) if what == "register" else held.remove(address)
            self.most = max(self.most, len(held))
        return held


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    pinned._tell_slow.cache_clear()
    return made


def test_memory_is_filled_then_pinned_as_it_is(driver: Driver) -> None:
    """Not a byte more, unlike torch's, which are powers of two."""
    asked_while_filled = []

    def fill(memory: torch.Tensor) -> None:
        asked_while_filled.extend(driver.asked)
        memory.fill_(7)

    memory = pinned.on_host(5000, CARD, fill)
    assert (memory == 7).all() and memory.shape == (5000,)
    assert asked_while_filled == []
    assert driver.asked == [("register", memory.data_ptr(), 5000, pinned.PORTABLE)]


def test_it_ends_with_the_last_tensor_of_it(driver: Driver) -> None:
    """A parameter is a view of a block's bytes and may outlive them."""
    memory = pinned.on_host(4096, CARD)
    address = memory.data_ptr()
    view = memory[16:32].view(torch.float32)
    del memory
    gc.collect()
    assert driver.asked[1:] == []
    del view
    gc.collect()
    assert driver.asked[1:] == [("unregister", address)]


def test_a_refusal_is_told_once(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """The memory is used as it is; nobody lets go of what was not pinned."""
    driver.refusal = 2
    with caplog.at_level(logging.WARNING):
        both = [pinned.on_host(100, CARD, lambda m: m.fill_(1)) for _ in range(2)]
    assert [int(memory[0]) for memory in both] == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "the system pins no more memory (CUDA error 2): copies to the card are slower"
    ]
    both.clear()
    gc.collect()
    assert [asked[0] for asked in driver.asked] == ["register", "register"]


def test_a_refusal_is_taken_from_the_books(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime would give it to the next kernel, which fails for nothing: one is started."""
    started = []

    class Kept:
        def fill_(self, value: int) -> None:
            started.append(value)
            raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", lambda *args, **options: Kept())
    assert pinned.register(4096, 100, CARD) == 0 and not started
    driver.refusal = 2
    assert pinned.register(4096, 100, CARD) == 2 and started


def test_a_lost_context_stops_no_end(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lets go of memory after the card is gone has nothing to let go of."""
    memory = pinned.on_host(100, CARD)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: 1 / 0)
    del memory
    gc.collect()


@pytest.fixture
def as_with_a_card(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """What streams its weights has them pinned, on any machine."""

    def on_host(size: int, device: torch.device, *fill: Any) -> torch.Tensor:
        return pinned.on_host(size, CARD, *fill)

    for module in (streaming, berths):
        monkeypatch.setattr(module, "on_host", on_host)
    return driver


def test_an_engine_lets_go_of_all_of_it(as_with_a_card: Driver, tmp_path: Path) -> None:
    """Unloaded or loaded again: 28 GB that something still held would end the next load."""
    file = tmp_path / "input.png"
    file.write_bytes(encoded(picture(80, 60)))
    edit = resolved([reference(file.read_bytes())])
    settings = {"vram_budget_gb": 1, "ram_budget_gb": 1, "artifact_dir": str(tmp_path / "none")}
    init = protocol.Init(engine="", settings=settings, spool=tmp_path, cache=tmp_path)
    engine = pipeline.create(init)
    for _ in range(2):
        engine.load(Told())
        (_,) = engine.edit(edit, [file], Told(), lambda: False)
        assert len(as_with_a_card.held()) > 5  # the transformer's blocks and the encoder's
        engine.unload()
        assert as_with_a_card.held() == []


def test_a_load_that_fails_lets_go_of_all_of_it(
    as_with_a_card: Driver, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what other threads filled meanwhile; a host without memory is no damaged model."""
    on_host = berths.on_host
    full = iter([False] * 7 + [True] * 99)

    def on_a_full_host(*given: Any) -> torch.Tensor:
        if next(full):
            raise MemoryError("The host has no 0.2 GB of memory left.")
        return on_host(*given)

    monkeypatch.setattr(berths, "on_host", on_a_full_host)
    plan = Plan(tabled=True, encoder="streamed", streamed=5)
    with pytest.raises(errors.OutOfMemory):
        loading.load(demo, CPU, lambda *_: None, plan=plan)
    assert threads_of("berths") == []
    gc.collect()
    assert len(as_with_a_card.asked) == 14 and as_with_a_card.held() == []


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_berths_that_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are being made are waited for, the others never begun."""
    begun, go_on = list[int](), threading.Event()

    def on_host(size: int, device: torch.device) -> torch.Tensor:
        begun.append(size)
        go_on.wait()
        return pinned.on_host(size, device)

    monkeypatch.setattr(berths, "on_host", on_host)
    made = berths.Berths(CPU)
    for number in range(3 * THREADS):
        made.add(f"{number}.", streaming.layout(torch.nn.Linear(1, 1)))
    closing = threading.Thread(target=made.close)
    closing.start()
    in_the_end = threading.Timer(10, go_on.set)  # a test that fails ends too
    in_the_end.start()
    with pytest.raises(CancelledError):
        made.memory(f"{3 * THREADS - 1}.")
    assert closing.is_alive()
    go_on.set()
    closing.join()
    in_the_end.cancel()
    assert len(begun) <= THREADS and threads_of("berths") == []


@pytest.fixture(scope="module")
def ready(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The demo's artefact."""
    home = tmp_path_factory.mktemp("artefacts")
    conversion = convert.Conversion(open_model(demo), model_card.read("demo"))
    conversion.run(home / "plain", lambda *_: None)
    return next(artefact.found(home))


@pytest.mark.parametrize(("encoder", "dtype", "converted"), [
    ("offloaded", torch.float32, False), ("streamed", torch.float32, False),
    ("streamed", torch.float32, True), ("streamed", torch.bfloat16, False),
    ("streamed", torch.bfloat16, True),
], ids=["offloaded", "streamed", "artefact", "layers as they lie", "all as it lies"])  # fmt: skip
def test_what_waits_is_read_and_held_once(
    as_with_a_card: Driver, demo: Path, ready: Artefact, encoder: Encoder, dtype: torch.dtype,
    converted: bool,
) -> None:  # fmt: skip
    """The real encoder has 15 GB: a host of 32 GB has no room for them twice."""

    def loaded(plan: Plan) -> loading.Parts:
        given: Any = {"ready": ready if converted else None, "plan": plan, "dtype": dtype}
        return loading.load(demo, CPU, lambda *_: None, precision.WEIGHTS, **given)

    parts = loaded(Plan(tabled=True, encoder=encoder, streamed=5))
    sizes, whole = as_with_a_card.sizes(), encoder == "offloaded"
    assert len(sizes) == as_with_a_card.most
    assert sum(sizes) == sum(map(bytes_of, waiting(parts, whole=whole)))
    assert parts.read.done == loaded(Plan(tabled=True)).read.done
    del parts
    gc.collect()
    assert as_with_a_card.held() == []


def waiting(parts: loading.Parts, *, whole: bool) -> Iterator[torch.nn.Module]:
    """What is in the host's memory of it: blocks and words, or the `whole` encoder."""
    model = parts.text_encoder.model
    yield from (*parts.transformer.transformer_blocks, *parts.encoder_blocks())
    yield model.language_model.embed_tokens
    if whole:
        yield from (model.language_model.norm, model.visual.patch_embed, model.visual.merger)


def bytes_of(module: torch.nn.Module) -> int:
    return streaming.size_of(streaming.layout(module))


def test_what_is_used_on_the_host_is_not_pinned(driver: Driver) -> None:
    """A gigabyte of words, of which the card gets rows."""
    words = torch.nn.Linear(8, 8)
    waiting = berths.Berths(CARD)
    waiting.add("words.", streaming.layout(words), pinned=False)
    waiting.add("block.", streaming.layout(words))
    block = waiting.memory("block.")
    assert len(waiting.memory("words.")) == len(block)
    assert driver.held() == [block.data_ptr()]
    waiting.close()


def test_a_card_copies_to_what_is_pinned(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """To other memory it copies by way of the driver's own, many times slower."""
    pinned_by_then = []
    copy = torch.Tensor.copy_

    def copy_(target: torch.Tensor, *given: Any) -> torch.Tensor:
        pinned_by_then.append(len(driver.held()))
        return copy(target, *given)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    block = torch.nn.Linear(8, 8)
    parts = streaming.layout(block)
    held = streaming.Held.of([block], CARD)
    assert torch.equal(parts[0].of(held.bytes_of(0)), block.weight)
    waiting = berths.Berths(CARD)
    waiting.add("block.", parts)
    place = Place(Path(), 0, "F32", (8, 8))
    stored = StoredTensor(Weight("block.weight", place), block.weight.detach())
    (moved,) = waiting.filling(dense(torch.float32))(stored).values()
    assert torch.equal(moved, block.weight) and moved.data_ptr() != block.weight.data_ptr()
    assert pinned_by_then == [1, 1, 2]
    waiting.close()


def test_without_a_card_nothing_is_pinned(driver: Driver) -> None:
    memory = pinned.on_host(100, CPU, lambda m: m.fill_(3))
    assert (memory == 3).all() and not driver.asked


@pytest.mark.parametrize("advice", [(), (12345,)], ids=["no words for it", "a kernel without"])
def test_huge_pages_are_a_wish(advice: tuple[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "ADVICE", advice)
    monkeypatch.setattr(pinned, "PRIVATE", {})  # as on Windows
    assert (pinned.on_host(5 << 20, CPU, lambda m: m.fill_(3)) == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a child gets")
def test_no_child_gets_it() -> None:
    """A fork copies what is pinned, or takes it from under the card: Linux leaves it out."""
    memory = pinned.on_host(4 << 20, CPU, lambda m: m.fill_(1))
    flags = next(
        told.split("VmFlags:")[1].split()
        for told in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
        if lies_in(memory.data_ptr(), told)
    )
    assert "dc" in flags


def lies_in(address: int, mapping: str) -> bool:
    begin, end = (int(edge, 16) for edge in mapping.split(maxsplit=1)[0].split("-"))
    return begin <= address < end


def test_a_host_that_is_full() -> None:
    with pytest.raises(MemoryError, match=r"no 1152921504\.6 GB") as told:
        pinned.on_host(1 << 60, CPU)
    assert faults.is_memory(told.value)
