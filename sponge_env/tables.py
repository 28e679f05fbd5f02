"""The table that compares agents on the terminal, and its JSON twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sponge_env.files import write_json
from sponge_env.metrics import EpisodeMetrics, summary


@dataclass(frozen=True, slots=True)
class Column:
    """One metric as people read it."""

    above: str
    below: str
    """The heading's two lines."""
    metric: str
    """Name in :class:`EpisodeMetrics`."""
    digits: int
    """Decimal places."""
    scale: float = 1.0
    """From the metric's unit to the heading's."""


COLUMNS = (
    Column("violated", "%", "violation_rate", 3, 100),
    Column("avoidable", "%", "avoidable_violation_rate", 3, 100),
    Column("hopeless", "%", "hopeless_rate", 3, 100),
    Column("mean", "cores", "mean_cores", 2),
    Column("core-", "seconds", "core_seconds", 0),
    Column("p50", "ms", "latency_p50_s", 0, 1000),
    Column("p99", "ms", "latency_p99_s", 0, 1000),
    Column("dropped", "", "dropped", 0),
    Column("infeasible", "decisions", "infeasible_decisions", 0),
    Column("decision", "p50 ms", "decision_p50_s", 2, 1000),
    Column("decision", "p99 ms", "decision_p99_s", 2, 1000),
)


def comparison_table(episodes: Sequence[EpisodeMetrics]) -> str:
    """Compare agents: a row for each, in order of appearance, with means over its seeds.

    Args:
        episodes: Summaries of all agents and seeds.

    Returns:
        Aligned lines without a trailing newline; a dash where nothing was measured, a
        star after an agent of which an episode was interrupted.
    """
    agents = dict.fromkeys(episode.agent for episode in episodes)
    groups = [[e for e in episodes if e.agent == agent] for agent in agents]
    rows = [
        ["", *(column.above for column in COLUMNS)],
        ["agent", *(column.below for column in COLUMNS)],
        *([_label(group), *(_mean(group, column) for column in COLUMNS)] for group in groups),
    ]
    lines = aligned(rows)
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:2], rule, *lines[2:], _caption(groups)])


def write_summaries(path: Path, episodes: Sequence[EpisodeMetrics]) -> None:
    """Write a JSON list with one object per agent and seed, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    write_json(path, [summary(episode) for episode in episodes])


def _label(group: Sequence[EpisodeMetrics]) -> str:
    return group[0].agent + "*" * any(episode.partial for episode in group)


def _mean(group: Sequence[EpisodeMetrics], column: Column) -> str:
    values = [getattr(episode, column.metric) for episode in group]
    measured = [value * column.scale for value in values if not math.isnan(value)]
    return f"{fmean(measured):.{column.digits}f}" if measured else "-"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines, padded on the right in the first column and on the left elsewhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _caption(groups: Sequence[Sequence[EpisodeMetrics]]) -> str:
    """Say what was compared, over how many seeds, and which direction is good."""
    episodes = [episode for group in groups for episode in group]
    fewest, most = min(map(len, groups)), max(map(len, groups))
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    parts = [
        "/".join(dict.fromkeys(f"{e.scenario} ({e.backend}, {e.start})" for e in episodes)),
        f"mean of {seeds} seeds" if most > 1 else "1 seed",
        f"{max(e.duration_s for e in episodes):g} s each",
        "less is better in every column",
    ]
    if any(episode.partial for episode in episodes):
        parts.append("* interrupted: what was measured until then")
    return "; ".join(parts)
