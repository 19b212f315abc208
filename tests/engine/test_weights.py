"""Weight files that lie, or are none."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from vellumd import errors
from vellumd.engine import weights


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._proof),)


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt", "model.safetensors"],
)
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    """Whatever it is called, and also where there is nothing else."""
    proof = tmp_path / "proof"
    (tmp_path / name).write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(errors.ModelInvalid):
        weights.shards(tmp_path, "transformer")
    assert not proof.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert proof.exists()


def tensors(**changed: object) -> bytes:
    """A file with one tensor of four bytes, its entry changed."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}
    header = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        tensors(data_offsets=[0, 1 << 40]), tensors(data_offsets=[4, 0]), tensors(shape=[1 << 40]),
        tensors(data_offsets=[0, 8]), tensors()[:-1], struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 200 << 20) + b"{}", b"",
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    """Offsets beyond the file, and headers longer than it, reach no memory."""
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(errors.ModelInvalid, match="damaged"):
        weights.shards(tmp_path, "transformer")
    (tmp_path / "model.safetensors").write_bytes(tensors())
    assert weights.shards(tmp_path, "transformer")
