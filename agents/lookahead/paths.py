"""Sample paths: what the clients may send and the network may deliver in the next seconds."""

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.compiled import compiled

from .flow import FlowForecast
from .tandem import insert_arrival

_MEMORY_PER_S = 0.75  # Correlation of a 4G bandwidth from one second to the next
_RATE_SHARES = (0.4, 0.3, 0.2, 0.08, 0.02)
_BANDWIDTH_SHARES = (0.7, 0.3)  # Probabilities of strata, fewest arrivals, highest bandwidth first
_LEAST_SHARE = 0.012  # Less probable combinations are left out
_DRAWS = 1024  # Random numbers of each path; used again where more are needed


class PathDraws(NamedTuple):
    """The random numbers of each path, the same at every decision.

    So two decisions differ only if the states do. The paths with most requests come first: they
    show first that an allocation is too small.
    """

    weight: FloatArray  # (paths,) probabilities
    rate: FloatArray  # (paths,) standard normal: how many requests are sent in the next interval
    bandwidth: FloatArray  # (paths,) standard normal: how the bandwidth changes
    gaps: FloatArray  # (paths, draws) exponential of mean 1: time between two requests
    kinds: FloatArray  # (paths, draws) uniform: kind of each request


@functools.cache
def draw_paths() -> PathDraws:
    """Return weighted paths for all strata."""
    nodes = [
        (rate_share * share, rate, -badness)
        for rate, rate_share in reversed(_strata(_RATE_SHARES))
        for badness, share in reversed(_strata(_BANDWIDTH_SHARES))
        if rate_share * share > _LEAST_SHARE
    ]
    weight, rate, bandwidth = (np.array(column) for column in zip(*nodes, strict=True))
    rng = np.random.default_rng(0)
    shape = (len(nodes), _DRAWS)
    gaps, kinds = rng.exponential(size=shape), rng.random(shape)
    return PathDraws(weight / weight.sum(), rate, bandwidth, gaps, kinds)


def _strata(shares: tuple[float, ...]) -> list[tuple[float, float]]:
    """Cut the standard normal distribution; return each stratum's mean and probability."""
    normal, edges = NormalDist(), np.cumsum((0.0, *shares))
    density = [normal.pdf(normal.inv_cdf(p)) if 1e-9 < p < 1 - 1e-9 else 0.0 for p in edges]
    return [((density[i] - density[i + 1]) / share, share) for i, share in enumerate(shares)]


@compiled
def sample_path(
    forecast: FlowForecast, draws: PathDraws, path: int, kinds: FloatArray, interval_s: float,
    until_s: float, speed: FloatArray, arrivals_s: FloatArray,
) -> int:  # fmt: skip
    """Play the clients and the network of one path; return the number of arrivals written.

    The path has its own rate until ``until_s``, when the next decision is in force. ``kinds``
    (kinds, 2) are relative size and SLO of equally probable requests. Written are ``speed``
    (intervals,) of transfers, and ``arrivals_s`` (places, 2), when requests arrive and are due.
    """
    _draw_speed(forecast, draws.bandwidth[path], interval_s, speed)
    scatter = math.sqrt(forecast.scatter)
    fast_rps = _rate_rps(forecast, draws, path, scatter, until_s)
    horizon_s = speed.size * interval_s
    known, draw, count = draws.gaps.shape[1], 0, 0
    # The oldest that can still be on the way: the largest kind sent one transfer ago.
    largest = 1.0
    for kind in range(kinds.shape[0]):
        largest = max(largest, kinds[kind, 0])
    sent_s = draws.kinds[path, 0] / fast_rps - forecast.transfer_s * largest
    while sent_s < horizon_s and count < arrivals_s.shape[0]:
        kind = int(draws.kinds[path, draw] * kinds.shape[0])
        # Divisions are the slow part here.
        work = kinds[kind, 0] + (sent_s / forecast.transfer_s if sent_s < 0.0 else 0.0)
        if work > 0.0 or sent_s >= 0.0:
            arrival_s = _arrival_s(max(sent_s, 0.0), work, speed, interval_s)
            if arrival_s < horizon_s:
                insert_arrival(arrivals_s, count, arrival_s, sent_s + kinds[kind, 1])
                count += 1
        draw = draw + 1 if draw + 1 < known else 0
        # The next decision will know the rate.
        gap = 1.0 + scatter * (draws.gaps[path, draw] - 1.0)
        sent_s += gap / fast_rps if sent_s < until_s else gap / forecast.rate_rps
    return count


@compiled
def _draw_speed(forecast: FlowForecast, shock: float, interval_s: float, speed: FloatArray) -> None:
    """Let the log of the bandwidth return to its mean, after one shock in the next interval."""
    memory = _MEMORY_PER_S**interval_s
    mean, log_speed = -math.log(forecast.typical_s), -math.log(forecast.transfer_s)
    log_speed = mean + memory * (log_speed - mean)
    log_speed += forecast.swing * math.sqrt(1.0 - memory * memory) * shock
    for interval in range(speed.size):
        speed[interval] = math.exp(log_speed)
        log_speed = mean + memory * (log_speed - mean)


@compiled
def _rate_rps(
    forecast: FlowForecast, draws: PathDraws, path: int, scatter: float, until_s: float
) -> float:
    """Return the rate that sends the path's share of requests up to ``until_s``."""
    # The rate is log-normal, by its uncertainty and its scatter; on the path with most requests it
    # is at least the possible surge. Gaps are scaled so that they do not scatter the count again.
    variance = forecast.spread * forecast.spread
    variance += forecast.scatter / max(1.0, forecast.rate_rps * until_s)
    rate_rps = forecast.rate_rps * math.exp(math.sqrt(variance) * draws.rate[path] - 0.5 * variance)
    if path == 0:
        rate_rps = max(rate_rps, forecast.rate_rps * forecast.surge)
    known = draws.gaps.shape[1]
    count, total = min(int(rate_rps * (until_s + forecast.transfer_s)) + 1, known - 1), 0.0
    for draw in range(1, count + 1):
        total += 1.0 + scatter * (draws.gaps[path, draw] - 1.0)
    return float(rate_rps * total / count)


@compiled
def _arrival_s(time_s: float, work: float, speed: FloatArray, interval_s: float) -> float:
    """Return when a transfer ends whose work is left at a time from now on."""
    interval = 0 if time_s < interval_s else min(int(time_s / interval_s), speed.size - 1)
    while interval + 1 < speed.size:
        edge_s = (interval + 1) * interval_s
        done = (edge_s - time_s) * speed[interval]
        if work <= done:
            break
        work -= done
        time_s = edge_s
        interval += 1
    return float(time_s + work / speed[interval])
