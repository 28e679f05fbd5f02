"""Requests in the order in which they are sent, drawn one at a time as they are needed.

All requests that are drawn here have one payload, one base delay and one SLO, so they arrive
in the order in which they were sent. Those of a ``System``, and of mixed classes, are drawn,
sorted and listed before the episode (:mod:`sponge_env.simulation.workload`).
"""

import math

from sponge_env.core.compiled import Records, compiled, inlined
from sponge_env.core.network import transferred_s
from sponge_env.core.records import World
from sponge_env.core.rng import ARRIVALS, next_uint64, seed_stream, uniform
from sponge_env.core.settings import BURSTY, CONSTANT, DIURNAL, FLASH_CROWD, POISSON


@inlined
def reset_arrivals(w: World, seed: int) -> None:
    """Start the stream of requests and draw the first."""
    env, settings = w.env, w.settings
    seed_stream(env.arrivals_rng, seed, ARRIVALS)
    env.sent, env.clock_s, env.arrival_s = 0, 0.0, 0.0
    env.group, env.group_requests, env.group_next = 0, 0, 0
    if settings.arrival_kind == BURSTY:
        env.state = int(uniform(env.arrivals_rng) * settings.states)
        env.state_ends_s = settings.arrivals.burst_dwell_s * _exponential(w)
    elif settings.arrival_kind == FLASH_CROWD:
        env.state, env.stretch = 0, 0
        env.state_ends_s = _flash_starts_s(w)
    elif settings.arrival_kind == DIURNAL:
        env.day_begins = uniform(env.arrivals_rng)
    elif settings.rounded:
        # First all numbers of requests are rounded, then the requests are placed.
        env.rounding_rng = env.arrivals_rng
        for _ in range(settings.groups):
            next_uint64(env.arrivals_rng)
    next_request(w)


@compiled
def next_request(w: World) -> None:
    """Draw the next request into ``env.sent_s`` and ``env.arrival_s``."""
    env, settings = w.env, w.settings
    if settings.arrival_kind == POISSON:
        env.clock_s += _exponential(w) / settings.rate_rps
    elif settings.arrival_kind == CONSTANT:
        env.clock_s = env.sent / settings.rate_rps if env.sent < settings.requests else math.inf
    elif settings.arrival_kind in (BURSTY, FLASH_CROWD):
        _next_in_pieces(w)
    elif settings.arrival_kind == DIURNAL:
        _next_of_the_day(w)
    else:
        _next_recorded(w)
    env.sent += 1
    if env.clock_s < settings.sent_before_s:
        env.sent_s = env.clock_s
        end_s = transferred_s(w, env.sent_s, settings.network.payload_bytes)
        arrival_s = end_s + settings.network.base_delay_s
        env.arrival_s = max(env.arrival_s, arrival_s)
    else:
        env.sent_s = env.arrival_s = math.inf


@compiled
def next_listed(w: World) -> None:
    """Take the next request of those that were drawn before the episode."""
    env, request = w.env, w.requests[w.env.sent]
    env.sent_s, env.arrival_s = request.sent_s, request.arrival_s
    env.sent += 1


@inlined
def _exponential(w: World) -> float:
    return -math.log(1.0 - uniform(w.env.arrivals_rng))


@inlined
def _next_in_pieces(w: World) -> None:
    env, settings = w.env, w.settings
    rates_rps = w.numbers[settings.rates_at : settings.rates_at + settings.states]
    expected = _exponential(w)
    while expected >= rates_rps[env.state] * (env.state_ends_s - env.clock_s):
        expected -= rates_rps[env.state] * (env.state_ends_s - env.clock_s)
        env.clock_s = env.state_ends_s
        if settings.arrival_kind == BURSTY:
            others = settings.states - 1
            env.state = (env.state + 1 + int(uniform(env.arrivals_rng) * others)) % settings.states
            env.state_ends_s += settings.arrivals.burst_dwell_s * _exponential(w)
        else:
            _enter_part_of_stretch(w)
    env.clock_s += expected / rates_rps[env.state]


@inlined
def _enter_part_of_stretch(w: World) -> None:
    env, settings = w.env, w.settings
    stretch_ends_s = (env.stretch + 1) * settings.arrivals.flash_every_s
    env.state = (env.state + 1) % settings.states
    if env.state == 0:
        env.stretch += 1
        env.state_ends_s = _flash_starts_s(w)
    elif env.state == 1:
        env.state_ends_s = min(env.state_ends_s + settings.arrivals.flash_s, stretch_ends_s)
    else:
        env.state_ends_s = stretch_ends_s


@compiled
def _flash_starts_s(w: World) -> float:
    every_s = w.settings.arrivals.flash_every_s
    room_s = every_s - w.settings.arrivals.flash_s
    return w.env.stretch * every_s + uniform(w.env.arrivals_rng) * room_s


@inlined
def _next_of_the_day(w: World) -> None:
    env, settings = w.env, w.settings
    amplitude, period_s = settings.arrivals.diurnal_amplitude, settings.arrivals.diurnal_period_s
    most_rps = settings.rate_rps * (1.0 + amplitude)
    stays = False
    while not stays:
        env.clock_s += _exponential(w) / most_rps
        if env.clock_s >= settings.sent_before_s:
            return
        swing = amplitude * math.sin(2.0 * math.pi * (env.day_begins + env.clock_s / period_s))
        stays = uniform(env.arrivals_rng) * (1.0 + amplitude) < 1.0 + swing


@inlined
def _next_recorded(w: World) -> None:
    env = w.env
    while env.group_next == env.group_requests:
        if env.group == w.settings.groups:
            env.clock_s = math.inf
            return
        _fill_group(w)
    env.clock_s = w.group[env.group_next]
    env.group_next += 1


@inlined
def _fill_group(w: World) -> None:
    """Draw the requests of the next group, in ascending order."""
    env, settings = w.env, w.settings
    start_s = w.numbers[settings.group_start_at + env.group]
    length_s = w.numbers[settings.group_length_at + env.group]
    expected = w.numbers[settings.group_count_at + env.group]
    if settings.rounded:
        expected += uniform(env.rounding_rng)
    env.group_requests, env.group_next = int(expected), 0
    for k in range(env.group_requests):
        part = uniform(env.arrivals_rng)
        if settings.keeps_first and k == 0:
            part = 0.0
        w.group[k] = start_s + part * length_s
    _sort(w.group, env.group_requests)
    env.group += 1


@inlined
def _sort(values: Records[float], count: int) -> None:
    """Sort the first values by Shell's method, which needs no memory."""
    gap = count // 2
    while gap:
        for k in range(gap, count):
            value, hole = values[k], k
            while hole >= gap and values[hole - gap] > value:
                values[hole] = values[hole - gap]
                hole -= gap
            values[hole] = value
        gap //= 2
