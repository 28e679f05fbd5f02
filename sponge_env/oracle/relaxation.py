"""Below what no controller of several stages or variants can go, and what nobody need attain.

Each stage is taken by itself, as an episode of one stage: a task comes when the stages before it
have taken their shortest time, it is due when those after it need theirs, each batch runs with
whichever variant is the fastest, and the lower side of joint scaling (``fluid.py``) says what
that costs. How many tasks a request has is known in advance, for a fan-out does not depend on how
a controller serves. ``docs/oracle.md`` has the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import entry_point
from sponge_env.core.rng import FAN_OUT, mixed_uniform, next_uint64, seed_stream
from sponge_env.errors import ConfigError
from sponge_env.interfaces import FloatArray
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

# What a task left out costs, in cores held for an interval; any price gives a bound.
PRICES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
START_SHARES = (1.0, 0.5, 0.0)  # of the cores of a cold start that are charged; each gives a bound


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
    profile = profile or scenario_profile(scenario)
    workload, models = draw_workload(scenario, profile, seed), models_of(scenario, profile)
    fastest_s = [model.fastest_s for model in models]
    tasks = draw_tasks(scenario.pipeline, workload, fastest_s, seed)
    end_s = scenario.intervals * scenario.interval_s
    counted = (workload.arrival_s >= scenario.count_from_s) & (workload.arrival_s <= end_s)
    answerable = counted & np.all([each.in_time(each.fastest_s) for each in tasks], axis=0)
    episodes = [
        model.episode(own, answerable, seed) for model, own in zip(models, tasks, strict=True)
    ]
    # In each stage the most accurate variant that is in time.
    accuracies = answerable.astype(np.float64)
    for stage, model, own in zip(scenario.pipeline, models, tasks, strict=True):
        fits = [own.in_time(service["fastest_s"]) for service in model.services]
        best = np.max([each * v.accuracy for each, v in zip(fits, stage.variants, strict=True)], 0)
        accuracies *= np.where(own.tasks > 0, best, 1.0)
    return Relaxation(
        offered=int(counted.sum()),
        violations_lower=int(counted.sum() - answerable.sum()),
        accuracy_upper=float(accuracies.sum()) / max(1, int(counted.sum())),
        stages=tuple(
            _relaxed(e, own.tasks[answerable], share)
            for e, own, share in zip(episodes, tasks, full_costs(scenario, models), strict=True)
        ),
        interval_s=scenario.interval_s,
    )


class LoneStage:
    """One stage by itself, on what the others leave of the machine, with nothing sent."""

    def __init__(
        self, scenario: Scenario, stage: Stage, variants: Sequence[Profile], cold_start_s: float
    ) -> None:
        machine = scenario.limits.machine_cores - (len(scenario.pipeline) - 1)
        cores = min(stage.limits.cores, machine)
        self.scenario = replace(
            scenario,
            profile=stage.variants[0].profile,
            slo_services=None,
            classes=(),
            stages=(),
            limits=replace(stage.limits, cores=cores, total_cores=machine),
            initial=Initial(replicas=min(stage.initial.replicas, machine)),
            arrivals=Arrivals(rate_rps=1.0),
            simulation=replace(scenario.simulation, cold_start_s=cold_start_s),
        )
        self.variants = variants
        self.services = [fastest_service(self.scenario, [each]) for each in variants]
        """What is known about the service of each variant."""
        self.fastest_s: float = min(service["fastest_s"] for service in self.services)
        self.longest_s = max(float(service["work_s"].max()) for service in self.services)
        """Longest time that a batch takes."""

    def episode(self, tasks: StageTasks, answerable: NDArray[np.bool_], seed: int) -> KnownEpisode:
        """Return an episode that offers the tasks of the answerable requests."""
        count = np.where(answerable, tasks.tasks, 0)
        due_s, slo_s = np.repeat(tasks.due_s, count), self.scenario.slo_s
        release_s = np.repeat(tasks.release_s, count)
        number = np.arange(due_s.size)
        workload = Workload(number, due_s - slo_s, release_s, due_s, np.zeros(due_s.size))
        e = known_episode(self.scenario, self.variants, seed, workload)
        # A batch that takes longer than the longest window answers nothing in time.
        fits = e.shortest_s <= (due_s - release_s).max(initial=0.0) + SLACK_S
        most = max(1, int(fits.sum()))
        return e._replace(batch_max=most, padded_s=e.padded_s[:most])


def models_of(scenario: Scenario, profile: Profile) -> list[LoneStage]:
    """Return the stages of a scenario one by one."""
    profiles, spec = stage_profiles(scenario, profile), make_spec(scenario, profile)
    cold_starts_s = [each.cold_start_s for each in spec.stages]
    each = zip(scenario.pipeline, profiles, cold_starts_s, strict=True)
    return [LoneStage(scenario, *own) for own in each]


def full_costs(scenario: Scenario, models: Sequence[LoneStage]) -> list[int]:
    """Return the parts that stages have in the least cores held while one has too few.

    A stage has fewer cores than asked for only while those that are free would not give each of
    its replicas one more. A replica that drains is gone an interval later, if no batch takes
    longer; else it is only known that all together have as many cores as are free.
    """
    count, machine = len(models), scenario.limits.machine_cores
    if count == 1:
        return [LEVELS]
    if any(model.services[0]["quota"] for model in models):
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
    priced = [(0.0, float(e.cores_count.sum()))]  # a stage holds a core all the time
    for f, price in product(_fluids(fluid(e), e.batch_max, full_cost), PRICES):
        priced.append((price, float(least_fluid_cost(f._replace(violation=price)))))
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

    tasks: IntArray  # (requests,) how many each has
    release_s: FloatArray  # (requests,) no task of the request comes sooner
    # (requests,) when all of them must be done if the request is to be answered in time
    due_s: FloatArray
    fastest_s: float  # Shortest service of a task

    def in_time(self, service_s: float) -> NDArray[np.bool_]:
        """Return (requests,) whether a task that takes so long can be done, if there is one."""
        least_s = np.where(self.tasks > 0, service_s - SLACK_S, -np.inf)
        in_time: NDArray[np.bool_] = self.due_s - self.release_s >= least_s
        return in_time


def draw_tasks(
    stages: Sequence[Stage], workload: Workload, fastest_s: Sequence[float], seed: int
) -> list[StageTasks]:
    """Return the tasks in each stage, whose shortest services are ``fastest_s``."""
    requests, leads = workload.arrival_s.size, predecessors(stages)
    count, led, least = np.zeros((3, len(stages), requests), np.int64)
    release_s, rest_s = np.zeros((2, len(stages), requests))
    count[0], release_s[0] = 1, workload.arrival_s
    for k, stage in enumerate(stages):
        if own := list(leads[k]):
            there = count[own] > 0
            ends_s = release_s[own] + np.array(fastest_s)[own, None]
            release_s[k] = np.where(there, ends_s, 0.0).max(axis=0)
            count[k] = there.any(axis=0) if len(own) > 1 else led[own[0]]
        words = np.zeros(4, np.uint64)
        _fan_out(seed, k, count[k], np.cumsum(stage.tasks)[:-1], words, led[k], least[k])
    # How long it takes at least from the end of any task in a stage to the answer.
    for k in reversed(range(len(stages))):
        for i in leads[k]:
            # Where several lead, all of each must be done; else each task must lead to some.
            certain = (count[k] > 0) & (count[i] > 0) & ((len(leads[k]) > 1) | (least[i] > 0))
            longer_s = np.maximum(rest_s[i], rest_s[k] + fastest_s[k])
            rest_s[i] = np.where(certain, longer_s, rest_s[i])
    due_s = workload.deadline_s - rest_s
    return [StageTasks(*own) for own in zip(count, release_s, due_s, fastest_s, strict=True)]


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
