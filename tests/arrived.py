"""Runs in a copy of the project with what ``test_one_place.py`` added; prints what is there."""

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq

import sponge_env
from benchmarks.results import field_table, metric_table
from sponge_env.app.evaluate import main
from sponge_env.core.compiled import INTERPRETED
from sponge_env.core.fields import FIELDS
from sponge_env.core.records import METRICS
from sponge_env.interfaces import Allocation
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics
from sponge_env.run.decision import decision
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.scenario.config import Serving
from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.encoding import encode
from sponge_env.simulation.system import SimulatedSystem

ALLOCATION = Allocation(2, 4)
SEED = 3


def of_system(scenario):
    system = SimulatedSystem(scenario, SEED)
    controller = make_controller("ppo", known_controllers())
    controller.reset(system.spec, SEED)
    intervals, decisions, seen = [], [], []
    while not system.done:
        view = system.view()
        seen.append(encode(view, system.spec).tolist())
        chosen = decision(controller, view, system.spec)
        decisions.append([chosen.cores, chosen.batch])
        intervals.append(dataclasses.asdict(system.step(ALLOCATION)))
    return {"intervals": intervals, "decisions": decisions, "seen": seen}


def of_environments(scenario):
    """Return what the first of a vector of environments shows, step by step."""
    envs = gym.make_vec("Sponge-v0", 2, "vector_entry_point", scenario=scenario)
    actions = np.array([[ALLOCATION.cores - 1, ALLOCATION.batch - 1]] * 2)
    seen, infos = [envs.reset(options={"episode_seed": SEED})[0][0].tolist()], []
    for _ in range(scenario.intervals):
        observations, *_, info = envs.step(actions)
        seen.append(observations[0].tolist())
        infos.append({name: float(info[name][0]) for name in {*METRICS.names} & info.keys()})
    envs.close()
    return {"seen": seen, "intervals": infos}


def of_command(scenario_file, out):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(f"--agent static-8 --scenario {scenario_file} --seeds 1 --run-dir {out}".split())
    (results,) = out.glob("results/*/*.json")
    (intervals,) = out.glob("intervals/*/*.parquet")
    events = b"".join(path.read_bytes() for path in out.rglob("*tfevents*"))
    return {
        "printed": printed.getvalue(), "results": json.loads(results.read_text()),
        "intervals": pq.read_table(intervals).to_pylist(), "events": events.decode("latin-1"),
    }  # fmt: skip


def report(scenario_file, out):
    scenario = load_scenario(scenario_file)
    return {
        "package": sponge_env.__file__, "interpreted": INTERPRETED, "fields": FIELDS,
        "observation_table": field_table(),
        "metrics": {cls.__name__: metric_table(cls) for cls in (IntervalMetrics, EpisodeMetrics)},
        "without_key": of_system(dataclasses.replace(scenario, serving=Serving(drop="none"))),
        "system": of_system(scenario), "environments": of_environments(scenario),
        "command": of_command(scenario_file, out),
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report(sys.argv[1], Path(sys.argv[2]))))
