"""Plays what ``cells.py`` says. The only file here that knows the insides of the product."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import sponge_env  # noqa: F401  # registers the environments
from sponge_env.core.records import METRICS
from sponge_env.fidelity.trial import MeasuredWork, Subject
from sponge_env.interfaces import Batch, Completion
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names
from sponge_env.oracle import bound
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode, warm
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.encoding import JOINT, VERTICAL, encode
from sponge_env.simulation.system import SimulatedSystem

from .cells import BOUND_S, CELLS, FIDELITY, LEARNED, SEQUENCE_S, VECTOR_ENVS

Columns = Mapping[str, NDArray[Any]]  # values by name

_CONTROLS = {"vertical": VERTICAL, "joint": JOINT}

WALL_CLOCK = {"decision_s", "actuation_s", "paused_s", "decision_p50_s", "decision_p99_s"}
"""Metrics that differ from run to run."""


def registered():
    return sorted(known_controllers())


def column_names():
    return {
        "ledger": list(SimulatedSystem(scenario("paper", "cold", 1.0), 0).columns()),
        "intervals": [name for name in names(IntervalMetrics) if name not in WALL_CLOCK],
        "summary": [name for name in names(EpisodeMetrics) if name not in WALL_CLOCK],
        "vector_infos": [name for name in [*(METRICS.names or ())] if name not in WALL_CLOCK],
        "vertical": list(VERTICAL.fields), "joint": list(JOINT.fields),
    }  # fmt: skip


def scenario(cell, start, duration_s=None):
    made = load_scenario(CELLS[cell].scenario)
    for key, value in CELLS[cell].changes.items():
        if isinstance(value, Mapping):
            value = dataclasses.replace(getattr(made, key), **value)
        made = dataclasses.replace(made, **{key: value})
    if duration_s is not None:
        made = dataclasses.replace(made, duration_s=duration_s)
    return dataclasses.replace(made, start=start)


@dataclass(frozen=True)
class Played:
    initial: list[int]  # allocation at the start
    ledger: Columns
    intervals: Columns
    summary: Mapping[str, Any]
    observations: Columns | None  # by field, of agents that follow a policy


class _Watched:
    """A controller, and what a learner sees when it decides."""

    def __init__(self, controller, control):
        self._controller, self._control = controller, _CONTROLS[control]
        self.seen = []

    def reset(self, spec, seed):
        self._spec = spec
        self._controller.reset(spec, seed)

    def decide(self, view):
        self.seen.append(encode(view, self._spec, self._control))
        return self._controller.decide(view)


def play(episode):
    agent, options = episode.controller
    controller = make_controller(agent, known_controllers(), options)
    where = warm(scenario(episode.cell, episode.start), controller)
    control = LEARNED.get(episode.agent)
    if control:
        controller = _Watched(controller, control)
    system = SimulatedSystem(where, episode.seed)
    played = _collect(system, controller, Run.of(episode.agent, where, "sim", episode.seed))
    if not control:
        return played
    return dataclasses.replace(played, observations=by_field(np.array(controller.seen), control))


def _collect(system, controller, run):
    done = run_episode(system, controller, run)
    system.close()
    intervals = {
        name: np.array([getattr(one, name) for one in done.intervals])
        for name in names(IntervalMetrics)
    }
    initial = system.spec.initial
    summary = {name: getattr(done.summary, name) for name in names(EpisodeMetrics)}
    return Played(
        [initial.cores, initial.batch, initial.replicas], system.columns(), intervals,
        {name: value for name, value in summary.items() if name not in WALL_CLOCK}, None,
    )  # fmt: skip


def by_field(observations, control):
    return {name: observations[..., i] for i, name in enumerate(_CONTROLS[control].fields)}


def make_env(sequence):
    places = [scenario(cell, "cold", SEQUENCE_S) for cell in sequence.cells]
    name = {"vertical": "Sponge-v0", "joint": "SpongeJoint-v0"}[sequence.control]
    if not sequence.vector:
        return gymnasium.make(name, scenario=places[0])
    return gymnasium.make_vec(
        name, num_envs=VECTOR_ENVS, vectorization_mode="vector_entry_point",
        scenario=places if len(places) > 1 else places[0],
        autoreset_mode=AutoresetMode(sequence.autoreset),
    )  # fmt: skip


def fidelity(key, measured):
    """Play the simulated counterparts of a live run, as a fidelity run does."""
    cell, start, agent, repetition = FIDELITY[key]
    place = scenario(cell, start, 60.0)
    profile, controller = scenario_profile(place), make_controller(agent, known_controllers())
    subject = Subject.of(agent, controller, place, profile, seed=0)
    work_s, completions = profile.work_table_s(place.limits.batch), []
    for number, (size, ratio) in enumerate(measured):
        cpu_s = ratio * float(work_s[size - 1])
        completions.append(Completion(Batch(number, tuple(range(size))), 0, 0.0, 1.0, True, cpu_s))
    rows, measured_work = {}, [MeasuredWork(completions, work_s).table()]
    for kind, works in (("simulated", []), ("replayed", measured_work)):
        run = Run.of(agent, subject.scenario, "sim", subject.seed)
        rows[kind] = _collect(subject.simulated(repetition, works=works), controller, run)
    return rows


def clairvoyant(cell, control):
    found = bound(scenario(cell, "cold", BOUND_S), 0, joint=control == "joint")
    sides = "offered violations_lower violations_upper core_seconds_lower core_seconds_upper"
    sides = {name: float(getattr(found, name)) for name in sides.split()}
    schedule = {
        name: np.array([getattr(allocation, name) for allocation in found.schedule])
        for name in ("cores", "batch", "replicas")
    }
    return sides, schedule
