"""Vertical scaling by a percentile of the cores used, as a pod autoscaler recommends it.

After the recommender of Kubernetes' Vertical Pod Autoscaler (its public documentation and
source): a histogram of CPU usage whose samples lose half of their weight every half-life,
with buckets that grow by 5 %; the recommendation is the 90th percentile plus 15 %. A sample
weighs as much as the cores that were held, so that after a growth the new samples soon
outweigh the starved ones. What differs: the half-life is a minute and not a day and the
recommendation is put in force in place, both for episodes of ten minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sponge_env.controllers import BaseController, option
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .rules import BatchConfig, batch_size

FIRST_BUCKET = 0.01
"""Size of the histogram's first bucket, in core units."""
GROWTH = 1.05
"""Size of each bucket relative to the one before."""
ROUNDING_S = 1e-9
"""Time by which a decision may come early by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VPAConfig(BatchConfig):
    """Options of :class:`VPA`."""

    half_life_s: float = option(60.0, above=0)
    """Time in which a sample loses half of its weight."""
    percentile: float = option(0.9, above=0, at_most=1)
    """Share of the weighted samples that the recommendation covers."""
    margin: float = option(1.15, above=0)
    """Recommendation relative to that percentile."""
    update_s: float = option(1.0, above=0)
    """Time between two resizes."""


class DecayingHistogram:
    """Weighted samples in buckets of exponential size, which are forgotten exponentially."""

    def __init__(self, half_life_s: float, largest: float) -> None:
        """Start empty; values above the largest are not told apart."""
        buckets = math.ceil(math.log(1 + largest * (GROWTH - 1) / FIRST_BUCKET, GROWTH))
        self._half_life_s = half_life_s
        self._ends = FIRST_BUCKET * (GROWTH ** np.arange(1, buckets + 1) - 1) / (GROWTH - 1)
        self._weights = np.zeros(buckets)
        self._now_s = 0.0

    def add(self, value: float, weight: float, now_s: float) -> None:
        """Add a sample, not older than the last one."""
        self._weights *= 0.5 ** ((now_s - self._now_s) / self._half_life_s)
        self._now_s = now_s
        bucket = int(np.searchsorted(self._ends, value, side="right"))
        self._weights[min(bucket, self._ends.size - 1)] += weight

    def percentile(self, probability: float) -> float:
        """Return the end of the bucket below which so much of the weight lies."""
        cumulative = np.cumsum(self._weights)
        return float(self._ends[np.searchsorted(cumulative, probability * cumulative[-1])])


class VPA(BaseController):
    """Gives one replica a percentile of the cores it used lately, plus a margin."""

    config: VPAConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start with an empty histogram."""
        self._usage = DecayingHistogram(self.config.half_life_s, spec.cores_max)
        self._update_s = self.config.update_s

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Add the last interval's usage; resize if it is time."""
        usage, cores = self._usage, view.allocation.cores
        if view.last is not None:
            usage.add(view.last.utilisation * view.last.cores, view.last.cores, view.now_s)
            if view.now_s >= self._update_s - ROUNDING_S:
                self._update_s = view.now_s + self.config.update_s
                cores = math.ceil(usage.percentile(self.config.percentile) * self.config.margin)
        cores = max(1, min(cores, spec.cores_max))
        return Allocation(cores, batch_size(self.config, spec, cores))
