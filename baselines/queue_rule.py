"""A threshold rule on the queue length: up fast, down slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from baselines.batching import BatchConfig, batch_size, share
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRuleConfig(BatchConfig):
    """Options of :class:`QueueRule`."""

    up_queue: float = 1.0
    """Waiting requests per core above which cores are added."""
    calm_share: float = 0.25
    """An interval counts as calm if less waits than this share of ``up_queue``."""
    up_factor: float = 1.5
    """How many times the cores are held after growing; at least one is added."""
    down_after: int = 10
    """Calm intervals in a row after which one core is given back."""

    def __post_init__(self) -> None:
        BatchConfig.__post_init__(self)
        if not 0 < self.up_queue < math.inf:
            raise ConfigError(f"up_queue must be a number above 0, not {self.up_queue!r}")
        share("calm_share", self.calm_share)
        if not 1 <= self.up_factor < math.inf:
            raise ConfigError(f"up_factor must be at least 1, not {self.up_factor!r}")
        if self.down_after < 1:
            raise ConfigError(f"down_after must be at least 1, not {self.down_after!r}")


class QueueRule:
    """Scales one replica by how many requests wait at the moment of the decision.

    Between the two thresholds nothing changes, and giving back takes a while: the hysteresis
    that keeps a rule of this kind from swinging.
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`QueueRuleConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(QueueRuleConfig, options)
        self._spec: SystemSpec | None = None
        self._calm = 0

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn."""
        self._spec, self._calm = spec, 0

    def decide(self, view: SystemView) -> Allocation:
        """Compare the queue with the thresholds.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._spec is None:
            raise RuntimeError("call reset() before decide()")
        cores = max(1, min(self._scaled(view), self._spec.cores_max))
        return Allocation(cores, batch_size(self.config, self._spec, cores))

    def _scaled(self, view: SystemView) -> int:
        config, held = self.config, view.allocation.cores
        waiting = view.queued_deadlines_s.size / held
        # The first moment of an episode is no sign of calm.
        calm = waiting < config.calm_share * config.up_queue and view.arrivals.size > 0
        self._calm = self._calm + 1 if calm else 0
        if waiting > config.up_queue:
            return max(held + 1, math.ceil(held * config.up_factor))
        if self._calm >= config.down_after:
            self._calm = 0
            return held - 1
        return held
