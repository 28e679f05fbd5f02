"""How good a policy is, scenario by scenario, and how good the program is that it learned from.

All play the same episodes, which neither training nor evaluation runs use.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import CPUS
from sponge_env.env.factory import make_system
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.interfaces import ACCURACY_PRICE
from sponge_env.run.executor import Executor, Failure, Processes, Work
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.store import code_fingerprint, fingerprint, scenario_fingerprint
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.batch import BatchSimulator, BatchView
from sponge_env.simulation.traffic import rate_rps
from sponge_env.utils.files import cache_dir, parsed, read_text, write_json
from sponge_env.utils.installation import one_blas_thread

from ..guard import InputRange
from ..history import FloatMatrix, batch_times_of, layout_of
from ..policy import Policy, reading
from ..stepwise import PolicyState
from . import by_machine, spec_of

TOLERANCE = 1e-4
"""Share of the requests by which violations may exceed a rule's and still count as no more."""
Task = tuple[str, int, Scenario]
"""A program, and the seed and scenario of an episode."""
EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)
"""What plays programs, if not a process on each CPU."""


class AccuracyCost:
    """What an answer less accurate than the best costs, in core-seconds.

    A percent of accuracy is worth :data:`~sponge_env.interfaces.ACCURACY_PRICE` cores, as to the
    programs, for the time until the next request at the mean rate. A request without tasks in a
    stage loses nothing there, and so counts as better than the best.
    """

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        specs = [spec_of(scenario) for scenario in scenarios]
        best = [math.prod(max(stage.accuracies) for stage in spec.stages) for spec in specs]
        rates = [rate_rps(each, scenario_profile(each)) for each in scenarios]
        self._best, self._percent = np.array(best), ACCURACY_PRICE / np.array(rates)

    def of(self, metrics: Any, assigned: IntArray) -> FloatArray:
        """Return the (n,) costs of the answers in intervals, or episodes, of assigned scenarios."""
        answered = metrics["on_time"] + metrics["late"]
        lost = 100 * (1 - metrics["accuracy"] / self._best[assigned])
        costs: FloatArray = np.where(answered > 0, self._percent[assigned] * lost * answered, 0.0)
        return costs


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the episodes of each scenario; arrays are (scenarios,) unless noted."""

    cores: FloatArray
    """Mean over all intervals, with the cost of lost accuracy, see :class:`AccuracyCost`."""
    violation_rate: FloatArray
    """Avoidable violations, as a share of all requests."""
    input_range: FloatMatrix | None = None
    """(2, inputs) minimum and maximum of each input of a policy."""

    @classmethod
    def of(cls, sums: FloatArray) -> Evaluation:
        """Return the means of (4, episodes, scenarios) sums.

        They are those of cores, avoidable violations, requests, and intervals.
        """
        cores, violations, offered, intervals = sums.sum(axis=1)
        return cls(cores / intervals, violations / np.maximum(1, offered))


def evaluated(policy: Policy, scenarios: Sequence[Scenario], episodes: int) -> Evaluation:
    """Play a policy on so many episodes of each scenario, always the same."""
    sums, seen = np.zeros((4, episodes, len(scenarios))), InputRange(len(policy.info.inputs))
    for places in by_machine(scenarios).values():
        own = [scenarios[k] for k in places]
        sums[..., places] = _play_policy(policy, own, SEED_LIMIT + np.arange(episodes), seen)
    return replace(Evaluation.of(sums), input_range=seen.ends)


@one_blas_thread()
def _play_policy(
    policy: Policy, scenarios: Sequence[Scenario], seeds: IntArray, seen: InputRange
) -> FloatArray:
    """Return (4, seeds, scenarios) sums of scenarios on one machine, see :meth:`Evaluation.of`."""
    assigned = np.tile(np.arange(len(scenarios)), len(seeds))
    layout = layout_of(spec_of(scenarios[0]))
    simulator = BatchSimulator(scenarios, assigned, obs_dim=len(layout.fields), grows_ready=True)
    policy, running = reading(policy, layout.inputs), np.zeros(len(assigned), np.bool_)
    state = PolicyState([simulator.specs[k] for k in assigned.tolist()], policy.info.form)

    def decide(view: BatchView) -> IntArray:
        state.see(view.observations, batch_times_of(view.last))
        np.logical_not(simulator.over, out=running)
        seen.widen(policy.inputs(state.seen)[running])
        return state.choose(policy.logits(state.seen))

    sums, cost = np.zeros((4, len(running))), AccuracyCost(scenarios)
    with closing(simulator):
        for metrics in simulator.play(np.repeat(seeds, len(scenarios)), decide):
            names = "cores", "avoidable_violations", "offered"
            sums += (*(metrics[name] for name in names), running)
            sums[0] += cost.of(metrics, assigned) / scenarios[0].interval_s
        sums[1] += simulator.drain()["avoidable_violations"]
    return sums.reshape(4, len(seeds), len(scenarios))


def program_for(scales_out: bool) -> str:
    """Return the program that policies learn from and are compared with.

    It chooses replicas, too, or it does not.
    """
    return "sponge-joint" if scales_out else "sponge-mpc"


def play_program(program: str, scenarios: tuple[Scenario, ...], episodes: int) -> FloatArray:
    """Return (4, episodes, scenarios) sums of a program, see :meth:`Evaluation.of`.

    They are from the user's cache if no line of code has changed: playing takes minutes, and
    trainings that differ in their seeds compare with the same.
    """
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

    They are shared out to as many processes as there are CPUs, or as :data:`EXECUTOR` says, so that
    a script which calls this needs ``if __name__ == "__main__":``.
    """
    results: dict[Task, Any] = {}
    executor = EXECUTOR.get() or Processes(min(CPUS, len(tasks)))
    with closing(executor.run(work, tasks)) as ended:
        for task, result in ended:
            if isinstance(result, Failure):
                (program, _, scenario), reason = task, f"{result.type}: {result.message}"
                if result.type == "ProcessDied":
                    reason += '; a script that trains needs if __name__ == "__main__":'
                raise ConfigError(f"{program} failed on {scenario.name} ({reason})")
            results[task] = result
    return [results[task] for task in tasks]


def _play_episode(task: Task) -> tuple[float, float, float, float]:
    """Return cores, avoidable violations, requests and intervals, these in seconds."""
    program, seed, scenario = task
    controller = make_controller(program, known_controllers())
    run = Run.of(program, scenario, "sim", seed)
    one = run_episode(make_system(scenario, seed), controller, run).summary
    answers = {name: np.array([getattr(one, name)]) for name in ("on_time", "late", "accuracy")}
    spent = one.core_seconds + AccuracyCost([scenario]).of(answers, np.zeros(1, np.int64))[0]
    return spent, one.avoidable_violation_rate * one.offered, one.offered, one.duration_s
