"""The best constant in hindsight: the cheapest fixed allocation on the very episodes evaluated."""

import math
from collections.abc import Sequence
from contextlib import closing
from itertools import product

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import StageAllocation, SystemSpec
from sponge_env.metrics import MET
from sponge_env.packing import places
from sponge_env.scenario.config import Initial
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.memory import ledger_columns
from sponge_env.simulation.summary import VIOLATIONS, rate
from sponge_env.simulation.workload import Workload, draw_workload

_AT_ONCE = 16  # Episodes that are played side by side: each keeps all of its requests


def constants(spec: SystemSpec) -> list[list[StageAllocation]]:
    """Return all fixed fleets of a single model, else raise ConfigError; by cores, fewest first."""
    if not spec.is_one_model:
        raise ConfigError("the best constant in hindsight is known for one stage and one model")
    limits, fleets = spec.first, dict[int, list[StageAllocation]]()
    pairs = product(range(1, limits.replicas_max + 1), range(1, limits.cores_max + 1))
    for replicas, cores in pairs:
        if replicas <= places(spec.nodes, cores):
            own = fleets.setdefault(replicas * cores, [])
            own += [StageAllocation(cores, b, replicas) for b in range(1, limits.batch_max + 1)]
    return [fleets[total] for total in sorted(fleets)]


def best_constant(scenario: Scenario, profile: Profile, seeds: Sequence[int]) -> StageAllocation:
    """Return the fixed fleet with the fewest cores that meets the objective on some episodes.

    It is the same fleet in all episodes; of several with equally few cores, the one with the fewest
    avoidable violations. If none meets the objective, it is the one with the fewest of all.
    """
    first = list[tuple[float, StageAllocation]]()
    for fleets in constants(make_spec(scenario, profile)):
        rates, left = np.zeros(len(fleets)), np.arange(len(fleets))
        for seed in seeds:  # later ones only add to the mean: a fleet beyond the limit is out
            own = _rates(scenario, profile, [fleets[k] for k in left.tolist()], seed)
            if seed == seeds[0]:
                first += zip(own.tolist(), fleets, strict=True)
            rates[left] += own / len(seeds)
            left = np.flatnonzero(rates <= MET)
            if not left.size:
                break
        if left.size:
            return fleets[int(left[np.argmin(rates[left])])]
    unmet, fewest = first[0][1], math.inf
    for rate_of_first, fleet in sorted(first):
        if rate_of_first / len(seeds) >= fewest:  # whatever it misses in the others
            break
        others = [float(_rates(scenario, profile, [fleet], seed)[0]) for seed in seeds[1:]]
        if (total := (rate_of_first + sum(others)) / len(seeds)) < fewest:
            unmet, fewest = fleet, total
    return unmet


def _rates(
    scenario: Scenario, profile: Profile, fleets: Sequence[StageAllocation], seed: int
) -> FloatArray:
    """Return (fleets,) shares of avoidable violations in an episode, as results have them."""
    workload, own = draw_workload(scenario, profile, seed), [scenario] * len(fleets)
    if scenario.start == "warm":
        own = [scenario.starting_with([Initial(*fleet)]) for fleet in fleets]
    parts = [slice(begin, begin + _AT_ONCE) for begin in range(0, len(own), _AT_ONCE)]
    return np.concatenate([_played(own[part], workload, fleets[part], seed) for part in parts])


def _played(
    scenarios: Sequence[Scenario], workload: Workload, held: Sequence[StageAllocation], seed: int
) -> FloatArray:
    count, actions, found = len(held), np.array(held)[:, None], []
    simulator = BatchSimulator(scenarios, np.arange(count), workloads=[workload] * count)
    with closing(simulator) as batch:
        for _ in batch.play(np.full(count, seed), lambda _: actions):
            pass
        batch.drain()
        for arrays, scenario in zip(map(batch.only, range(count)), scenarios, strict=True):
            columns = ledger_columns(arrays, workload.first(int(arrays.envs["sent"][0]) - 1))
            counts = columns["arrival_s"] >= scenario.count_from_s
            lost = counts & np.isin(columns["outcome"], VIOLATIONS) & ~columns["hopeless"]
            found.append(rate(lost, counts))
    return np.array(found)
