"""From runs to files: the page, its pictures, the Markdown, the README's part."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.filters import do_mark_safe
from matplotlib.figure import Figure

from sponge_env.errors import ConfigError, unknown
from sponge_env.fidelity.report import Fidelity, load_fidelity
from sponge_env.results import tables
from sponge_env.results.comparison import (
    AVOIDABLE,
    FEW_VIOLATIONS,
    Cell,
    Comparison,
    RunFolder,
    Standing,
    load_run,
)
from sponge_env.results.figures import (
    COLOURS,
    Panels,
    decision_figure,
    latency_figure,
    pareto_figure,
    png,
    style_of,
    summary_figure,
    time_series,
)
from sponge_env.results.layout import code, listed, markdown, percent, plain
from sponge_env.results.statistics import SIGNIFICANCE, paired_p
from sponge_env.utils.console import Progress

MARK = "results"
"""Name of the README's part."""

SUMMARY, COMPARISON = "summary", "comparison.png"
"""The README's picture: its name, and its file beside the Markdown."""

RIVALS = 4
"""Agents at most that are named as not shown to be worse than the best."""
TIME_SERIES = (("paper-300kb", "cold"), ("flash-crowd", "warm"), ("deep-fade", "warm"))
"""Scenarios and starts whose first episode the Markdown shows, with the first profile."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, ready to be shown."""

    name: str
    """File name without ending."""
    text: str
    """What is on it, for who cannot see it."""
    content: bytes
    """PNG."""

    @property
    def uri(self) -> str:
        """The picture itself as an address, so that a page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True, slots=True)
class Remarks:
    """What somebody else has to say about a run, in the Markdown."""

    summary: list[str] = field(default_factory=list)
    """Sentences below the README's table, which come first elsewhere."""
    readme: str = ""
    """Markdown below these sentences, in the README only."""
    scenarios: str = ""
    """What has to be known of the scenarios."""
    findings: list[str] = field(default_factory=list)
    """Sentences that follow."""
    text: str = ""
    """Markdown that follows the findings."""
    sensitivity: str = ""
    """What has to be known of the sweeps."""
    stages: str = ""
    """What has to be known of variants and pipelines."""
    fidelity: str = ""
    """What has to be known of the comparison with the real worker."""
    last: str = ""
    """Markdown at the end."""


