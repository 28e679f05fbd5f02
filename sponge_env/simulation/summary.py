"""The one summary of requests, for simulated, live and served episodes alike.

A request has one of the outcomes :data:`OUTCOMES`. Violations are those that were late, dropped
or failed. Rates and quantiles are of the requests that have ended: of an interrupted episode some
are still queued or running.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import Outcome

ANSWERED, UNANSWERED = ("on_time", "late"), ("dropped", "failed")
VIOLATIONS = ("late", *UNANSWERED)
OUTCOMES = (*ANSWERED, *UNANSWERED, "queued", "running")


def summarise_requests(
    outcome: NDArray[np.str_], latency_s: FloatArray, hopeless: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the metrics of requests under the schema's names.

    Args:
        outcome: (n,) one of :data:`OUTCOMES` each.
        latency_s: (n,) from sending to the answer; it counts where there is one.
        hopeless: (n,) whether the budget on arrival was shorter than the fastest service.
    """
    violated, ended = _is_one(outcome, VIOLATIONS), has_ended(outcome)
    answered_s = latency_s[_is_one(outcome, ANSWERED)]
    p50_s, p99_s = latency_quantiles_s(outcome, latency_s, (0.5, 0.99))
    return {
        **{name: int(np.sum(outcome == name)) for name in OUTCOMES}, "offered": outcome.size,
        "hopeless": int(hopeless.sum()), "violations": int(violated.sum()),
        "violation_rate": rate(violated, ended),
        "avoidable_violation_rate": rate(violated & ~hopeless, ended),
        "hopeless_rate": rate(hopeless & ended, ended),
        "latency_mean_s": float(answered_s.mean()) if answered_s.size else math.nan,
        "latency_p50_s": p50_s, "latency_p99_s": p99_s,
    }  # fmt: skip


def summarise_accuracy(
    outcome: NDArray[np.str_], accuracy: FloatArray, needs_cores: NDArray[np.bool_]
) -> dict[str, float]:
    """Return what only the system itself knows of (n,) requests, under the schema's names."""
    answered, ended = _is_one(outcome, ANSWERED), has_ended(outcome)
    in_time = accuracy[outcome == "on_time"]
    return {
        "more_cores_rate": rate(_is_one(outcome, VIOLATIONS) & needs_cores, ended),
        "accuracy": float(accuracy[answered].mean()) if answered.any() else math.nan,
        "effective_accuracy": float(in_time.sum() / max(1, ended.sum())),
    }


def has_ended(outcome: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return (n,) which requests have been answered or given up."""
    return _is_one(outcome, (*ANSWERED, *UNANSWERED))


def _is_one(outcome: NDArray[np.str_], names: Sequence[str]) -> NDArray[np.bool_]:
    # For a few names faster than np.isin, which sorts them.
    found: NDArray[np.bool_] = np.logical_or.reduce([outcome == name for name in names])
    return found


def rate(which: NDArray[np.bool_], ended: NDArray[np.bool_]) -> float:
    """Return a number of requests per request that has ended."""
    return float(which.sum()) / max(1, int(ended.sum()))


def latency_quantiles_s(
    outcome: NDArray[np.str_], latency_s: FloatArray, probabilities: ArrayLike
) -> list[float]:
    """Return quantiles of the latency of (n,) requests; NaN without any that has ended."""
    # Requests that were never answered count as infinite, and interpolation is linear, as in
    # :func:`sponge_env.latency.latency_quantile_s` for the few requests of an interval. So of 100
    # answers and 1 dropped request the p99 is the slowest answer, of 99 and 2 it is infinite.
    answered_s = latency_s[_is_one(outcome, ANSWERED)]
    unanswered = int(np.sum(_is_one(outcome, UNANSWERED)))
    last = answered_s.size + unanswered - 1
    positions = np.asarray(probabilities, np.float64)
    if last < 0:
        return [math.nan] * positions.size
    finite_s = np.append(answered_s, np.full(unanswered, answered_s.max(initial=0.0)))
    infinite = np.ceil(positions * last) >= answered_s.size
    quantiles: list[float] = np.where(infinite, np.inf, np.quantile(finite_s, positions)).tolist()
    return quantiles


def interval_latencies(ended: NDArray[Any], ends: IntArray) -> dict[str, FloatArray]:
    """Return the mean, p50 and p99 latency of intervals under their names, (intervals,) each."""
    # ``ended`` are the records of requests in the order in which they ended; those before ``ends``
    # did so by the end of each interval. See :func:`~sponge_env.latency.latency_quantile_s`.
    ended, counts = ended[: ends[-1]], np.diff(ends, prepend=0)
    interval = np.repeat(np.arange(len(ends)), counts)
    took_s, lost = ended["finished_s"] - ended["sent_s"], ended["outcome"] > Outcome.LATE
    took_s = took_s[np.lexsort((np.where(lost, math.inf, took_s), interval))]
    answered = np.bincount(interval[~lost], minlength=len(ends))
    first, last = ends - counts, np.maximum(counts, 1) - 1
    kept = np.arange(len(interval)) - first[interval] < answered[interval]
    sums_s = np.bincount(interval[kept], took_s[kept], len(ends))  # one after the other
    found = {"latency_mean_s": np.where(answered > 0, sums_s / np.maximum(answered, 1), math.nan)}
    took_s = np.append(took_s, math.nan)
    for name, probability in (("latency_p50_s", 0.5), ("latency_p99_s", 0.99)):
        position = probability * last
        below = position.astype(np.int64)
        places = [np.clip(k, 0, answered - 1) for k in (below, np.minimum(below + 1, last))]
        low_s, high_s = (took_s[first + np.maximum(place, 0)] for place in places)
        between_s = low_s + (position - below) * (high_s - low_s)
        infinite = (counts > 0) & (np.ceil(position) >= answered)
        found[name] = np.where(infinite, math.inf, np.where(counts > 0, between_s, math.nan))
    return found
