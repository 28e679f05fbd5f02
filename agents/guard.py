"""The guard of a learned policy: a program decides outside the range of the training.

A network answers every input, but far from its training data an answer is only a guess. So inputs
are clipped to the range that the policy saw in validation. If the demand itself lies outside that
range, or a hopeless queue grows, a program decides until things have been normal for a while; if
fixed fleets would have missed less, for some minutes. It is a run-time monitor with a safe fallback
(the Simplex architecture: Sha, IEEE Software 18(4), 2001).
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import entry_point
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .history import DEPLOYMENT, REMEMBERED, SERVICE, layout_of
from .lookahead import SpongeJoint, SpongeMPC
from .policy import FloatMatrix, Policy
from .shadow import ShadowFleets

_DEMAND = ("queue_length", "budget_", "arrivals_", "late", *DEPLOYMENT)
"""Prefixes of the inputs that describe the demand and the kind of system. The others follow from
the policy's own decisions, or describe the network: a slow network shows in the budgets, and a fast
one does no harm. Bins of the queue by deadline add nothing, and a single one is high at times."""
_PAST = {*REMEMBERED, "arrivals_spread"} - {*DEPLOYMENT}
"""Inputs that describe past demand: a burst ends long before its memory has faded."""
_MARGIN = 0.25  # Share of a range by which an input may exceed it: extremes are rare in validation
_MARGIN_DRAWN = 0.1  # The same for inputs that describe the system: drawn evenly, none is rare
_MIN_WIDTH = 0.1  # Minimum width of a range, for inputs that never changed
_DRIFT = {"cold_start": 0.3}  # Least margin: calibrations differ by a third more, a quarter less
_GROWING = 3  # Intervals in a row in which a hopeless queue has grown
_CALM_S = 10.0  # Time without alarm after which the policy decides again
_RECALLED = 120  # Most past intervals that the program is shown before it decides: ten milliseconds


class InputRange:
    """Minimum and maximum of each input that a policy is shown."""

    def __init__(self, inputs: int) -> None:
        """Begin with nothing shown."""
        self.ends: FloatMatrix = np.full((2, inputs), np.inf, np.float32)  # (2, inputs)
        self.ends[1] = -np.inf

    def widen(self, shown: FloatMatrix) -> None:
        """Take in (n, inputs)."""
        np.minimum(self.ends[0], shown.min(axis=0, initial=np.inf), out=self.ends[0])
        np.maximum(self.ends[1], shown.max(axis=0, initial=-np.inf), out=self.ends[1])


class Guard:
    """Watches one episode of a policy, and decides in its place where necessary."""

    def __init__(self, policy: Policy, spec: SystemSpec, scales_out: bool) -> None:
        """Start an episode, and compile the program now, not when it has to decide.

        The program is ``sponge-joint`` where the policy chooses replicas, else ``sponge-mpc``.
        """
        self._spec = spec
        self._program = SpongeJoint() if scales_out else SpongeMPC()
        self._program.reset(spec, seed=0)
        names = policy.info.inputs
        self._range = _with_margin(names, policy.input_range)  # (2, inputs) to be shown
        self._places = np.arange(len(names)) if policy.places is None else policy.places
        # In a pipeline a name begins with that of its stage.
        demand = [name for name in _DEMAND if scales_out or name != "cold_start"]
        own = [name.rpartition(".")[2] for name in names]
        is_demand = [name.startswith(tuple(demand)) and name not in _PAST for name in own]
        self._is_demand = np.array(is_demand)
        self._service = layout_of(spec).inputs.index(SERVICE)
        self._calm = math.ceil(_CALM_S / spec.interval_s)
        self._left = 0
        self._views: deque[SystemView] = deque(maxlen=_RECALLED)
        self._lengths: deque[Any] = deque([0], maxlen=_GROWING + 1)
        # There is no shadow of variants and pipelines to compare with.
        self._table_s = spec.first.service_s(0)
        self._shadow = ShadowFleets(spec, self._table_s) if spec.is_one_model else None
        self._missed: Any = 0  # Requests missed in all episodes that are watched at once
        # A longer queue takes longer than the SLO even with all cores of one replica.
        self._hopeless = min(stage.capacity_rps for stage in spec.stages) * spec.slo_s

    def watch(
        self, observation: FloatMatrix, view: SystemView
    ) -> tuple[FloatMatrix, Allocation | None]:
        """Take in the interval that has passed; call it once for each.

        Return the (fields,) observation within the policy's range, and what the program decides.
        """
        decided = self._left > 0
        if decided:
            self._left -= 1
        queued = sum([stage.queued for stage in view.stages])
        (shown,), (is_alarming,) = self._scan(observation[None], queued)
        answer = self._answer(observation, view, decided, is_alarming)
        self._views.append(view)
        return shown, answer

    def alarmed(self, observed: FloatMatrix, view: Any) -> tuple[FloatMatrix, NDArray[np.bool_]]:
        """Take in an interval of (n,) episodes in which no program has decided yet.

        Return (n, fields) observations within the policy's range, and whether the program decides.
        """
        shown, is_alarming = self._scan(observed, view.queued)
        if self._shadow and view.last is not None:
            # An episode that misses more than one may have to be judged against fixed fleets.
            self._missed = self._missed + view.last.avoidable_violations
            is_alarming |= (self._missed > 1) | self._shadow.holds_always
        return shown, is_alarming

    def _scan(self, observed: FloatMatrix, queued: Any) -> tuple[FloatMatrix, NDArray[np.bool_]]:
        """Return (n, fields) observations within range, and whether the demand is beyond it."""
        shown, is_alarming = observed, np.zeros(len(observed), np.bool_)
        if self._range is not None:
            shown = observed.copy()
            _clip(shown, self._places, self._range, self._is_demand, is_alarming)
        self._lengths.append(queued)
        is_hopeless = queued > self._hopeless
        if len(self._lengths) > _GROWING and np.any(is_hopeless):
            is_growing = [x < y for x, y in pairwise(self._lengths)]
            is_alarming |= np.all([*is_growing, is_hopeless], axis=0)
        return shown, is_alarming

    def _answer(
        self, observation: FloatMatrix, view: SystemView, decided: bool, is_alarming: bool
    ) -> Allocation | None:
        if is_alarming:
            self._left = max(self._left, self._calm)
        # Faster service does not count: under a quota, a batch that runs alone is faster.
        longer = max(1.0, float(observation[self._service]))
        if self._shadow and view.last is not None:
            self._shadow.observe(view, longer * self._table_s)
            if self._shadow.to_hold(view.now_s, overloaded=False) is not None:
                self._left = max(self._left, 1)
        if not self._left:
            return None
        if not decided:
            # The program learns only latencies in force, and would take all others to be faster.
            self._program.reset(self._spec.with_headroom(longer - 1), seed=0)
            # It has to catch up on the load and on service times.
            for past in self._views:
                self._program.observe(past)
        answer = self._program.decide(view)
        return Allocation(stages=answer.stages, feasible=answer.feasible, guarded=True)


@entry_point
def _clip(
    shown: FloatMatrix, places: IntArray, ends: FloatMatrix, is_demand: NDArray[np.bool_],
    is_beyond: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Clip (n, fields) values to (2, inputs) ends; note whether a demand lay beyond them."""
    for i in range(len(shown)):
        for k in range(len(places)):
            value = shown[i, places[k]]
            shown[i, places[k]] = clipped = min(max(value, ends[0, k]), ends[1, k])
            is_beyond[i] |= is_demand[k] and clipped != value


def _with_margin(names: Sequence[str], seen: FloatMatrix | None) -> FloatMatrix | None:
    """Return the (2, inputs) range of what a policy may be shown."""
    if seen is None:
        return None
    share = np.array([_MARGIN_DRAWN if name in DEPLOYMENT else _MARGIN for name in names])
    beyond = share * np.maximum(seen[1] - seen[0], _MIN_WIDTH)
    beyond = np.maximum(beyond, [_DRIFT.get(name, 0.0) for name in names])
    widened: FloatMatrix = (seen + np.array([-beyond, beyond])).astype(np.float32)
    return widened
