"""The simplest rules (fixed allocations, a threshold, the slack), and a batch size for others.

SlackFit (SuperServe: Khare et al., NSDI 2025) and GrandSLAm (Kannan et al., EuroSys 2019) spend the
slack of the most urgent request and leave the resources as they are.

The published rules that scale cores or replicas have no batch size: here a batch may take a share
of the SLO that leaves time to wait for the batch before it and for the network.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.control.base import ArrayController, BaseController, Options, option
from sponge_env.control.split import shares
from sponge_env.interfaces import BY_SLACK, Allocation, StageAllocation, SystemSpec, SystemView

_CALM_SHARE = 0.25  # An interval counts as calm if less waits than this share of ``up_queue``
_UP_FACTOR = 1.5  # How many times the cores are held after growing; at least one is added


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig(Options):
    """Options of the batch size."""

    batch_slo_share: float = option(0.3, above=0, at_most=1)  # Share of the SLO for a batch


def batch_size(config: BatchConfig, spec: SystemSpec, cores: Any) -> Any:
    """Return the largest batch for replicas of ``cores``, one number or (n,), at least 1."""
    latency_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)
    return largest_batch(latency_s[:, cores - 1], config.batch_slo_share * spec.slo_s)


def largest_batch(latency_s: FloatArray, limit_s: float) -> Any:
    """Return the largest batch, by (batch_max, ...) seconds, that takes no longer, at least 1."""
    sizes = np.arange(1, len(latency_s) + 1)
    return np.maximum(1, (sizes * (latency_s <= limit_s).T).max(axis=-1))


def peak_load(spec: SystemSpec, view: SystemView, windows: int) -> tuple[float, float]:
    """Return the highest rate of the last intervals, and the largest delay of the last one."""
    rate_rps = float(view.first.arrivals[-windows:].max()) / spec.interval_s
    return rate_rps, float(view.delays_s.max(initial=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig(Options):
    """Options of :class:`Static`."""

    cores: int | None = option(None, at_least=1)  # Core units; all of them if left out or too many
    batch: int | None = option(None, at_least=1)  # Largest batch; the limit if left out or above it
    replicas: int | None = option(None, at_least=1)
    """Replicas, within the limit; if left out one, or in a pipeline the initial ones of a stage."""


class Static(ArrayController):
    """Always asks for the same; with the default batch, all that waits joins the next one."""

    config: StaticConfig

    @property
    def description(self) -> str:
        """Which of its options exceed the limits; empty if none does."""
        held: dict[str, None] = {}  # in order, each once
        for stage in self.spec.stages:
            limits = stage.cores_max, stage.batch_max, stage.replicas_max
            for name, most in zip(("cores", "batch", "replicas"), limits, strict=True):
                if (asked := getattr(self.config, name) or 1) > most:
                    held[f"{name}={most} instead of {asked}"] = None
        return f"keeps to the limits: {', '.join(held)}" if held else ""

    def choose(self, spec: SystemSpec, view: Any) -> tuple[Any, ...]:
        """Return the allocation, within the limits."""
        config, held = self.config, spec.initial.replicas if self.part_of_pipeline else 1
        return (
            min(config.cores or spec.first.cores_max, spec.first.cores_max),
            min(config.batch or spec.first.batch_max, spec.first.batch_max),
            min(config.replicas or held, spec.first.replicas_max),
        )


static_8 = partial(Static, cores=8)
static_16 = partial(Static, cores=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRuleConfig(BatchConfig):
    """Options of :class:`QueueRule`."""

    up_queue: float = option(1.0, above=0)  # Waiting requests per core above which cores are added
    down_after: int = option(10, at_least=1)  # Calm intervals in a row after which a core goes


class QueueRule(ArrayController):
    """Scales one replica by how many requests wait at the moment of the decision.

    Between the thresholds nothing changes, and cores are given back slowly, so that it is stable.
    """

    config: QueueRuleConfig

    def begin(self, spec: SystemSpec) -> None:
        """Forget how many intervals were calm."""
        self._calm: Any = 0

    def choose(self, spec: SystemSpec, view: Any) -> tuple[Any, ...]:
        """Compare the queue with the thresholds."""
        config, cores = self.config, view.allocation.cores
        waiting = view.first.queued / cores
        # Before the first interval has passed, an empty queue does not mean calm.
        calm = (waiting < _CALM_SHARE * config.up_queue) & (view.last is not None)
        self._calm = np.where(calm, self._calm + 1, 0)
        grown = np.maximum(cores + 1, np.ceil(cores * _UP_FACTOR))
        # Release slowly: a core too few costs deadlines, a core too many only itself.
        releases = self._calm >= config.down_after
        self._calm = np.where(releases, 0, self._calm)
        wanted = np.where(waiting > config.up_queue, grown, cores - releases)
        chosen = np.clip(wanted, 1, spec.first.cores_max).astype(np.int64)
        return chosen, batch_size(config, spec, chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConfig(Options):
    """What each stage always holds."""

    cores: int | None = option(None, at_least=1)
    """Core units of each of the initial replicas, within the limit; the limit if left out."""

    def of(self, spec: SystemSpec) -> list[StageAllocation]:
        """Return what each stage holds, as far as it fits on the machine."""
        stages = []
        for stage, first in zip(spec.stages, spec.initial.stages, strict=True):
            cores = min(self.cores or stage.cores_max, stage.cores_max)
            stages.append(first._replace(cores=cores, batch=stage.batch_max))
        return list(spec.fit_stages(stages))


class _Held(BaseController):
    """Always holds the same, whatever the stages."""

    config: HeldConfig
    plans_for = "all"


class SlackFit(_Held):
    """Lets each batch have the most accurate model that its most urgent request has time for."""

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the same allocation always."""
        held = self.config.of(spec)
        chosen = [BY_SLACK if len(stage.accuracies) > 1 else 0 for stage in spec.stages]
        stages = [each._replace(variant=v) for each, v in zip(held, chosen, strict=True)]
        return Allocation(stages=tuple(stages))


class GrandSLAm(_Held):
    """Makes batches as large as the slack of a stage allows, by its share of the SLO.

    A stage's share is in proportion to its latency, and it may spend what the earlier ones left.
    """

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the batch sizes for what waits now."""
        parts, stages = shares(spec, "proportional"), []
        for k, held in enumerate(self.config.of(spec)):
            share, after = parts[k]
            due_s, slack_s = view.stages[k].queued_deadlines_s, share * spec.slo_s
            if due_s.size:
                slack_s = float(due_s[0]) - view.now_s - after * spec.slo_s
            stage = spec.stages[k]
            table_s = stage.latencies[held.variant].table_s(stage.batch_max, stage.cores_max)
            batch = int(largest_batch(table_s[:, held.cores - 1], slack_s))
            stages.append(held._replace(batch=batch))
        return Allocation(stages=tuple(stages))
