"""When a transfer ends, and the bandwidth of an episode: generated or recorded, with fades.

A trace is piecewise constant and wraps around at its end. Each transfer has the whole bandwidth
to itself: it ends when the trace has delivered the bytes of the payload.
"""

import math

import numpy as np

from sponge_env.core.compiled import Records, Words, compiled, inlined
from sponge_env.core.records import Env, TraceSample, World
from sponge_env.core.rng import FADES, NETWORK, seed_stream, uniform
from sponge_env.core.settings import GENERATED, INSTANT, SHIFTED, Settings

_PROBABILITIES = (0.0, 0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
_BANDWIDTHS = (0.43e6, 0.89e6, 1.33e6, 2.60e6, 3.36e6, 4.29e6, 5.80e6, 7.00e6)
"""Quantiles, in bytes per second, of the Ghent 4G bus log that the Sponge paper used."""

_MEMORY_PER_S = 0.86  # Correlation of a synthetic trace's slow part from second to second
_SLOW_SHARE = 0.88
"""Share of the variance in the slow part; the rest is white. Both fit the log's autocorrelation by
least squares."""

_TINY_BYTES = float(np.finfo(np.float64).tiny)
"""Least that may be left of a transfer, so that none ends in a sample without bandwidth."""


@inlined
def reset_network(w: World, seed: int) -> None:
    """Choose or make the episode's bandwidth trace."""
    env, settings = w.env, w.settings
    env.trace_at, samples = settings.trace_at, settings.samples
    if settings.network_kind in (GENERATED, SHIFTED):
        env.trace_at = env.private_at
        seed_stream(env.network_rng, seed, NETWORK)
    own = w.traces[env.trace_at :]
    if settings.network_kind == GENERATED:
        _synthetic_4g(own[: samples + 1], env.network_rng)
    elif settings.network_kind == SHIFTED:
        shared = w.traces[settings.trace_at : settings.trace_at + samples + 1]
        samples = _shifted(own, shared, uniform(env.network_rng))
    if settings.faded:
        whole = w.traces[env.trace_at : env.trace_at + samples + 1]
        env.trace_at = env.private_at + settings.faded_at
        seed_stream(env.network_rng, seed, FADES)
        samples = _faded(w.traces[env.trace_at :], whole, settings, env.network_rng)
    env.trace_end = env.trace_at + samples
    start_over(env)


@inlined
def start_over(env: Env) -> None:
    """Go back to the trace's beginning, for a new episode or another payload."""
    env.lap, env.begins_at, env.ends_at = 0.0, env.trace_at, env.trace_at


@compiled
def transferred_s(w: World, sent_s: float, payload_bytes: float) -> float:
    """Return when a transfer that starts at ``sent_s`` ends."""
    # The bytes delivered up to ``sent_s`` plus the payload are looked up among the sums of what the
    # trace has delivered, and interpolated inside one sample. Send times of one payload ascend, and
    # with them the ends; so the samples are walked through instead of searched, and begin anew only
    # with another lap.
    env, settings, trace = w.env, w.settings, w.traces
    if settings.network_kind == INSTANT or payload_bytes == 0:
        return sent_s
    # Division is slow, so it is left out where the quotient is at most 1.
    if sent_s >= settings.trace_s:
        lap = np.floor(sent_s / settings.trace_s)
        if lap != env.lap:
            env.lap, env.begins_at, env.ends_at = lap, env.trace_at, env.trace_at
    phase_s = max(sent_s - env.lap * settings.trace_s, 0.0)
    while env.begins_at + 1 < env.trace_end and trace[env.begins_at + 1].start_s <= phase_s:
        env.begins_at += 1
    first = trace[env.begins_at]
    so_far = first.cumulative + (phase_s - first.start_s) * first.bandwidth
    laps, rest = 0.0, so_far + payload_bytes
    total_bytes = trace[env.trace_end].cumulative
    if rest > total_bytes:
        laps = np.ceil(rest / total_bytes) - 1.0
        rest = min(max(rest - laps * total_bytes, _TINY_BYTES), total_bytes)
        env.ends_at = env.trace_at
    while trace[env.ends_at + 1].cumulative < rest:
        env.ends_at += 1
    last = trace[env.ends_at]
    inside_s = last.start_s + (rest - last.cumulative) / last.bandwidth
    return max((env.lap + laps) * settings.trace_s + inside_s, sent_s)


@inlined
def _synthetic_4g(trace: Records[TraceSample], rng: Words) -> None:
    """Fill a trace of one-second samples, all rows but the last, in the manner of 4G."""
    # A Gaussian process (first-order autoregression plus white noise) is mapped through the normal
    # distribution and the piecewise-linear quantile function above. Each second takes two uniforms
    # and, from them by Box and Muller's transform, two normals: slow part first, then white.
    kick = math.sqrt(1.0 - _MEMORY_PER_S**2)
    slow = 0.0
    for second in range(len(trace) - 1):
        radius = math.sqrt(-2.0 * math.log(1.0 - uniform(rng)))
        angle = 2.0 * math.pi * uniform(rng)
        shock, white = radius * math.cos(angle), radius * math.sin(angle)
        slow = _MEMORY_PER_S * slow + kick * shock if second else shock
        value = math.sqrt(_SLOW_SHARE) * slow + math.sqrt(1.0 - _SLOW_SHARE) * white
        probability = 0.5 * math.erfc(-value / math.sqrt(2.0))
        trace[second].start_s = second
        trace[second].bandwidth = _interpolated(probability)
    _accumulate(trace, float(len(trace) - 1))


@inlined
def _interpolated(probability: float) -> float:
    """Return the bandwidth of a probability, as ``numpy.interp`` does."""
    last = len(_PROBABILITIES) - 1
    if probability >= _PROBABILITIES[last]:
        return _BANDWIDTHS[last]
    k = 0
    while _PROBABILITIES[k + 1] <= probability:
        k += 1
    rise = _BANDWIDTHS[k + 1] - _BANDWIDTHS[k]
    slope = rise / (_PROBABILITIES[k + 1] - _PROBABILITIES[k])
    return slope * (probability - _PROBABILITIES[k]) + _BANDWIDTHS[k]


@inlined
def _shifted(trace: Records[TraceSample], shared: Records[TraceSample], offset: float) -> int:
    """Fill a trace with another one that begins later; return its number of samples."""
    # ``offset`` is a fraction of the other one's length.
    samples = len(shared) - 1
    duration_s = shared[samples].start_s
    phase_s = offset * duration_s % duration_s
    i = samples - 1
    while shared[i].start_s > phase_s:
        i -= 1
    filled = 0
    for k in range(samples + 1):
        source = (i + k) % samples
        wrapped_s = duration_s - phase_s if i + k >= samples else -phase_s
        start_s = shared[source].start_s + wrapped_s if k else 0.0
        if start_s < duration_s:
            trace[filled].start_s = start_s
            trace[filled].bandwidth = shared[source].bandwidth
            filled += 1
    _accumulate(trace[: filled + 1], duration_s)
    return filled


@inlined
def _faded(
    trace: Records[TraceSample], whole: Records[TraceSample], settings: Settings, rng: Words
) -> int:
    """Fill a trace with laps of another one and fades; return its number of samples."""
    every_s, length_s = settings.fade_every_s, settings.network.fade_s
    samples, sample, filled, time_s = len(whole) - 1, 0, 0, 0.0
    stretch, starts_s, ends_s = -1, 0.0, 0.0
    while time_s < settings.trace_s:
        while _lapped_start_s(whole, sample + 1) <= time_s:
            sample += 1
        while ends_s <= time_s:
            stretch += 1
            starts_s = stretch * every_s + uniform(rng) * (every_s - length_s)
            ends_s = min(starts_s + length_s, (stretch + 1) * every_s)
        fading = starts_s <= time_s
        trace[filled].start_s = time_s
        left = settings.network.fade_depth if fading else 1.0
        trace[filled].bandwidth = left * whole[sample % samples].bandwidth
        filled += 1
        time_s = min(_lapped_start_s(whole, sample + 1), ends_s if fading else starts_s)
    _accumulate(trace[: filled + 1], settings.trace_s)
    return filled


@inlined
def _lapped_start_s(trace: Records[TraceSample], sample: int) -> float:
    samples = len(trace) - 1
    return (sample // samples) * trace[samples].start_s + trace[sample % samples].start_s


@compiled
def _accumulate(trace: Records[TraceSample], duration_s: float) -> None:
    """Add the last row and the bytes delivered before each sample."""
    samples = len(trace) - 1
    trace[samples].start_s, trace[samples].bandwidth = duration_s, 0.0
    trace[0].cumulative = 0.0
    for k in range(samples):
        sample_bytes = (trace[k + 1].start_s - trace[k].start_s) * trace[k].bandwidth
        trace[k + 1].cumulative = trace[k].cumulative + sample_bytes
