"""How good a policy is, scenario by scenario, and what rules and programs reach there.

All are played on the same episodes, which neither training nor evaluation uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import CPUS
from sponge_env.encoding import JOINT
from sponge_env.errors import ConfigError
from sponge_env.factory import make_system
from sponge_env.results.schema import EpisodeMetrics
from sponge_env.run.executor import Failure, Processes
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT
from sponge_env.vector.simulator import BatchSimulator

from ..guard import Range
from ..history import FloatMatrix
from ..policy import Policy
from ..stepwise import REPLICAS_MOST, PolicyState

FEW_VIOLATIONS = 0.001
"""Share of the requests that may be violated where cores decide who is best."""
PROGRAM = "sponge-joint"
"""What a policy is compared with beside fixed allocations."""
_FIXED_BATCHES = (1, 4, 8, 16)
_LOOKED_AT, _FINALISTS = 4, 8
"""Episodes on which fixed allocations are looked for, and how many of them then play all."""
_AT_ONCE = 2048
"""Episodes of fixed allocations that are played together, about."""

Decide = Callable[[FloatMatrix], IntArray]
"""From (n, fields) joint observations to (n, 3) cores, batch sizes and replicas."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a controller reaches in each scenario, (scenarios,) each: means over the episodes."""

    cores: FloatArray
    violation_rate: FloatArray
    """Avoidable violations, as a share of all requests."""
    input_range: FloatMatrix | None = None
    """(2, inputs) least and most of each input of a policy."""


class Judge:
    """Plays policies on so many episodes of each scenario, always the same."""

    def __init__(
        self, scenarios: Sequence[Scenario], episodes: int, first_seed: int = SEED_LIMIT
    ) -> None:
        self._count = len(scenarios)
        self._seeds = first_seed + np.repeat(np.arange(episodes), self._count)
        assigned = np.tile(np.arange(self._count), episodes)
        self._simulator = BatchSimulator(
            scenarios, assigned, replicas_max=REPLICAS_MOST, obs_dim=JOINT.obs_dim
        )
        self._specs = [self._simulator.specs[k] for k in assigned.tolist()]

    def __call__(self, policy: Policy) -> Judgement:
        """Play a policy."""
        state, seen = PolicyState(self._specs, policy.info.every), Range(len(policy.info.inputs))

        def decides(observations: FloatMatrix) -> IntArray:
            state.see(observations)
            seen.widen(state.seen[~self._simulator.over])
            return state.choose(policy.logits(state.seen), policy.sizes)

        return replace(self.play(decides), input_range=seen.ends)

    def play(self, decides: Decide) -> Judgement:
        """Play whatever decides for all episodes at once."""
        ended = _ends(self._simulator, self._seeds, decides)
        return _judgement(ended.reshape(4, -1, self._count).sum(axis=1))


def _ends(simulator: BatchSimulator, seeds: IntArray, decides: Decide) -> FloatArray:
    """Play (n,) episodes to their ends.

    Returned are (4, n) sums: cores, avoidable violations, requests, intervals. After a warm start
    whatever ends in an interval that counts does so, unlike in an evaluation, where a request
    does that arrives in one.
    """
    skipped = np.array([round(s.count_from_s / s.interval_s) for s in simulator.scenarios])
    skipped = skipped[simulator.assignment]
    observations = np.zeros((len(seeds), JOINT.obs_dim), np.float32)
    simulator.reset(np.ones(len(seeds), np.bool_), seeds, observations)
    sums = np.zeros((4, len(seeds)))
    while not simulator.over.all():
        running = ~simulator.over
        observations, metrics = simulator.step(decides(observations))
        counts = running & (simulator.episode_intervals > skipped)
        names = "cores", "avoidable_violations", "offered"
        sums += counts * np.array([*(metrics[name] for name in names), counts])
    sums[1] += simulator.drain()["avoidable_violations"]
    return sums


def _judgement(sums: FloatArray) -> Judgement:
    """Return the means of (4, ...) sums over episodes."""
    cores, violations, offered, intervals = sums
    return Judgement(cores / intervals, violations / np.maximum(1, offered))


