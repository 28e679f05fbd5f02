"""How good a policy is, scenario by scenario, and what rules and programs reach there.

All are played on the same episodes, which neither training nor evaluation uses.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import CPUS
from sponge_env.env.factory import make_system
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.run.executor import Executor, Failure, Inline, Processes, Work
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.store import code_fingerprint, fingerprint, scenario_fingerprint
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.utils.files import cache_dir, parsed, read_text, write_json

from ..guard import Range
from ..history import BATCH_TIMES, FloatMatrix, batch_times_of, layout_of
from ..policy import Policy, reading
from ..stepwise import REPLICAS_MOST, PolicyState
from .systems import Spending, simulator

FEW_VIOLATIONS = 0.001
"""Share of the requests that may be violated where cores decide who is best."""
TOLERANCE = 1e-4
"""Share of the requests by which violations may exceed a rule's and still count as no more."""
JOINT_PROGRAMS = "sponge-joint", "sponge-mpc"
"""What a policy is compared with beside fixed allocations, and learns from."""
VERTICAL_PROGRAMS = ("sponge-mpc",)
"""The same of a policy that keeps one replica."""
_FIXED_BATCHES = (1, 4, 8, 16)
_FIXED_MOST = 4096
"""Fixed allocations up to which all are looked at."""
LOOKED_AT = 12
"""Episodes on which the best program is looked for."""
_FIXED_LOOKED_AT, _FINALISTS = 4, 8
"""Episodes on which fixed allocations are looked for, and how many of them then play all."""
_AT_ONCE = 512
"""Episodes of fixed allocations that are played together, about."""

Decide = Callable[[FloatMatrix, FloatArray], IntArray]
"""From (n, fields) observations and the last interval's (n, 3) :data:`.history.BATCH_TIMES` to
(n, stages, 4) allocations, or (n, 3) of one model."""
Task = tuple[str, int, Scenario]
"""A program, and the seed and scenario of an episode."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a controller reaches in each scenario, (scenarios,) each if nothing else is said."""

    cores: FloatArray
    """Mean over all intervals, with what lost accuracy is worth, see :class:`.systems.Spending`."""
    violation_rate: FloatArray
    """Avoidable violations, as a share of all requests."""
    episode_rates: FloatArray
    """(episodes, scenarios) those of each episode, as a share of the requests of a mean one, so
    that their mean is the violation rate."""
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
        self._simulator = simulator(scenarios, assigned)
        self._specs = [self._simulator.specs[k] for k in assigned.tolist()]

    def __call__(self, policy: Policy) -> Judgement:
        """Play a policy."""
        info, policy = policy.info, reading(policy, layout_of(self._specs[0]).inputs)
        state, seen = PolicyState(self._specs, info.every, info.batches), Range(len(info.inputs))

        def decides(observations: FloatMatrix, batch_times: FloatArray) -> IntArray:
            state.see(observations, batch_times)
            shown = state.seen if policy.places is None else state.seen[:, policy.places]
            seen.widen(shown[~self._simulator.over])
            return state.choose(policy.logits(state.seen))

        return replace(self.play(decides), input_range=seen.ends)

    def play(self, decides: Decide) -> Judgement:
        """Play whatever decides for all episodes at once."""
        ended = _ends(self._simulator, self._seeds, decides)
        return judgement(ended.reshape(4, -1, self._count))


def _ends(played: BatchSimulator, seeds: IntArray, decides: Decide) -> FloatArray:
    """Play (n,) episodes to their ends.

    Returned are (4, n) sums: cores, avoidable violations, requests, intervals.
    """
    spending, assigned = Spending(played.scenarios), played.assignment
    first = played.specs[0]
    observations = np.zeros((len(seeds), len(layout_of(first).fields)), np.float32)
    played.reset(np.ones(len(seeds), np.bool_), seeds, observations)
    sums, batch_times = np.zeros((4, len(seeds))), np.zeros((len(seeds), len(BATCH_TIMES)))
    while not played.over.all():
        running = ~played.over
        observations, metrics = played.step(decides(observations, batch_times))
        batch_times = batch_times_of(metrics)
        names = "cores", "avoidable_violations", "offered"
        sums += (*(metrics[name] for name in names), running)
        sums[0] += spending.accuracy(metrics, assigned) / first.interval_s
    sums[1] += played.drain()["avoidable_violations"]
    return sums


def judgement(sums: FloatArray) -> Judgement:
    """Return the means of (4, ..., episodes, scenarios) sums, see :func:`best_rules`."""
    cores, violations, offered, intervals = sums.sum(axis=-2)
    requests = np.maximum(1, offered)
    each = sums[1] * (sums.shape[-2] / requests[..., None, :])
    return Judgement(cores / intervals, violations / requests, each)


