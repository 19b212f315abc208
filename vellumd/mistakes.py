"""Mistakes in the configuration: told together, so that one start finds them all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vellumd.errors import ConfigError


class Mistakes:
    """Gathers the mistakes of several sections, and raises them together at the block's end."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> Mistakes:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.found and raised[0] is None:
            raise ConfigError("\n".join(self.found))

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the `ConfigError` of this block."""
        try:
            yield
        except ConfigError as error:
            self.found.append(error.message)
