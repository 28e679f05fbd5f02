"""The body of ``evaluate.py``: compares controllers on one scenario, or on a suite of them."""

import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sponge_env import cli
from sponge_env.env.factory import ensure_profile, live_machine, prepare_machine
from sponge_env.errors import ConfigError, ControllerError, RunDirectoryError
from sponge_env.metrics import EpisodeMetrics, from_summary
from sponge_env.results.tables import comparison_table, terminal, write_summaries
from sponge_env.run import suite as suites
from sponge_env.run.cluster import Cluster, executor_of, run_units
from sponge_env.run.decision import start
from sponge_env.run.executor import Failure
from sponge_env.run.notices import announce, beginnings, replayed
from sponge_env.run.registry import make_controller, who_takes
from sponge_env.run.store import RunStore, check_run, holds_something, identity, new_folder
from sponge_env.run.suite import Suite
from sponge_env.run.unit import AgentUnit, Unit, check_scenario, run_unit, units
from sponge_env.scenario.config import Backend
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.utils.console import Progress
from sponge_env.utils.files import write_all
from sponge_env.utils.installation import how_to_install, missing, require_extra

Units = Mapping[Backend, Sequence[Unit]]
Identities = Mapping[Backend, Mapping[str, Any]]
Runs = Mapping[Backend, tuple[RunStore, Sequence[Unit]]]

FAILED = 1  # Exit code after an agent of a suite failed somewhere


def evaluate(arguments: Namespace, argv: Sequence[str]) -> int:
    """Run what is missing, print the tables, say where everything is; return the exit code."""
    if arguments.suite:
        require_extra("report", "a suite")
    suite, left_out = _chosen_suite(arguments)
    both: list[Backend] = ["sim", "live"]
    backends = both if arguments.backend == "both" else [arguments.backend]
    if suite.bounds and "live" in backends:
        raise ConfigError("a bound knows the simulator's future, not the real worker's; leave it")
    prepare_machine(arguments.wait, arguments.cpus, arguments.replicas, arguments.limiter)
    arguments.executor = executor_of(arguments)
    work = {backend: units(suite, backend, arguments.limiter) for backend in backends}
    with cli.terminate_like_interrupt(), ExitStack() as opened:
        path = arguments.run_dir
        goes_on = path is not None and holds_something(path)
        if "live" in backends:  # measuring this machine may change what scenarios say
            for folder in _folders(path, backends).values() if goes_on else ():
                if holds_something(folder):  # and takes a while, which another's is not worth
                    seeds = {"seeds": suite.seeds, "first_seed": suite.first_seed or None}
                    check_run(folder, {"suite": suite.name, **seeds})
            for cell in suites.cells(suite):
                ensure_profile(cell, "live", arguments.limiter)
            work = {backend: units(suite, backend, arguments.limiter) for backend in backends}
        # A folder may be refused before anything is tried; it is made once all files are read.
        identities = {own: identity(suite, own, arguments.limiter) for own in work}
        runs = _open(opened, path, identities, work, arguments) if goes_on else {}
        notices = [f"left out: {what}" for what in left_out]
        notices += _notices(suite, work, arguments)
        notices += (alike := replayed(suites.cells(suite), suite.seeds)).values()
        kind = f"suite-{suite.name}" if arguments.suite else f"{suite.name}-{arguments.backend}"
        path = path or new_folder(kind)
        runs = runs or _open(opened, path, identities, work, arguments)
        todo = {backend: store.missing(own) for backend, (store, own) in runs.items()}
        for store, _ in runs.values():
            store.describe(suite, [*cli.program("evaluate", recorded=True).split(), *argv], alike)
        total, left = (sum(map(len, each.values())) for each in (work, todo))
        if left < total:
            notices.append(f"{total - left} of {total} results are in {path} already")
        for line in notices:
            print(line)
        try:
            for backend, (store, _) in runs.items():
                _run(backend, store, todo[backend], arguments)
        except KeyboardInterrupt:
            _, others = cli.split_options(argv, ("--run-dir",))
            again = shlex.join([*others, "--run-dir", str(path)])
            print(f"interrupted; go on with\n  {cli.program('evaluate')} {again}")
            return cli.INTERRUPTED
        finally:
            if not arguments.suite:
                _report_cell(path, suite, runs, arguments)
        return _report_suite(path, suite) if arguments.suite else 0


