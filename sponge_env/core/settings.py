"""A scenario as the kernels need it: its own tables, and what follows from them.

Every number of the configuration's dataclasses is here under its own name, such as
``settings.network.payload_bytes``; a new key needs no line in this file.
"""

import dataclasses
import math
from typing import Annotated, Any

import numpy as np

from sponge_env.core.compiled import Position, Records, dtype_of
from sponge_env.core.fields import SPANS_S
from sponge_env.interfaces import SystemSpec
from sponge_env.latency import QuotaService
from sponge_env.scenario import config

POISSON, CONSTANT, BURSTY, FLASH_CROWD, DIURNAL, RECORDED, LISTED = range(7)
"""Kinds of arrivals; the requests of the last were drawn before the episode."""

INSTANT, GENERATED, FIXED, SHIFTED = range(4)
"""Kinds of networks: no transfer time, a synthetic trace for each seed, a trace from its
beginning, a trace from a random moment on."""


class Settings:
    """One scenario. ``*_at`` are positions in ``numbers``."""

    arrivals: config.Arrivals
    network: config.Network
    serving: config.Serving
    simulation: config.Simulation
    reward: config.Reward

    intervals: int
    interval_s: float
    slo_s: float

    arrival_kind: int
    rate_rps: float
    requests: int
    sent_before_s: float  # No request is sent at this time or later
    states: int
    rates_at: Position  # Of ``BURSTY`` states; of a ``FLASH_CROWD`` before, within and after one
    groups: int  # Groups of ``RECORDED`` arrivals, such as the requests of one second
    group_start_at: Position
    group_length_at: Position
    group_count_at: Position  # Expected number of requests in each group
    rounded: bool  # Whether groups are rounded up or down at random
    keeps_first: bool  # Whether the first request of a group is sent at the group's start

    network_kind: int
    trace_at: Position
    samples: int
    trace_s: float  # Length of the trace, after which it repeats, with its fades
    faded: bool
    fade_every_s: float
    faded_at: Position  # Row of the own part of ``traces`` from which the faded trace lies

    fifo: bool  # Whether batches are formed first in, first out
    sheds: bool  # Whether batches leave out what they would answer late; see :mod:`.overload`

    total_cores: int
    nodes: int
    node_cores: Annotated[Records[int], np.int64, config.MAX_NODES]  # Of these the first ones
    cpu_cores: float  # Core units of the CPU that all stages share, where a quota limits it

    spans: Annotated[Records[int], np.int64, 1 + len(SPANS_S)]
    """One interval, and the intervals in the spans of time over which rates are observed."""


class StageSettings:
    """One stage of a scenario: its model and limits. ``*_at`` are positions in ``numbers``."""

    limits: config.Limits
    initial: config.Initial
    placed_at: Position  # (initial replicas,) the nodes on which they start
    quota: QuotaService  # All zero without one

    after: int  # Bit for each stage whose tasks lead to tasks here; none in the first
    before: int  # The same of all stages that come before in any way
    fan_out_at: Position  # (fan_outs,) cumulated probabilities of 0, 1, ... tasks in a later stage
    fan_outs: int
    variants: int
    accuracy_at: Position

    planned_at: Position  # (variants, batch_max, cores_max) latency by the fit
    served_at: Position  # (variants, batch_max, cores_max) latency of the service model ``profile``
    limited: bool
    work_at: Position  # (variants, batch_max) CPU seconds under a quota
    overheads_at: Position  # (variants, :data:`.service.OVERHEADS`) beside work, under a quota
    core_unit: float
    cpu_cores: float  # Core units of the CPU that all replicas share
    noise_at: Position  # (variants, noise_points) quantiles of the scatter
    noise_points: int
    replay_at: Position  # Measured work of batches, see :mod:`sponge_env.core.service`; 0 for none
    drop_below_s: float  # Time to its deadline below which a waiting request is dropped
    after_s: float  # Shortest time of a request in stages after this that all pass
    hopeless_below_s: float  # Budget on arrival below which a request is hopeless here
    one_core_below_s: float  # The same on one core
    slo_s: float  # That of the requests that enter here
    pace: float  # See :attr:`.WorkerState.pace`; at the start
    cheapest_core_s: float  # Least work of a task in any batch, in core unit seconds or CPU seconds
    cold_start_s: float
    rate_scale: float  # Requests/s that all cores serve; see :mod:`sponge_env.core.fields`


SETTINGS = dtype_of(Settings)
STAGE_SETTINGS = dtype_of(StageSettings)


def write_spec(row: Any, models: Any, spec: SystemSpec) -> None:
    """Write what controllers may know of a system and its stages, but for the limits."""
    row["interval_s"], row["slo_s"] = spec.interval_s, spec.slo_s
    row["total_cores"], row["nodes"] = spec.total_cores, len(spec.nodes)
    row["node_cores"][: len(spec.nodes)] = spec.nodes
    row["spans"] = [1, *(max(1, round(span_s / spec.interval_s)) for span_s in SPANS_S)]
    for model, stage in zip(models, spec.stages, strict=True):
        model["cold_start_s"], model["rate_scale"] = stage.cold_start_s, stage.capacity_rps


def write_table(row: Any, table: Any) -> None:
    """Copy the numbers of a dataclass into the record of the same name; NaN for None."""
    for name in row.dtype.names or ():
        value = getattr(table, name)
        row[name] = math.nan if value is None else value


def write_tables(row: Any, scenario: Any) -> None:
    """Copy those tables of a scenario that the record has too."""
    for f in dataclasses.fields(scenario):
        if f.name in row.dtype.names and dataclasses.is_dataclass(getattr(scenario, f.name)):
            write_table(row[f.name], getattr(scenario, f.name))
