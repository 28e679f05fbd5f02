"""Live against simulated: differences, whether they are within the targets, and their tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from sponge_env.errors import RunDirectoryError
from sponge_env.fidelity.trial import Kind, Trial
from sponge_env.metrics import NAN, EpisodeMetrics, column, from_summary, summary
from sponge_env.results.tables import MISSING, Columns, Table, terminal
from sponge_env.scenario.profile import Profile
from sponge_env.utils.files import read_json, write_json
from sponge_env.utils.installation import describe_host, describe_versions

Verdict = Literal["met", "within spread", "missed", ""]
"""Within the target; not, but among the live runs; neither; no target."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A metric that is compared; its column says how people read it."""

    metric: str  # Name in :class:`~sponge_env.metrics.EpisodeMetrics`
    digits: int  # Decimal places
    target: float | None = None  # Largest difference allowed, in the metric's unit or relative
    relative: bool = True  # Whether differences are relative to live

    def text(self, value: float) -> str:
        """Write a value in the unit of the column's heading."""
        if math.isinf(value):
            return "dropped"
        return f"{value * column(self.metric).scale:.{self.digits}f}"

    def difference(self, value: float, live: float) -> float:
        """Return how far a value is from the live one; NaN relative to nothing."""
        if value == live:  # also where both are infinite
            return 0.0
        difference = value - live
        if math.isinf(difference) or not self.relative:
            return difference
        return difference / live if live else math.nan

    def difference_text(self, difference: float) -> str:
        """Write a difference: in per cent of live, or in points."""
        if not math.isfinite(difference):
            return MISSING
        return f"{difference * 100:+.1f} %" if self.relative else f"{difference * 100:+.2f} pt"


QUANTITIES = (
    Quantity("violation_rate", 2, target=0.005, relative=False),
    Quantity("latency_mean_s", 1, target=0.05), Quantity("latency_p50_s", 1),
    Quantity("latency_p99_s", 1, target=0.10), Quantity("mean_cores", 2),
    Quantity("utilisation", 1, relative=False),
)  # fmt: skip

ACCURACY = Quantity("effective_accuracy", 2, target=0.005, relative=False)
"""Compared as well where answers can be more or less accurate."""

SIDE_BY_SIDE = ("violation_rate", "mean_cores", "latency_mean_s", "latency_p99_s")
"""What is in the table of :func:`side_by_side`."""


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
        return self.quantity.difference(self.simulated, self.live)

    @property
    def replayed_difference(self) -> float:
        """The model's own error: simulated with the live CPU times, against live."""
        return self.quantity.difference(self.replayed, self.live)

    @property
    def verdict(self) -> Verdict:
        """Whether the simulated value is where it should be."""
        target = self.quantity.target
        if target is None or math.isnan(self.difference):
            return ""
        if abs(self.difference) <= target:
            return "met"
        return "within spread" if self.live_min <= self.simulated <= self.live_max else "missed"


COLUMNS: Columns[Row] = (
    ("agent", lambda row: row.agent), ("quantity", lambda row: column(row.quantity.metric).label),
    ("live", lambda row: row.quantity.text(row.live)),
    ("live runs", lambda row: " .. ".join(map(row.quantity.text, (row.live_min, row.live_max)))),
    ("simulated", lambda row: row.quantity.text(row.simulated)),
    ("off by", lambda row: row.quantity.difference_text(row.difference)),
    ("verdict", lambda row: row.verdict), ("replayed", lambda row: row.quantity.text(row.replayed)),
    ("off by", lambda row: row.quantity.difference_text(row.replayed_difference)),
)  # fmt: skip


