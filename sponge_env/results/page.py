"""From runs to files: the page, its pictures, the Markdown, the README's part."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from sponge_env.console import Progress
from sponge_env.errors import ConfigError, unknown
from sponge_env.fidelity.report import HEADINGS, Fidelity, load_fidelity
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.figures import decision_figure, latency_figure, time_series
from sponge_env.results.findings import findings, percent
from sponge_env.results.layout import Table, around, markdown
from sponge_env.results.load import Run, load_run
from sponge_env.results.pareto import pareto_figure
from sponge_env.results.style import COLOURS, Style, png, style_of
from sponge_env.results.tables import (
    NOT_SIGNIFICANT,
    TEST_NOTE,
    cell_table,
    failure_table,
    overview_table,
    pooled_note,
    pooled_table,
    summary_table,
)

MARK = "results"
"""Name of the README's part."""

COMPARISON = "comparison.png"
"""The README's picture, beside the Markdown."""

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

    findings: list[str] = field(default_factory=list)
    """Sentences that come first."""
    text: str = ""
    """Markdown that follows the findings."""
    head: str = ""
    """What has to be known about the run before anything else."""


@dataclass(frozen=True)
class Section:
    """One run in a report."""

    run: Run
    featured: list[str]
    """Agents that are shown where there is no room for all."""
    fidelity: Fidelity | None = None

    @property
    def comparison(self) -> Comparison:
        """The run's results."""
        return self.run.comparison

    @property
    def findings(self) -> list[str]:
        """Sentences."""
        return findings(self.comparison)

    @property
    def styles(self) -> dict[str, Style]:
        """How agents are drawn; those featured have a colour of their own."""
        others = [a for a in self.comparison.agents if a not in self.featured]
        return style_of([*self.featured, *others])

    @property
    def unbounded(self) -> list[Cell]:
        """The cells without the bound of all agents, where the run has one at all."""
        cells = self.comparison.cells if self.comparison.common_bound else ()
        there = self.comparison.bounded(cells)
        return [cell for cell in cells if cell not in there]

    @property
    def fidelity_tables(self) -> dict[str, Table]:
        """Simulator against the real worker, by scenario."""
        found = self.fidelity
        return {s: Table.of(HEADINGS, found.of(s)) for s in found.scenarios} if found else {}

    def pictures(self) -> dict[str, Picture]:
        """Draw everything, with progress; return the pictures by name."""
        c = self.comparison
        few = {agent: self.styles[agent] for agent in self.featured}
        overall = [[(f"{start} start", c.cells_of(start=start)) for start in c.starts]]
        draw: dict[str, tuple[str, Callable[[], Figure]]] = {
            "pareto": (
                "Violations against cores, mean over all cells",
                partial(pareto_figure, c, overall, self.styles),
            ),
            "decisions": ("Decision times", partial(decision_figure, c)),
        }
        for name in c.scenarios:
            panels = partial(pareto_figure, c, self._panels(name), self.styles)
            draw[f"pareto-{name}"] = f"Violations against cores, {name}", panels
            latencies = partial(latency_figure, c, name, few)
            draw[f"latency-{name}"] = f"Distribution of latency, {name}", latencies
        for cell in c.cells:
            text = f"{cell[0]}, {cell[1]}, {cell[2]} start, seed 0, over time"
            draw[_series(cell)] = text, partial(time_series, c, cell, few)
        drawn: dict[str, Picture] = {}
        with closing(Progress("report", len(draw), "picture")) as progress:
            for name, (text, figure) in draw.items():
                drawn[name] = Picture(name, text, png(figure()))
                progress.show(len(drawn))
        return drawn

    def _panels(self, scenario: str) -> list[list[tuple[str, list[Cell]]]]:
        """Return a scenario's cells: a row of panels for each start, a column for each profile."""
        cells = self.comparison.cells_of(scenario)
        profiles = dict.fromkeys(profile for _, profile, _ in cells)
        return [
            [(f"{p}, {start}", [c for c in cells if c[1:] == (p, start)]) for p in profiles]
            for start in self.comparison.starts
        ]


def _series(cell: Cell) -> str:
    return f"series-{'-'.join(cell)}"


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
    loaded = [load_run(path) for path in runs]
    there = [agent for run in loaded for agent in run.comparison.agents]
    for agent in agents:
        if agent not in there:
            raise ConfigError(unknown("agent", agent, set(there)))
    measured = load_fidelity(fidelity) if fidelity else None
    return [
        Section(run, featured(run, agents), None if n else measured) for n, run in enumerate(loaded)
    ]


def featured(run: Run, chosen: Sequence[str] = ()) -> list[str]:
    """Return the agents that are shown where there is no room for all.

    Args:
        run: The run.
        chosen: The agents wanted; as many as there are colours if empty.
    """
    agents = list(run.comparison.agents)
    if chosen:
        return [agent for agent in agents if agent in chosen]
    if len(agents) <= len(COLOURS):
        return agents
    known = [agent for agent in run.featured if agent in agents]
    return known if len(known) > 1 else agents[: len(COLOURS)]


def page(sections: Sequence[Section], pictures: Sequence[Mapping[str, Picture]]) -> str:
    """Return the page as HTML that needs no other file.

    Args:
        sections: One for each run.
        pictures: Of each section, see :meth:`Section.pictures`.
    """
    parts = list(zip(sections, pictures, strict=True))
    return _environment().get_template("page.html.j2").render(parts=parts)


def results(
    section: Section, pictures: Mapping[str, Picture], remarks: Remarks
) -> tuple[str, dict[str, bytes]]:
    """Return ``docs/results.md``, and the pictures beside it by file name."""
    comparison = section.comparison
    groups = [comparison.cells_of(scenario, start) for scenario, start in TIME_SERIES]
    cells = [found[0] for found in groups if found] or comparison.cells[:1]
    series = [pictures[_series(cell)] for cell in cells]
    template = _environment().get_template("results.md.j2")
    text = template.render(section=section, picture=COMPARISON, series=series, remarks=remarks)
    files = {f"results-{picture.name}.png": picture.content for picture in series}
    return text, {COMPARISON: pictures["pareto"].content, **files}


def with_results(readme: Path, section: Section, folder: Path) -> str:
    """Return a README with its part about results written anew.

    Args:
        readme: The README.
        section: The run.
        folder: Where the pictures and the Markdown are.

    Raises:
        ConfigError: It cannot be read, or does not have the two marks.
    """
    before, after = around(readme, MARK)
    picture = Path(os.path.relpath(folder / COMPARISON, readme.parent)).as_posix()
    template = _environment().get_template("readme.md.j2")
    return f"{before}{template.render(section=section, picture=picture).strip()}{after}"


def _environment() -> Environment:
    """Return what fills in the templates."""
    found = Environment(
        loader=PackageLoader("sponge_env.results"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tables = (cell_table, failure_table, overview_table, pooled_note, pooled_table, summary_table)
    found.filters["markdown"] = markdown
    found.globals.update({make.__name__: make for make in tables})
    found.globals.update(
        not_significant=NOT_SIGNIFICANT,
        few_violations=percent(FEW_VIOLATIONS, 1),
        test_note=TEST_NOTE,
    )
    return found
