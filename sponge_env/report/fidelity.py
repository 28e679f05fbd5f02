"""The result of ``python -m sponge_env.fidelity``, read for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sponge_env.errors import RunDirectoryError
from sponge_env.fidelity.comparison import QUANTITIES, Row
from sponge_env.fidelity.report import HEADINGS, cells
from sponge_env.metrics import NAN
from sponge_env.report.tables import Entry, Table
from sponge_env.suite.store import read


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Simulator against the real worker."""

    rows: tuple[Row, ...]
    command: str
    host: dict[str, Any]
    limiter: str
    repetitions: int
    duration_s: float

    @property
    def introduction(self) -> str:
        """What was measured where."""
        return (
            f"Host: {self.host['cpu_model']}, {self.host['cpus']} CPUs, {self.host['kernel']}; "
            f"limiter {self.limiter}; command `{self.command}`. Episodes of "
            f"{self.duration_s:g} s, means of {self.repetitions} repetitions with the same "
            "arrivals: live, the smallest and largest live run, simulated, and simulated with "
            "the CPU times of the live batches (replayed)."
        )

    @property
    def tables(self) -> dict[str, Table]:
        """A table for each scenario."""
        return {
            scenario: Table(
                HEADINGS,
                [[Entry(text) for text in cells(r)] for r in self.rows if r.scenario == scenario],
            )
            for scenario in dict.fromkeys(row.scenario for row in self.rows)
        }


def load_fidelity(path: Path) -> Fidelity:
    """Read ``fidelity.json``.

    Raises:
        RunDirectoryError: It cannot be read, or is something else or of another version.
    """
    data = read(path)
    try:
        trials = [trial for trial in data["trials"] if trial["kind"] == "live"]
        return Fidelity(
            rows=tuple(_row(row) for row in data["comparison"]),
            command=" ".join(data["command"]),
            host=data["host"],
            limiter=trials[0]["limiter"],
            repetitions=1 + max(trial["repetition"] for trial in trials),
            duration_s=trials[0]["duration_s"],
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} is no result of this version's python -m sponge_env.fidelity; "
            "run it again"
        ) from error


def _row(data: dict[str, Any]) -> Row:
    quantities = {quantity.metric: quantity for quantity in QUANTITIES}
    names = ("live", "live_min", "live_max", "simulated", "replayed")
    values = {name: NAN if data[name] is None else float(data[name]) for name in names}
    return Row(data["agent"], data["scenario"], quantities[data["quantity"]], **values)
