"""Where the rows of a forward lie: texts and pictures of one prompt or two.

In order: the first prompt's text, its pictures, the second's pictures, its text. So the rows of
each prompt are neighbours, for attention, and so are the pictures of both, for products: nothing
is joined by copying. A prompt's pictures are the target and then the references; to each other
text, target and references of a prompt stand as in diffusers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Prompts = tuple[int, ...]
"""Those that a forward is for: 0 is the prompt, 1 the negative one."""
ONE: Prompts = (0,)
BOTH: Prompts = (0, 1)


class Rows(NamedTuple):
    """The tokens of each prompt's text, and those of a prompt's pictures."""

    texts: tuple[int, ...]
    pictures: int

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.texts) + len(self.texts) * self.pictures

    def pictures_from(self, prompt: int) -> int:
        """Where the pictures of a prompt begin."""
        return self.texts[0] + prompt * self.pictures

    def text(self, prompt: int) -> slice:
        """The text of a prompt."""
        return (
            slice(self.texts[0]) if prompt == 0 else slice(self.total - self.texts[1], self.total)
        )

    def prompt(self, prompt: int) -> slice:
        """Text and pictures of a prompt."""
        middle = self.pictures_from(1)
        return slice(middle) if prompt == 0 else slice(middle, self.total)


class Part(NamedTuple):
    """Queries, keys and values of some rows: [prompts, rows, heads, width] each.

    There may be fewer queries, those of the first rows, or none.
    """

    query: Tensor | None
    key: Tensor
    value: Tensor


class Asking(NamedTuple):
    """What attention reads for one prompt: [1, rows, heads, width] each."""

    query: Tensor
    key: Tensor
    value: Tensor


class Seats(NamedTuple):
    """Where one block puts queries, keys and values, and what attention reads of them.

    `pictures` are those of all prompts, `texts` and `prompts` those of each. `asked`: which rows
    the queries of `prompts` are of.
    """

    pictures: Part
    texts: tuple[Part, ...]
    prompts: tuple[Asking, ...]
    asked: Rows

    def of_pictures(self, answers: list[Tensor]) -> list[Tensor]:
        """The pictures' rows of what attention made of each of `prompts`."""
        texts, rows = self.asked
        first = answers[0][:, texts[0] :]
        return [first, *(answer[:, :rows] for answer in answers[1:])]

    def of_texts(self, answers: list[Tensor]) -> list[Tensor]:
        """The texts' rows of it."""
        texts, rows = self.asked
        first = answers[0][:, : texts[0]]
        return [first, *(answer[:, rows:] for answer in answers[1:])]


class Room:
    """Memory for queries, keys and values of all rows, in which each stream writes its own."""

    def __init__(self, rows: Rows, query: Tensor) -> None:
        """`query` [1, rows, heads, width] may be shared with other rooms."""
        self.rows = rows
        self._query = query
        self._key, self._value = torch.empty_like(query), torch.empty_like(query)
        self._seats: dict[tuple[Prompts, int, int, bool], Seats] = {}

    def seats(self, prompts: Prompts, rows: int, target: int, last: bool) -> Seats:
        """For the first `rows` of the pictures of `prompts`; made once, since steps ask for the
        same.

        If `last`, the first `target` of them ask and no text does.
        """
        given = prompts, rows, target, last
        found = self._seats.get(given)
        if found is None:
            found = self._seats[given] = self._made(*given)
        return found

    def _made(self, prompts: Prompts, rows: int, target: int, last: bool) -> Seats:
        texts = tuple(0 if last else self.rows.texts[prompt] for prompt in prompts)
        asked = Rows(texts, target if last else rows)
        query = self._query[:, : asked.total]
        begin = asked.pictures_from(0)
        asking = query[0, begin : asked.pictures_from(len(prompts))]
        key, value = self.pictures(prompts, 0, rows)
        return Seats(
            Part(torch.unflatten(asking, 0, (len(prompts), asked.pictures)), key, value),
            tuple(
                Part(
                    None if last else query[:, asked.text(number)],
                    *self._held(self.rows.text(prompt)),
                )
                for number, prompt in enumerate(prompts)
            ),
            tuple(
                Asking(query[:, asked.prompt(number)], *self._held(self.rows.prompt(prompt)))
                for number, prompt in enumerate(prompts)
            ),
            asked,
        )

    def _held(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self._key[:, rows], self._value[:, rows]

    def pictures(self, prompts: Prompts, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows of the pictures of `prompts`."""
        first, after = (self.rows.pictures_from(n) for n in (prompts[0], prompts[-1] + 1))
        key, value = (
            torch.unflatten(x[0], 0, (len(prompts), self.rows.pictures))[:, start:end]
            for x in self._held(slice(first, after))
        )
        return key, value

    def alone(self, prompt: int, start: int, end: int, *, asking: bool) -> Part:
        """For a picture that looks at nothing but itself, in these rows of those of `prompt`."""
        query = self._query[:, : end - start] if asking else None
        return Part(query, *self.pictures((prompt,), start, end))
