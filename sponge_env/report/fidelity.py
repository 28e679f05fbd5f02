"""The result of ``python -m sponge_env.fidelity``, read for a report."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sponge_env.errors import RunDirectoryError
from sponge_env.fidelity.comparison import QUANTITIES, Row
from sponge_env.fidelity.report import HEADINGS, cells, introduction
from sponge_env.files import read_json
from sponge_env.metrics import NAN
from sponge_env.report.tables import Entry, Table


@dataclass(frozen=True, slots=True)
class LiveRun:
    """An episode on the real worker."""

    agent: str
    scenario: str
    repetition: int
    avoidable_violation_rate: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Simulator against the real worker."""

    rows: tuple[Row, ...]
    live: tuple[LiveRun, ...]
    introduction: str
    """What was measured where."""

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
    data = read_json(path)
    try:
        command = " ".join(data["command"])
        return Fidelity(
            rows=tuple(_row(row) for row in data["comparison"]),
            live=tuple(_live(t) for t in data["trials"] if t["kind"] == "live"),
            introduction=f"Command `{command}`. {introduction(data)}",
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} is no result of this version's python -m sponge_env.fidelity; "
            "run it again"
        ) from error


def _live(trial: dict[str, Any]) -> LiveRun:
    return LiveRun(**{field.name: trial[field.name] for field in fields(LiveRun)})


def _row(data: dict[str, Any]) -> Row:
    quantities = {quantity.metric: quantity for quantity in QUANTITIES}
    names = ("live", "live_min", "live_max", "simulated", "replayed")
    values = {name: NAN if data[name] is None else float(data[name]) for name in names}
    return Row(data["agent"], data["scenario"], quantities[data["quantity"]], **values)
