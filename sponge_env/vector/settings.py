"""A scenario as the kernels need it: one record of numbers, and positions of its tables."""

from __future__ import annotations

from sponge_env.vector.compiler import Position, dtype_of

POISSON, CONSTANT, BURSTY, FLASH_CROWD, DIURNAL, RECORDED, GIVEN = range(7)
"""Kinds of arrivals; the requests of the last were made before the episode."""

INSTANT, GENERATED, FIXED, SHIFTED = range(4)
"""Kinds of networks: no transfer time, a synthetic trace for each seed, a trace from its
beginning, a trace from a random moment on."""


class Settings:
    """One scenario, as the kernels need it. ``*_at`` are positions in ``numbers``."""

    intervals: int
    interval_s: float
    slo_s: float
    cores_max: int
    batch_max: int
    replicas_max: int
    cores: int
    """Initial allocation, as are the next two."""
    batch: int
    replicas: int

    arrivals: int
    """One of the kinds above."""
    rate_rps: float
    requests: int
    """Requests of ``CONSTANT`` arrivals."""
    sent_before_s: float
    """No request is sent at this time or later."""
    states: int
    """States of ``BURSTY`` arrivals; their rates are next."""
    rates_at: Position
    """Of ``FLASH_CROWD`` arrivals, the rates before, within and after a flash crowd."""
    dwell_s: float
    flash_s: float
    flash_every_s: float
    diurnal_amplitude: float
    diurnal_period_s: float
    groups: int
    """Groups of ``RECORDED`` arrivals, such as the requests of one second."""
    group_start_at: Position
    group_length_at: Position
    group_count_at: Position
    """Expected number of requests in each group."""
    rounded: bool
    """Whether the numbers of requests are rounded up or down at random."""
    keeps_first: bool
    """Whether the first request of a group is sent at the group's start."""

    network: int
    """``INSTANT``, ``GENERATED``, ``FIXED`` or ``SHIFTED``."""
    trace_at: Position
    """First row of a ``FIXED`` trace in ``traces``, or of one to be ``SHIFTED``."""
    samples: int
    trace_s: float
    """Length of the trace, after which it repeats; with its fades, where there are any."""
    faded: bool
    """Whether there are fades; the next four belong to them."""
    faded_at: Position
    """Row of the environment's own part of ``traces`` from which the faded trace lies."""
    fade_every_s: float
    fade_s: float
    fade_depth: float
    payload_bytes: float
    base_delay_s: float

    fifo: bool
    """Whether batches are formed first in, first out."""
    drop_grace_s: float
    hopeless_below_s: float
    """Budget on arrival below which a request counts as hopeless."""

    planned_at: Position
    """(batch_max, cores_max) latency by the fit."""
    served_at: Position
    """(batch_max, cores_max) latency of the service model ``profile``."""
    quota: bool
    """Whether the service model is ``quota``; the next nine belong to it."""
    work_at: Position
    """(batch_max,) CPU seconds."""
    period_s: float
    tick_s: float
    dispatch_s: float
    dispatch_request_s: float
    resume_s: float
    loading_contention: float
    core_unit: float
    cpu_cores: float
    noise: float
    noise_at: Position
    noise_points: int
    cold_start_s: float
    actuation_delay_s: float

    violation_weight: float
    rate_scale: float
    """Requests per second that all cores can serve; see :mod:`sponge_env.encoding`."""
    span_1s: int
    """Intervals in one second, as in the next two."""
    span_5s: int
    span_30s: int


SETTINGS = dtype_of(Settings)
