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
_BEGINS, _SAVED = 64, (2, 1)  # Of a search of stages: most to begin with; cores saved in a step

Held = tuple[StageAllocation, ...]  # A fixed fleet of each stage
Rates = Callable[[Sequence[Held], int], FloatArray]  # Shares that some miss with a seed


def constants(spec: SystemSpec) -> list[list[Held]]:
    """Return all fixed fleets of a single model, else raise ConfigError; by cores, fewest first."""
    if not spec.is_one_model:
        raise ConfigError("the best constant is known for one model or pipeline without variants")
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
    several stages it is the best that a search finds, see :func:`_of_stages`. Raises ConfigError
    for variants, and for a set of models.
    """
    spec, rates_of = make_spec(scenario, profile), partial(_rates, scenario, profile)
    if len(spec.stages) > 1 and not (spec.has_variants or spec.models):
        return _of_stages(spec, rates_of, rate_rps(scenario, profile), seeds)
    first = list[tuple[float, Held]]()
    for fleets in constants(spec):
        best, own = _meeting(rates_of, fleets, seeds)
        if best is not None:
            return best
        first += zip(own.tolist(), fleets, strict=True)
    return _least(rates_of, first, seeds)


def _meeting(
    rates_of: Rates, fleets: Sequence[Held], seeds: Sequence[int]
) -> tuple[Held | None, FloatArray]:
    """Return the best of some fleets if it meets the objective; and all rates of the first seed."""
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


def _least(rates_of: Rates, first: Sequence[tuple[float, Held]], seeds: Sequence[int]) -> Held:
    """Return the fleet that misses least on all seeds; ``first`` has what each misses on one."""
    unmet, fewest = first[0][1], math.inf
    for rate_of_first, fleet in sorted(first):
        if rate_of_first / len(seeds) >= fewest:  # whatever it misses in the others
            break
        others = [float(rates_of([fleet], seed)[0]) for seed in seeds[1:]]
        if (total := (rate_of_first + sum(others)) / len(seeds)) < fewest:
            unmet, fewest = fleet, total
    return unmet


def _of_stages(spec: SystemSpec, rates_of: Rates, rps: float, seeds: Sequence[int]) -> Held:
    """Search fleets of several stages: nearly all cores at first, then fewer and fewer."""
    # It changes two stages at a time, and ends where nothing that it tries saves a core or two.
    begins, most = list[Held](), int(_BEGINS ** (1 / len(spec.stages)))
    while not begins:  # where even all cores cannot serve the rate, they serve a part of it
        options = [_fast_enough(stage, rps * stage.mean_tasks) for stage in spec.stages]
        needed, large = [min(map(_cores, own)) for own in options], []
        for own, few in zip(options, needed, strict=True):
            share = max(few, spec.total_cores * few / sum(needed))
            top = max(cores for cores in map(_cores, own) if cores <= share)
            large.append([fleet for fleet in own if 0.8 * top <= _cores(fleet) <= top][:most])
        begins = [held for held in product(*large) if fits(spec.nodes, held)]
        rps *= 0.9
    best, first = _meeting(rates_of, begins, seeds)
    if best is None:  # that which misses least, of those on all cores or all but one
        least = begins[int(np.argmin(first))]
        moves = _moves(spec, least, options)
        tried = [least, *(m for m in moves if _cores(*m) >= spec.total_cores - 1)]
        first = rates_of(tried, seeds[0])
        return _least(rates_of, [*zip(first.tolist(), tried, strict=True)], seeds)
    while best is not None:
        held, moves = best, _moves(spec, best, options)
        cheaper = ([m for m in moves if _cores(*m) == _cores(*held) - less] for less in _SAVED)
        parts = chain.from_iterable(map(_batched, cheaper))
        found = (_meeting(rates_of, part, seeds)[0] for part in parts)
        best = next(filter(None, found), None)
    return held


def _moves(
    spec: SystemSpec, held: Held, options: Sequence[Sequence[StageAllocation]]
) -> list[Held]:
    """Return what differs in at most two stages, and fits."""
    moves = dict[Held, None]()
    for i, j in combinations(range(len(held)), 2):
        for one, other in product(options[i], options[j]):
            moved: Held = (*held[:i], one, *held[i + 1 : j], other, *held[j + 1 :])
            moves[moved] = None
    return [moved for moved in moves if fits(spec.nodes, moved)]


def _fast_enough(stage: StageSpec, rps: float) -> list[StageAllocation]:
    """Return the fleets that serve so many tasks a second, or the most; the soonest done first."""
    latency_s, timed = stage.latency.table_s(stage.batch_max, stage.cores_max), []
    for fleet in _fleets(stage):
        batch_s = float(latency_s[fleet.batch - 1, fleet.cores - 1])
        timed.append((fleet.replicas * fleet.batch / batch_s, batch_s, fleet))
    rps = min(rps, max(timed)[0])
    fast = [(batch_s / max(1 - rps / n, 1e-6), fleet) for n, batch_s, fleet in timed if n >= rps]
    return [fleet for _, fleet in sorted(fast)]  # as in a queue at this rate


def _rates(scenario: Scenario, profile: Profile, fleets: Sequence[Held], seed: int) -> FloatArray:
    """Return (fleets,) shares of avoidable violations in an episode, as results have them."""
    workload, own = draw_workload(scenario, profile, seed), [scenario] * len(fleets)
    if scenario.start == "warm":
        own = [scenario.starting_with([Initial(*each) for each in held]) for held in fleets]
    parts = zip(_batched(own), _batched(fleets), strict=True)
    return np.concatenate([_played(scenarios, workload, held, seed) for scenarios, held in parts])


def _batched(own: Sequence[Any]) -> Iterator[Any]:
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
