"""Which tables there are: of one evaluation, of a cell, over all cells, of a few agents.

All take their columns from :data:`sponge_env.metrics.COLUMNS` and are filled in by
:meth:`sponge_env.results.layout.Table.of`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from sponge_env.metrics import (
    CELL,
    SHARE,
    STAGE_COLUMNS,
    ByStage,
    Column,
    EpisodeMetrics,
    Place,
    column,
    columns,
    summary,
    telling,
)
from sponge_env.results.layout import Columns, Entry, Table, code, listed, percent, terminal
from sponge_env.results.statistics import (
    FEWEST_SEEDS,
    Estimate,
    fewest_seeds,
    improvement_p,
    interquartile_mean,
    mean,
    probability_of_improvement,
)
from sponge_env.utils.files import write_json

if TYPE_CHECKING:
    from sponge_env.results.comparison import Cell, Comparison, Span, Standing

    Bound = tuple[str, Mapping[str, Span]]

MISSING = "-"
NOT_SIGNIFICANT, TOO_FEW = "n.s.", "?"
"""Marks of what does not differ from the reference, and of what so few seeds cannot tell."""

TEST_NOTE = (
    "paired sign-flip test over the seeds, Holm's correction over the agents of a column; with "
    "n seeds no p is below 2 / 2^n times the number of those agents"
)

CELL_NOTE = (
    "only more cores: avoidable violations that no replica of one core could save; beyond attained "
    "bound, cores over it: what the best schedule found of the agent's own kind of "
    "scaling has; cores over the relaxation: over what nobody with as many violations can go "
    "below, and nobody need reach; p99: of all requests; dropped (n of m): in n of m seeds more "
    "than 1 % were never answered; bounds: what is proven .. what is attained"
)

COUNTED = {"avoidable_violation_rate": "violations", "core_seconds": "cores"}
"""Metrics of which it is said how likely an agent has fewer, and what people call them."""

AVOIDABLE, CORES = SHOWN = column("avoidable_violation_rate"), column("mean_cores")
SWITCHES = Column("switches", "switches", "", 1)
OVER_BOUND = column("cores_over_common_bound")
OVER_ATTAINED = "cores over the attained bound"


def comparison_table(episodes: Sequence[EpisodeMetrics]) -> str:
    """Compare agents: a row for each, in order of appearance, with means over its seeds.

    Where there are several seeds, the least and the most stand beside the mean. A dash stands
    where nothing was measured, a star after who was interrupted in an episode.
    """
    agents = dict.fromkeys(episode.agent for episode in episodes)
    groups = [[e for e in episodes if e.agent == agent] for agent in agents]
    named = ("agent", lambda group: group[0].agent + "*" * any(e.partial for e in group))
    shown = columns("evaluation", [episode.accuracy for episode in episodes])
    measured = [(c.label, partial(_mean_of, c)) for c in shown]
    text = terminal(Table.of([named, *measured], groups), notes=[_caption(groups, shown)])
    stages = stage_table({e[0].agent: [episode.stages for episode in e] for e in groups})
    return "\n\n".join([text, *([terminal(stages, "stage by stage")] if stages.rows else [])])


def stage_table(found: Mapping[str, Sequence[ByStage]]) -> Table:
    """Return what agents made of each stage, mean over their episodes; no row without stages."""
    rows = [
        (agent, stage, [episode[stage] for episode in episodes if episode])
        for agent, episodes in found.items()
        for stage in next((episode for episode in episodes if episode), ())
    ]
    shown: list[tuple[str, Callable[[tuple[str, str, list[Mapping[str, float]]]], str]]]
    shown = [("agent", itemgetter(0)), ("stage", itemgetter(1))]
    shown += [(c.label, partial(_mean_of_stage, c)) for c in STAGE_COLUMNS]
    if any(name.startswith(SHARE) for *_, episodes in rows for name in episodes[0]):
        shown += [("variants", _variants_text), ("switches", partial(_mean_of_stage, SWITCHES))]
    return Table.of(shown, rows)


def _mean_of_stage(c: Column, row: tuple[str, str, Sequence[Mapping[str, float]]]) -> str:
    measured = [episode[c.metric] for episode in row[2] if not math.isnan(episode[c.metric])]
    return c.text(fmean(measured)) if measured else MISSING


def _variants_text(row: tuple[str, str, Sequence[Mapping[str, float]]]) -> str:
    """Say which variants did how much, those that did nothing left out."""
    *_, episodes = row
    measured = [episode for episode in episodes if episode["answered"]] or episodes[:1]
    shares = {
        name.removeprefix(SHARE): fmean(episode[name] for episode in measured)
        for name in episodes[0]
        if name.startswith(SHARE)
    }
    shown = [f"{name} {percent(share)}" for name, share in shares.items() if share > 0]
    return ", ".join(shown) or MISSING


def _mean_of(shown: Column, group: Sequence[EpisodeMetrics]) -> str:
    values = [float(getattr(episode, shown.metric)) for episode in group]
    measured = [value for value in values if not math.isnan(value)]
    if not measured:
        return MISSING
    if infinite := sum(map(math.isinf, measured)):
        return _dropped(infinite, len(values))
    ends = min(measured), max(measured)
    spread = ends if "evaluation" in shown.interval and len(group) > 1 else (math.nan, math.nan)
    return _estimate_text(shown, Estimate(fmean(measured), *spread))


def _dropped(infinite: int, seeds: int) -> str:
    """Say in how many seeds so many requests were never answered that a latency is infinite."""
    return f"dropped ({infinite} of {seeds})"


def _caption(groups: Sequence[Sequence[EpisodeMetrics]], shown: Sequence[Column]) -> str:
    """Say what was compared, over how many seeds, and which direction is good."""
    episodes = [episode for group in groups for episode in group]
    fewest, most = min(map(len, groups)), max(map(len, groups))
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    parts = [
        "/".join(dict.fromkeys(f"{e.scenario} ({e.backend}, {e.start})" for e in episodes)),
        f"mean of {seeds} seeds [least, most]" if most > 1 else "1 seed",
        f"{max(e.duration_s for e in episodes):g} s each",
        "less is better in every column" + " but accuracy" * any(c.of_accuracy for c in shown),
    ]
    lines = ["; ".join(parts)]
    if any(episode.dropped for episode in episodes):
        lines.append("p99 takes requests that were dropped as infinitely late")
    lines += read_note(groups)
    if any(episode.partial for episode in episodes):
        lines.append("* interrupted: what was measured until then")
    return "\n".join(lines)


def read_note(groups: Sequence[Sequence[EpisodeMetrics]]) -> list[str]:
    """Say which accuracy is stated and which was measured, where agents' live runs read text."""
    found = {
        group[0].agent: [e.measured_accuracy for e in group if not math.isnan(e.measured_accuracy)]
        for group in groups
    }
    shares = [f"{agent} {100 * fmean(own):.1f} %" for agent, own in found.items() if own]
    if not shares:
        return []
    return [
        "effective accuracy goes by what the scenario says of each model; lines of text that these "
        f"live runs read right: {', '.join(shares)}"
    ]