def _notices(suite: Suite, work: Units, arguments: Namespace) -> list[str]:
    played, notices = suites.cells(suite), list[str]()
    if not arguments.suite:
        for backend in work:
            profile = check_scenario(played[0], backend, arguments.limiter)
        spec = make_spec(played[0], profile)
        for unit in next(iter(work.values())):
            if isinstance(unit, AgentUnit):
                controller = make_controller(unit.controller, {}, unit.options)
                controller = start(controller, spec, 0)
                if description := getattr(controller, "description", ""):
                    notices.append(f"agent {unit.agent} {description}")
                elif what := suites.stands_for(unit.agent, suite.agents[unit.agent], unit.options):
                    known = suite.agents[unit.agent].constant == "training" and replayed(played, 2)
                    what += ", which have the very requests that are played" if known else ""
                    notices.append(f"agent {unit.agent} stands for {what}")
    if cli.drops_by_default(arguments):
        notices.append(cli.DROP_NOTICE)
    return notices + beginnings(played) + announce(played)


def _open(
    opened: ExitStack, path: Path, identities: Identities, work: Units, arguments: Namespace
) -> Runs:
    """Open the folder of the run, or one in it for each of several backends."""
    folders = _folders(path, list(work))
    runs: dict[Backend, tuple[RunStore, Sequence[Unit]]] = {}
    for backend, own in work.items():
        store = RunStore.open(folders[backend], identities[backend])
        runs[backend] = opened.enter_context(store), own
        if arguments.requests:
            runs[backend][0].check_requests(own)
    return runs


def _folders(path: Path, backends: Sequence[Backend]) -> dict[Backend, Path]:
    """Return where the results of each backend go; one folder has no other run in it."""
    if len(backends) == 1:
        return {backends[0]: path}
    folders = {backend: path / backend for backend in backends}
    if holds_something(path) and not any(folder.exists() for folder in folders.values()):
        raise RunDirectoryError(f"{str(path)!r} is no run on both backends; choose a new folder")
    return folders


def _chosen_suite(arguments: Namespace) -> tuple[Suite, list[str]]:
    """Return the suite that the arguments name, or make one of one cell; and what it leaves out."""
    left_out: list[str] = []
    changes = cli.scenario_changes(arguments)
    if arguments.duration is not None:
        changes["duration_s"] = arguments.duration
    if arguments.suite:
        suite = suites.with_agents(suites.load_suite(arguments.suite), arguments.agent or ())
        if arguments.traces:
            suite, left_out = suites.with_traces(suite, arguments.traces, changes)
    else:
        scenario = load_scenario(arguments.scenario)
        agents, bounds = suites.chosen(arguments.agent)
        suite = Suite(
            name=changes.get("name", scenario.name), seeds=1, starts=(scenario.start,),
            bounds=bounds, cells=(suites.CellGroup((arguments.scenario,), (), changes),),
            agents=agents,
        )  # fmt: skip
    if arguments.start:
        suite = replace(suite, starts=(arguments.start,))
    if arguments.profile:
        groups = (replace(group, profiles=(arguments.profile,)) for group in suite.cells)
        suite = replace(suite, cells=tuple(groups))
    controllers = {name: entry.controller or name for name, entry in suite.agents.items()}
    if arguments.policy is not None:
        arguments.option.append(f"{who_takes('policy', controllers)}.policy={arguments.policy}")
    agents = dict(suite.agents)
    for name, more in cli.parse_options(arguments.option, list(agents)).items():
        agents[name] = replace(agents[name], options={**agents[name].options, **more})
    seeds = arguments.seeds or suite.seed_range
    suite = replace(suite, agents=agents, seeds=len(seeds), first_seed=seeds[0])
    return suites.only(suite, arguments.cells), left_out


