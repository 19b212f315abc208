"""Spans, threads and the ring of buffers give exactly the bytes of the files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.engine import layouts
from vellumd import errors
from vellumd.engine import reading
from vellumd.engine.reading import Reader, StoredTensor
from vellumd.weights import checkpoint, header, names
from vellumd.weights.checkpoint import Scaling, Weight
from vellumd.weights.header import Place

CPU = torch.device("cpu")
WAYS = [
    {"staged": False},
    {"staged": True},
    {"staged": True, "span": 1000, "ahead": 3, "threads": 2},
    {"staged": False, "span": 333, "ahead": 1, "threads": 1},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of all types and sizes, empty ones and single numbers among them."""
    numbers = torch.Generator().manual_seed(0)
    made = {}
    for count, dtype in enumerate(reading.DTYPES.values()):
        for shape in ((), (0, 3), (5,), (70, 30), (1, 2000)):
            tensor = torch.randn(shape, generator=numbers).to(dtype)
            made[f"{count}-{len(shape)}-{tensor.numel()}"] = tensor
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    save_file(made, path)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes: NaNs are equal to themselves here."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_every_byte(file: Path, way: dict[str, int]) -> None:
    """Each way gives what safetensors itself gives, and tells every byte once."""
    expected = load_file(file)
    places = header.read(file).tensors
    told: list[int] = []
    with Reader(CPU, told.append, **way) as reader:  # type: ignore[arg-type]
        found = dict(zip(places, reader.places(list(places.values())), strict=True))
    assert {name: (t.dtype, t.shape, bits(t)) for name, t in found.items()} == {
        name: (t.dtype, t.shape, bits(t)) for name, t in expected.items()
    }
    assert sum(told) == sum(place.nbytes for place in places.values())


SIZES = st.lists(st.integers(0, 40), max_size=12)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 25), st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_plan_covers_all(sizes: list[int], span: int, gaps: list[bool]) -> None:
    """Spans hold at most their size and lie in order; pieces cover each tensor without a gap."""
    places, offset = [], 0
    for size, gap in zip(sizes, gaps, strict=False):
        offset += 3 * gap
        places.append(Place(Path("x"), offset, "U8", (size,)))
        offset += size
    covered = [0] * len(places)
    for found in reading.plan(places, span):
        assert 0 < found.nbytes <= span
        filled = 0
        for piece in found.pieces:
            assert (piece.begin, piece.at) == (filled, covered[piece.number])
            assert found.offset + piece.begin == places[piece.number].offset + piece.at
            filled = piece.end
            covered[piece.number] += piece.end - piece.begin
    assert covered == [place.nbytes for place in places]


@pytest.mark.parametrize("staged", [False, True])
def test_a_file_that_shrinks(file: Path, tmp_path: Path, staged: bool) -> None:
    """A file cut after its header was read ends in a sentence; so does one that is gone."""
    copy = tmp_path / "x.safetensors"
    copy.write_bytes(file.read_bytes())
    places = list(header.read(copy).tensors.values())
    copy.write_bytes(copy.read_bytes()[:-100])
    with (
        Reader(CPU, staged=staged) as reader,
        pytest.raises(errors.ModelInvalid, match="cut short"),
    ):
        list(reader.places(places))
    copy.unlink()
    with Reader(CPU, staged=staged) as reader, pytest.raises(errors.ModelInvalid, match="read"):
        list(reader.places(places))


def test_who_stops_early_waits(file: Path) -> None:
    """After a reader is left, no thread of it runs, and none writes to freed memory."""
    places = list(header.read(file).tensors.values())
    with Reader(CPU, span=50, ahead=8) as reader:
        tensors: Iterator[torch.Tensor] = reader.places(places)
        next(tensors)
        tensors.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("weights")]


