"""Below what no controller of several stages or variants can go, and what nobody need attain.

Each stage is taken by itself, as an episode of one stage: a task comes when the stages before it
have taken their shortest time, it is due when those after it need theirs, each batch runs with
whichever variant is the fastest, and the lower side of joint scaling (``fluid.py``) says what
that costs. ``docs/oracle.md`` has the proof.

How many tasks a request has is known in advance, for a fan-out does not depend on how a
controller serves. When they come is not; but none comes before the stages that lead to it have
taken their shortest time, and where others must follow, these need theirs before the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import entry_point
from sponge_env.core.rng import FAN_OUT, mixed_uniform, next_uint64, seed_stream
from sponge_env.errors import ConfigError
from sponge_env.interfaces import FloatArray, SystemSpec
from sponge_env.oracle.episode import (
    SLACK_S,
    KnownEpisode,
    check_known,
    fastest_service,
    known_episode,
)
from sponge_env.oracle.fluid import LEVELS, Fluid, fluid, least_fluid_cost
from sponge_env.scenario.config import Arrivals, Initial, Stage
from sponge_env.scenario.graph import predecessors
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile, stage_profiles
from sponge_env.simulation.workload import Workload, draw_workload

PRICES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""What a task left out costs, in cores held for an interval; any price gives a bound."""

START_SHARES = (1.0, 0.5, 0.0)
"""Parts of the cores of a cold start that are charged; any part gives a bound."""


@dataclass(frozen=True, slots=True)
class RelaxedStage:
    """What one stage costs."""

    priced: tuple[tuple[float, float], ...]
    """Prices of a task left out, and the least cost at each, in cores held for an interval."""
    most_tasks: IntArray
    """(answerable requests + 1,) the most tasks that so many requests have here."""

    def core_intervals(self, left_out: int) -> float:
        """Return the least where at most so many of the requests are left out."""
        tasks = self.most_tasks[min(max(0, left_out), self.most_tasks.size - 1)]
        return max(cost - price * float(tasks) for price, cost in self.priced)


@dataclass(frozen=True, slots=True)
class Relaxation:
    """One-sided bounds of an episode, each by itself: no schedule need attain any of them."""

    offered: int
    """Requests that count."""
    violations_lower: int
    """Requests that nobody can answer in time; every controller has so many violations."""
    accuracy_upper: float
    """No controller has a larger effective accuracy, whatever its cores."""
    stages: tuple[RelaxedStage, ...]
    interval_s: float

    def core_seconds(self, violations: int) -> float:
        """Return what every controller with at most so many violations holds at least."""
        left_out = violations - self.violations_lower
        return self.interval_s * sum(stage.core_intervals(left_out) for stage in self.stages)

    def beyond(self, share: float) -> int:
        """Return the fewest violations and so many more, per request."""
        return min(self.offered, self.violations_lower + math.ceil(share * self.offered))


def relaxation(scenario: Scenario, seed: int, profile: Profile | None = None) -> Relaxation:
    """Bound what any controller of a scenario with stages or variants can reach in an episode.

    Raises:
        SpongeError: The scenario or profile cannot be used.
    """
    check_known(scenario)
    profile = scenario_profile(scenario) if profile is None else profile
    workload, models = draw_workload(scenario, profile, seed), models_of(scenario, profile)
    fastest_s = [model.service["fastest_s"] for model in models]
    tasks = draw_tasks(scenario.pipeline, workload, fastest_s, seed)
    end_s = scenario.intervals * scenario.interval_s
    counted = (workload.arrival_s >= scenario.count_from_s) & (workload.arrival_s <= end_s)
    answerable = counted & np.all([each.in_time(each.fastest_s) for each in tasks], axis=0)
    episodes = [
        model.episode(own, answerable, seed) for model, own in zip(models, tasks, strict=True)
    ]
    return Relaxation(
        offered=int(counted.sum()),
        violations_lower=int(counted.sum() - answerable.sum()),
        accuracy_upper=_accuracy(scenario, models, tasks, answerable) / max(1, int(counted.sum())),
        stages=tuple(
            _relaxed(e, own.tasks[answerable], share)
            for e, own, share in zip(episodes, tasks, full_costs(scenario, models), strict=True)
        ),
        interval_s=scenario.interval_s,
    )


