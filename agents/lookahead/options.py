"""Options of the look-ahead program."""

from __future__ import annotations

from dataclasses import dataclass

from sponge_env.control.base import Options, option
from sponge_env.interfaces import ACCURACY_PRICE


@dataclass(frozen=True, slots=True, kw_only=True)
class MPCConfig(Options):
    """Options of the look-ahead program.

    Prices are in core-seconds of the system's core units. The defaults were chosen on training
    seeds over all scenarios and profiles at once.
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
    look_ahead: int = option(1, at_least=0, at_most=5)
    """Intervals after the next one that are played, each future with the cores that suit it."""
    late_price: float = option(15.0, at_least=0)
    """What a late request costs."""
    backlog_price: float = option(1.2, at_least=0)
    """What a request costs that is left at the end of the look-ahead, relative to what serving
    one more costs at the forecast rate."""
    release_price: float = option(0.0, at_least=0)
    """What giving up one core costs: hysteresis when scaling down."""
    accuracy_price: float = option(ACCURACY_PRICE, at_least=0)
    """Cores that a percent of accuracy is worth, where there are model variants."""
    guard: float = option(0.15, above=0, below=1)
    """Share of the SLO before a deadline within which an answer counts as late in part, the
    more the closer it comes: predictions are not that exact. Of a pipeline, times the root of its
    number of stages."""
