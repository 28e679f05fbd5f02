"""A threshold rule on the queue length: up fast, down slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sponge_env.controllers import BaseController, option
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .batching import BatchConfig, batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRuleConfig(BatchConfig):
    """Options of :class:`QueueRule`."""

    up_queue: float = option(1.0, above=0)
    """Waiting requests per core above which cores are added."""
    calm_share: float = option(0.25, above=0, at_most=1)
    """An interval counts as calm if less waits than this share of ``up_queue``."""
    up_factor: float = option(1.5, at_least=1)
    """How many times the cores are held after growing; at least one is added."""
    down_after: int = option(10, at_least=1)
    """Calm intervals in a row after which one core is released."""


class QueueRule(BaseController):
    """Scales one replica by how many requests wait at the moment of the decision.

    Between the two thresholds nothing changes, and giving back takes a while: the hysteresis
    that keeps a rule of this kind from swinging.
    """

    config: QueueRuleConfig

    def begin(self, spec: SystemSpec) -> None:
        """Forget how many intervals were calm."""
        self._calm = 0

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Compare the queue with the thresholds."""
        cores = max(1, min(self._scaled(view), spec.cores_max))
        return Allocation(cores, batch_size(self.config, spec, cores))

    def _scaled(self, view: SystemView) -> int:
        config, cores = self.config, view.allocation.cores
        waiting = view.queued_deadlines_s.size / cores
        # The first moment of an episode is no sign of calm.
        calm = waiting < config.calm_share * config.up_queue and view.arrivals.size > 0
        self._calm = self._calm + 1 if calm else 0
        if waiting > config.up_queue:
            return max(cores + 1, math.ceil(cores * config.up_factor))
        # Release slowly: a core too few costs deadlines, one too many only itself.
        if self._calm >= config.down_after:
            self._calm = 0
            return cores - 1
        return cores
