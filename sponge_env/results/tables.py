"""Tables, how they become text or Markdown, and those of one evaluation and its stages."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from sponge_env import metrics
from sponge_env.errors import ConfigError
from sponge_env.metrics import SHARE, STAGE_COLUMNS, ByStage, Column, EpisodeMetrics
from sponge_env.utils.files import write_json

T = TypeVar("T")

MISSING = "-"  # Stands where nothing was measured
SWITCHES = Column("switches", "switches", "", 1)

Columns = Sequence[tuple[str, Callable[[T], str]]]
"""Headings, a unit in brackets at the end, and what writes the entry of a row's subject."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first column names things, the others hold numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, columns: Columns[T], subjects: Iterable[T]) -> "Table":
        """Write a row for each subject."""
        rows = [[write(subject) for _, write in columns] for subject in subjects]
        return cls([heading for heading, _ in columns], rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines, padded on the right in the first column and on the left elsewhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if n else '<'}{width}}}" for n, width in enumerate(widths))
    return [form.format(*row).rstrip() for row in rows]


def terminal(table: Table, title: str = "", notes: Sequence[str] = ()) -> str:
    """Return a table for the terminal, its headings in two lines, with notes below."""
    first, *others = table.headings
    above, below = zip(("", first), *map(_two_lines, others), strict=True)
    lines = aligned([above, below, *table.rows])
    rule = "-" * max(map(len, lines))
    return "\n".join([*([title, rule] if title else []), *lines[:2], rule, *lines[2:], *notes])


def _two_lines(heading: str) -> tuple[str, str]:
    """Break a heading at its comma or where that makes it narrowest; units lose their brackets."""
    heading = re.sub(r"[][]", "", heading)
    above, comma, below = heading.partition(", ")
    if comma:
        return above, below
    words = heading.split()
    if len(words) < 2:
        above, hyphen, below = heading.partition("-")
        return (above + hyphen, below) if hyphen else (heading, "")
    breaks = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return min(breaks, key=lambda lines: max(map(len, lines)))


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    align = [":--", *["--:"] * (len(table.headings) - 1)]
    head, *rows = [[plain(text) for text in line] for line in (table.headings, *table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *rows))


def plain(text: str) -> str:
    """Write text in one line of Markdown, without HTML, links and ends of table cells in it."""
    text = " ".join(text.split("\n")).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[|]|(?<=\])\(", r"\\\g<0>", text)


def with_block(page: str, name: str, content: str) -> str:
    """Return a page with other lines between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begins, rest = page.partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ConfigError(f"the page lacks the lines {begin} and {end}, in this order")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


def comparison_table(episodes: Sequence[EpisodeMetrics]) -> str:
    """Compare agents: a row for each, in order of appearance, with mean and range of its seeds."""
    # A star stands after an agent that was interrupted, or failed, in an episode.
    agents = dict.fromkeys(episode.agent for episode in episodes)
    groups = {agent: [e for e in episodes if e.agent == agent] for agent in agents}
    shown = metrics.columns("evaluation", accuracies=[episode.accuracy for episode in episodes])
    rows = []
    for agent, group in groups.items():
        # Of one that failed at once nothing is known.
        lasted = [e for e in group if e.duration_s > 0 or not e.partial]
        texts = [spread_text(c, [getattr(e, c.metric) for e in lasted]) for c in shown]
        rows.append([agent + "*" * any(e.partial for e in group), *texts])
    table = Table(["agent", *(c.label for c in shown)], rows)
    text = terminal(table, notes=_caption(list(groups.values()), shown))
    stages = stage_table({agent: [e.stages for e in group] for agent, group in groups.items()})
    return "\n\n".join([text, *([terminal(stages, "stage by stage")] if stages.rows else [])])


def spread_text(shown: Column, values: Iterable[float]) -> str:
    """Write the mean of an agent's seeds, with the least and the largest if there are several."""
    measured = [float(value) for value in values if not math.isnan(value)]
    if not measured:
        return MISSING
    if infinite := sum(map(math.isinf, measured)):
        return f"dropped ({infinite} of {len(measured)})"
    text = shown.text(fmean(measured))
    if not shown.interval or len(measured) == 1:
        return text
    return f"{text} [{shown.text(min(measured))}, {shown.text(max(measured))}]"


def _caption(groups: Sequence[Sequence[EpisodeMetrics]], shown: Sequence[Column]) -> list[str]:
    episodes = [episode for group in groups for episode in group]
    counts = sorted(map(len, groups))
    seeds = f"{counts[-1]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    parts = [
        "/".join(dict.fromkeys(f"{e.scenario} ({e.backend}, {e.start})" for e in episodes)),
        f"mean of {seeds} seeds [min, max]" if counts[-1] > 1 else "1 seed",
        f"{max(e.duration_s for e in episodes):g} s each"
        + " after the warm-up" * any(e.start == "warm" for e in episodes),
        "less is better in every column" + " but accuracy" * any(c.of_accuracy for c in shown),
    ]
    lines = ["; ".join(parts)]
    if any(episode.hopeless for episode in episodes):
        lines.append("avoidable leaves out requests that came too late for any allocation")
    if any(episode.dropped for episode in episodes):
        lines.append("p99 takes requests that were dropped as infinitely late")
    if any(episode.partial for episode in episodes):
        lines.append("* interrupted or failed: what was measured until then")
    return lines


def stage_table(by_agent: Mapping[str, Sequence[ByStage]]) -> Table:
    """Return each agent's stages, mean over its episodes; no row without stages."""
    found = {
        (agent, stage): [episode[stage] for episode in episodes if episode]
        for agent, episodes in by_agent.items()
        for stage in next((episode for episode in episodes if episode), ())
    }
    first = next((own[0] for own in found.values()), {})  # Models of a set have violations, too
    shown = [*(c for c in metrics.COLUMNS[:2] if c.metric in first), *STAGE_COLUMNS]
    headings = ["agent", "stage", *(c.label for c in shown)]
    rows = [[*key, *(_mean_text(c, own) for c in shown)] for key, own in found.items()]
    if any(name.startswith(SHARE) for own in found.values() for name in own[0]):
        headings += ["variants", SWITCHES.label]
        for row, own in zip(rows, found.values(), strict=True):
            row += [_variants_text(own), _mean_text(SWITCHES, own)]
    return Table(headings, rows)


def _mean_text(c: Column, episodes: Sequence[Mapping[str, float]]) -> str:
    measured = [episode[c.metric] for episode in episodes if not math.isnan(episode[c.metric])]
    return c.text(fmean(measured)) if measured else MISSING


def _variants_text(episodes: Sequence[Mapping[str, float]]) -> str:
    measured = [episode for episode in episodes if episode["answered"]] or episodes[:1]
    names = [name for name in episodes[0] if name.startswith(SHARE)]
    shares = {name.removeprefix(SHARE): fmean(e[name] for e in measured) for name in names}
    shown = [f"{name} {share * 100:.0f} %" for name, share in shares.items() if share > 0]
    return ", ".join(shown) or MISSING


def write_summaries(path: Path, episodes: Sequence[EpisodeMetrics]) -> None:
    """Write a JSON list with one object per agent and seed; RunDirectoryError if it cannot."""
    write_json(path, [metrics.summary(episode) for episode in episodes])
