"""The guard of a learned policy: what to do where it has never been.

A network answers any input with something, and far from all that it was trained on that is as good
as a guess: on a network ten times as fast as any in training, or with thousands of requests in the
queue. So inputs are kept within the range that the policy saw when it was validated, and where
the demand itself lies beyond that, or the queue grows beyond all hope, a program decides instead
until things have been as usual for a while. That is the idea of a run-time monitor with a fallback
that is known to be safe (the Simplex architecture: Sha, IEEE Software 18(4), 2001).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import entry_point
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .history import DEPLOYMENT, REMEMBERED, SERVICE, layout_of
from .lookahead import SpongeMPC
from .policy import FloatMatrix, Policy
from .sponge_joint import SpongeJoint

_DEMAND = ("queue_length", "budget_", "arrivals_", "late", *DEPLOYMENT)
"""Beginnings of the names of inputs that say what is asked of the system, and of which kind it is.
Others are its own doing, or the network's: a slow one shows in the budgets, and a fast one does no
harm. The bins of the queue by deadline say nothing more, and each of them alone runs high now and
then."""
_PAST = {*REMEMBERED, "arrivals_spread"} - {*DEPLOYMENT}
"""Inputs that say what was asked before: a burst is over long before its memory has faded."""
_BEYOND = 0.25
"""Share of an input's range by which it must lie beyond, for extremes are rare in validation."""
_BEYOND_DRAWN = 0.1
"""The same of inputs that say which system this is: they are drawn evenly, so that none is rare."""
_LEAST_WIDTH = 0.1
"""Width of a range at least, for some inputs never moved."""
_DRIFT = {"cold_start": 0.3}
"""How far beyond at least, of what is another each time that a machine is measured: a third longer,
or a quarter shorter."""
_GROWING = 3
"""Intervals in a row in which a hopeless queue has grown."""
_CALM_S = 10.0
"""Time without alarm after which the policy decides again."""
_RECALLED = 120
"""Intervals before it decides that the program takes in at most, of which it learns how long
batches take and how the load comes. More of them hardly change what it does, and these take ten
milliseconds."""
_MISSED, _MISSED_LEAST = 0.01, 5
"""Share and number of requests that a policy may miss within the time below that was learned in
phases, and so kept for missing hardly more than the programs; on variants and pipelines these miss
more than the policies."""
_WATCHED_S = 30.0
_SUSPENDED_S = 60.0, 960.0
"""Time for which a policy that missed more does not decide: least and most. It is twice as long as
the last time if the policy has decided for less than that, too, in between."""


class Range:
    """Least and most of each input that a policy is shown."""

    def __init__(self, inputs: int) -> None:
        """Begin with nothing shown."""
        self.ends: FloatMatrix = np.full((2, inputs), np.inf, np.float32)
        """(2, inputs) least and most."""
        self.ends[1] = -np.inf

    def widen(self, shown: FloatMatrix) -> None:
        """Note which (n, inputs) there are."""
        np.minimum(self.ends[0], shown.min(axis=0, initial=np.inf), out=self.ends[0])
        np.maximum(self.ends[1], shown.max(axis=0, initial=-np.inf), out=self.ends[1])


