"""Compare controllers on one scenario, simulated or real, or on a whole suite of them."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sponge_env import cli
from sponge_env.errors import ConfigError, ControllerError, RunDirectoryError
from sponge_env.run.executor import Failure
from sponge_env.run.registry import described_controllers, make_controller, start, who_takes
from sponge_env.run.suite import (
    BOUND_AGENTS,
    SUITE_DIR,
    CellGroup,
    Suite,
    cells,
    chosen,
    load_suite,
    named_agents,
    stands_for,
    with_agents,
    with_traces,
)
from sponge_env.scenario.config import Backend, Start
from sponge_env.scenario.profile import PROFILE_DIR, local_profile_path
from sponge_env.scenario.scenario import SCENARIO_DIR, load_scenario
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable, replacing
from sponge_env.utils.installation import how_to_install, missing, require_extra

if TYPE_CHECKING:
    from sponge_env.metrics import EpisodeMetrics
    from sponge_env.run.store import RunStore, Unit

    Runs = Mapping[Backend, tuple[RunStore, Sequence[Unit]]]

FAILED = 1
"""Exit code after an agent of a suite failed somewhere."""

NOT_FOR_SUITES = (
    *("scenario", "backend", "trace", "random_start", "arrivals", "limiter", "wait", "policy"),
    "json",
    *(CHANGING := ("profile", "rate", "load", "drop", "duration", "start")),
)
"""Options that a suite says itself, or that it has no use for; a suite of traces takes the last."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(evaluate, argv)


def evaluate(argv: Sequence[str]) -> int:
    """Run what is missing, print the tables, say where everything is; return the exit code."""
    arguments = _parse(argv)
    if arguments.list:
        print(listing())
        return 0
    if arguments.suite:
        require_extra("report", "a suite")
    suite, left_out = _chosen_suite(arguments)
    # These take a while to import; a mistyped option should not wait for them.
    from sponge_env.env.factory import ensure_profile, prepare_machine
    from sponge_env.run.cluster import executor_of
    from sponge_env.run.notices import replayed
    from sponge_env.run.store import check_run, holds_something, new_folder
    from sponge_env.run.unit import units

    arguments.executor = executor_of(arguments)
    backends: list[Backend] = [arguments.backend]
    if arguments.backend == "both":
        backends = ["sim", "live"]
    if suite.bounds and "live" in backends:
        raise ConfigError("a bound knows the simulator's future, not the real worker's; leave it")
    prepare_machine(arguments.wait, arguments.cpus)
    work = {backend: units(suite, backend, arguments.limiter) for backend in backends}
    with cli.terminate_like_interrupt(), ExitStack() as opened:
        path = arguments.run_dir
        goes_on = path is not None and holds_something(path)
        if "live" in backends:  # measuring this machine may change what scenarios say
            for folder in _folders(path, backends).values() if goes_on else ():
                if holds_something(folder):  # and takes a while, which another's is not worth
                    check_run(folder, {"suite": suite.name, "seeds": suite.seeds})
            for cell in cells(suite):
                ensure_profile(cell, "live", arguments.limiter)
            work = {backend: units(suite, backend, arguments.limiter) for backend in backends}
        # A folder may be refused before anything is tried, and is made only after that.
        runs = _open(opened, path, suite, work, arguments) if goes_on else {}
        notices = [f"left out: {what}" for what in left_out]
        notices += _notices(suite, work, arguments)
        notices += (alike := replayed(cells(suite), suite.seeds)).values()
        kind = f"suite-{suite.name}" if arguments.suite else f"{suite.name}-{arguments.backend}"
        path = path or new_folder(kind)
        runs = runs or _open(opened, path, suite, work, arguments)
        todo = {backend: store.missing(units) for backend, (store, units) in runs.items()}
        for store, _ in runs.values():
            command = [*cli.program("evaluate", recorded=True).split(), *argv]
            store.describe(suite, command, alike)
        total, left = (sum(map(len, each.values())) for each in (work, todo))
        if left < total:
            notices.append(f"{total - left} of {total} results are in {path} already")
        for line in notices:
            print(line)
        try:
            for backend, (store, _) in runs.items():
                _run(suite, backend, store, todo[backend], arguments)
        except KeyboardInterrupt:
            _, others = cli.split_options(argv, ("--run-dir",))
            again = shlex.join([*others, "--run-dir", str(path)])
            print(f"interrupted; go on with\n  {cli.program('evaluate')} {again}")
            return cli.INTERRUPTED
        finally:
            if not arguments.suite:
                _report_cell(path, suite, runs, arguments)
        return _report_suite(path, suite) if arguments.suite else 0


