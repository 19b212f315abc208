"""What was computed from pictures and prompts before, found again by their content."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Entry(NamedTuple):
    """A kept value and its bytes."""

    value: object
    size: int


class Store:
    """Keeps values by key within a number of bytes; the longest unused goes first.

    A value is what its key alone determines, so a hit is bit-equal to computing it again.
    Keys are (kind, ...); `hits` and `misses` count by kind.
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes; with 0 nothing is kept."""
        self._limit = limit
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.size = 0
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    def __contains__(self, key: tuple[Hashable, ...]) -> bool:
        return key in self._entries

    def get(
        self,
        key: tuple[str, *tuple[Hashable, ...]],
        make: Callable[[], T],
        size: Callable[[T], int],
    ) -> T:
        """The value of `key`: the kept one, or that of `make`, of `size` bytes, from now on."""
        if key in self._entries:
            return self.known(key)  # type: ignore[no-any-return]
        value = make()
        self.add(key, value, size(value))
        return value

    def add(self, key: tuple[str, *tuple[Hashable, ...]], value: object, size: int) -> None:
        """Keep `value`, of `size` bytes, that was made since there was none of `key`."""
        self.misses[key[0]] += 1
        self._keep(key, Entry(value, size))

    def known(self, key: tuple[str, *tuple[Hashable, ...]]) -> Any:
        """The kept value of `key`; KeyError if there is none."""
        value = self._entries[key].value
        self.hits[key[0]] += 1
        self._entries.move_to_end(key)
        return value

    def _keep(self, key: Hashable, entry: Entry) -> None:
        if entry.size > self._limit:
            return
        while self.size + entry.size > self._limit:
            _, gone = self._entries.popitem(last=False)
            self.size -= gone.size
        self._entries[key] = entry
        self.size += entry.size

    def clear(self) -> None:
        """Let go of everything."""
        self._entries.clear()
        self.size = 0


def size_of(tensor: Tensor) -> int:
    """Bytes that `tensor` holds: all of those that it is a view of."""
    return tensor.untyped_storage().nbytes()
