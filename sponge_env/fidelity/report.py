"""Live against simulated: differences, whether they are within the targets, and their tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from sponge_env.errors import RunDirectoryError
from sponge_env.fidelity.trial import Kind, Trial
from sponge_env.metrics import NAN, EpisodeMetrics, column, finite, summary
from sponge_env.results.layout import MISSING, Columns, Table, terminal
from sponge_env.results.tables import measured_accuracy_note
from sponge_env.scenario.profile import Profile
from sponge_env.utils.files import read_json, replacing, write_json
from sponge_env.utils.installation import describe_host, describe_versions

Verdict = Literal["met", "within spread", "missed", ""]
"""Within the target; not, but among the live runs; neither; no target."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A metric that is compared; its column says how people read it."""

    metric: str
    """Name in :class:`~sponge_env.metrics.EpisodeMetrics`."""
    digits: int
    """Decimal places."""
    target: float | None = None
    """Largest difference allowed, in the metric's unit or relative to live."""
    relative: bool = True
    """Whether differences are relative to live."""
    endless: bool = False
    """Whether it is infinite where too many requests were never answered, as quantiles are."""

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
    Quantity("latency_mean_s", 1, target=0.05),
    Quantity("latency_p50_s", 1, endless=True),
    Quantity("latency_p99_s", 1, target=0.10, endless=True),
    Quantity("mean_cores", 2),
    Quantity("utilisation", 1, relative=False),
)

ACCURACY = Quantity("effective_accuracy", 2, target=0.005, relative=False)
"""Compared as well where answers can be more or less accurate."""

_BY_METRIC = {quantity.metric: quantity for quantity in (*QUANTITIES, ACCURACY)}

SINGLE_RUN = {
    "violation_rate": (0.008, 0.055),
    "mean_cores": (0.10, 0.12),
    "latency_mean_s": (0.22, 0.33),
    "latency_p99_s": (0.19, 0.46),
}
"""By what is in the table of :func:`side_by_side`: differences of single live runs from their
simulated counterparts, nine in ten and all of those recorded in which an agent kept up."""


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

    def data(self) -> dict[str, Any]:
        """Return the row as data; None where nothing was measured."""
        derived = {
            "quantity": self.quantity.metric,
            "difference": self.difference,
            "replayed_difference": self.replayed_difference,
            "target": self.quantity.target,
            "verdict": self.verdict,
        }
        return finite(asdict(self) | derived)


COLUMNS: Columns[Row] = (
    ("agent", lambda row: row.agent),
    ("quantity", lambda row: column(row.quantity.metric).label),
    ("live", lambda row: row.quantity.text(row.live)),
    ("live runs", lambda row: " .. ".join(map(row.quantity.text, (row.live_min, row.live_max)))),
    ("simulated", lambda row: row.quantity.text(row.simulated)),
    ("off by", lambda row: row.quantity.difference_text(row.difference)),
    ("verdict", lambda row: row.verdict),
    ("replayed", lambda row: row.quantity.text(row.replayed)),
    ("off by", lambda row: row.quantity.difference_text(row.replayed_difference)),
)


