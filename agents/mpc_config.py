"""Options of the controller that looks ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sponge_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MPCConfig:
    """Options of :class:`~agents.sponge_mpc.SpongeMPC`.

    Prices are in core-seconds of the system's core units. The defaults were chosen on training
    seeds over all scenarios and profiles at once; ``python -m benchmarks.ablations`` shows what
    each ingredient is worth.
    """

    forecast: bool = True
    """Follow the flow of requests through the network: rate, scatter, bandwidth, and what is on
    the way. Without, the next interval brings what the last one brought, evenly."""
    risk: bool = True
    """Play several futures, weighted by their probability; without, the expected one."""
    batching: bool = True
    """Choose the largest batch together with the cores; without, it is the system's largest."""
    learning: bool = True
    """Correct the fitted service times by those that are seen."""
    look_ahead: int = 1
    """Intervals after the next one that are played, each future with the cores that suit it."""
    late_price: float = 15.0
    """What a late request costs."""
    backlog_price: float = 1.2
    """What a request costs that is left at the end of the look-ahead, relative to what serving
    one more costs at the forecast rate."""
    release_price: float = 0.0
    """What giving up one core costs: hysteresis when scaling down."""
    guard: float = 0.15
    """Share of the SLO before a deadline within which an answer counts as late in part, the
    more the closer it comes: predictions are not that exact."""

    def __post_init__(self) -> None:
        if self.look_ahead not in range(6):
            raise ConfigError(f"look_ahead must be between 0 and 5, not {self.look_ahead!r}")
        for name in ("late_price", "backlog_price", "release_price"):
            if not 0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}")
        if not 0 < self.guard < 1:
            raise ConfigError(f"guard must be above 0 and below 1, not {self.guard!r}")
