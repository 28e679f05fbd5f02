"""What each request of a pipeline has to do in every stage, and between which moments.

How many tasks a request has is known in advance, for a fan-out does not depend on how a
controller serves. When they come is not; but none comes before the stages that lead to it have
taken their shortest time, and where others must follow, these need theirs before the deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import entry_point
from sponge_env.core.rng import FAN_OUT, mixed_uniform, next_uint64, seed_stream
from sponge_env.interfaces import FloatArray
from sponge_env.oracle.episode import SLACK_S
from sponge_env.scenario.config import Stage
from sponge_env.scenario.graph import predecessors
from sponge_env.simulation.workload import Workload


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