def compare(trials: Iterable[Trial]) -> list[Row]:
    """Compare every agent on every scenario, in the order of their first trials."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.summary.agent, trial.summary.scenario), []).append(trial)
    return [
        _row(*key, group, quantity)
        for key, group in groups.items()
        for quantity in _with_accuracy(QUANTITIES, (trial.summary for trial in group))
    ]


def _with_accuracy(
    quantities: Sequence[Quantity], episodes: Iterable[EpisodeMetrics]
) -> Sequence[Quantity]:
    """Return quantities, and effective accuracy if answers of the episodes are not all right."""
    some_wrong = any(episode.accuracy < 1.0 for episode in episodes)
    return (*quantities, ACCURACY) if some_wrong else quantities


def _row(agent: str, scenario: str, trials: Sequence[Trial], quantity: Quantity) -> Row:
    def values(kind: Kind) -> list[float]:
        return [float(getattr(t.summary, quantity.metric)) for t in trials if t.kind == kind]

    live, others = values("live"), (fmean(values("simulated")), fmean(values("replayed")))
    return Row(agent, scenario, quantity, fmean(live), min(live), max(live), *others)


Pair = tuple[EpisodeMetrics, EpisodeMetrics]
"""An episode simulated and live."""


def side_by_side(simulated: Iterable[EpisodeMetrics], live: Iterable[EpisodeMetrics]) -> str:
    """Return a table of agents that met the same requests simulated and live.

    Means are over the seeds that both have.
    """
    whole = {(e.agent, e.seed): e for e in live if not e.partial}
    pairs: dict[str, list[Pair]] = {}
    for episode in simulated:
        if other := whole.get((episode.agent, episode.seed)):
            pairs.setdefault(episode.agent, []).append((episode, other))

    def entry(
        quantity: Quantity, write: Callable[[Quantity, float, float], str], agent: str
    ) -> str:
        ours, theirs = (
            fmean(float(getattr(pair[side], quantity.metric)) for pair in pairs[agent])
            for side in (0, 1)
        )
        return write(quantity, ours, theirs)

    columns: list[tuple[str, Callable[[str], str]]] = [("agent", str)]
    shown = [_BY_METRIC[name] for name in SINGLE_RUN]
    for q in _with_accuracy(shown, chain.from_iterable(chain.from_iterable(pairs.values()))):
        simulated_heading = f"{column(q.metric).label}, simulated"
        columns += [
            (simulated_heading, partial(entry, q, lambda q, ours, _: q.text(ours))),
            (", live", partial(entry, q, lambda q, _, theirs: q.text(theirs))),
            (
                ", off by",
                partial(entry, q, lambda q, a, b: q.difference_text(q.difference(a, b))),
            ),
        ]
    return terminal(Table.of(columns, pairs), notes=_notes(list(pairs.values())))


def _notes(pairs: Sequence[Sequence[Pair]]) -> list[str]:
    """Return how far single live runs are off, and how much a single request is."""
    live = [[theirs for _, theirs in own] for own in pairs]
    requests = min(sum(episode.offered for episode in own) for own in live)
    off = [
        f"{column(name).heading} {_BY_METRIC[name].difference_text(usual)[1:]}, at most "
        f"{_BY_METRIC[name].difference_text(largest)[1:]}"
        for name, (usual, largest) in SINGLE_RUN.items()
    ]
    return [
        "off by: simulated against live. Nine in ten single live runs of docs/fidelity.md in which "
        f"an agent kept up with its load were off by less than: {'; '.join(off)}",
        f"{requests} requests for each agent: one is {100 / max(1, requests):.2f} pt of violations",
        *measured_accuracy_note(live),
    ]


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Return a table for each scenario, in order of appearance."""
    scenarios = dict.fromkeys(row.scenario for row in rows)
    return {s: Table.of(COLUMNS, [row for row in rows if row.scenario == s]) for s in scenarios}


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What an earlier run left behind."""

    introduction: str
    """What was measured where."""
    rows: tuple[Row, ...]

    @property
    def tables(self) -> dict[str, Table]:
        """See :func:`tables`."""
        return tables(self.rows)


def load_fidelity(path: Path) -> Fidelity:
    """Read ``fidelity.json``; RunDirectoryError if it cannot be, or is of another version."""
    data = read_json(path)
    try:
        text = f"Command {' '.join(data['command'])}. {introduction(data)}"
        return Fidelity(text, tuple(_read_row(row) for row in data["comparison"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} is no result of this version's sponge fidelity; run it again"
        ) from error


def _read_row(data: Mapping[str, Any]) -> Row:
    quantity = _BY_METRIC[data["quantity"]]
    measured = [data[k] for k in ("live", "live_min", "live_max", "simulated", "replayed")]
    missing = math.inf if quantity.endless else NAN
    values = [missing if value is None else float(value) for value in measured]
    return Row(data["agent"], data["scenario"], quantity, *values)


def write_results(
    folder: Path, trials: Sequence[Trial], profile: Profile, command: Sequence[str]
) -> None:
    """Write ``fidelity.md`` and ``fidelity.json``; RunDirectoryError if one cannot be."""
    with replacing(folder / "fidelity.md") as partial_file:
        partial_file.write_text(section(trials, profile) + "\n")
    head = {"command": list(command), "versions": describe_versions()}
    rows = [row.data() for row in compare(trials)]
    data = {**head, **_measured(trials, profile), "comparison": rows}
    write_json(folder / "fidelity.json", data)


def section(trials: Sequence[Trial], profile: Profile) -> str:
    """Return the text of ``fidelity.md``: a table for each scenario."""
    parts = ["## Simulator against the real worker", introduction(_measured(trials, profile))]
    for scenario, table in tables(compare(trials)).items():
        parts += [f"### {scenario}", padded(table)]
    return "\n\n".join(parts)


def padded(table: Table) -> str:
    """Return a Markdown table that is aligned on a terminal as well."""
    lines = [table.headings, *table.rows]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    form = "| " + " | ".join(f"{{:{width}}}" for width in widths) + " |"
    rule = ["-" * width for width in widths]
    return "\n".join(form.format(*line) for line in [lines[0], rule, *lines[1:]])


def _measured(trials: Sequence[Trial], profile: Profile) -> dict[str, Any]:
    own = ("kind", "repetition", "cpu_ratio")
    return {
        "host": describe_host(),
        "profile_date": profile.date,
        "trials": [{k: getattr(t, k) for k in own} | summary(t.summary) for t in trials],
    }


def introduction(measured: Mapping[str, Any]) -> str:
    """Return what was measured where, of ``host``, ``profile_date`` and ``trials``.

    They are as ``fidelity.json`` has them; KeyError, IndexError, TypeError or ValueError if not.
    """
    host, live = measured["host"], [t for t in measured["trials"] if t["kind"] == "live"]
    repetitions = 1 + max(trial["repetition"] for trial in live)
    ratio = fmean(trial["cpu_ratio"] for trial in live)
    return (
        f"Host: {host['cpu_model']}, {host['cpus']} CPUs, {host['kernel']}; limiter "
        f"{live[0]['limiter']}; profile of {measured['profile_date']}. Episodes of "
        f"{live[0]['duration_s']:g} s with the same arrivals; repetitions: {repetitions}. "
        "Replayed: simulated with the CPU times of the live batches, which took "
        f"{ratio:.3f} times the profile's. Targets: violations and effective accuracy within 0.5 "
        "points, mean within 5 %, p99 within 10 %, or within the spread of the live runs. The "
        "mean is of answered requests; p50 and p99 count the others as endless."
    )
