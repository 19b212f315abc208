"""The store of what was computed before: its bounds, its keys, and that it changes no edit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch

from tests.engine.support import Told, picture, reference, resolved
from vellumd.engine import memory
from vellumd.engine.content import Store, size_of
from vellumd.engine.copies import Copy
from vellumd.engine.model import Model
from vellumd.engine.run import Run

KB = torch.zeros(1000, dtype=torch.uint8)


def test_the_longest_unused_goes_first() -> None:
    """The bytes stay within the limit; what was used lately stays."""
    store = Store(3000)
    for name in "abc":
        store.get(("x", name), lambda: KB, size_of)
    store.get(("x", "a"), lambda: KB, size_of)
    store.get(("x", "d"), lambda: KB, size_of)
    assert [name for name in "abcd" if ("x", name) in store] == ["a", "c", "d"]
    assert store.size == 3000
    assert (store.hits["x"], store.misses["x"]) == (1, 4)
    store.get(("x", "large"), lambda: torch.zeros(3001, dtype=torch.uint8), size_of)
    assert ("x", "large") not in store
    assert store.size == 3000
    store.get(("x", "all"), lambda: torch.zeros(3000, dtype=torch.uint8), size_of)
    assert [name for name in ("a", "c", "d", "all") if ("x", name) in store] == ["all"]
    store.clear()
    assert store.size == 0 and ("x", "a") not in store


def test_bounds_hold_over_many_entries() -> None:
    """Of a thousand entries of all sizes never more than the limit is kept."""
    store = Store(10_000)
    for number in range(1000):
        entry = torch.zeros(number * 37 % 4001, dtype=torch.uint8)
        store.get(("x", number), lambda entry=entry: entry, size_of)
        assert store.size <= 10_000
    kept = [number for number in range(1000) if ("x", number) in store]
    assert store.size == sum(number * 37 % 4001 for number in kept)


def test_a_failure_is_not_kept() -> None:
    """An edit that is cancelled while something is computed leaves nothing behind."""
    store = Store(1000)
    with pytest.raises(ZeroDivisionError):
        store.get(("x", 1), lambda: 1 // 0, lambda _: 1)
    assert ("x", 1) not in store
    assert store.size == 0


def paint(model: Model, files: list[Path], told: Told | None = None, **fields: object) -> bytes:
    edit = resolved([reference(file.read_bytes()) for file in files], **fields)
    return next(Run(model, edit, told or Told(), lambda: False).pictures(files)).tobytes()


def test_an_edit_again_is_the_same_edit(model: Model, files: list[Path]) -> None:
    """Hits change no byte of a result, and skip what they stand for."""
    store = model.store
    store.clear()
    store.hits.clear()
    told = Told()
    first = paint(model, files, true_cfg_scale=3.0)
    assert not store.hits
    assert paint(model, files, told, true_cfg_scale=3.0) == first
    assert store.hits == {"prompt": 2, "latents": 2}
    assert next(beat for beat in told.beats if beat[0] == "encode") == ("encode", 0, 0)
    store.clear()
    assert paint(model, files, true_cfg_scale=3.0) == first


def test_tiles_have_latents_of_their_own(model: Model) -> None:
    """They differ a little: an edit that could not do without tiles leaves none to the next."""
    model.store.clear()
    one = Copy.of(picture(64, 64), "one")
    model.packed(one)
    assert model.knows(one) and not model.knows(Copy.of(picture(64, 64), "other"))
    with memory.tiled(model.parts.vae):
        assert not model.knows(one)
        model.packed(one)
        assert model.knows(one)


def test_no_more_is_held_than_is_counted(model: Model, files: list[Path]) -> None:
    """Not a byte of what tensors are views of: else the limit were none."""
    store = model.store
    store.clear()
    paint(model, files, true_cfg_scale=3.0)
    found = [tensor for entry in store._entries.values() for tensor in tensors(entry.value)]
    storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    assert len(storages) == len(found) > 4
    assert store.size == sum(storages.values())


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Those within a kept value."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value):
        for one in vars(value).values():
            yield from tensors(one)


def test_short_of_memory_nothing_is_kept(model: Model, files: list[Path]) -> None:
    """The first rung of the ladder lets go of what is kept to save time."""
    paint(model, files)
    assert model.store.size > 0
    full = True

    def fail(*_: object) -> None:
        nonlocal full
        if full:
            full = False
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.parts.vae.decoder.register_forward_pre_hook(fail)
    paint(model, files)
    handle.remove()
    assert model.store.size == 0
