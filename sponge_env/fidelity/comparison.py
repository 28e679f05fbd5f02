"""Live against simulated: differences, and whether they are within the targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sponge_env.fidelity.trial import Kind, Trial
from sponge_env.results.schema import column

Verdict = Literal["met", "within spread", "missed", ""]
"""Within the target; not, but among the live runs; neither; no target."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A metric that is compared; its column says how people read it."""

    metric: str
    """Name in :class:`~sponge_env.results.schema.EpisodeMetrics`."""
    digits: int
    """Decimal places."""
    target: float | None = None
    """Largest difference wanted, in the metric's unit or relative to live."""
    relative: bool = True
    """Whether differences are relative to live."""

    @property
    def heading(self) -> str:
        """The column's."""
        return column(self.metric).label

    def text(self, value: float) -> str:
        """Write a value in the heading's unit."""
        return f"{value * column(self.metric).scale:.{self.digits}f}"

    def difference_text(self, difference: float) -> str:
        """Write a difference: in per cent of live, or in points."""
        if math.isnan(difference):
            return "-"
        return f"{difference * 100:+.1f} %" if self.relative else f"{difference * 100:+.2f} pt"


QUANTITIES = (
    Quantity("violation_rate", 2, target=0.005, relative=False),
    Quantity("latency_mean_s", 1, target=0.05),
    Quantity("latency_p50_s", 1),
    Quantity("latency_p99_s", 1, target=0.10),
    Quantity("mean_cores", 2),
    Quantity("utilisation", 1, relative=False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of one agent on one scenario; means over the repetitions."""

    agent: str
    scenario: str
    quantity: Quantity
    live: float
    live_min: float
    live_max: float
    simulated: float
    replayed: float

    @property
    def difference(self) -> float:
        """Simulated against live."""
        return self._from_live(self.simulated)

    @property
    def replayed_difference(self) -> float:
        """The model's own error: simulated with the live CPU times, against live."""
        return self._from_live(self.replayed)

    @property
    def verdict(self) -> Verdict:
        """Whether the simulated value is where it should be."""
        target = self.quantity.target
        if target is None or math.isnan(self.difference):
            return ""
        if abs(self.difference) <= target:
            return "met"
        return "within spread" if self.live_min <= self.simulated <= self.live_max else "missed"

    def _from_live(self, value: float) -> float:
        difference = value - self.live
        if not self.quantity.relative:
            return difference
        return difference / self.live if self.live else math.nan


def compare(trials: Iterable[Trial]) -> list[Row]:
    """Compare every agent on every scenario, in the order of their first trials."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.summary.agent, trial.summary.scenario), []).append(trial)
    return [_row(group, quantity) for group in groups.values() for quantity in QUANTITIES]


def _row(trials: Sequence[Trial], quantity: Quantity) -> Row:
    def values(kind: Kind) -> list[float]:
        return [float(getattr(t.summary, quantity.metric)) for t in trials if t.kind == kind]

    live = values("live")
    return Row(
        agent=trials[0].summary.agent,
        scenario=trials[0].summary.scenario,
        quantity=quantity,
        live=fmean(live),
        live_min=min(live),
        live_max=max(live),
        simulated=fmean(values("simulated")),
        replayed=fmean(values("replayed")),
    )
