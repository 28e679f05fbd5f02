"""The best constant in hindsight: the cheapest fixed allocation on the very episodes evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.fields import OBS_DIM
from sponge_env.errors import ConfigError
from sponge_env.interfaces import StageAllocation, SystemSpec
from sponge_env.metrics import MET as MET
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec
from sponge_env.simulation.batch import BatchSimulator

_AT_ONCE = 512
"""Episodes that are played side by side."""


def constants(spec: SystemSpec) -> list[list[StageAllocation]]:
    """Return all fixed fleets of one stage, those of as many cores in all together, fewest first.

    Raises:
        ConfigError: The system has several stages or variants.
    """
    if len(spec.stages) > 1 or not spec.is_one_model:
        raise ConfigError("the best constant in hindsight is known for one stage and one model")
    limits, fleets = spec.first, dict[int, list[StageAllocation]]()
    for replicas, cores in product(
        range(1, limits.replicas_max + 1), range(1, limits.cores_max + 1)
    ):
        if replicas * cores <= spec.total_cores:
            own = fleets.setdefault(replicas * cores, [])
            own += [StageAllocation(cores, b, replicas) for b in range(1, limits.batch_max + 1)]
    return [fleets[total] for total in sorted(fleets)]


def best_constant(scenario: Scenario, profile: Profile, seeds: Sequence[int]) -> StageAllocation:
    """Return the fixed fleet with the fewest cores that meets the objective on some episodes.

    It is one for all of them. Of several with as few cores it is
    the one with the fewest avoidable violations. If none meets it, that is so over all fleets.
    """
    best, fewest = StageAllocation(1, 1, 1), np.inf
    for fleets in constants(make_spec(scenario, profile)):
        left, missed, offered = fleets, np.zeros(len(fleets)), 0.0
        # Further episodes only add violations, so those that are beyond the objective are left out.
        for first, last in ((0, 1), (1, len(seeds))):
            if not left or first == last:
                continue
            violations, requests = _play(scenario, left, seeds[first:last])
            missed, offered = missed + violations, offered + requests
            if last < len(seeds):
                few = missed <= max(MET * offered * len(seeds), missed.min())
                left = [fleet for fleet, kept in zip(left, few.tolist(), strict=True) if kept]
                missed = missed[few]
        at, rate = int(np.argmin(missed)), float(missed.min()) / max(1.0, offered)
        if rate < fewest:
            best, fewest = left[at], rate
        if fewest <= MET:
            break
    return best


def _play(
    scenario: Scenario, fleets: Sequence[StageAllocation], seeds: Sequence[int]
) -> tuple[FloatArray, float]:
    """Return (fleets,) avoidable violations of all seeds, and the requests of each fleet."""
    runs = [(k, seed) for k in range(len(fleets)) for seed in seeds]
    violations, offered = np.zeros(len(fleets)), 0.0
    for begin in range(0, len(runs), _AT_ONCE):
        fleet, seed = np.array(runs[begin : begin + _AT_ONCE]).T
        played = BatchSimulator([scenario], np.zeros(len(fleet), np.int64), threads=1)
        held = np.array(fleets)[fleet][:, None]
        unused = np.zeros((len(fleet), OBS_DIM), np.float32)
        played.reset(np.ones(len(fleet), np.bool_), seed, unused)
        counted_from = round(scenario.count_from_s / scenario.interval_s)
        for interval in range(scenario.intervals):
            _, metrics = played.step(held)
            if interval >= counted_from:
                np.add.at(violations, fleet, metrics["avoidable_violations"])
                offered += float(metrics["offered"].sum())
        np.add.at(violations, fleet, played.drain()["avoidable_violations"])
        played.close()
    return violations, offered / len(fleets)