def _run(backend: Backend, store: RunStore, todo: Sequence[Unit], arguments: Namespace) -> None:
    """Run units: those of a suite in processes, whatever fails; others here, watched."""
    # A failure on the only scenario is raised, a controller's after all units.
    if not arguments.suite:
        alone = backend == "live" and todo
        with live_machine(todo[0].scenario, arguments.limiter) if alone else nullcontext():
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


def _report_cell(path: Path, suite: Suite, runs: Runs, arguments: Namespace) -> None:
    found: dict[Backend, list[EpisodeMetrics]] = {}
    for backend, (store, work) in runs.items():
        bounds_last = sorted(work, key=lambda unit: not isinstance(unit, AgentUnit))
        kept = [store.kept(unit).get("episodes", ()) for unit in bounds_last]
        found[backend] = [from_summary(episode) for episodes in kept for episode in episodes]
    summaries = [episode for episodes in found.values() for episode in episodes]
    if not any(episode.duration_s for episode in summaries):
        return
    simulated, live = found.get("sim", []), found.get("live", [])
    whole = {(episode.agent, episode.seed) for episode in live if not episode.partial}
    if simulated and {(episode.agent, episode.seed) for episode in simulated} <= whole:
        from sponge_env.fidelity.report import side_by_side

        table, notes = side_by_side(simulated, live)
        print(terminal(table, notes=notes))
    else:  # of an interrupted run the live part may be missing
        for rows in filter(None, found.values()):
            print(comparison_table(rows))
    scenario = suites.cells(suite)[0]
    unit = scenario_profile(scenario).core_unit
    print(f"cores are units of 1/{1 / unit:g} CPU here\n" if unit != 1 else "")
    if arguments.json:
        write_summaries(arguments.json, summaries)
        print(f"summaries    {arguments.json}")
    if missing("report"):
        print(f"results      {path}; for TensorBoard and plots: {how_to_install('report')}")
        return
    for backend, (store, _) in runs.items():
        _draw(store.path, suite, f"{scenario.name} ({backend}), seed {suite.first_seed}")
    if suite.agents:
        print(f"report       {cli.program('report')} {path}")
        logs = path if len(runs) > 1 else path / "tensorboard"
        print(f"TensorBoard  {cli.tool('tensorboard')} --logdir {logs}")


def _draw(path: Path, suite: Suite, title: str) -> None:
    from sponge_env.results.drawing import DRAWN, plot_comparison  # brings Matplotlib
    from sponge_env.run.read import load_intervals

    intervals = load_intervals(path, DRAWN, suite.first_seed)
    runs = {str(agent): own for agent, own in intervals.groupby("agent") if agent in suite.agents}
    if runs:
        plot_comparison(runs, plot := path / "comparison.png", title)
        print(f"plot         {plot}")


def _report_suite(path: Path, suite: Suite) -> int:
    # These bring pandas.
    from sponge_env.results.comparison import Comparison
    from sponge_env.results.suite_tables import all_tables
    from sponge_env.run.read import load_arrangement, load_failures, load_results

    failures = load_failures(path)
    asked = [*suite.agents, *(suites.BOUND_AGENTS[bound] for bound in suite.bounds)]
    failures = failures[failures["agent"].isin(asked)]
    shown = replace(load_arrangement(path), reference=suite.compared_with)
    text = all_tables(Comparison(load_results(path), failures, list(suite.agents), shown))
    write_all(path, {"tables.txt": f"{text}\n"})
    print(f"{text}\n\nresults      {path}\nreport       {cli.program('report')} {path}")
    if failed := int(failures["agent"].isin(suite.agents).sum()):
        print(f"{failed} results failed; the tables say why")
    return FAILED if failed else 0