@cache
def best_rules(
    scenarios: tuple[Scenario, ...], episodes: int, first_seed: int = SEED_LIMIT
) -> Judgement:
    """Return what the best of a program and of all fixed allocations reaches in each scenario.

    The best has the least :func:`cost`; where the program has few violations, it is the program.
    Fixed allocations are looked for on a few episodes, and the finalists play all.
    """
    program = program_alone(scenarios, episodes, first_seed)
    missed = np.flatnonzero(program.violation_rate > FEW_VIOLATIONS)
    if not missed.size:
        return program
    some = [scenarios[k] for k in missed.tolist()]
    fixed = _best_fixed(some, episodes, first_seed)
    cores, rates = program.cores.copy(), program.violation_rate.copy()
    better = cost(fixed) < cost(program)[missed]
    cores[missed] = np.where(better, fixed.cores, cores[missed])
    rates[missed] = np.where(better, fixed.violation_rate, rates[missed])
    return Judgement(cores, rates)


def cost(found: Judgement) -> FloatArray:
    """Return (scenarios,) cores, as many times as violations are more than few."""
    times: FloatArray = found.cores * np.maximum(1.0, found.violation_rate / FEW_VIOLATIONS)
    return times


def _best_fixed(scenarios: Sequence[Scenario], episodes: int, first_seed: int) -> Judgement:
    """Return the best fixed allocation of each scenario."""
    limits = scenarios[0].limits
    replicas = range(1, min(REPLICAS_MOST, limits.replicas) + 1)
    sizes = [size for size in _FIXED_BATCHES if size <= limits.batch]
    asked = product(range(1, limits.cores + 1), sizes, replicas)
    rows = np.array([row for row in asked if row[0] * row[2] <= limits.machine_cores])
    look = play_fixed(scenarios, rows, min(episodes, _LOOKED_AT), first_seed)
    finalists = np.unique(cost(look).argsort(axis=0, kind="stable")[:_FINALISTS])
    played = play_fixed(scenarios, rows[finalists], episodes, first_seed)
    best = cost(played).argmin(axis=0), np.arange(len(scenarios))
    return Judgement(played.cores[best], played.violation_rate[best])


def play_fixed(
    scenarios: Sequence[Scenario], rows: IntArray, episodes: int, first_seed: int
) -> Judgement:
    """Return (rows, scenarios) results of (rows, 3) allocations that stay as they are."""
    each = len(scenarios) * episodes
    assigned = np.tile(np.arange(len(scenarios)), episodes)
    seeds = first_seed + np.repeat(np.arange(episodes), len(scenarios))
    sums = []
    for some in np.array_split(rows, -(-len(rows) * each // _AT_ONCE)):
        simulator = BatchSimulator(
            scenarios,
            np.tile(assigned, len(some)),
            replicas_max=REPLICAS_MOST,
            obs_dim=JOINT.obs_dim,
        )
        with closing(simulator):
            decides = always(np.repeat(some, each, axis=0))
            ended = _ends(simulator, np.tile(seeds, len(some)), decides)
        sums.append(ended.reshape(4, len(some), episodes, len(scenarios)).sum(axis=2))
    return _judgement(np.concatenate(sums, axis=1))


def always(asked: IntArray) -> Decide:
    """Return what asks for the same (n, 3) allocations whatever it sees."""
    return lambda observations: asked


@cache
def program_alone(
    scenarios: tuple[Scenario, ...], episodes: int, first_seed: int = SEED_LIMIT
) -> Judgement:
    """Return what the program reaches; its episodes are shared out among the CPUs."""
    seeds = range(first_seed, first_seed + episodes)
    tasks = list(product(scenarios, seeds))
    found: dict[tuple[Scenario, int], EpisodeMetrics] = {}
    with closing(Processes(min(CPUS, len(tasks))).run(_episode, tasks)) as results:
        for task, result in results:
            if isinstance(result, Failure):
                said = f"{result.type}: {result.message}"
                raise ConfigError(f"{PROGRAM} failed on {task[0].name} ({said})")
            found[task] = result
    played = [[found[scenario, seed] for seed in seeds] for scenario in scenarios]
    return Judgement(
        np.array([np.mean([one.mean_cores for one in each]) for each in played]),
        np.array([_rate(each) for each in played]),
    )


def _episode(task: tuple[Scenario, int]) -> EpisodeMetrics:
    scenario, seed = task
    controller = make_controller(PROGRAM, known_controllers())
    run = Run.of(PROGRAM, scenario, "sim", seed)
    return run_episode(make_system(scenario, seed), controller, run).summary


def _rate(played: Sequence[EpisodeMetrics]) -> float:
    offered = sum(one.offered for one in played)
    violations = sum(one.avoidable_violation_rate * one.offered for one in played)
    return violations / max(1, offered)