def programs_for(scales_out: bool) -> tuple[str, ...]:
    """Return the programs that choose replicas, too, or none that do."""
    return JOINT_PROGRAMS if scales_out else VERTICAL_PROGRAMS


def known_rules(
    scales_out: bool,
    scenarios: tuple[Scenario, ...],
    episodes: int,
    measuring: Callable[[], None],
) -> tuple[FloatArray, list[str]]:
    """Return the :func:`best_rules` and :func:`best_programs`, as they were found before if so.

    They take minutes, and trainings that differ in their seeds are compared with the same; so what
    was found is kept in the user's cache, for as long as no line of code changes. ``measuring`` is
    called before it is found anew.
    """
    names = [scenario_fingerprint(scenario) for scenario in scenarios]
    asked = {"scales_out": scales_out, "scenarios": names, "episodes": episodes}
    key = fingerprint({"rules": asked, "code": code_fingerprint()})
    kept = cache_dir() / "rules" / f"{key}.json"
    shape = 4, episodes, len(scenarios)
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        found = parsed(json.loads, read_text(kept))
        sums, programs = np.array(found["sums"], np.float64), [*map(str, found["programs"])]
        if sums.shape == shape and len(programs) == len(scenarios) and np.isfinite(sums).all():
            return sums, programs
    measuring()
    sums = best_rules(scales_out, scenarios, episodes)
    programs = best_programs(scales_out, scenarios, min(episodes, LOOKED_AT))
    with contextlib.suppress(SpongeError):  # without a cache the next training measures again
        write_json(kept, {"sums": sums.tolist(), "programs": programs})
    return sums, programs


@cache
def best_rules(
    scales_out: bool,
    scenarios: tuple[Scenario, ...],
    episodes: int,
    first_seed: int = SEED_LIMIT,
    looked_at: int = LOOKED_AT,
) -> FloatArray:
    """Return what the best of the programs and of fixed allocations reaches in each scenario.

    The best has the least :func:`cost`; where a program has few violations, it is a program, and
    no fixed allocation is that misses more. Programs are chosen on ``looked_at`` episodes, fixed
    allocations on fewer; those chosen play all. There is one replica unless it ``scales_out``.
    Returned are (4, episodes, scenarios) sums: cores, avoidable violations, requests, intervals.
    """
    programs = programs_for(scales_out)
    chosen = best_programs(scales_out, scenarios, min(episodes, looked_at), first_seed)
    best = np.empty((4, episodes, len(scenarios)))
    for program in programs:
        own = [k for k, name in enumerate(chosen) if name == program]
        if own:
            some = tuple(scenarios[k] for k in own)
            best[..., own] = program_alone(program, some, episodes, first_seed)
    played = judgement(best)
    missed = np.flatnonzero(played.violation_rate > FEW_VIOLATIONS)
    if missed.size:
        some = tuple(scenarios[k] for k in missed.tolist())
        rows = fixed_allocations(scenarios[0], REPLICAS_MOST if scales_out else 1)
        fixed = _best_fixed(some, rows, played.violation_rate[missed], episodes, first_seed)
        found = judgement(fixed)
        better = cost(found) < cost(played)[missed]
        better &= found.violation_rate <= played.violation_rate[missed]
        best[..., missed] = np.where(better, fixed, best[..., missed])
    return best


def best_programs(
    scales_out: bool,
    scenarios: tuple[Scenario, ...],
    episodes: int = LOOKED_AT,
    first_seed: int = SEED_LIMIT,
) -> list[str]:
    """Return the program with the least cost in each scenario, on so many episodes."""
    programs = programs_for(scales_out)
    if len(programs) == 1:
        return list(programs) * len(scenarios)
    played = scenarios, episodes, first_seed
    costs = [cost(judgement(program_alone(program, *played))) for program in programs]
    return [programs[place] for place in np.argmin(costs, axis=0)]


def cost(found: Judgement) -> FloatArray:
    """Return (scenarios,) cores, as many times as violations are more than few."""
    times: FloatArray = found.cores * np.maximum(1.0, found.violation_rate / FEW_VIOLATIONS)
    return times


def _best_fixed(
    scenarios: Sequence[Scenario],
    rows: IntArray,
    most: FloatArray,
    episodes: int,
    first_seed: int,
) -> FloatArray:
    """Return (4, episodes, scenarios) sums of the best of some fixed allocations for each scenario.

    If there is one it misses no more than (scenarios,) shares: by its cost alone, one core that
    serves nobody would be the best under a hopeless load.
    """

    def costs(sums: FloatArray) -> FloatArray:
        found = judgement(sums)
        return np.where(found.violation_rate <= most, cost(found), np.inf)

    look = play_fixed(scenarios, rows, min(episodes, _FIXED_LOOKED_AT), first_seed)
    finalists = np.unique(costs(look).argsort(axis=0, kind="stable")[:_FINALISTS])
    played = play_fixed(scenarios, rows[finalists], episodes, first_seed)
    best = costs(played).argmin(axis=0)
    return np.stack([played[:, row, :, k] for k, row in enumerate(best)], axis=-1)