def _notices(
    suite: Suite, work: Mapping[Backend, Sequence[Unit]], arguments: argparse.Namespace
) -> list[str]:
    from sponge_env.run.notices import announce
    from sponge_env.run.unit import AgentUnit, check_scenario
    from sponge_env.scenario.spec import make_spec

    played, notices = cells(suite), list[str]()
    if not arguments.suite:
        for backend in work:
            profile = check_scenario(played[0], backend, arguments.limiter)
        spec = make_spec(played[0], profile)
        for unit in next(iter(work.values())):
            if isinstance(unit, AgentUnit):
                controller = make_controller(unit.controller, {}, unit.options)
                start(controller, spec, 0)
                if description := getattr(controller, "description", ""):
                    notices.append(f"agent {unit.agent} {description}")
                elif what := stands_for(unit.agent, suite.agents[unit.agent], unit.options):
                    notices.append(f"agent {unit.agent} stands for {what}")
    expired = {cell.serving.drop for cell in played} == {"expired"}
    if cli.drops_by_default(arguments) or (arguments.traces and expired and not arguments.drop):
        notices.append(cli.DROP_NOTICE)
    return notices + announce(played)


def _open(
    opened: ExitStack,
    path: Path,
    suite: Suite,
    work: Mapping[Backend, Sequence[Unit]],
    arguments: argparse.Namespace,
) -> Runs:
    """Open the folder of the run, or one in it for each of several backends."""
    from sponge_env.run.store import RunStore, identity

    folders = _folders(path, list(work))
    runs: dict[Backend, tuple[RunStore, Sequence[Unit]]] = {}
    for backend, units in work.items():
        store = RunStore.open(folders[backend], identity(suite, backend, arguments.limiter))
        runs[backend] = opened.enter_context(store), units
        if arguments.requests:
            runs[backend][0].check_requests(units)
    return runs


def _folders(path: Path, backends: Sequence[Backend]) -> dict[Backend, Path]:
    """Return where the results of each backend go; one folder has no other run in it."""
    if len(backends) == 1:
        return {backends[0]: path}
    from sponge_env.run.store import holds_something

    folders = {backend: path / backend for backend in backends}
    if holds_something(path) and not any(folder.exists() for folder in folders.values()):
        message = f"{str(path)!r} is no run on both backends; choose a new folder"
        raise RunDirectoryError(message)
    return folders


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("evaluate"),
        description="Compare controllers on one scenario, simulated or real, or on a whole suite.",
        epilog=f"example: {cli.program('evaluate')} --agent sponge-ip fa2 static-16 --seeds 3",
    )
    text = "agents to compare: names that --list shows, your own controller as module:Class, or a "
    text += "model of Stable-Baselines3 as sb3:FILE.zip (loading one executes code in it)"
    parser.add_argument("--agent", nargs="+", metavar="NAME", help=text)
    text = "show all agents, scenarios, suites and profiles, and do nothing else"
    parser.add_argument("--list", action="store_true", help=text)
    cli.add_experiment_arguments(parser, both=True)
    _add_arguments(parser)
    if "--compare" in argv:
        parser.error(f"--compare is a command of its own: {cli.program('report')} RUN RUN")
    arguments = parser.parse_args(argv)
    if not (arguments.suite or arguments.agent or arguments.list):
        parser.error("the following arguments are required: --agent, or --suite")
    only_single = [n for n in NOT_FOR_SUITES if not (arguments.traces and n in CHANGING)]
    for name in only_single if arguments.suite else ("jobs", "ray", "traces", "requests"):
        if getattr(arguments, name) != parser.get_default(name):
            relation = "does not go with" if arguments.suite else "needs"
            raise ConfigError(f"--{name.replace('_', '-')} {relation} --suite")
    if arguments.json:
        if not arguments.json.absolute().parent.is_dir():
            raise ConfigError(f"--json {str(arguments.json)!r} is in no folder that exists")
        check_writable(arguments.json)
    return arguments


def _add_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    text = "cold, or warm: with the allocation that the agent settles on under the mean load"
    add("--start", type=cli.one_of("start", get_args(Start)), help=text)
    add("--duration", type=float, metavar="SECONDS", help="length of an episode")
    text = "run seeds 0 .. N-1 (default: 1, or as the suite says)"
    seeds = cli.at_least(1, "; it is how many seeds run, and the first is 0")
    add("--seeds", type=seeds, metavar="N", help=text)
    text = "policy of the learned agent (default: the newest in runs/ that was trained on the "
    text += "scenario, else the shipped one)"
    add("--policy", metavar="FILE", help=text)
    text = "setting of an agent, e.g. static.cores=5; may be repeated"
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE", help=text)
    add("--json", type=Path, metavar="FILE", help="write the summaries here")
    add("--requests", action="store_true", help="keep every request of a suite, too")
    text = "run agents x scenarios x seeds as a shipped suite (--list shows them) or TOML file says"
    add("--suite", metavar="NAME", help=f"{text}; with --agent only these agents")
    text = "folder of trace files, each of which is a cell of a suite for such: --suite real"
    add("--traces", type=Path, metavar="DIR", help=text)
    cli.add_workers(parser)


