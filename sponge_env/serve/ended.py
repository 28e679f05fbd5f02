"""Counts of the batches that have ended."""

from __future__ import annotations

from collections.abc import Sequence

from sponge_env.interfaces import Completion
from sponge_env.serve.interface import Batches


class EndedBatches:
    """Batches that ended with answers, by stage and size; one thread counts, any may read."""

    def __init__(self, batch_max: Sequence[int]) -> None:
        """Begin at 0; ``batch_max`` is the largest batch of each stage."""
        self._counts = [[0] * (most + 1) for most in batch_max]
        self._service_s = [[0.0] * (most + 1) for most in batch_max]

    def add(self, completion: Completion) -> None:
        """Count a batch that has ended."""
        stage, size = completion.batch.stage, completion.batch.size
        self._service_s[stage][size] += completion.finished_s - completion.started_s
        self._counts[stage][size] += 1

    def so_far(self) -> tuple[tuple[Batches, ...], ...]:
        """Return what there is of each stage, by size, smallest first."""
        return tuple(
            tuple(Batches(size, *each) for size, each in enumerate(pairs) if each[0])
            for pairs in map(zip, self._counts, self._service_s)
        )