@dataclass(frozen=True)
class LoneStage:
    """One stage by itself."""

    scenario: Scenario
    """Of this stage only, with nothing sent."""
    variants: tuple[Profile, ...]

    @cached_property
    def service(self) -> dict[str, Any]:
        """What is known about the service of whichever variant is the fastest."""
        return fastest_service(self.scenario, self.variants)

    @property
    def longest_s(self) -> float:
        """Longest time that a batch takes."""
        each = (fastest_service(self.scenario, [variant]) for variant in self.variants)
        return max(float(service["work_s"].max()) for service in each)

    def episode(self, tasks: StageTasks, answerable: NDArray[np.bool_], seed: int) -> KnownEpisode:
        """Return an episode that offers the tasks of the answerable requests."""
        count = np.where(answerable, tasks.tasks, 0)
        due_s, slo_s = np.repeat(tasks.due_s, count), self.scenario.slo_s
        release_s = np.repeat(tasks.release_s, count)
        number = np.arange(due_s.size)
        workload = Workload(number, due_s - slo_s, release_s, due_s, np.zeros(due_s.size))
        e = known_episode(self.scenario, self.variants[0], seed, workload)
        e = e._replace(**self.service)
        # A batch that takes longer than the longest window answers nothing in time.
        fits = e.shortest_s <= (due_s - release_s).max(initial=0.0) + SLACK_S
        most = max(1, int(fits.sum()))
        return e._replace(batch_max=most, padded_s=e.padded_s[:most])


def models_of(scenario: Scenario, profile: Profile) -> list[LoneStage]:
    """Return the stages of a scenario one by one."""
    spec, profiles = make_spec(scenario, profile), stage_profiles(scenario, profile)
    return [LoneStage(_alone(scenario, k, spec), own) for k, own in enumerate(profiles)]


def _alone(scenario: Scenario, k: int, spec: SystemSpec) -> Scenario:
    """Return the scenario of a stage by itself, on what the others leave of the machine."""
    stage, cold_start_s = scenario.pipeline[k], spec.stages[k].cold_start_s
    machine = scenario.limits.machine_cores - (len(scenario.pipeline) - 1)
    cores = min(stage.limits.cores, machine)
    return Scenario(
        name=scenario.name,
        profile=stage.variants[0].profile,
        slo_s=scenario.slo_s,
        interval_s=scenario.interval_s,
        duration_s=scenario.duration_s,
        start=scenario.start,
        warmup_s=scenario.warmup_s,
        limits=replace(stage.limits, cores=cores, total_cores=machine),
        initial=Initial(replicas=min(stage.initial.replicas, machine)),
        arrivals=Arrivals(rate_rps=1.0),
        serving=scenario.serving,
        simulation=replace(scenario.simulation, cold_start_s=cold_start_s),
    )


def _accuracy(
    scenario: Scenario,
    models: Sequence[LoneStage],
    tasks: Sequence[StageTasks],
    answerable: NDArray[np.bool_],
) -> float:
    """Return the largest sum of accuracies: in each stage the best variant that is in time."""
    product = answerable.astype(np.float64)
    for stage, model, own in zip(scenario.pipeline, models, tasks, strict=True):
        best = np.zeros(product.size)
        for variant, profile in zip(stage.variants, model.variants, strict=True):
            alone_s = fastest_service(model.scenario, [profile])["fastest_s"]
            best = np.where(own.in_time(alone_s), np.maximum(best, variant.accuracy), best)
        product *= np.where(own.tasks > 0, best, 1.0)
    return float(product.sum())