def write_summaries(path: Path, episodes: Sequence[EpisodeMetrics]) -> None:
    """Write a JSON list with one object per agent and seed; RunDirectoryError if it cannot."""
    write_json(path, [summary(episode) for episode in episodes])


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell and one for each start."""
    parts = [cell_text(comparison, cell) for cell in comparison.cells]
    parts.append(f"{CELL_NOTE}; {mark_note(comparison)}")
    parts += [pooled_text(comparison, start) for start in comparison.starts]
    parts += [
        terminal(
            sweep_table(comparison, what, start),
            f"{what}, {start} start",
            sweep_notes(comparison, what),
        )
        for what in comparison.sweeps
        for start in comparison.starts
    ]
    return "\n\n".join(parts)


def cell_text(comparison: Comparison, cell: Cell) -> str:
    """Return the table of one cell, with a line for each agent that failed."""
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return terminal(cell_table(comparison, cell, "cell"), f"{', '.join(cell)} start", lines)


def cell_table(comparison: Comparison, cell: Cell, place: Place = "page") -> Table:
    """Return the agents on one cell that did not fail, and its bounds.

    Without bounds or a relaxation, nothing relative to one. What is compared with the reference
    is marked on a page where it does not differ; on the terminal the difference stands beside it.
    """
    sides = comparison.bound_sides(cell)
    found: list[tuple[str, Callable[[str], Entry | str]]] = [("agent", Entry)]
    spans: list[tuple[str, Callable[[Bound], str]]] = [("agent", itemgetter(0))]
    for c in columns(place, comparison.accuracies([cell])):
        if (c.bound == "needed" and not sides) or (
            c.bound == "relaxed" and not comparison.relaxed(cell)
        ):
            continue
        marks = _marks(comparison, cell, c.metric) if c.compared else {}
        found.append((c.label, partial(_value, comparison, cell, c, place, marks)))
        spans.append((c.label, partial(_span_text, c)))
        if c.compared and place == "cell":
            unit = "% points" if c.unit == "%" else c.unit or c.heading
            heading = f"against {comparison.reference} [{unit}]"
            found.append((heading, partial(_difference, comparison, cell, c, marks)))
            spans.append((heading, lambda _: MISSING))
    agents, bounds = Table.of(found, comparison.there(cell)), Table.of(spans, sides.items())
    return Table(agents.headings, [*agents.rows, *bounds.rows])


def _marks(comparison: Comparison, cell: Cell, metric: str) -> Mapping[str, str]:
    """Return the marks of agents on a cell that are not shown to differ from the reference."""
    there = comparison.there(cell)
    if comparison.reference not in there:
        return {}
    alike = {*there} - comparison.different_on(metric, cell) - {comparison.reference}
    return dict.fromkeys(alike, _mark(comparison, len(there) - 1))


def _mark(comparison: Comparison, tests: int) -> str:
    """Return the mark of what none of some tests told from the reference."""
    return NOT_SIGNIFICANT if comparison.can_tell(tests) else TOO_FEW


def mark_note(comparison: Comparison) -> str:
    """Say what the marks mean, those of a run with few seeds too."""
    tests = len(comparison.agents) - 1
    parts = [
        f"{NOT_SIGNIFICANT}: no significant difference from {comparison.reference} ({TEST_NOTE})"
    ]
    if not comparison.can_tell(tests):
        least = fewest_seeds(tests)
        agents = f"{tests} agent{'s' * (tests != 1)}"
        too_few = f"{TOO_FEW}: too few seeds to tell; with {agents} it takes {least}"
        parts = [*parts, too_few] if comparison.can_tell(1) else [too_few]
    return "; ".join(parts)


def _value(
    comparison: Comparison,
    cell: Cell,
    c: Column,
    place: Place,
    marks: Mapping[str, str],
    agent: str,
) -> Entry:
    """Write a mean over seeds; of latencies that are infinite, in how many seeds."""
    values = comparison.values(agent, c.metric, [cell])[0]
    measured = values[~np.isnan(values)]
    if not measured.size:
        text = MISSING
    elif infinite := int(np.isinf(values).sum()):
        text = _dropped(infinite, values.size)
    elif place in c.interval and measured.size == values.size:
        text = _estimate_text(c, mean(values))
    else:
        text = c.text(float(measured.mean()))
    return _marked(text, marks.get(agent, "") if place == "page" else "")


def _difference(
    comparison: Comparison, cell: Cell, c: Column, marks: Mapping[str, str], agent: str
) -> Entry:
    """Write how much more than the reference an agent has."""
    reference = comparison.reference
    if agent == reference or not comparison.has(reference, cell):
        return Entry(MISSING)
    ours, theirs = (comparison.values(a, c.metric, [cell])[0] for a in (agent, reference))
    return _marked(c.text((ours - theirs).mean(), sign="+"), marks.get(agent, ""))


def _estimate_text(c: Column, estimate: Estimate) -> str:
    text = c.text(estimate.value)
    if math.isnan(estimate.low):
        return text
    return f"{text} [{c.text(estimate.low)}, {c.text(estimate.high)}]"


def _marked(text: str, mark: str) -> Entry:
    return Entry(f"{text} {mark}", muted=True) if mark else Entry(text)


def _span_text(c: Column, bound: Bound) -> str:
    """Write the two sides of a bound, or one number where they look alike."""
    span = bound[1].get(c.metric)
    if span is None:
        return MISSING
    low, high = map(c.text, span)
    return low if low == high else f"{low} .. {high}"


def pooled_text(comparison: Comparison, start: str) -> str:
    """Return the table over all cells of one start, for the terminal."""
    title = f"all scenarios and profiles, {start} start"
    return terminal(pooled_table(comparison, start), title, [pooled_note(comparison)])


def pooled_table(comparison: Comparison, start: str) -> Table:
    """Return the agents over all cells of one start."""
    cells_of = {agent: comparison.shared_cells(agent, start) for agent in comparison.agents}
    total = len(comparison.cells_of(start=start))
    found: list[tuple[str, Callable[[str], Entry | str]]] = [
        ("agent", Entry),
        ("cells", lambda agent: f"{len(cells_of[agent])}/{total}"),
    ]
    left_out = "instead" if comparison.common_bound else "needed"
    found += [
        (f"{c.label}, {how}", partial(_pooled, comparison, cells_of, c, how))
        for c in telling(comparison.accuracies(comparison.cells_of(start=start)))
        for how in c.pooled
        if c.bound != left_out
    ]
    different = {name: comparison.different(name, cells_of, improvement_p) for name in COUNTED}
    mark = _mark(comparison, sum(map(bool, cells_of.values())) - 1)

    def fewer(name: str, agent: str) -> Entry:
        """Say how likely an agent has less than the reference."""
        cells, reference = cells_of[agent], comparison.reference
        if agent == reference or not cells:
            return Entry(MISSING)
        both = (comparison.pooled(a, name, cells) for a in (agent, reference))
        text = _estimate_text(Column(name, "", "", 2), probability_of_improvement(*both))
        return _marked(text, "" if agent in different[name] else mark)

    for name, what in COUNTED.items():
        found.append((f"fewer {what} than {comparison.reference}", partial(fewer, name)))
    return Table.of(found, comparison.agents)


def _pooled(
    comparison: Comparison, cells_of: Mapping[str, Sequence[Cell]], c: Column, how: str, agent: str
) -> str:
    """Write a metric over cells; of cells without a bound nothing relative to one."""
    cells = comparison.bounded(cells_of[agent]) if c.bound == "needed" else cells_of[agent]
    estimate = interquartile_mean if how == "middle half" else mean
    values = comparison.pooled(agent, c.metric, cells)
    return _estimate_text(c, estimate(values)) if cells else MISSING


def pooled_note(comparison: Comparison) -> str:
    """Return what one has to know to read the table over all cells."""
    parts = [
        "middle half: interquartile mean over cells and seeds",
        "fewer ... than: probability on a random cell and seed",
        f"[95 % interval], from {FEWEST_SEEDS} seeds on",
        "only more cores: avoidable violations that no replica of one core could save",
        mark_note(comparison),
        *family_notes(comparison),
    ]
    if bound := comparison.common_bound:
        there, total = len(comparison.bounded(comparison.cells)), len(comparison.cells)
        parts.append(f"bound: what {bound} attains, for every agent, on {there} of {total} cells")
    return "; ".join(parts)


def family_notes(comparison: Comparison) -> list[str]:
    """Say which scenarios count as one in means over all cells."""
    return [
        f"{listed(names)} count as one scenario"
        for names in comparison.kinds.values()
        if len(names) > 1
    ]


def best_of_notes(comparison: Comparison, agents: Sequence[str]) -> list[str]:
    """Say what those of some names stand for that are the best of several agents."""
    counts = {
        name: Counter(comparison.best_of[name].values())
        for name in agents
        if name in comparison.best_of
    }
    return [
        f"{code(name)} is in each cell whichever has the fewest avoidable violations ("
        + listed([f"{code(agent)} in {count}" for agent, count in count_of.most_common()])
        + ")"
        for name, count_of in counts.items()
    ]


def dominant_notes(comparison: Comparison, agents: Sequence[str]) -> list[str]:
    """Say for each start where one of several cells makes up most of an agent's mean."""
    notes = []
    for start in comparison.starts:
        cells, parts = comparison.cells_of(start=start), []
        for one in comparison.standings(cells, agents) if len(cells) > 1 else []:
            rates = np.diag([one.rates[cell] for cell in cells])
            # Of each cell; their sum is the mean.
            shares = comparison.by_family(cells, rates).mean(axis=0)
            if shares.max() > one.rate / 2:
                worst = ", ".join(cells[int(shares.argmax())][:2])
                share = percent(shares.max() / one.rate)
                parts.append(f"{worst} {share} of {code(one.agent)}'s")
        if parts:
            mean_of = f"of mean avoidable violations after a {start} start"
            notes.append(f"One cell makes up more than half {mean_of}: {listed(parts)}")
    return notes