def compare(trials: Iterable[Trial]) -> list[Row]:
    """Compare every agent on every scenario, in the order of their first trials."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.summary.agent, trial.summary.scenario), []).append(trial)
    return [_row(own, q) for own in groups.values() for q in (*QUANTITIES, *_accuracy(own))]


def _accuracy(trials: Iterable[Trial]) -> tuple[Quantity, ...]:
    return (ACCURACY,) if any(trial.summary.accuracy < 1.0 for trial in trials) else ()


def _row(trials: Sequence[Trial], quantity: Quantity) -> Row:
    def values(kind: Kind) -> list[float]:
        return [float(getattr(t.summary, quantity.metric)) for t in trials if t.kind == kind]

    live, simulated, replayed = values("live"), values("simulated"), values("replayed")
    first, lowest, highest = trials[0].summary, min(live), max(live)
    means = fmean(simulated), fmean(replayed) if replayed else NAN
    return Row(first.agent, first.scenario, quantity, fmean(live), lowest, highest, *means)


def side_by_side(
    simulated: Iterable[EpisodeMetrics], live: Iterable[EpisodeMetrics]
) -> tuple[Table, list[str]]:
    """Tabulate agents that met the same requests simulated and live, over seeds that both have."""
    whole = {(e.agent, e.seed): e for e in live if not e.partial}
    pairs: dict[str, list[Trial]] = {}
    for episode in simulated:
        if other := whole.get((episode.agent, episode.seed)):
            own = pairs.setdefault(episode.agent, [])
            own.append(Trial("simulated", episode.seed, episode, NAN))
            own.append(Trial("live", episode.seed, other, NAN))

    headings, lines = ["agent"], {agent: [agent] for agent in pairs}
    wrong = _accuracy(trial for own in pairs.values() for trial in own)
    shown = [quantity for quantity in QUANTITIES if quantity.metric in SIDE_BY_SIDE]
    for quantity in (*shown, *wrong):
        headings += [f"{column(quantity.metric).label}, simulated", ", live", ", off by"]
        for agent, own in pairs.items():
            row = _row(own, quantity)
            values = map(quantity.text, (row.simulated, row.live))
            lines[agent] += (*values, quantity.difference_text(row.difference))
    offered = (sum(t.summary.offered for t in own if t.kind == "live") for own in pairs.values())
    requests = min(offered, default=0)
    point = f"one is {100 / max(1, requests):.2f} pt of violations"
    notes = ["off by: simulated against live", f"{requests} requests for each agent: {point}"]
    return Table(headings, [*lines.values()]), notes


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Return a table for each scenario, in order of appearance."""
    names = dict.fromkeys(row.scenario for row in rows)
    return {name: Table.of(COLUMNS, [r for r in rows if r.scenario == name]) for name in names}


_OWN = ("kind", "repetition", "cpu_ratio")  # What a trial has beside its summary


def load_fidelity(path: Path) -> list[Row]:
    """Read ``fidelity.json``; RunDirectoryError if it cannot be, or is of another version."""
    data = read_json(path)
    try:
        own = [{name: each.pop(name) for name in _OWN} for each in data["trials"]]
        pairs = zip(own, map(from_summary, data["trials"]), strict=True)
        return compare([Trial(summary=episode, **more) for more, episode in pairs])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} is no result of this version's sponge fidelity; run it again"
        ) from error


def write_results(folder: Path, trials: list[Trial], profile: Profile, command: list[str]) -> str:
    """Write ``fidelity.json``, and return its tables; RunDirectoryError if it cannot be."""
    data = {
        "command": command, "versions": describe_versions(), "host": describe_host(),
        "profile_date": profile.date,
        "trials": [{n: getattr(t, n) for n in _OWN} | summary(t.summary) for t in trials],
    }  # fmt: skip
    write_json(folder / "fidelity.json", data)
    shown = [terminal(table, name) for name, table in tables(compare(trials)).items()]
    return "\n\n".join([introduction(data), *shown])


def introduction(measured: Mapping[str, Any]) -> str:
    """Return what was measured where, by what ``fidelity.json`` holds."""
    host, live = measured["host"], [t for t in measured["trials"] if t["kind"] == "live"]
    ratio, count = fmean(t["cpu_ratio"] for t in live), 1 + max(t["repetition"] for t in live)
    return (
        f"{host['cpu_model']}, {host['cpus']} CPUs, {host['kernel']}; {live[0]['limiter']} limits, "
        f"profile of {measured['profile_date']}; {count} repetitions of {live[0]['duration_s']:g} "
        f"s; replayed: with the CPU times of the live batches, {ratio:.3f} times the profile's"
    )
