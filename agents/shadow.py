"""Fixed fleets, played in the shadow of the one that serves: what each would have missed.

Arrivals do not depend on decisions. So a controller always knows which constant would have been
the best in the last minutes, and can hold that one if it has missed more itself or taken more
cores, or if resizes are too slow to follow the load: the follow-the-leader rule of learning with
expert advice, among all constants (Cesa-Bianchi and Lugosi, "Prediction, Learning, and Games",
2006), with few switches.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.core.overload import CHEAP
from sponge_env.interfaces import StageAllocation, SystemSpec, SystemView
from sponge_env.packing import places

from .fleet import BATCH_SHARE
from .rates import REMEMBERED, PastRates

_ALLOWED = 0.0005  # Share of requests that a constant, or the controller itself, may have missed
_CAUTION = 1.03  # Replicas are busy for so many times as long: the next peak may be higher
_DEARER, _LONG_S = 0.1, 300.0
"""Share by which the own decisions may take more cores than a constant for at least so many
seconds."""
_SLOW = 0.25  # Delay of a resize, in intervals, from which a constant is always held
_KNOWN, _JUDGED = 10, 30  # Intervals until there is a best constant, and until decisions are judged
_HELD_S, _LONGEST_S = 600.0, 3600.0  # How long a constant is held; twice as long each time, to this
_RECENT = 10  # Intervals without misses after which a fleet serves the present load
_THROUGHPUTS = 0.97, 0.67
"""A fleet is played with the largest batch, and with the smallest ones that have these shares of
the largest throughput of those that take at most :data:`~.fleet.BATCH_SHARE` of the SLO. Of batch
sizes that miss equally many, the earlier one here is taken."""
_QUEUE = 1 << 13  # Requests that can wait in each fleet
_IN_TURN = np.arange(89) * (math.sqrt(5) - 1) / 2 % 1
"""Probabilities of the scatter of batches that follow each other: evenly spread, in no order."""


class ShadowState(NamedTuple):
    """Fixed fleets and their state; times are absolute."""

    sizes: IntArray  # (fleets, 3) replicas, cores and batch size
    free_s: FloatArray  # (fleets, replicas_max) when each replica is free
    due_s: FloatArray  # (fleets, capacity) deadlines of what waits, ascending
    marks: IntArray  # (fleets, 2) where the first of these stands, and the end
    missed: IntArray  # (fleets,) requests dropped or late in the last interval
    turns: IntArray  # (fleets,) batches so far
    scatter: FloatArray  # (values,) how long batches last relative to their mean, in turn
    pace: float  # Batches are planned to last so many times their mean
    caution: float  # Replicas are busy for so many times as long as a batch lasts
    drops_early: bool  # As in the system; else what has expired is dropped


@entry_point
def play(
    fleets: ShadowState, service_s: FloatArray, arrivals_s: FloatArray, deadlines_s: FloatArray,
    from_s: float, until_s: float,
) -> None:  # fmt: skip
    """Let all fleets serve the arrivals of an interval, by (cores, batches) seconds of a batch."""
    for k in range(len(fleets.sizes)):
        row_s = service_s[fleets.sizes[k, 1] - 1]
        due_s, free_s, now_s, coming, missed = fleets.due_s[k], fleets.free_s[k], from_s, 0, 0
        head, tail = fleets.marks[k]
        for place in range(head, tail):
            due_s[place - head] = due_s[place]
        head, tail = 0, tail - head
        while True:
            replica = 0
            for other in range(1, fleets.sizes[k, 0]):
                if free_s[other] < free_s[replica]:
                    replica = other
            now_s = max(now_s, free_s[replica])
            if head == tail and coming < arrivals_s.size:
                now_s = max(now_s, arrivals_s[coming])
            while coming < arrivals_s.size and arrivals_s[coming] <= min(now_s, until_s):
                if tail < due_s.size:
                    place = tail
                    while place > head and due_s[place - 1] > deadlines_s[coming]:
                        due_s[place] = due_s[place - 1]
                        place -= 1
                    due_s[place] = deadlines_s[coming]
                    tail += 1
                else:
                    missed += 1
                coming += 1
            if now_s >= until_s or head == tail:
                break
            count = min(fleets.sizes[k, 2], tail - head)
            size = count if due_s[head] >= now_s else 0
            if fleets.drops_early:
                slack_s = (due_s[head] - now_s) / fleets.pace
                size = _size_in_time(slack_s, row_s, count, tail - head)
            if size:
                relative = fleets.scatter[fleets.turns[k] % fleets.scatter.size]
                takes_s = row_s[size - 1] * relative
                free_s[replica] = now_s + fleets.caution * takes_s
                fleets.turns[k] += 1
                for place in range(head, head + size):
                    missed += due_s[place] < now_s + takes_s
            missed += size == 0
            head += max(1, size)
        fleets.marks[k, 0], fleets.marks[k, 1] = head, tail
        fleets.missed[k] = missed


@compiled
def _size_in_time(slack_s: float, row_s: FloatArray, count: int, waiting: int) -> int:
    """Return how large a batch may be, as :func:`sponge_env.core.overload.size_in_time` does."""
    size = count
    while size > 0 and row_s[size - 1] > slack_s:
        size -= 1
    cheap = waiting == count or size * row_s[count - 1] >= CHEAP * count * row_s[size - 1]
    return size if cheap else 0


class ShadowFleets:
    """Plays all fixed fleets of a system with one model, and says when to hold the best of them."""

    def __init__(self, spec: SystemSpec, measured_s: FloatArray) -> None:
        """Start with idle fleets; compiles at the first call.

        ``measured_s`` are the (cores, batches) seconds of a batch.
        """
        self._spec, self._fastest_s = spec, float(measured_s.min())
        sizes = np.array([*_sizes(spec, measured_s)])
        count, self._past = len(sizes), PastRates(spec)
        known = (spec.first.measured or spec.first.latencies)[0].residual_quantiles
        scatter = np.interp(_IN_TURN, np.linspace(0, 1, len(known)), known)
        self._last, self._sums = np.zeros((2, count + 3), np.int64)
        """What the fleets missed in the last interval, what the own decisions held (thousandths of
        cores) and missed, and what was offered; and the sums of the intervals whose peaks are
        expected to come again."""
        most = max(REMEMBERED, self._past.peak_ago)
        self._counts = np.zeros((most + 1, count + 3), np.int64)
        """(intervals, fleets + 3) the same of each; the latest overwrite the oldest."""
        self._fleets = ShadowState(
            sizes, np.full((count, spec.first.replicas_max), -math.inf), np.zeros((count, _QUEUE)),
            np.zeros((count, 2), np.int64), *np.zeros((2, count), np.int64),  # type: ignore[call-arg]
            1 + scatter, 1 + float(np.abs(scatter).mean()), _CAUTION, spec.drops_early,
        )  # fmt: skip
        self._cores = sizes[:, 0] * sizes[:, 1]
        self._places: dict[tuple[int, int], list[int]] = {}
        for place, (replicas, cores, _) in enumerate(sizes.tolist()):
            self._places.setdefault((replicas, cores), []).append(place)
        self._intervals = 0
        self._until_s, self._next_s = -math.inf, _HELD_S
        play(self._fleets, np.ascontiguousarray(measured_s), np.empty(0), np.empty(0), 0.0, 0.0)

    def observe(self, view: SystemView, service_s: FloatArray) -> None:
        """Play the interval that has passed; a batch takes (cores, batches) seconds."""
        possible = view.budgets_s >= self._fastest_s
        came_s, table_s = view.arrived_s[possible], np.ascontiguousarray(service_s)
        due_s, from_s = came_s + view.budgets_s[possible], view.now_s - self._spec.interval_s
        # An interval in which a decision came late is longer.
        play(self._fleets, table_s, came_s, due_s, came_s.min(initial=from_s), view.now_s)
        last, ago, self._last[:-3] = view.last, self._past.peak_ago, self._fleets.missed
        self._last[-3:] = 0, 0, possible.size
        if last is not None:
            self._last[-3:-1] = round(1000 * last.cores), last.avoidable_violations
        self._counts[self._intervals % len(self._counts)] = self._last
        self._sums += self._last - self._counts[(self._intervals - ago) % len(self._counts)]
        self._intervals += 1
        self._past.add(possible.sum(keepdims=True))
        if self._past.peak_ago > ago:
            self._sums = self._missed(self._past.peak_ago)

    def to_hold(
        self, now_s: float, overloaded: bool, asked_for: int = 0, thrifty: bool = False
    ) -> StageAllocation | None:
        """Return the constant to hold from now on; None while the controller may decide itself.

        It may while it misses no more than the best constant does and, if ``thrifty``, takes no
        more cores; and in an overload in which the constant fails, too. ``asked_for`` are the
        present replicas.
        """
        own_cores, own, offered = self._sums[-3:].tolist()
        allowed, always = _ALLOWED * offered, self.holds_always
        held = self._intervals >= _KNOWN if always else now_s < self._until_s
        if not held and (always or self._intervals < _JUDGED):
            return None
        missed, cores = self._sums[:-3], self._cores
        beyond = np.where(missed > allowed, missed, 0)
        other = self._fleets.sizes[:, 0] != asked_for  # Of equals, one of as many replicas
        best = int(np.lexsort((missed, other, cores, beyond))[0])
        if not held:
            worse = own > max(allowed, missed[best] + 1)  # one may be chance
            long = math.ceil(_LONG_S / self._spec.interval_s)
            seen = max(long, min(self._intervals, self._past.peak_ago))
            most_cores = 1000 * (1 + _DEARER) * cores[best] * seen
            dearer = thrifty and missed[best] <= allowed and own_cores > most_cores
            if not (worse or dearer):
                return None
            self._until_s = now_s + self._next_s
            self._next_s = min(2 * self._next_s, _LONGEST_S)
        replicas, cores, batch = self._fleets.sizes[best].tolist()
        fails = overloaded and bool(self._missed(_RECENT)[best])
        return None if fails else StageAllocation(cores, batch, replicas)

    @property
    def holds_always(self) -> bool:
        """Whether resizes are too slow to follow a load."""
        return self._spec.resize_delay_s >= _SLOW * self._spec.interval_s

    def may_become(self, constant: StageAllocation, ready: int, asked_for: int) -> bool:
        """Return whether to go from the fleet that was asked for to a constant.

        True if all fleets from the ready one on serve the load, or if that asked for would have
        missed as many more than the constant in the last minutes as the way costs (ski rental)
        under loads like those of the last intervals and of the last minutes, averaged.
        """
        spec, most_cores, replicas = self._spec, self._spec.most_cores, constant.replicas
        between = range(min(replicas, ready), max(replicas, ready) + 1)
        way = {(ready, most_cores(ready, max(0, replicas - ready)))}
        way |= {(n, most_cores(n)) for n in between}
        lately, present = self._missed(_RECENT)[:-3], (asked_for, most_cores(asked_for))
        way_s = spec.resize_delay_s + spec.first.cold_start_s * (replicas > ready)
        most, lost, seen = [], 0.0, max(1, self._intervals)
        for missed, intervals in ((lately, _RECENT), (self._sums, self._past.peak_ago)):
            most.append(max(self._fewest(missed, *fleet) for fleet in way))
            lost += (most[-1] - self._fewest(missed, *present)) / min(intervals, seen) / 2
        then = self._fewest(self._sums, replicas, constant.cores)
        saved = self._fewest(self._sums, *present) - then
        # Constants that all miss change places, so no way counts as very short.
        return most[0] == 0 or lost * max(way_s / spec.interval_s, _RECENT) <= saved

    def _fewest(self, missed: IntArray, replicas: int, cores: int) -> int:
        """Return what such a fleet, or the next smaller one, has missed with its best batch."""
        return int(missed[self._played(replicas, cores)].min())

    def best_batch(self, replicas: int, cores: int) -> int:
        """Return the batch size with which such a fleet, or the next smaller one, missed least."""
        return int(self._fleets.sizes[min(self._played(replicas, cores), key=self._sums.item), 2])

    def _played(self, replicas: int, cores: int) -> list[int]:
        return self._places[_below(replicas), _below(cores)]

    def _missed(self, intervals: int) -> IntArray:
        rows = (self._intervals - 1 - np.arange(intervals)) % len(self._counts)
        sums: IntArray = self._counts[rows].sum(axis=0)
        return sums


def _sizes(spec: SystemSpec, service_s: FloatArray) -> Iterator[tuple[int, int, int]]:
    """Return replicas, cores and batch size of the fleets that find room on the machine."""
    limits, batches = spec.first, np.arange(1, spec.first.batch_max + 1)
    for n, cores in product(_numbers(limits.replicas_max), _numbers(limits.cores_max)):
        if n <= places(spec.nodes, cores):
            row_s = service_s[cores - 1]
            quick = row_s <= max(BATCH_SHARE * spec.slo_s, row_s[0])
            throughput = np.where(quick, batches / row_s, 0.0)
            most = throughput.max()
            smallest = [int(np.argmax(throughput >= share * most)) + 1 for share in _THROUGHPUTS]
            for size in dict.fromkeys([*smallest, limits.batch_max]):
                yield n, cores, size


def _numbers(most: int) -> list[int]:
    """Return the numbers up to a limit: all small ones, of large ones four in each octave."""
    return [n for n in range(1, most + 1) if _below(n) == n]


def _below(number: int) -> int:
    """Return the largest number of :func:`_numbers` up to this one."""
    return number - number % (1 << number.bit_length() - 3) if number > 16 else number
