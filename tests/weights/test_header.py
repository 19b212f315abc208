"""Headers that lie, files of other kinds, and random bytes: a sentence, never more."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.weights import files
from vellumd import errors
from vellumd.weights import header


def one(**changed: Any) -> bytes:
    """A file with one tensor of four bytes, its entry changed."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def raw(text: bytes, rest: bytes = b"") -> bytes:
    """A file of a header's bytes and the rest."""
    return struct.pack("<Q", len(text)) + text + rest


def refusal(folder: Path, data: bytes, name: str = "model.safetensors") -> str:
    """What is said of a file with this content."""
    (folder / name).write_bytes(data)
    with pytest.raises(errors.ModelInvalid) as caught:
        header.read(folder / name)
    assert str(folder.parent) not in caught.value.message
    assert f"{name} ({folder.name})" in caught.value.message
    return caught.value.message


def test_a_sound_file(tmp_path: Path) -> None:
    """Places count from the file's beginning, and texts are kept."""
    tensors = {"a": ("BF16", (2, 3)), "empty": ("F32", (0,)), "one": ("F32", ())}
    file = files.write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    head = header.read(file)
    start = len(files.packed(tensors, {"format": "pt"}))
    assert head.metadata == {"format": "pt"}
    assert [(p.offset - start, p.nbytes) for p in head.tensors.values()] == [
        (0, 12), (12, 0), (12, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (b"1234567", "cut short"),
        (struct.pack("<Q", 1 << 40) + b"{}", "cut short"),
        (one()[:-1], "cut short by 1 bytes"),
        (one() + b"x", "1 bytes longer"),
        (one(data_offsets=[0, 1 << 40]), "its bytes contradict"),
        (one(data_offsets=[4, 0]), "its bytes contradict"),
        (one(data_offsets=[0, 8]), "its bytes contradict"),
        (one(data_offsets=[4, 8]), "gaps"),
        (one(data_offsets=[0]), "says too little"),
        (one(data_offsets=[0.0, 4.0]), "impossible shape"),
        (one(shape=[1 << 40]), "its bytes contradict"),
        (one(shape=[-1]), "impossible shape"),
        (one(shape=[True]), "impossible shape"),
        (one(shape=None), "says too little"),
        (one(dtype="F4"), "type F4"),
        (one(dtype=["F32"]), "which cannot be read"),
        (raw(b"nono"), "garbled"),
        (raw(b"[]"), "garbled"),
        (raw(b'{"__metadata__": 3}'), "garbled"),
        (raw(b'{"a": 3}'), "says too little"),
        (raw(b"\xff" * 64), "garbled"),
        (raw(b"[" * 100_000), "garbled"),
        (raw(b'{"a": ' + b"9" * 5000 + b"}"), "garbled"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, data: bytes, said: str) -> None:
    """Whatever is claimed is held against the file, before a byte is set aside for it."""
    assert said in refusal(tmp_path, data)


def test_tensors_that_overlap(tmp_path: Path) -> None:
    """Two names of the same bytes, and one name twice, would be read differently by others."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    assert "overlap" in refusal(
        tmp_path, raw(json.dumps({"a": entry, "b": entry}).encode(), bytes(4))
    )
    text = json.dumps(entry)
    assert "garbled" in refusal(tmp_path, raw(f'{{"a": {text}, "a": {text}}}'.encode(), bytes(4)))


def test_an_oversized_header(tmp_path: Path) -> None:
    """More than 100 MB of header is not read, even where the file is as large."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", header.MAX + 1))
        opened.truncate(header.MAX * 2)
    began = time.thread_time()
    with pytest.raises(errors.ModelInvalid, match="more than 100 MB"):
        header.read(file)
    assert time.thread_time() - began < 1


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._proof),)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, protocol: int) -> None:
    """Known by name or by content, it is named as what it is."""
    proof = tmp_path / "proof"
    data = pickle.dumps(Trap(proof), protocol)
    assert "is a pickle" in refusal(tmp_path, data, name)
    assert not proof.exists()
    pickle.loads(data)
    assert proof.exists()


def test_other_formats(tmp_path: Path) -> None:
    """torch's zip is a pickle too; GGUF is told what is read instead."""
    assert "is a pickle" in refusal(tmp_path, b"PK\x03\x04" + bytes(60))
    said = refusal(tmp_path, b"GGUF\x03\0\0\0" + bytes(60), "model.gguf")
    assert "is GGUF" in said and "safetensors are read" in said
    assert "is GGUF" in refusal(tmp_path, b"GGUF\x03\0\0\0" + bytes(60))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder in its place, and one that is gone, are told by the system's words."""
    (tmp_path / "a.safetensors").mkdir()
    for name in ("a", "b"):
        with pytest.raises(errors.ModelInvalid, match="cannot be read"):
            header.read(tmp_path / f"{name}.safetensors")


def survives(folder: Path, data: bytes) -> None:
    """Reading ends with a header or with `ModelInvalid`."""
    file = folder / "fuzz.safetensors"
    file.write_bytes(data)
    with contextlib.suppress(errors.ModelInvalid):
        header.read(file)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4"]) | ANYTHING,
        "shape": st.lists(st.integers(-2, 9), max_size=3) | ANYTHING,
        "data_offsets": st.lists(st.integers(-2, 64), max_size=3) | ANYTHING,
    },
)
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    """Bytes with no order in them."""
    survives(tmp_path, data)
    survives(tmp_path, raw(data))


@FUZZ
@given(
    st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), ENTRIES | ANYTHING, max_size=4)
)
def test_random_headers(tmp_path: Path, found: dict[str, Any]) -> None:
    """JSON that is nearly a header."""
    survives(tmp_path, raw(json.dumps(found).encode(), bytes(64)))


@FUZZ
@given(st.data())
def test_a_flipped_byte(tmp_path: Path, data: st.DataObject) -> None:
    """A sound file with a byte changed, or cut somewhere."""
    whole = bytearray(files.packed(files.transformer(num_layers=1)) + bytes(16_384))
    place = data.draw(st.integers(0, 4000))
    whole[place] = data.draw(st.integers(0, 255))
    survives(tmp_path, bytes(whole[: data.draw(st.integers(0, len(whole)))]))