@dataclass(frozen=True)
class Section:
    """One run in a report."""

    run: RunFolder
    featured: list[str]
    """Agents that are shown where there is no room for all."""
    fidelity: tuple[Fidelity, ...] = ()
    """Comparisons with the real worker."""
    swept: Comparison | None = None
    """Another run, of which only the sweeps are shown."""
    staged: Comparison | None = None
    """Another run, on scenarios with variants and stages, which the Markdown has a part about."""

    def called(self, beside: bool) -> str:
        """Return the name of the run's folder; beside others with that of the one around it."""
        path = self.run.path.absolute()
        return f"{path.parent.name}/{path.name}" if beside else path.name

    @property
    def sensitivity(self) -> Comparison:
        """What the tables of sweeps are about."""
        return self.swept or self.comparison

    @property
    def comparison(self) -> Comparison:
        """The run's results."""
        return self.run.comparison

    @property
    def rows(self) -> list[str]:
        """Agents in the tables of scenarios."""
        more = [agent for agent in self.run.also_shown if agent in self.comparison.agents]
        return list(dict.fromkeys([*self.featured, *more]))

    @property
    def best_of_notes(self) -> list[str]:
        """What has to be known of names that stand for several agents."""
        return tables.best_of_notes(self.comparison, self.featured)

    @property
    def dominant_notes(self) -> list[str]:
        """Whose mean violations are mostly those of one cell."""
        return tables.dominant_notes(self.comparison, self.featured)

    @property
    def unbounded(self) -> list[Cell]:
        """The cells without the bound of all agents, where the run has one at all."""
        cells = self.comparison.cells if self.comparison.common_bound else ()
        return [cell for cell in cells if not self.comparison.bounded([cell])]

    def pictures(self) -> dict[str, Picture]:
        """Draw everything, with progress; return the pictures by name."""
        draw = list(self._pictures())
        drawn: dict[str, Picture] = {}
        with closing(Progress("report", len(draw), "picture")) as progress:
            for name, text, figure in draw:
                drawn[name] = Picture(name, text, png(figure()))
                progress.show(len(drawn))
        return drawn

    def _pictures(self) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
        """Yield name, text and what draws each picture."""
        c = self.comparison
        others = [agent for agent in c.agents if agent not in self.featured]
        styles = style_of([*self.featured, *others])  # those featured have their own colours
        few = {agent: styles[agent] for agent in self.featured}
        overall: Panels = [[(f"{start} start", c.cells_of(start=start)) for start in c.starts]]
        text = "Violations against cores"
        draw = partial(pareto_figure, c, overall, styles)
        yield "pareto", f"{text}, mean over all cells", draw
        draw = partial(summary_figure, c, few)
        yield SUMMARY, f"{text} of {', '.join(few)}, mean over all cells", draw
        yield "decisions", "Decision times", partial(decision_figure, c)
        for name in c.scenarios:
            panels = self._panels(name)
            yield f"pareto-{name}", f"{text}, {name}", partial(pareto_figure, c, panels, styles)
            draw = partial(latency_figure, c, panels, few)
            yield f"latency-{name}", f"Distribution of latency, {name}", draw
        for cell in c.cells:
            text = f"{cell[0]}, {cell[1]}, {cell[2]} start, seed 0, over time"
            yield _series(cell), text, partial(time_series, c, cell, few)

    def _panels(self, scenario: str) -> Panels:
        """Return a scenario's cells: a row of panels for each start, a column for each profile."""
        cells = self.comparison.cells_of(scenario)
        profiles = dict.fromkeys(profile for _, profile, _ in cells)
        return [
            [(f"{p}, {start}", [c for c in cells if c[1:] == (p, start)]) for p in profiles]
            for start in self.comparison.starts
        ]


def _series(cell: Cell) -> str:
    return f"series-{'-'.join(cell)}"


def findings(comparison: Comparison) -> list[str]:
    """Return sentences whose numbers and direction come from the data, whoever was compared."""
    return [*_cheapest(comparison), *_bounds(comparison)]


def choices(comparison: Comparison, name: Callable[[str], str] = str) -> Iterator[str]:
    """Say for each start which agents to choose, over all cells; names are written as asked."""
    few = f"at most {percent(FEW_VIOLATIONS, 1)} on average"
    for start in comparison.starts:
        cells = comparison.cells_of(start=start)
        standings = comparison.standings(cells)
        if len(standings) < 2:
            continue  # there is no choice
        found = tables.leaders(standings, lambda one: one.rate <= FEW_VIOLATIONS)
        bound = comparison.bounded(cells) == cells
        fewest, *cheapest = dict.fromkeys(_standing(one, bound, name) for one in found)
        cheap = f"of those with {few} {''.join(cheapest) or 'also'} the fewest cores"
        rest = cheap if found[1:] else f"nobody has {few}"
        equal = sum(one.rate == found[0].rate for one in standings) - 1
        ties = f" (as few: {equal} more, none on fewer cores)" if equal else ""
        beside = ties + _rivals(comparison, found[0], standings, cells, name)
        everywhere = "" if len(standings) == len(comparison.agents) else " with results everywhere"
        yield (
            f"After a {start} start, of {len(standings)} controllers{everywhere} {fewest} has the "
            f"fewest avoidable violations{beside}, and {rest}."
        )


