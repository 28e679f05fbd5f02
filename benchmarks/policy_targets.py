"""Learned controllers beside the best rule or program of each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learn.evaluation import TOLERANCE
from sponge_env.arrays import FloatArray
from sponge_env.results.layout import percent
from sponge_env.results.statistics import SIGNIFICANCE


@dataclass(frozen=True, slots=True)
class Won:
    """In how many cells a policy holds fewer cores than the rule, and its violations there."""

    cells: int
    fewer: int
    """Cells with fewer cores; the next three add up to it."""
    no_more: int
    """Of these, with at most :data:`.TOLERANCE` of the requests violated beyond the rule's."""
    undecided: int
    """With more than that, which chance could explain: a paired test over the seeds, for each
    cell alone."""
    more: int
    """With significantly more."""

    @classmethod
    def of(cls, core_ratios: FloatArray, excess: FloatArray, p: FloatArray) -> Won:
        """Count (cells,) core ratios and violations beyond the rule's, with their p values."""
        fewer = core_ratios < 1
        no_more = fewer & (excess <= TOLERANCE)
        more = fewer & ~no_more & (p < SIGNIFICANCE)
        counts = [int(np.count_nonzero(cells)) for cells in (fewer, no_more, more)]
        return cls(core_ratios.size, *counts[:2], counts[0] - counts[1] - counts[2], counts[2])

    def __str__(self) -> str:
        """Write all counts."""
        return (
            f"fewer cores in {self.fewer} of {self.cells}: {self.no_more} with at most "
            f"{percent(TOLERANCE, 2)} of the requests more violated, {self.undecided} with more, "
            f"not significantly (p >= {SIGNIFICANCE:g} each), {self.more} with significantly more"
        )
