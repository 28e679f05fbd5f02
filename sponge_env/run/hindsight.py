"""The best constant in hindsight: the cheapest fixed allocation on the very episodes evaluated."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, combinations, product
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import StageAllocation, StageSpec, SystemSpec, fits
from sponge_env.metrics import MET
from sponge_env.packing import places
from sponge_env.scenario.config import Initial
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.memory import ledger_columns
from sponge_env.simulation.summary import VIOLATIONS, rate
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import Workload, draw_workload

_AT_ONCE = 16  # Episodes that are played side by side: each keeps all of its requests
_STEPS = (4, 2, 1)  # By how many cores a search of several stages tries to go down

Held = tuple[StageAllocation, ...]  # A fixed fleet of each stage
Rates = Callable[[Sequence[Held], int], FloatArray]  # Shares that some miss with a seed


def constants(spec: SystemSpec) -> list[list[Held]]:
    """Return all fixed fleets of a single model, else raise ConfigError; by cores, fewest first."""
    if not spec.is_one_model:
        raise ConfigError("the best constant in hindsight is known for stages without variants")
    fleets = dict[int, list[Held]]()
    for own in _fleets(spec.first):
        if own.replicas <= places(spec.nodes, own.cores):
            fleets.setdefault(_cores(own), []).append((own,))
    return [fleets[total] for total in sorted(fleets)]


def _fleets(stage: StageSpec) -> list[StageAllocation]:
    limits = stage.replicas_max, stage.cores_max, stage.batch_max
    sizes = product(*(range(1, most + 1) for most in limits))
    return [StageAllocation(cores, batch, replicas) for replicas, cores, batch in sizes]


def _cores(*held: StageAllocation) -> int:
    return sum(fleet.cores * fleet.replicas for fleet in held)


def best_constant(scenario: Scenario, profile: Profile, seeds: Sequence[int]) -> Held:
    """Return the fixed fleet with the fewest cores that meets the objective on some episodes.

    It is the same fleet in all episodes; of several with equally few cores, the one with the fewest
    avoidable violations. If none meets the objective, it is the one with the fewest of all. Of
    several stages it is the best that is found by changing two at a time. Raises ConfigError for
    variants.
    """
    spec, rates_of = make_spec(scenario, profile), partial(_rates, scenario, profile)
    if len(spec.stages) > 1 and not spec.has_variants:
        return _of_stages(spec, rates_of, rate_rps(scenario, profile), seeds)
    first = list[tuple[float, Held]]()
    for fleets in constants(spec):
        best, own = _meeting(rates_of, fleets, seeds)
        if best is not None:
            return best
        first += zip(own.tolist(), fleets, strict=True)
    unmet, fewest = first[0][1], math.inf
    for rate_of_first, fleet in sorted(first):
        if rate_of_first / len(seeds) >= fewest:  # whatever it misses in the others
            break
        others = [float(rates_of([fleet], seed)[0]) for seed in seeds[1:]]
        if (total := (rate_of_first + sum(others)) / len(seeds)) < fewest:
            unmet, fewest = fleet, total
    return unmet


def _meeting(
    rates_of: Rates, fleets: Sequence[Held], seeds: Sequence[int]
) -> tuple[Held | None, FloatArray]:
    """Return the best of some fleets if it meets the objective, and all their first rates."""
    rates, left, first = np.zeros(len(fleets)), np.arange(len(fleets)), np.zeros(len(fleets))
    for seed in seeds:  # later ones only add to the mean: a fleet beyond the limit is out
        own = rates_of([fleets[k] for k in left.tolist()], seed)
        if seed == seeds[0]:
            first = own
        rates[left] += own / len(seeds)
        left = np.flatnonzero(rates <= MET)
        if not left.size:
            return None, first
    return fleets[int(left[np.argmin(rates[left])])], first


def _of_stages(spec: SystemSpec, rates_of: Rates, rps: float, seeds: Sequence[int]) -> Held:
    """Search fleets of several stages: all cores at first, then fewer and fewer."""
    options = [_fast_enough(stage, rps * stage.mean_tasks) for stage in spec.stages]
    needed, large = [min(map(_cores, own)) for own in options], []
    for own, least in zip(options, needed, strict=True):
        share = max(least, spec.total_cores * least / sum(needed))
        most = max(cores for cores in map(_cores, own) if cores <= share)
        large.append([fleet for fleet in own if 0.8 * most <= _cores(fleet) <= most])
    begins = [held for held in product(*large) if fits(spec.nodes, held)] or [spec.initial.stages]
    held = begins[int(np.argmin(rates_of(begins, seeds[0])))]
    while _meeting(rates_of, [held], seeds)[0]:
        by_cores = dict[int, list[Held]]()
        for i, j in combinations(range(len(held)), 2):
            for one, other in product(options[i], options[j]):
                moved = (*held[:i], one, *held[i + 1 : j], other, *held[j + 1 :])
                if fits(spec.nodes, moved):
                    by_cores.setdefault(_cores(*moved), []).append(moved)
        cheaper = (by_cores.get(_cores(*held) - less, []) for less in _STEPS)
        parts = chain.from_iterable(map(_batched, cheaper))
        found = (_meeting(rates_of, part, seeds)[0] for part in parts)
        if (best := next(filter(None, found), None)) is None:
            break
        held = best
    return held


def _fast_enough(stage: StageSpec, rps: float) -> list[StageAllocation]:
    """Return the fleets that can serve so many tasks a second; the fastest where none can."""
    latency_s = stage.latency.table_s(stage.batch_max, stage.cores_max)
    fleets = _fleets(stage)
    served_rps = [f.replicas * f.batch / float(latency_s[f.batch - 1, f.cores - 1]) for f in fleets]
    least_rps = min(rps, max(served_rps))
    return [
        fleet for fleet, own_rps in zip(fleets, served_rps, strict=True) if own_rps >= least_rps
    ]


def _rates(scenario: Scenario, profile: Profile, fleets: Sequence[Held], seed: int) -> FloatArray:
    """Return (fleets,) shares of avoidable violations in an episode, as results have them."""
    workload, own = draw_workload(scenario, profile, seed), [scenario] * len(fleets)
    if scenario.start == "warm":
        own = [scenario.starting_with([Initial(*each) for each in held]) for held in fleets]
    parts = zip(_batched(own), _batched(fleets), strict=True)
    return np.concatenate([_played(scenarios, workload, held, seed) for scenarios, held in parts])


def _batched(own: Sequence[Any]) -> Iterator[Any]:
    """Yield the parts of what is played side by side."""
    return (own[begin : begin + _AT_ONCE] for begin in range(0, len(own), _AT_ONCE))


def _played(
    scenarios: Sequence[Scenario], workload: Workload, held: Sequence[Held], seed: int
) -> FloatArray:
    count, actions, found = len(held), np.array(held), []
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