def _rivals(
    comparison: Comparison,
    best: Standing,
    standings: Sequence[Standing],
    cells: Sequence[Cell],
    name: Callable[[str], str],
) -> str:
    """Say who else may have the fewest avoidable violations, but for those with as few.

    Left out is who is shown to have more than the best, by a one-sided test for each of the
    others, corrected for how many they are: whoever truly has the fewest is then left out in at
    most one comparison of twenty, though the best is chosen by the same data.
    """
    others = [one for one in standings if one.agent != best.agent]
    values = partial(comparison.pooled, name=AVOIDABLE, cells=cells)
    # All signs one way is the least probable that seeds can show.
    if len(others) * 0.5**comparison.seeds >= SIGNIFICANCE:
        return " (too few seeds to show it)"
    ps = [paired_p(values(one.agent), values(best.agent)) / 2 for one in others]
    rivals = [
        one
        for one, p in zip(others, ps, strict=True)
        if p * len(others) >= SIGNIFICANCE and one.rate > best.rate
    ]
    if not rivals:
        return ""
    names = [name(one.agent) for one in sorted(rivals, key=lambda one: one.rate)]
    rest = [f"{len(names) - RIVALS} more"] if len(names) > RIVALS else []
    return f" (not shown to be fewer than those of {listed([*names[:RIVALS], *rest])})"


def _standing(one: Standing, bound: bool, name: Callable[[str], str]) -> str:
    cores = f"{one.cores:.2f} times the cores of the bound" if bound else f"{one.cores:.2f} cores"
    cells = f"at most {percent(FEW_VIOLATIONS, 1)} in {one.few_in} of {len(one.rates)} cells"
    return f"{name(one.agent)} ({percent(one.rate, 3)}, {cells}; {cores})"


def _cheapest(comparison: Comparison) -> Iterator[str]:
    """Say who meets the SLO with the fewest cores, and where nobody does."""
    for start in comparison.starts:
        cells = comparison.cells_of(start=start)
        counts = Counter(map(comparison.cheapest, cells))
        nobody = counts.pop("", 0)
        parts = [f"{agent} in {count}" for agent, count in counts.most_common()]
        if nobody:
            parts.append(f"none in {nobody}")
        yield (
            f"With a {start} start, the cheapest agent with at most {percent(FEW_VIOLATIONS, 1)} "
            f"avoidable violations is, of {len(cells)} cell{'s' * (len(cells) > 1)}, "
            f"{listed(parts)}."
        )


def _bounds(comparison: Comparison) -> Iterator[str]:
    """Say how exact the bounds are."""
    for name, gaps in comparison.bound_gaps().items():
        cores, violations = gaps["cores"], gaps["violations"]
        more = (
            f"; its violations are more than the fewest that are proven in "
            f"{(violations > 0).sum()} of {len(gaps)} cells, by at most "
            f"{percent(violations.max(), 3)} of the requests"
        )
        yield (
            f"Between what is proven of the bound {name} and what is attained lie at most "
            f"{percent(cores.max(), 1)} of the core-seconds, {percent(cores.median(), 1)} in the "
            f"median cell{more if (violations > 0).any() else ''}."
        )


def sections(
    runs: Sequence[Path],
    agents: Sequence[str] = (),
    fidelity: Sequence[Path] = (),
    sensitivity: Path | None = None,
    stages: Path | None = None,
) -> list[Section]:
    """Read everything that a report is about; SpongeError if that fails or no run has an agent.

    Results of ``python -m sponge_env.fidelity`` go with the first run, as do the sweeps of
    another run and one on variants and stages.
    """
    loaded = [load_run(path) for path in runs]
    there = [agent for run in loaded for agent in run.comparison.agents]
    for agent in agents:
        if agent not in there:
            raise ConfigError(unknown("agent", agent, set(there)))
    measured = tuple(map(load_fidelity, fidelity))
    swept = load_run(sensitivity).comparison if sensitivity else None
    if swept and not swept.sweeps:
        raise ConfigError(
            f"{str(sensitivity)!r} has no sweeps; run evaluate.py --suite sensitivity"
        )
    staged = load_run(stages).comparison if stages else None
    if staged and not staged.episodes["stages"].astype(bool).any():
        raise ConfigError(f"{str(stages)!r} has no stages; run evaluate.py --suite stages")
    first, *others = loaded
    return [
        Section(first, featured(first, agents), measured, swept, staged),
        *(Section(run, featured(run, agents)) for run in others),
    ]


