"""What a fidelity run leaves behind: a section of Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sponge_env.errors import RunDirectoryError
from sponge_env.fidelity.comparison import QUANTITIES, Row, compare
from sponge_env.fidelity.trial import Trial
from sponge_env.files import read_json, replacing, write_json
from sponge_env.host import describe_host, describe_versions
from sponge_env.profile import Profile
from sponge_env.results.schema import NAN, summary

HEADINGS = (
    "agent", "quantity", "live", "live runs", "simulated", "off by", "verdict", "replayed",
    "off by",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What an earlier run left behind."""

    introduction: str
    """What was measured where."""
    rows: tuple[Row, ...]
    live: tuple[Mapping[str, Any], ...] = ()
    """Episodes on the real worker, under the names of ``fidelity.json``."""

    def of(self, scenario: str) -> list[tuple[str, ...]]:
        """Return a scenario's rows under :data:`HEADINGS`."""
        return [cells(row) for row in self.rows if row.scenario == scenario]

    @property
    def scenarios(self) -> list[str]:
        """The scenarios that there are, in order."""
        return list(dict.fromkeys(row.scenario for row in self.rows))


def load_fidelity(path: Path) -> Fidelity:
    """Read ``fidelity.json``.

    Raises:
        RunDirectoryError: It cannot be read, or is something else or of another version.
    """
    data = read_json(path)
    try:
        said = f"Command `{' '.join(data['command'])}`. {introduction(data)}"
        rows = tuple(_read_row(row) for row in data["comparison"])
        return Fidelity(said, rows, tuple(t for t in data["trials"] if t["kind"] == "live"))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} is no result of this version's python -m sponge_env.fidelity; "
            "run it again"
        ) from error


def _read_row(data: Mapping[str, Any]) -> Row:
    quantities = {quantity.metric: quantity for quantity in QUANTITIES}
    names = ("live", "live_min", "live_max", "simulated", "replayed")
    values = {name: NAN if data[name] is None else float(data[name]) for name in names}
    return Row(data["agent"], data["scenario"], quantities[data["quantity"]], **values)


def write_results(
    folder: Path, trials: Sequence[Trial], profile: Profile, command: Sequence[str]
) -> None:
    """Write ``fidelity.md`` and ``fidelity.json``, each whole or not at all.

    Raises:
        RunDirectoryError: They cannot be written.
    """
    with replacing(folder / "fidelity.md") as partial:
        partial.write_text(section(trials, profile) + "\n")
    data = {
        "command": list(command),
        "versions": describe_versions(),
        **_measured(trials, profile),
        "comparison": [_row(row) for row in compare(trials)],
    }
    write_json(folder / "fidelity.json", data)


def section(trials: Sequence[Trial], profile: Profile) -> str:
    """Return what ``fidelity.md`` says: a table for each scenario."""
    rows = compare(trials)
    parts = ["## Simulator against the real worker", introduction(_measured(trials, profile))]
    for scenario in dict.fromkeys(row.scenario for row in rows):
        parts.append(f"### {scenario}")
        parts.append(table([row for row in rows if row.scenario == scenario]))
    return "\n\n".join(parts)


def _measured(trials: Sequence[Trial], profile: Profile) -> dict[str, Any]:
    return {
        "host": describe_host(),
        "profile_date": profile.date,
        "trials": [_trial(trial) for trial in trials],
    }


def introduction(measured: Mapping[str, Any]) -> str:
    """Say what was measured where.

    Args:
        measured: ``host``, ``profile_date`` and ``trials``, as ``fidelity.json`` has them.

    Raises:
        KeyError, IndexError, TypeError, ValueError: It has not.
    """
    host, live = measured["host"], [t for t in measured["trials"] if t["kind"] == "live"]
    repetitions = 1 + max(trial["repetition"] for trial in live)
    ratio = fmean(trial["cpu_ratio"] for trial in live)
    return (
        f"Host: {host['cpu_model']}, {host['cpus']} CPUs, {host['kernel']}; limiter "
        f"{live[0]['limiter']}; profile of {measured['profile_date']}. Episodes of "
        f"{live[0]['duration_s']:g} s, {repetitions} repetition{'s' * (repetitions > 1)} with "
        "the same arrivals. Means of the live runs, smallest and largest live run, simulated, and "
        "simulated with the CPU times of the live batches (replayed), which took "
        f"{ratio:.3f} times what the profile says. Wanted: violations within 0.5 points, mean "
        "within 5 %, p99 within 10 %, or within the spread of the live runs. Latencies are those "
        "of the requests that were answered."
    )


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, aligned for a terminal."""
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table under :data:`HEADINGS`."""
    quantity = row.quantity
    return (
        row.agent,
        quantity.heading,
        quantity.text(row.live),
        f"{quantity.text(row.live_min)} .. {quantity.text(row.live_max)}",
        quantity.text(row.simulated),
        quantity.difference_text(row.difference),
        row.verdict,
        quantity.text(row.replayed),
        quantity.difference_text(row.replayed_difference),
    )


def _trial(trial: Trial) -> dict[str, Any]:
    own = {"kind": trial.kind, "repetition": trial.repetition, "cpu_ratio": trial.cpu_ratio}
    return {**own, **summary(trial.summary)}


def _row(row: Row) -> dict[str, Any]:
    derived = {
        "quantity": row.quantity.metric,
        "difference": row.difference,
        "replayed_difference": row.replayed_difference,
        "target": row.quantity.target,
        "verdict": row.verdict,
    }
    return asdict(row) | derived
