"""The program that a policy imitates: its results, and its demonstrations.

First the program plays training episodes, in which random cores replace its own now and then for
some seconds, so that the policy also sees the way back (DART: Laskey et al., CoRL 2017). From then
on the policy plays, and the program says what it would have done (DAgger: Ross et al., AISTATS
2011): otherwise a policy would not know what to do in the states that its own errors lead to.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import CPUS
from sponge_env.env.factory import make_system
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.interfaces import Allocation
from sponge_env.run.decision import start
from sponge_env.run.executor import Executor, Failure, Processes, Work
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.store import code_fingerprint, fingerprint, scenario_fingerprint
from sponge_env.scenario.config import Limits
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream
from sponge_env.simulation.randomised import random_systems
from sponge_env.utils.files import cache_dir, parsed, read_text, write_json

from ..history import FloatMatrix
from ..policy import Policy
from ..stepwise import PER_REPLICA, SITUATIONS, Form, PolicyState, allocation
from ..training import machines
from . import LearnConfig, TrainingPlan
from .episodes import AccuracyCost, changed

DISTURBED = 0.04  # Share of the intervals in which random cores begin to replace the program's
MAX_DISTURBED = 5  # Largest number of intervals for which they do so
Task = tuple[str, int, Scenario]  # A program, and the seed and scenario of an episode
EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)
"""Plays programs in place of a process on each CPU."""


def program_for(scales_out: bool) -> str:
    """Return the program that policies learn from, with or without a choice of replicas."""
    return "sponge-joint" if scales_out else "sponge-mpc"


def play_program(program: str, scenarios: tuple[Scenario, ...], episodes: int) -> FloatArray:
    """Return (4, episodes, scenarios) sums of a program, see :meth:`Evaluation.of`."""
    # They come from the user's cache if no line of code has changed: playing takes minutes, and
    # trainings with other seeds compare with the same sums.
    names = [scenario_fingerprint(scenario) for scenario in scenarios]
    question = {"program": program, "scenarios": names, "episodes": [SEED_LIMIT, episodes]}
    key, shape = fingerprint(question | {"code": code_fingerprint()}), (episodes, len(scenarios))
    file = cache_dir() / "rules" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        known = np.array(parsed(json.loads, read_text(file))["sums"], np.float64)
        if known.shape == (4, *shape) and np.isfinite(known).all():
            return known
    seeds = range(SEED_LIMIT, SEED_LIMIT + episodes)
    played = run_programs(_play_episode, list(product([program], seeds, scenarios)))
    sums = np.array(played).T.reshape(4, *shape)
    with contextlib.suppress(SpongeError):  # without a cache it is played again
        write_json(file, {"sums": sums.tolist()})
    return sums


def run_programs(work: Work, tasks: Sequence[Task]) -> list[Any]:
    """Return the results of work with programs in episodes, in the order of the tasks.

    They run in a process on each CPU, or in :data:`EXECUTOR`; a script that calls this needs ``if
    __name__ == "__main__":``.
    """
    results: dict[Task, Any] = {}
    executor = EXECUTOR.get() or Processes(min(CPUS, len(tasks)))
    with contextlib.closing(executor.run(work, tasks)) as ended:
        for task, result in ended:
            if isinstance(result, Failure):
                hint = '; a script that trains needs if __name__ == "__main__":'
                reason = f"{result}{hint * (result.type == 'ProcessDied')}"
                raise ConfigError(f"{task[0]} failed on {task[2].name} ({reason})")
            results[task] = result
    return [results[task] for task in tasks]


def _play_episode(task: Task) -> tuple[float, float, float, float]:
    """Return core-seconds, avoidable violations, requests, and the duration in seconds."""
    program, seed, scenario = task
    controller = make_controller(program, known_controllers())
    run = Run.of(program, scenario, "sim", seed)
    one = run_episode(make_system(scenario, seed), controller, run).summary
    answers = {name: np.array([getattr(one, name)]) for name in ("on_time", "late", "accuracy")}
    spent = one.core_seconds + AccuracyCost([scenario]).of(answers, np.zeros(1, np.int64))[0]
    return spent, one.avoidable_violation_rate * one.offered, one.offered, one.duration_s


class Demonstrations(NamedTuple):
    """(n, ...) what was seen, and what the program did, as choices of a stepwise policy."""

    seen: FloatMatrix
    choices: IntArray  # (n, stages, 4)
    situations: IntArray  # (n, stages) of the replicas before, as :class:`.ppo.ActorCritic` counts


def demonstrations(
    plan: TrainingPlan, config: LearnConfig, seed: int, policy: Policy | None
) -> Demonstrations:
    """Let the program show what it does where a policy leads, or without one where it does.

    The episodes are like those of the training; half are of other systems if it is randomised.
    """
    random, program = stream(seed, "demonstrations"), program_for(plan.control.scales_out)
    places = {limits: k * SITUATIONS for k, limits in enumerate(plan.choices)}
    with random_systems(random, machines(plan.systems * config.demonstrations)) as systems:
        shown, tasks = [(each, False) for each in systems], []
        for k in range(0 if plan.systems else config.demonstrations):
            shown += [(each, plan.randomised and k % 2 == 1) for each in plan.scenarios]
        for each, is_other in shown:
            scenario = changed(each, is_other, random)
            tasks.append((program, int(random.integers(EVALUATION_SEEDS, SEED_LIMIT)), scenario))
        return joined(run_programs(partial(_demonstrate, plan.form, places, policy), tasks))


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Return several demonstrations as one."""
    return Demonstrations(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _demonstrate(
    form: Form, places: Mapping[Limits, int], policy: Policy | None, task: Task
) -> Demonstrations:
    program, seed, scenario = task
    system, controller = make_system(scenario, seed), make_controller(program, known_controllers())
    start(controller, system.spec, 0)
    state, machine = PolicyState([system.spec], form), places[scenario.limits]
    disturbance, rows = Disturbance(seed), []
    while not system.done:
        view = system.view()
        state.look(view)
        choices = _as_choices(controller.decide(view), state)
        rows.append((state.seen[0].copy(), choices, state.situations[0] + machine))
        if policy is None:
            most = state.choices.most_cores(state.situations[0] + (choices[:, 2] - 1) * PER_REPLICA)
            requested = state.take(disturbance.apply(choices, most)[None])
        else:
            requested = state.choose(policy.logits(state.seen))
        # It may count replicas as starting that are ready until a resize acts.
        system.step(system.spec.fitting(allocation(requested[0]), view.ready))
    return Demonstrations(*(np.array(column) for column in zip(*rows, strict=True)))


def _as_choices(decided: Allocation, state: PolicyState) -> IntArray:
    """Return the (stages, 4) choices nearest to a decision that fit, with the steps allowed."""
    cores, batch, replicas, variants = np.array(decided.stages).T
    own = state.choices
    steps = np.sign(np.clip(replicas, 1, own.limits[:, 2]) - state.replicas[0])
    may_shrink = own.moves[np.arange(len(steps)), state.situations[0], 0]
    steps = np.maximum(steps, -may_shrink.astype(np.int64))
    cores = np.minimum(cores, own.most_cores(state.situations[0] + steps * PER_REPLICA))
    # A size above the program's makes larger batches only if so many wait.
    places = np.minimum(np.searchsorted(own.sizes, batch), len(own.sizes) - 1)
    variants = np.where(own.counts[:, 3] > 0, np.maximum(variants, 0), 0)
    return np.stack([cores - 1, places, steps + 1, variants], axis=-1)


class Disturbance:
    """Chooses random cores now and then, for some intervals."""

    def __init__(self, seed: int) -> None:
        self._random, self._left = stream(seed, "disturbance"), 0
        self._cores = np.zeros(0, np.int64)

    def apply(self, choices: IntArray, most: IntArray) -> IntArray:
        """Return (stages, 4) choices, perhaps of other cores, at most (stages,) so many."""
        if not self._left and self._random.random() < DISTURBED:
            self._left = int(self._random.integers(1, MAX_DISTURBED + 1))
            self._cores = np.array([self._random.integers(1, each + 1) for each in most.tolist()])
        if not self._left:
            return choices
        self._left -= 1
        return np.column_stack([np.minimum(self._cores, most) - 1, choices[:, 1:]])
