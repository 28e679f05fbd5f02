"""What a report shows of one run."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from sponge_env.console import Progress
from sponge_env.errors import ConfigError, unknown
from sponge_env.report.agents import FEATURED
from sponge_env.report.fidelity import Fidelity, load_fidelity
from sponge_env.report.findings import findings
from sponge_env.report.judging import target_table
from sponge_env.report.overview import overview_table, summary_table
from sponge_env.report.pareto import pareto_figure
from sponge_env.report.pictures import decision_figure, latency_figure, time_series
from sponge_env.report.source import Source, load_source
from sponge_env.report.style import Style, png, style_of
from sponge_env.report.tables import (
    Table,
    aggregate_table,
    cell_table,
    failure_table,
)
from sponge_env.report.targets import targets
from sponge_env.suite.comparison import Cell
from sponge_env.suite.tables import aggregate_note

ROOM = len(FEATURED)
"""How many agents there is room for."""


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


def sections(
    runs: Sequence[Path], agents: Sequence[str] = (), fidelity: Path | None = None
) -> list[Section]:
    """Read everything that a report is about.

    Args:
        runs: Run directories.
        agents: Agents that are shown where there is no room for all; a choice if empty.
        fidelity: Result of ``python -m sponge_env.fidelity``, for the first section.

    Raises:
        SpongeError: Something cannot be read, or no run has an agent.
    """
    sources = [load_source(path) for path in runs]
    there = [agent for source in sources for agent in source.comparison.agents]
    for agent in agents:
        if agent not in there:
            raise ConfigError(unknown("agent", agent, set(there)))
    measured = load_fidelity(fidelity) if fidelity else None
    return [
        Section(source, featured(source, agents), None if n else measured)
        for n, source in enumerate(sources)
    ]


def featured(source: Source, chosen: Sequence[str] = ()) -> list[str]:
    """Return the agents that are shown where there is no room for all.

    Args:
        source: The run.
        chosen: The agents wanted; a choice is made if empty.
    """
    agents = list(source.comparison.agents)
    if chosen:
        return [agent for agent in agents if agent in chosen]
    if len(agents) <= ROOM:
        return agents
    known = [agent for agent in FEATURED if agent in agents]
    return known if len(known) > 1 else agents[:ROOM]


@dataclass(frozen=True)
class Section:
    """One run in a report."""

    source: Source
    featured: list[str]
    """Agents that are shown where there is no room for all."""
    fidelity: Fidelity | None = None

    @property
    def styles(self) -> dict[str, Style]:
        """How agents are drawn; those featured have a colour of their own."""
        others = [a for a in self.source.comparison.agents if a not in self.featured]
        return style_of([*self.featured, *others])

    @property
    def few_styles(self) -> dict[str, Style]:
        """The same, of those featured."""
        return {agent: self.styles[agent] for agent in self.featured}

    @cached_property
    def findings(self) -> list[str]:
        """Sentences."""
        return findings(self.source)

    @cached_property
    def targets(self) -> Table | None:
        """What was to be reached; None if the run says nothing about it."""
        found = targets(self.source, self.fidelity)
        return target_table(found) if found else None

    @property
    def bound(self) -> str:
        """The bound that all agents are held against, empty if there is none."""
        return self.source.comparison.common_bound

    @property
    def unbounded(self) -> list[Cell]:
        """The cells without it, where the run has one at all."""
        cells = self.source.cells() if self.bound else []
        there = self.source.comparison.bounded(cells)
        return [cell for cell in cells if cell not in there]

    @property
    def aggregate_note(self) -> str:
        """What one has to know to read the tables over all cells."""
        return aggregate_note(self.source.comparison)

    @property
    def failures(self) -> Table | None:
        """What failed, if anything did."""
        if self.source.comparison.failures.empty:
            return None
        return failure_table(self.source.comparison)

    def aggregate(self, start: str) -> Table:
        """Return the table over all cells of one start."""
        return aggregate_table(self.source.comparison, start)

    def overview(self, start: str) -> Table:
        """Return violations and cores of a few agents on every cell of one start."""
        return overview_table(self.source.comparison, start, self.featured)

    @property
    def summary(self) -> Table:
        """Violations and cores of a few agents over everything."""
        return summary_table(self.source.comparison, self.featured)

    def cell(self, cell: Cell) -> Table:
        """Return the table of one cell."""
        return cell_table(self.source.comparison, cell)

    def pareto(self) -> Picture:
        """Draw violations against cores over all cells."""
        starts = self.source.starts
        panels = [[(f"{start} start", self.source.cells(start=start)) for start in starts]]
        figure = pareto_figure(self.source, panels, self.styles)
        return Picture("pareto", "Violations against cores, mean over all cells", png(figure))

    def pareto_of(self, scenario: str) -> Picture:
        """Draw violations against cores on each cell of a scenario."""
        cells = self.source.cells(scenario)
        profiles = dict.fromkeys(profile for _, profile, _ in cells)
        panels = [
            [
                (f"{profile}, {start}", [c for c in cells if c[1:] == (profile, start)])
                for profile in profiles
            ]
            for start in self.source.starts
        ]
        figure = pareto_figure(self.source, panels, self.styles)
        return Picture(f"pareto-{scenario}", f"Violations against cores, {scenario}", png(figure))

    def latency(self, scenario: str) -> Picture:
        """Draw the distributions of latency in a scenario."""
        figure = latency_figure(self.source, scenario, self.few_styles)
        return Picture(f"latency-{scenario}", f"Distribution of latency, {scenario}", png(figure))

    def decisions(self) -> Picture:
        """Draw how long decisions take."""
        return Picture("decisions", "Decision times", png(decision_figure(self.source)))

    def series(self, cell: Cell) -> Picture:
        """Draw the first episode of a cell."""
        figure = time_series(self.source, cell, self.few_styles)
        text = f"{cell[0]}, {cell[1]}, {cell[2]} start, seed 0, over time"
        return Picture(f"series-{'-'.join(cell)}", text, png(figure))

    def pictures(self) -> dict[str, Picture]:
        """Draw everything, with progress; return the pictures by name."""
        cells, scenarios = self.source.cells(), self.source.scenarios
        draw: list[Callable[[], Picture]] = [self.pareto, self.decisions]
        draw += [partial(self.pareto_of, scenario) for scenario in scenarios]
        draw += [partial(self.latency, scenario) for scenario in scenarios]
        draw += [partial(self.series, cell) for cell in cells]
        drawn: dict[str, Picture] = {}
        with closing(Progress("report", len(draw), "picture")) as progress:
            for make in draw:
                picture = make()
                drawn[picture.name] = picture
                progress.show(len(drawn))
        return drawn