class Guard:
    """Watches one episode of a policy, and answers for it where it must."""

    def __init__(self, policy: Policy, spec: SystemSpec, scales_out: bool) -> None:
        """Start an episode; the program is compiled now, and not when it is wanted.

        The program is ``sponge-joint`` where the policy chooses replicas, else ``sponge-mpc``.
        """
        self._spec = spec
        self._program = SpongeJoint() if scales_out else SpongeMPC()
        self._program.reset(spec, seed=0)
        names = policy.info.inputs
        self._range = _with_margin(names, policy.input_range)
        """(2, inputs) range of what the policy may be shown."""
        self._places = np.arange(len(names)) if policy.places is None else policy.places
        # In a pipeline a name begins with that of its stage.
        demand = [name for name in _DEMAND if scales_out or name != "cold_start"]
        self._is_demand = np.array(
            [
                name.rpartition(".")[2].startswith(tuple(demand)) and name not in _PAST
                for name in names
            ]
        )
        observed = layout_of(spec).inputs
        self._service = observed.index(SERVICE) if policy.info.batches else None
        self._calm = math.ceil(_CALM_S / spec.interval_s)
        self._left = 0
        self._seen: deque[SystemView] = deque(maxlen=_RECALLED)
        self._lengths: deque[int] = deque([0], maxlen=_GROWING + 1)
        self._watched = bool(policy.info.batches) and spec.is_one_model
        self._missed: deque[tuple[int, int]] = deque(maxlen=math.ceil(_WATCHED_S / spec.interval_s))
        self._suspended = self._trusted = 0
        """Intervals of the last suspension, and since then."""
        # All cores of a replica would take longer than the objective for so many.
        self._hopeless = min(stage.capacity_rps for stage in spec.stages) * spec.slo_s

    def watch(
        self, observation: FloatMatrix, view: SystemView
    ) -> tuple[FloatMatrix, Allocation | None]:
        """Take in the interval that has passed; call it once for each.

        Returned are the (fields,) observation within the range that the policy has seen, and the
        program's allocation if it is to decide.
        """
        shown, is_beyond = observation, False
        if self._range is not None:
            shown = observation.copy()
            is_beyond = _bound(shown, self._places, self._range, self._is_demand)
        answer = self._answer(observation, view, is_beyond)
        self._seen.append(view)
        return shown, answer

    def _answer(
        self, observation: FloatMatrix, view: SystemView, is_beyond: bool
    ) -> Allocation | None:
        decided = self._left > 0
        if decided:
            self._left -= 1
        if self._is_growing(view) or is_beyond:
            self._left = max(self._left, self._calm)
        if self._watched and not decided and self._misses(view):
            self._suspend()
        if not self._left:
            return None
        if not decided:
            self._program.reset(self._as_of_late(observation), seed=0)
            # It was not asked so far, and learns how the load comes and how long batches take.
            for seen in self._seen:
                self._program.observe(seen)
        answer = self._program.decide(view)
        return Allocation(stages=answer.stages, feasible=answer.feasible, guarded=True)

    def _as_of_late(self, observation: FloatMatrix) -> SystemSpec:
        """Return the system with latencies as long as they were of late, if that is longer.

        The program learns them of the allocations that were in force, and would take all others
        for faster. They are not made shorter: under a quota batches without company run faster.
        """
        ratio = 1.0 if self._service is None else float(observation[self._service])
        return self._spec.with_headroom(ratio - 1) if ratio > 1 else self._spec

    def _misses(self, view: SystemView) -> bool:
        """Return whether the policy has missed too much in the last intervals that it decided."""
        self._trusted += 1
        if view.last is None:
            return False
        ended = view.last.on_time + view.last.violations
        self._missed.append((view.last.avoidable_violations, ended))
        missed = sum([missed for missed, _ in self._missed])
        if missed < _MISSED_LEAST:
            return False
        return missed > _MISSED * sum([ended for _, ended in self._missed])

    def _suspend(self) -> None:
        """Let the program decide for a while, and for longer if this happens again soon."""
        least, most = (math.ceil(time_s / self._spec.interval_s) for time_s in _SUSPENDED_S)
        self._missed.clear()
        again = self._trusted < 2 * self._suspended
        self._suspended = min(2 * self._suspended, most) if again else least
        self._left, self._trusted = max(self._left, self._suspended), 0

    def _is_growing(self, view: SystemView) -> bool:
        length = sum([stage.queued_deadlines_s.size for stage in view.stages])
        self._lengths.append(length)
        if length <= self._hopeless or len(self._lengths) <= _GROWING:
            return False
        return all(before < after for before, after in pairwise(self._lengths))


@entry_point
def _bound(
    observation: FloatMatrix,
    places: IntArray,
    seen: FloatMatrix,
    is_demand: NDArray[np.bool_],
) -> bool:
    """Keep (fields,) values within a (2, inputs) range; return whether a demand was beyond it."""
    is_beyond = False
    for k in range(len(places)):
        value = observation[places[k]]
        kept = min(max(value, seen[0, k]), seen[1, k])
        observation[places[k]] = kept
        is_beyond |= is_demand[k] and kept != value
    return is_beyond


def _with_margin(names: Sequence[str], seen: FloatMatrix | None) -> FloatMatrix | None:
    """Return the (2, inputs) range of what a policy may be shown."""
    if seen is None:
        return None
    share = np.array([_BEYOND_DRAWN if name in DEPLOYMENT else _BEYOND for name in names])
    beyond = share * np.maximum(seen[1] - seen[0], _LEAST_WIDTH)
    beyond = np.maximum(beyond, [_DRIFT.get(name, 0.0) for name in names])
    widened: FloatMatrix = (seen + np.array([-beyond, beyond])).astype(np.float32)
    return widened