SWEEP_NOTE = (
    "avoidable violations · mean cores (core units), mean over scenarios, profiles and seeds; all "
    "else is as in the scenarios"
)


def sweep_notes(comparison: Comparison, what: str) -> list[str]:
    """Return what has to be known of a table of a sweep."""
    return [*filter(None, [comparison.about.get(what, "")]), SWEEP_NOTE]


def sweep_table(comparison: Comparison, what: str, start: str) -> Table:
    """Return the agents at each value of what is swept, mean over the cells of one start."""
    columns = [
        (
            value,
            partial(mean_rate_and_cores, comparison, [cell for cell in cells if cell[2] == start]),
        )
        for value, cells in comparison.sweeps[what].items()
    ]
    return Table.of([("agent", str), *columns], comparison.agents)


def mean_rate_and_cores(comparison: Comparison, cells: Sequence[Cell], agent: str) -> str:
    """Write an agent's mean over cells; a dash where it lacks one, or there are none."""
    if not (cells and all(comparison.has(agent, cell) for cell in cells)):
        return MISSING
    return _written(*(comparison.mean(agent, column.metric, *cells) for column in SHOWN))


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    shown: Columns[Any] = [
        ("agent", lambda f: f.agent),
        ("cell", lambda f: f"{f.scenario}, {f.profile}, {f.start}"),
        ("failed with", lambda f: f"{f.type}: {f.message}"),
    ]
    return Table.of(shown, comparison.failures.itertuples())