def featured(run: RunFolder, chosen: Sequence[str] = ()) -> list[str]:
    """Return the agents that are shown where there is no room for all.

    Those chosen, or else at most as many as there are colours.
    """
    agents = list(run.comparison.agents)
    if chosen:
        return [agent for agent in agents if agent in chosen]
    if len(agents) <= len(COLOURS):
        return agents
    known = [agent for agent in run.featured if agent in (*agents, *run.comparison.best_of)]
    return known if len(known) > 1 else agents[: len(COLOURS)]


def page(sections: Sequence[Section], pictures: Sequence[Mapping[str, Picture]]) -> str:
    """Return sections, each with its pictures, as HTML that needs no other file."""
    return _rendered("page.html.j2", parts=list(zip(sections, pictures, strict=True)))


def results(
    section: Section, pictures: Mapping[str, Picture], remarks: Remarks
) -> tuple[str, dict[str, bytes]]:
    """Return ``docs/results.md``, and the pictures beside it by file name."""
    comparison = section.comparison
    groups = [comparison.cells_of(scenario, start) for scenario, start in TIME_SERIES]
    cells = [found[0] for found in groups if found] or comparison.cells[:1]
    series = [pictures[_series(cell)] for cell in cells]
    summary, everybody = pictures[SUMMARY], pictures["pareto"]
    shown = {"section": section, "picture": COMPARISON, "summary": summary, "remarks": remarks}
    text = _rendered("results.md.j2", **shown, everybody=everybody, series=series)
    files = {f"results-{picture.name}.png": picture.content for picture in [everybody, *series]}
    return text, {COMPARISON: summary.content, **files}


def with_results(readme: Path, section: Section, remarks: Remarks, folder: Path) -> str:
    """Return a README with its part about results written anew; for errors see :func:`around`.

    The folder is where the pictures and the Markdown are.
    """
    before, after = around(readme)
    picture = Path(os.path.relpath(folder / COMPARISON, readme.parent)).as_posix()
    shown = {"section": section, "remarks": remarks, "picture": picture}
    return before + _rendered("readme.md.j2", **shown).strip() + after


def around(path: Path) -> tuple[str, str]:
    """Return what goes before and after a README's part about results, its marks included.

    ConfigError if it cannot be read, or does not have the two marks.
    """
    begin, end = f"<!-- {MARK}:begin -->", f"<!-- {MARK}:end -->"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from error
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ConfigError(f"{str(path)!r} lacks the lines {begin} and {end}, in this order")
    return f"{before}{begin}\n", f"\n{end}{after}"


def _in_markdown(value: object) -> object:
    return value if hasattr(value, "__html__") else plain(str(value))  # marked as safe


def _rendered(template: str, **values: object) -> str:
    """Fill in a template, which may call the functions of :mod:`sponge_env.results.tables`.

    Whatever it shows is plain text, unless it is marked as HTML or Markdown.
    """
    in_html = template.endswith(".html.j2")
    found = Environment(
        loader=PackageLoader("sponge_env.results"), undefined=StrictUndefined,
        autoescape=in_html, finalize=None if in_html else _in_markdown,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.filters["markdown"] = lambda table: do_mark_safe(markdown(table))
    found.filters["code"] = lambda text: do_mark_safe(code(text))
    shared: dict[str, object] = {
        "tables": tables,
        "findings": findings,
        "few_violations": percent(FEW_VIOLATIONS, 1),
    }
    shared["choices"] = partial(choices, name=str if in_html else code)
    return found.get_template(template).render(**shared, **values)