def fixed_allocations(scenario: Scenario, replicas: int) -> IntArray:
    """Return (rows, stages, 4) allocations that find room, of so many replicas a stage at most.

    They are all that there are of some batch sizes, or where these are too many, so many that are
    drawn at random.
    """
    each = []
    for stage in scenario.pipeline:
        limits = stage.limits
        sizes = sorted({*(size for size in _FIXED_BATCHES if size < limits.batch), limits.batch})
        held = range(1, min(replicas, limits.replicas) + 1)
        variants = range(len(stage.variants))
        each.append(np.array([*product(range(1, limits.cores + 1), sizes, held, variants)]))
    if math.prod(map(len, each)) <= _FIXED_MOST:
        rows = np.array([*product(*each)])
    else:
        random = np.random.default_rng(0)
        drawn = [np.append(0, random.integers(len(own), size=_FIXED_MOST)) for own in each]
        rows = np.stack([own[k] for own, k in zip(each, drawn, strict=True)], axis=1)
    held_cores = (rows[..., 0] * rows[..., 2]).sum(axis=1)
    found: IntArray = rows[held_cores <= scenario.limits.machine_cores]
    return found


def play_fixed(
    scenarios: Sequence[Scenario], rows: IntArray, episodes: int, first_seed: int
) -> FloatArray:
    """Return (4, rows, episodes, scenarios) sums of allocations that stay as they are.

    They are (rows, stages, 4), or (rows, 3) of one model.
    """
    each = len(scenarios) * episodes
    assigned = np.tile(np.arange(len(scenarios)), episodes)
    seeds = first_seed + np.repeat(np.arange(episodes), len(scenarios))
    sums = []
    parts = min(len(rows), -(-len(rows) * each // _AT_ONCE))
    for some in np.array_split(rows, parts):
        with closing(simulator(scenarios, np.tile(assigned, len(some)))) as played:
            decides = always(np.repeat(some, each, axis=0))
            ended = _ends(played, np.tile(seeds, len(some)), decides)
        sums.append(ended.reshape(4, len(some), episodes, len(scenarios)))
    return np.concatenate(sums, axis=1)


def always(asked: IntArray) -> Decide:
    """Return what asks for the same (n, 3) allocations whatever it sees."""
    return lambda observations, batch_times: asked


@cache
def program_alone(
    program: str, scenarios: tuple[Scenario, ...], episodes: int, first_seed: int = SEED_LIMIT
) -> FloatArray:
    """Return what a program reaches, as :func:`best_rules` does.

    Its episodes are shared out to as many processes as there are CPUs, so that a script which
    calls this needs ``if __name__ == "__main__":``.
    """
    seeds = range(first_seed, first_seed + episodes)
    found = everywhere(_episode, list(product([program], seeds, scenarios)))
    return np.array(found).T.reshape(4, episodes, len(scenarios))


def everywhere(work: Work, tasks: Sequence[Task]) -> list[Any]:
    """Return what came of work with programs in episodes, in their order.

    They are shared out to as many processes as there are CPUs.
    """
    alone = multiprocessing.current_process().daemon  # which may have no processes of its own
    executor: Executor = Inline() if alone else Processes(min(CPUS, len(tasks)))
    found: dict[Task, Any] = {}
    with closing(executor.run(work, tasks)) as results:
        for task, result in results:
            if isinstance(result, Failure):
                raise ConfigError(_why(task, result))
            found[task] = result
    return [found[task] for task in tasks]


def _why(task: Task, failure: Failure) -> str:
    """Say what went wrong where a program plays, or shows what it would do."""
    program, _, scenario = task
    if failure.type == "ProcessDied":
        return (
            f"{program} plays in processes of its own, and one of them died ({failure.message}); "
            'a script that trains needs if __name__ == "__main__":'
        )
    return f"{program} failed on {scenario.name} ({failure.type}: {failure.message})"


def _episode(task: Task) -> tuple[float, float, float, float]:
    """Return cores, avoidable violations, requests and intervals, these in seconds."""
    program, seed, scenario = task
    controller = make_controller(program, known_controllers())
    run = Run.of(program, scenario, "sim", seed)
    played = run_episode(make_system(scenario, seed), controller, run)
    one, from_s = played.summary, scenario.count_from_s + 1e-9
    counted = [each for each in played.intervals if each.time_s > from_s]
    spent = one.core_seconds + Spending([scenario]).of_episode(counted)
    return spent, one.avoidable_violation_rate * one.offered, one.offered, one.duration_s
