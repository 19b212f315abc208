"""Which steps of an edit do all the work, and what the others leave out."""

from __future__ import annotations

from dataclasses import dataclass

from vellumd.memory_plan import Kept


@dataclass(frozen=True)
class Plan:
    """The steps, from 0, that compute the references anew, and those that are guided.

    A step that is not `fresh` uses the references' keys and values of the last fresh one:
    a third to a fifth of the work, but not the same numbers, since references look at the
    target and the prompt too. `kept` is how those outlast a step. A step that is not `guided`
    leaves out the negative prompt.
    """

    steps: int
    fresh: frozenset[int]
    guided: frozenset[int]
    kept: Kept = "whole"

    @classmethod
    def full(cls, steps: int) -> Plan:
        """All steps do all the work: the model as it was trained."""
        return cls.of(steps)

    @classmethod
    def of(cls, steps: int, every: int = 1, guided: tuple[float, float] = (0, 1)) -> Plan:
        """Fresh in each `every`-th step from the first on, guided between the shares `guided`.

        A step that a share of `steps` ends in counts as within.
        """
        begin, end = guided
        return cls(
            steps,
            frozenset(range(0, steps, every)),
            frozenset(
                step for step in range(steps) if begin * steps < step + 1 and step < end * steps
            ),
        )

    @property
    def reuses(self) -> bool:
        """Whether any step uses keys and values of an earlier one."""
        return len(self.fresh) < self.steps

    def forwards(self, prompts: int) -> int:
        """How often a block is called, for one prompt or for two in turn."""
        return self.steps + (len(self.guided) if prompts == 2 else 0)