def full_costs(scenario: Scenario, models: Sequence[LoneStage]) -> list[int]:
    """Return the parts that stages have in the least cores held while one has too few.

    A stage has fewer cores than asked for only while those that are free would not give each of
    its replicas one more. A replica that drains is gone an interval later, if no batch takes
    longer; else it is only known that all together have as many cores as are free.
    """
    count, machine = len(models), scenario.limits.machine_cores
    if count == 1:
        return [LEVELS]
    if any(model.service["quota"] for model in models):
        raise ConfigError(
            "no bound is known of several stages under CPU quotas; set simulation.service = "
            "'profile'"
        )
    most = max(model.scenario.limits.replicas for model in models)
    short = all(model.longest_s <= scenario.interval_s for model in models)
    held = max(count, machine - most + 1 if short else (machine + count) // 2)
    return [held // count] * count


def _relaxed(e: KnownEpisode, tasks: IntArray, full_cost: int) -> RelaxedStage:
    """Bound one stage whose requests have so many tasks each."""
    replicas = min(e.replicas_max, int(e.models["initial"]["replicas"][0]))
    priced = [(0.0, float(e.cores_count.sum()))]  # a stage holds a core all the time
    path = np.zeros(e.intervals, np.int64)
    for f, price in product(_fluids(fluid(e, replicas), e.batch_max, full_cost), PRICES):
        priced.append((price, float(least_fluid_cost(f._replace(violation=price), path))))
    return RelaxedStage(tuple(priced), np.append(0, np.cumsum(np.sort(tasks)[::-1])))


def _fluids(f: Fluid, batch_max: int, full_cost: int) -> Iterator[Fluid]:
    """Return relaxations of a stage that shares a machine."""
    if full_cost >= LEVELS:
        yield f
        return
    f = f._replace(mixed=f.mixed[:, :, :0].copy(), last_batch=np.array([float(batch_max)]))
    for share in START_SHARES:
        cost_max = full_cost - math.ceil(share * (f.replicas_max - 1))
        start = np.floor(share * np.maximum(0, f.start - 1)).astype(np.int64)
        if cost_max > 0:
            yield f._replace(cost_max=cost_max, start=start)


class StageTasks(NamedTuple):
    """The tasks of all requests in one stage."""

    tasks: IntArray
    """(requests,) how many each has."""
    release_s: FloatArray
    """(requests,) no task of the request comes sooner."""
    due_s: FloatArray
    """(requests,) when all of them must be done if the request is to be answered in time."""
    fastest_s: float
    """Shortest service of a task."""

    def in_time(self, service_s: float) -> NDArray[np.bool_]:
        """Return (requests,) whether a task that takes so long can be done, if there is one."""
        least_s = np.where(self.tasks > 0, service_s - SLACK_S, -np.inf)
        in_time: NDArray[np.bool_] = self.due_s - self.release_s >= least_s
        return in_time


def draw_tasks(
    stages: Sequence[Stage], workload: Workload, fastest_s: Sequence[float], seed: int
) -> list[StageTasks]:
    """Return the tasks in each stage, whose shortest services are ``fastest_s``."""
    leads, requests = predecessors(stages), workload.arrival_s.size
    count, release_s = [np.ones(requests, np.int64)], [workload.arrival_s]
    led: list[IntArray] = []
    least: list[IntArray] = []
    for k, stage in enumerate(stages):
        if k:
            here, from_s = _joined(leads[k], count, led, release_s, fastest_s)
            count.append(here)
            release_s.append(from_s)
        total, fewest = np.zeros((2, requests), np.int64)
        words = np.zeros(4, np.uint64)
        _fan_out(seed, k, count[k], np.cumsum(stage.tasks)[:-1], words, total, fewest)
        led.append(total)
        least.append(fewest)
    rest_s = _rest_s(leads, count, least, fastest_s)
    return [
        StageTasks(count[k], release_s[k], workload.deadline_s - rest_s[k], fastest_s[k])
        for k in range(len(stages))
    ]


def _joined(
    leads: Sequence[int],
    count: Sequence[IntArray],
    led: Sequence[IntArray],
    release_s: Sequence[FloatArray],
    fastest_s: Sequence[float],
) -> tuple[IntArray, FloatArray]:
    """Return the tasks in a stage that follows others, and when they can come."""
    there = np.stack([count[i] > 0 for i in leads])
    ends_s = np.stack([release_s[i] + fastest_s[i] for i in leads])
    from_s: FloatArray = np.where(there, ends_s, 0.0).max(axis=0)
    if len(leads) > 1:
        return np.asarray(there.any(axis=0), np.int64), from_s
    return led[leads[0]], from_s


def _rest_s(
    leads: Sequence[tuple[int, ...]],
    count: Sequence[IntArray],
    least: Sequence[IntArray],
    fastest_s: Sequence[float],
) -> list[FloatArray]:
    """Return how long it takes at least from the end of any task in a stage to the answer."""
    rest_s = [np.zeros(count[0].size) for _ in leads]
    for k in range(len(leads) - 1, 0, -1):
        for i in leads[k]:
            # Where several lead, all of each must be done; else each task must lead to some.
            certain = (count[k] > 0) & (count[i] > 0) & ((len(leads[k]) > 1) | (least[i] > 0))
            rest_s[i] = np.where(
                certain, np.maximum(rest_s[i], rest_s[k] + fastest_s[k]), rest_s[i]
            )
    return rest_s


@entry_point
def _fan_out(
    seed: int,
    stage: int,
    count: IntArray,
    ends: FloatArray,
    words: NDArray[np.uint64],
    total: IntArray,
    least: IntArray,
) -> None:
    """Draw to how many tasks those of a stage lead.

    Write for each request the sum and the fewest that one of its tasks leads to.
    """
    seed_stream(words, seed, FAN_OUT)
    key = int(next_uint64(words))
    for row in range(count.size):
        for task in range(count[row]):
            drawn, tasks = mixed_uniform(key, row, stage, task), 0
            while tasks < ends.size and ends[tasks] <= drawn:
                tasks += 1
            total[row] += tasks
            least[row] = tasks if task == 0 else min(least[row], tasks)