def _chosen_suite(arguments: argparse.Namespace) -> tuple[Suite, list[str]]:
    """Return the suite that the arguments name, or make one of one cell; and what it leaves out."""
    left_out: list[str] = []
    changes = cli.scenario_changes(arguments)
    if arguments.duration is not None:
        changes["duration_s"] = arguments.duration
    if arguments.suite:
        suite = with_agents(load_suite(arguments.suite), arguments.agent or ())
        if arguments.traces:
            suite, left_out = _of_traces(suite, arguments, changes)
    else:
        scenario = load_scenario(arguments.scenario)
        profiles = (arguments.profile,) if arguments.profile else ()
        agents, bounds = chosen(arguments.agent)
        suite = Suite(
            name=changes.get("name", scenario.name),
            seeds=1,
            starts=(arguments.start or scenario.start,),
            bounds=bounds,
            cells=(CellGroup((arguments.scenario,), profiles, changes),),
            agents=agents,
        )
    controllers = {name: entry.controller or name for name, entry in suite.agents.items()}
    if arguments.policy is not None:
        arguments.option.append(f"{who_takes('policy', controllers)}.policy={arguments.policy}")
    agents = dict(suite.agents)
    for name, more in cli.parse_options(arguments.option, list(agents)).items():
        agents[name] = replace(agents[name], options={**agents[name].options, **more})
    return replace(suite, agents=agents, seeds=arguments.seeds or suite.seeds), left_out


def _of_traces(
    suite: Suite, arguments: argparse.Namespace, changes: Mapping[str, Any]
) -> tuple[Suite, list[str]]:
    suite, left_out = with_traces(suite, arguments.traces, changes)
    groups = suite.cells
    if arguments.profile:
        groups = tuple(replace(group, profiles=(arguments.profile,)) for group in groups)
    starts = (arguments.start,) if arguments.start else suite.starts
    return replace(suite, cells=groups, starts=starts), left_out


def _run(
    suite: Suite,
    backend: Backend,
    store: RunStore,
    todo: Sequence[Unit],
    arguments: argparse.Namespace,
) -> None:
    """Run units: those of a suite in processes, whatever fails; others here, watched.

    A failure on the only scenario is raised, a controller's after all units; after an interrupt no
    process is left.
    """
    from sponge_env.env.factory import live_machine
    from sponge_env.run.cluster import Cluster, run_units
    from sponge_env.run.unit import run_unit

    if not arguments.suite:
        alone = backend == "live" and todo
        with live_machine(cells(suite)[0], arguments.limiter) if alone else nullcontext():
            broken: ControllerError | None = None  # which leaves the other agents alone
            for unit in todo:
                try:
                    run_unit(unit, store, requests=True, watched=True)
                except Exception as error:
                    failure = {"type": type(error).__name__, "message": str(error) or repr(error)}
                    store.keep(unit, store.kept(unit), failure)
                    if not isinstance(error, ControllerError):
                        raise
                    broken = broken or error
            if broken is not None:
                raise broken
        return
    task = partial(run_unit, requests=arguments.requests)
    if isinstance(arguments.executor, Cluster):
        running = run_units(arguments.executor, store, todo, task)
    else:
        running = arguments.executor.run(partial(task, store=store), todo)
    progress, failed = Progress("suite", len(todo), "result"), 0
    progress.show(0)
    with closing(progress), closing(running) as results:
        for done, (unit, result) in enumerate(results, start=1):
            if isinstance(result, Failure):
                failed += 1
                failure = {"type": result.type, "message": result.message}
                store.keep(unit, store.kept(unit), failure)
            progress.show(done, f"{failed} failed" if failed else "")