def test_whoever_stops_early_waits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody frees memory that a thread still writes to."""
    places = [place for place in header.read(file).tensors.values() if place.nbytes]
    first, running, held = list[object](), threading.Event(), threading.Event()
    began, ended = list[object](), list[object]()

    def read(span: reading.Span, targets: object) -> None:
        if not first:
            first.append(span)
            return
        began.append(span)
        running.set()
        held.wait(0.2)  # it ends long after whoever does not wait
        ended.append(span)

    monkeypatch.setattr(reading, "read_span", read)
    with Reader(CPU, span=100, threads=1) as reader:
        tensors: Iterator[torch.Tensor] = reader.places(places)
        next(tensors)
        assert running.wait(20)
        tensors.close()  # type: ignore[attr-defined]
        assert len(began) == len(ended) > 0


def test_a_buffer_is_used_again_once_it_is_copied(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card copies behind the thread's back: it is waited for before the next span is read."""
    places = [place for place in header.read(file).tensors.values() if place.nbytes]
    spans = reading.plan(places, 100)
    story: list[str] = []
    copied = Mock(synchronize=lambda: story.append("copied"))
    monkeypatch.setattr(reading._Ring, "_copy", lambda *_: copied)
    monkeypatch.setattr(reading, "read_span", lambda *_: story.append("read"))
    ring = reading._Ring(CPU, 100, 1)
    for span in spans[:3]:
        assert ring.fetch(span, {}, None) is copied
    assert story == ["read", "copied", "read", "copied", "read"]


@pytest.mark.parametrize(
    ("quantise", "scaling", "block"),
    [
        (layouts.by_tensor, Scaling.SCALAR, None),
        (layouts.by_row, Scaling.ROW, None),
        (layouts.by_block, Scaling.BLOCK, (128, 128)),
    ],
)
def test_scales_are_multiplied_in(quantise: object, scaling: Scaling, block: object) -> None:
    """FP8 times its scale is the weight, within e4m3's rounding of a sixteenth."""
    numbers = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 0, 300)[:, None]
    weight = torch.randn(300, 200, generator=numbers) * sizes
    rounded, scale = quantise(weight)  # type: ignore[operator]
    place = Place(Path("x"), 0, "F8_E4M3", (300, 200))
    entry = Weight("x", place, place, scaling, block)  # type: ignore[arg-type]
    meant = StoredTensor(entry, rounded, scale).dense(torch.float32)
    assert float((meant - weight).norm() / weight.norm()) < 0.03
    if scaling is Scaling.ROW:
        assert float(((meant - weight) / sizes).norm() / (weight / sizes).norm()) < 0.03


def test_weights_come_with_their_scales(tmp_path: Path) -> None:
    """A file whose scales lie behind all weights, over two files, is read in file order."""
    made = layouts.mixed(tmp_path, layouts.by_row)
    found = checkpoint.of("transformer", [made.model])
    with Reader(CPU) as reader:
        tensors = list(reader.tensors(found.weights.values()))
    assert [t.stored.place.offset for t in tensors] == sorted(
        t.stored.place.offset for t in tensors
    )
    weights = layouts.tensors("transformer")
    for tensor in tensors:
        assert (tensor.scale is not None) == (tensor.weight.dtype is layouts.FP8)
        meant, whole = tensor.dense(torch.float32), weights[tensor.stored.name].float()
        assert float((meant - whole).norm() / whole.norm().clamp(min=1e-6)) < 0.03


def test_wans_names_are_diffusers_own() -> None:
    """diffusers' converter turns the tests' names of the VAE into the same as ours."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    vae = layouts.tensors("vae")
    wan = layouts.wan_names(vae)
    assert not wan.keys() & vae.keys()
    assert convert_wan_vae_to_diffusers(dict(wan)).keys() == vae.keys()
    assert {names.canonical("vae")(name) for name in wan} == vae.keys()
    assert {names.canonical("vae")(name) for name in vae} == vae.keys()


@pytest.mark.parametrize("way", WAYS)
def test_within_inference_mode(file: Path, way: dict[str, int]) -> None:
    """Threads are in no such mode, and still write to tensors that were made in it."""
    expected = load_file(file)
    places = header.read(file).tensors
    with torch.inference_mode(), Reader(CPU, **way) as reader:  # type: ignore[arg-type]
        found = dict(zip(places, reader.places(list(places.values())), strict=True))
        assert {n: bits(t) for n, t in found.items()} == {n: bits(t) for n, t in expected.items()}