def overview_table(comparison: Comparison, start: str, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents on every cell of one start, without intervals.

    Whatever their kind of scaling, all are compared with the same bound. The agent that meets
    the SLO with the fewest cores stands out, and one that is not among those shown has the last
    column before the bound's.
    """
    cells = comparison.cells_of(start=start)
    best = {cell: comparison.cheapest(cell) for cell in cells}

    def of_agent(agent: str, cell: Cell) -> Entry:
        return Entry(_short(comparison, agent, cell), strong=agent == best[cell])

    def of_best(cell: Cell) -> str:
        return f"{best[cell]}: {_short(comparison, best[cell], cell)}" if best[cell] else "none"

    def of_bound(cell: Cell) -> str:
        sides = comparison.bound_sides(cell).get(comparison.common_bound)
        return _written(*(sides[c.metric][1] for c in SHOWN)) if sides else MISSING

    shown: list[tuple[str, Callable[[Cell], Entry | str]]] = [("", lambda c: f"{c[0]}, {c[1]}")]
    shown += [(agent, partial(of_agent, agent)) for agent in agents]
    bound = [(name, of_bound) for name in [comparison.common_bound] if name]
    return Table.of([*shown, ("cheapest of all", of_best), *bound], cells)


def _short(comparison: Comparison, agent: str, cell: Cell) -> str:
    """Write violations and cores of an agent in one place."""
    if not comparison.has(agent, cell):
        return "failed"
    means = (comparison.mean(agent, c.metric, cell) for c in SHOWN)
    over = (
        f" · {_mean_text(comparison, agent, OVER_BOUND, [cell])}" if comparison.common_bound else ""
    )
    return _written(*means) + over


def _written(rate: float, cores: float) -> str:
    return f"{rate * 100:z.2f} % · {CORES.text(cores)}"


def _mean_text(comparison: Comparison, agent: str, c: Column, cells: Sequence[Cell]) -> str:
    """Write a mean; of cells without a bound nothing relative to one."""
    cells = comparison.bounded(cells) if c.bound == "needed" else cells
    return c.text(comparison.mean(agent, c.metric, *cells)) if cells else MISSING


def leaders(standings: Sequence[Standing], few: Callable[[Standing], bool]) -> list[Standing]:
    """Return who has the fewest violations, and who of those with few has the fewest cores."""
    fewest = min(standings, key=attrgetter("rate", "cores"), default=None)
    cheapest = min(filter(few, standings), key=attrgetter("cores", "rate"), default=None)
    return [one for one in (fewest, cheapest) if one]


def scenario_table(comparison: Comparison, kind: str, agents: Sequence[str]) -> Table:
    """Return agents on the scenarios of one kind, mean over their cells; a group for each start.

    Whoever is best without being among those named has a row below them. The one with the
    fewest cores stands out among those that meet the SLO in every cell.
    """
    cells_of = {
        start: [c for s in comparison.kinds[kind] for c in comparison.cells_of(s, start)]
        for start in comparison.starts
    }
    everybody = {start: comparison.standings(cells) for start, cells in cells_of.items()}
    best = {
        start: [one.agent for one in leaders(found, lambda s: s.few_in == len(s.rates))]
        for start, found in everybody.items()
    }
    rows = [a for a in agents if any(comparison.has(a, c) for cs in cells_of.values() for c in cs)]
    rows += dict.fromkeys(a for names in best.values() for a in names if a not in rows)
    shown: list[tuple[str, Callable[[str], Entry | str]]] = [("controller", code)]
    for start, cells in cells_of.items():
        there = {s.agent: s for s in comparison.standings(cells, rows)}
        shown += _columns_of(comparison, start, cells, there, best[start][1:])
    return Table.of(shown, rows)


def dominance_table(comparison: Comparison) -> Table:
    """Return in how many cells the reference is better than each agent, and the other way round.

    Better is who has no more avoidable violations, no more cores and no less effective accuracy,
    each the mean over the seeds, and is ahead in one of them.
    """
    reference = comparison.reference
    others = [agent for agent in comparison.agents if agent != reference]
    shown: list[tuple[str, Callable[[str], Entry | str]]] = [("controller", code)]
    for start in comparison.starts:
        for heading, ahead in ((f"`{reference}` better", True), ("it is better", False)):
            count = partial(_dominated, comparison, comparison.cells_of(start=start), ahead)
            shown.append((f"{heading}, {start} start", count))
    return Table.of(shown, others)


def _dominated(comparison: Comparison, cells: Sequence[Cell], ahead: bool, agent: str) -> Entry:
    names = "avoidable_violation_rate", "mean_cores", "effective_accuracy"
    pair = (comparison.reference, agent) if ahead else (agent, comparison.reference)
    shared = [c for c in cells if all(comparison.has(each, c) for each in pair)]
    found = 0
    for cell in shared:
        ours, theirs = (np.array([comparison.mean(a, n, cell) for n in names]) for a in pair)
        ours[2], theirs[2] = -ours[2], -theirs[2]
        found += bool((ours <= theirs).all() and (ours < theirs).any())
    return Entry(f"{found} of {len(shared)} cells")


def _columns_of(
    comparison: Comparison,
    start: str,
    cells: Sequence[Cell],
    there: Mapping[str, Standing],
    strong: Sequence[str],
) -> Columns[str]:
    """Return columns of one start: violations, where most of them are, cores."""
    several = len({scenario for scenario, *_ in cells}) > 1

    def worst(one: Standing) -> Entry:
        cell, rate = one.worst, one.rates[one.worst]
        where = f" ({', '.join(cell[0 if several else 1 : 2])})"
        return Entry(f"{_percent(rate)}{where if rate else ''}")

    def known(write: Callable[[Standing], Entry], agent: str) -> Entry:
        return write(there[agent]) if agent in there else Entry(MISSING)

    c, heading = _cores_column(comparison, cells)
    found = [
        ("avoidable violations", lambda one: Entry(_percent(one.rate))),
        *([("most in one cell", worst)] if len(cells) > 1 else []),
        (heading, lambda one: Entry(c.text(one.cores), strong=one.agent in strong)),
    ]
    found += [
        (other.heading, _most_accurate(comparison, other, cells, there))
        for other in telling(comparison.accuracies(cells))
        if other.of_accuracy
    ]
    return [(f"{what}, {start} start", partial(known, write)) for what, write in found]


def _most_accurate(
    comparison: Comparison, c: Column, cells: Sequence[Cell], agents: Iterable[str]
) -> Callable[[Standing], Entry]:
    """Return what writes a metric of which more is better; the most of it stands out."""
    means = {agent: comparison.mean(agent, c.metric, *cells) for agent in agents}

    def write(one: Standing) -> Entry:
        mean = means[one.agent]
        return Entry(f"{c.text(mean)} {c.unit}", strong=mean == max(means.values()))

    return write


def _cores_column(comparison: Comparison, cells: Sequence[Cell]) -> tuple[Column, str]:
    """Return which cores are shown of some cells, and what to call them."""
    bounded = bool(cells) and comparison.bounded(cells) == list(cells)
    return (OVER_BOUND, OVER_ATTAINED) if bounded else (CORES, CORES.heading)


def _percent(rate: float) -> str:
    return f"{rate * 100:z.3f} %"


def summary_table(comparison: Comparison, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents, mean over all cells of each start."""
    of_starts = [
        shown for start in comparison.starts for shown in _of_start(comparison, start, agents)
    ]
    return Table.of([("controller", code), *of_starts], agents)


def _of_start(comparison: Comparison, start: str, agents: Sequence[str]) -> Columns[str]:
    """Return columns: mean violations and cores, and on how many cells where that is not all."""
    shared = partial(comparison.shared_cells, start=start)
    total, bound = len(comparison.cells_of(start=start)), comparison.common_bound

    def text(c: Column, unit: str, agent: str) -> str:
        text = _mean_text(comparison, agent, c, shared(agent))
        return text if text == MISSING else f"{text}{unit}"

    cores, heading = (OVER_BOUND, OVER_ATTAINED) if bound else (CORES, CORES.heading)
    counted = (f"cells, {start} start", lambda agent: f"{len(shared(agent))}/{total}")
    return [
        *([counted] if any(len(shared(agent)) < total for agent in agents) else []),
        (f"avoidable violations, {start} start", partial(text, AVOIDABLE, " %")),
        (f"{heading}, {start} start", partial(text, cores, "")),
    ]