def _report_cell(path: Path, suite: Suite, runs: Runs, arguments: argparse.Namespace) -> None:
    from sponge_env.metrics import from_summary
    from sponge_env.results.tables import comparison_table, write_summaries
    from sponge_env.scenario.spec import scenario_profile

    found: dict[Backend, list[EpisodeMetrics]] = {}
    for backend, (store, units) in runs.items():
        kept = [store.kept(unit).get("episodes", ()) for unit in units]
        found[backend] = [from_summary(episode) for episodes in kept for episode in episodes]
    summaries = [episode for episodes in found.values() for episode in episodes]
    shown = dict(found)
    if suite.bounds:
        from sponge_env.run.bounds import bound_rows

        shown["sim"] = [*found["sim"], *bound_rows(*runs["sim"], summaries)]
    if not any(shown.values()):
        return
    if len(found) > 1 and _paired(found["sim"], found["live"]):
        from sponge_env.fidelity.report import side_by_side
        from sponge_env.results.layout import terminal

        table, notes = side_by_side(found["sim"], found["live"])
        print(terminal(table, notes=notes))
    else:  # of an interrupted run the live part may be missing
        for rows in filter(None, shown.values()):
            print(comparison_table(rows))
    scenario = cells(suite)[0]
    unit = scenario_profile(scenario).core_unit
    print(f"cores are units of 1/{1 / unit:g} CPU here\n" if unit != 1 else "")
    if arguments.json:
        write_summaries(arguments.json, summaries)
        print(f"summaries    {arguments.json}")
    if missing("report"):
        print(f"results      {path}; for TensorBoard and plots: {how_to_install('report')}")
        return
    for backend, (store, units) in runs.items():
        _draw(store, units, f"{scenario.name} ({backend}), seed 0")
    if summaries:
        print(f"report       {cli.program('report')} {path}")
        logs = path if len(runs) > 1 else path / "tensorboard"
        print(f"TensorBoard  {cli.tool('tensorboard')} --logdir {logs}")


def _paired(simulated: Sequence[EpisodeMetrics], live: Sequence[EpisodeMetrics]) -> bool:
    whole = {(episode.agent, episode.seed) for episode in live if not episode.partial}
    return bool(simulated) and {(each.agent, each.seed) for each in simulated} <= whole


def _draw(store: RunStore, work: Sequence[Unit], title: str) -> None:
    from sponge_env.results.drawing import plot_comparison
    from sponge_env.run.unit import read_intervals

    files = {unit.agent: store.file("intervals", unit, "-seed0.parquet") for unit in work}
    intervals = {agent: read_intervals(file) for agent, file in files.items() if file.exists()}
    if any(intervals.values()):
        plot_comparison(intervals, plot := store.path / "comparison.png", title)
        print(f"plot         {plot}")


def listing() -> str:
    """Return what there is to choose from: a line each, or only names where these say enough."""
    described = described_controllers()
    defined = {name: stands_for(name, entry) for name, entry in named_agents().items()}
    both = {n: "; ".join(filter(None, [text, defined.get(n)])) for n, text in described.items()}
    agents = _lines(both | {", ".join(BOUND_AGENTS.values()): "clairvoyant bounds"})
    local = f"{local_profile_path().stem} (this machine's, by {cli.program('calibrate')})"
    kinds = {
        "agents": f"{agents}\n  and, of the tables:\n{_names(defined.keys() - described.keys())}",
        "scenarios": _lines(_descriptions(SCENARIO_DIR, load_scenario)),
        "suites": _lines(_descriptions(SUITE_DIR, load_suite)),
        "profiles": _names([*(path.stem for path in PROFILE_DIR.glob("*.json")), local]),
    }
    return "\n\n".join(f"{kind}\n{text}" for kind, text in kinds.items())


def _descriptions(folder: Path, load: Callable[[str], Any]) -> dict[str, str]:
    return {name: load(name).description for name in sorted(p.stem for p in folder.glob("*.toml"))}


def _lines(texts: Mapping[str, str]) -> str:
    width = max(map(len, texts))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in texts.items())


def _names(names: Iterable[str]) -> str:
    text = ", ".join(sorted(names))
    return textwrap.indent(textwrap.fill(text, 96, break_on_hyphens=False), "  ")


def _report_suite(path: Path, suite: Suite) -> int:
    # These bring pandas and SciPy.
    from sponge_env.results.comparison import Comparison
    from sponge_env.results.suite_tables import all_tables
    from sponge_env.run.bounds import bound_units
    from sponge_env.run.read import load_arrangement, load_bounds, load_failures, load_results

    arrangement, failures = load_arrangement(path), load_failures(path)
    shown = [*suite.agents, *(unit.agent for unit in bound_units(suite))]
    comparison = Comparison(
        episodes=load_results(path),
        failures=failures[failures["agent"].isin(shown)],
        agents=list(suite.agents),
        cells=arrangement.cells,
        families=arrangement.families,
        sweeps=arrangement.sweeps,
        replayed=arrangement.replayed,
        reference=suite.compared_with,
        bounds=load_bounds(path),
    )
    text = all_tables(comparison)
    with replacing(path / "tables.txt") as partial_file:
        partial_file.write_text(text + "\n")
    print(f"{text}\n\nresults      {path}\nreport       {cli.program('report')} {path}")
    if failed := int(comparison.failures["agent"].isin(suite.agents).sum()):
        print(f"{failed} results failed; the tables say why")
    return FAILED if failed else 0
