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
from sponge_env.interfaces import Outcome, StageAllocation, StageSpec, SystemSpec, cores_held, fits
from sponge_env.metrics import MET
from sponge_env.packing import places
from sponge_env.scenario.config import Initial
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.summary import rate
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import Workload, draw_workload

_AT_ONCE = 16  # Episodes that are played side by side: each keeps all of its requests
_VIOLATIONS = (Outcome.LATE, Outcome.DROPPED, Outcome.FAILED)
_BEGINS, _SAVED = 64, (2, 1)  # Of a search of stages: most to begin with; cores saved in a step

Held = tuple[StageAllocation, ...]  # A fixed fleet of each stage
Rates = Callable[[Sequence[Held], int, float], FloatArray]  # See :func:`_rates`


def constants(spec: SystemSpec) -> list[list[Held]]:
    """Return all fixed fleets of a single model, else raise ConfigError; by cores, fewest first."""
    if not spec.is_one_model:
        raise ConfigError("the best constant is known for one model or pipeline without variants")
    fleets = dict[int, list[Held]]()
    for own in _fleets(spec.first):
        if own.replicas <= places(spec.nodes, own.cores):
            fleets.setdefault(cores_held([own]), []).append((own,))
    return [fleets[total] for total in sorted(fleets)]


def _fleets(stage: StageSpec) -> list[StageAllocation]:
    limits = stage.replicas_max, stage.cores_max, stage.batch_max
    sizes = product(*(range(1, most + 1) for most in limits))
    return [StageAllocation(cores, batch, replicas) for replicas, cores, batch in sizes]


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
    by_cores = constants(spec)
    best = next(filter(None, (_within(MET, rates_of, fleets, seeds) for fleets in by_cores)), None)
    return best or _least(rates_of, [*chain(*by_cores)], seeds)


def _within(
    limit: float, rates_of: Rates, fleets: Sequence[Held], seeds: Sequence[int]
) -> Held | None:
    """Return the fleet that misses least, if that is no larger share than a limit."""
    rates, left = np.zeros(len(fleets)), np.arange(len(fleets))
    for seed in seeds:  # later ones only add to the mean: a fleet beyond the limit is out
        own = rates_of([fleets[k] for k in left.tolist()], seed, limit * len(seeds))
        rates[left] += own / len(seeds)
        left = np.flatnonzero(rates <= limit)
        if not left.size:
            return None
    return fleets[int(left[np.argmin(rates[left])])]


def _least(rates_of: Rates, fleets: Sequence[Held], seeds: Sequence[int]) -> Held:
    """Return the fleet that misses least, however much that is."""
    limit = MET
    while (best := _within(limit, rates_of, fleets, seeds)) is None:
        limit *= 10
    return best


def _of_stages(spec: SystemSpec, rates_of: Rates, rps: float, seeds: Sequence[int]) -> Held:
    """Search fleets of several stages: nearly all cores at first, then fewer and fewer."""
    # It changes two stages at a time, and ends where nothing that it tries saves a core or two.
    begins, most = list[Held](), int(_BEGINS ** (1 / len(spec.stages)))
    while not begins:  # where even all cores cannot serve the rate, they serve a part of it
        options = [_fast_enough(stage, rps * stage.mean_tasks) for stage in spec.stages]
        needed, large = [min(cores_held([one]) for one in own) for own in options], []
        for own, few in zip(options, needed, strict=True):
            share = max(few, spec.total_cores * few / sum(needed))
            top = max(held for held in (cores_held([one]) for one in own) if held <= share)
            large.append([fleet for fleet in own if 0.8 * top <= cores_held([fleet]) <= top][:most])
        begins = [held for held in product(*large) if fits(spec.nodes, held)]
        rps *= 0.9
    best = _within(MET, rates_of, begins, seeds)
    if best is None:  # that which misses least, of those on all cores or all but one
        least = _least(rates_of, begins, seeds[:1])
        moves = _moves(spec, least, options)
        tried = [least, *(m for m in moves if cores_held(m) >= spec.total_cores - 1)]
        return _least(rates_of, tried, seeds)
    while best is not None:
        held, moves, now = best, _moves(spec, best, options), cores_held(best)
        cheaper = ([m for m in moves if cores_held(m) == now - less] for less in _SAVED)
        parts = chain.from_iterable(map(_batched, cheaper))
        found = (_within(MET, rates_of, part, seeds) for part in parts)
        best = next(filter(None, found), None)
    return held


def _moves(spec: SystemSpec, held: Held, sizes: Sequence[Sequence[StageAllocation]]) -> list[Held]:
    """Return what differs in at most two stages, and fits."""
    moves = dict[Held, None]()
    for i, j in combinations(range(len(held)), 2):
        for one, other in product(sizes[i], sizes[j]):
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


def _rates(
    scenario: Scenario, profile: Profile, fleets: Sequence[Held], seed: int, limit: float
) -> FloatArray:
    """Return (fleets,) shares of avoidable violations in an episode, infinite beyond a limit."""
    workload, own = draw_workload(scenario, profile, seed), [scenario] * len(fleets)
    if scenario.start == "warm":
        own = [scenario.starting_with([Initial(*each) for each in held]) for held in fleets]
    parts = zip(_batched(own), _batched(fleets), strict=True)
    played = (_played(each, workload, held, seed, limit) for each, held in parts)
    return np.concatenate([*played])


def _batched(own: Sequence[Any]) -> Iterator[Any]:
    return (own[begin : begin + _AT_ONCE] for begin in range(0, len(own), _AT_ONCE))


def _played(
    scenarios: Sequence[Scenario], workload: Workload, held: Sequence[Held], seed: int, limit: float
) -> FloatArray:
    count, actions, found = len(held), np.array(held), []
    simulator = BatchSimulator(scenarios, np.arange(count), workloads=[workload] * count)
    begin_s, from_s, lost = 0.0, scenarios[0].count_from_s, np.zeros(count)
    most = limit * np.count_nonzero(workload.arrival_s >= from_s)
    with closing(simulator) as batch:
        for metrics in batch.play(np.full(count, seed), lambda _: actions):
            # What waits when requests begin to count may be lost without counting.
            waiting = metrics["queued"] + metrics["running"]
            lost = lost + metrics["avoidable_violations"] if begin_s >= from_s else -waiting
            batch.over |= (beyond := lost > most)  # and stands still
            begin_s += scenarios[0].interval_s
        batch.drain()
        for arrays in map(batch.only, range(count)):
            counts = workload.arrival_s[: arrays.envs["sent"][0] - 1] >= from_s
            ended = arrays.ledger[0, : arrays.envs["ended"][0]]
            missed = counts[ended["row"]] & np.isin(ended["outcome"], _VIOLATIONS)
            found.append(rate(missed & ~ended["hopeless"], counts))
    return np.where(beyond, math.inf, found)
