"""IPA: replicas, variants and batch sizes of a chain of stages, by one latency budget.

After Ghafouri et al., "IPA: Inference Pipeline Adaptation to Achieve High Accuracy and
Cost-Efficiency" (2023): of the choices of variant, batch and replicas for each stage that keep up
with the load and whose latencies, with the time to fill a batch, add up to at most the SLO, the
best in accuracy and cost. FA2 (Razavi et al., RTAS 2022) has one core and no variants.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.control.base import BaseController, VariantPlanning, option
from sponge_env.control.chain import CORE_COST, Chain
from sponge_env.interfaces import Allocation, StageAllocation, StageSpec, SystemSpec, SystemView

from .rules import peak_load

TICKS = 256  # Ticks of an SLO. Latencies are rounded up to them.
_CORES = 2  # Cores of a replica by default


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAConfig(VariantPlanning):
    """Options of :class:`IPA`."""

    mode: Literal["switch", "scale", "both"] = "both"  # What changes: variants, replicas, or both
    cores: int | None = option(None, at_least=1)
    """Cores of each replica, within the stage's limit; else 2, in mode ``switch`` the initial."""
    headroom: float = option(0.3, at_least=0)
    rate_windows: int = option(20, at_least=1)  # Past intervals whose highest rate is planned for
    slo_fraction: float = option(0.8, above=0, at_most=1)  # Share of the SLO that is planned with


class IPA(BaseController):
    """Chooses variant, batch size and replicas of each stage, by one budget for all of them.

    It knows nothing of queues, of starting replicas, or of single deadlines. If nothing fits, it
    asks for all replicas. The defaults look at many past rates, since replicas start slowly.
    """

    config: IPAConfig
    plans_for = "chains"

    def begin(self, spec: SystemSpec) -> None:
        """List the options of each stage."""
        config, at_first = self.config, zip(spec.stages, spec.initial.stages, strict=True)
        self._stages = [_Stage(config, *each) for each in at_first]
        self._chain = Chain([each.batch.size for each in self._stages], TICKS, spec.total_cores)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Solve the program for the highest of the last rates and the tightest budget."""
        config, choices = self.config, self._chain.choices
        if not view.first.arrivals.any():  # nothing to plan for yet
            return dataclasses.replace(view.allocation, feasible=True)
        rate_rps, delay_max_s = peak_load(spec, view, config.rate_windows)
        budget_s, tick_s = config.slo_fraction * spec.slo_s - delay_max_s, spec.slo_s / TICKS
        for k, stage in enumerate(self._stages):
            own = slice(choices.first[k], choices.first[k + 1])
            latency_s = stage.latency_s(max(rate_rps * spec.stages[k].mean_tasks, 1e-9))
            choices.ticks[own] = np.minimum(np.ceil(latency_s / tick_s - 1e-9), TICKS)
            choices.cores[own] = stage.held
            choices.cost[own] = np.round(CORE_COST * (stage.held + stage.loss)) + stage.batch
        feasible = self._chain.within(math.floor(budget_s / tick_s))
        chosen = self._chain.options() if feasible else [stage.largest for stage in self._stages]
        stages = [s.allocation(at) for s, at in zip(self._stages, chosen, strict=True)]
        return Allocation(stages=spec.fit_stages(stages), feasible=feasible)


class _Stage:
    """The options of a stage: (options,) arrays over variants, replicas and batch sizes."""

    def __init__(self, config: IPAConfig, stage: StageSpec, held: StageAllocation) -> None:
        fixed, every = config.mode == "switch", range(1, stage.replicas_max + 1)
        self._cores = min(config.cores or (held.cores if fixed else _CORES), stage.cores_max)
        largest = len(stage.latencies) - 1
        variants = [largest] if config.mode == "scale" else range(largest, -1, -1)
        batches = range(1, stage.batch_max + 1)
        axes = np.meshgrid(variants, [held.replicas] if fixed else every, batches, indexing="ij")
        self.variant, self.replicas, self.batch = (axis.ravel() for axis in axes)
        sizes = stage.batch_max, stage.cores_max
        tables_s = np.array([fit.table_s(*sizes) for fit in stage.latencies])
        service_s = tables_s[self.variant, self.batch - 1, self._cores - 1]
        self._service_s: FloatArray = service_s
        self._served_rps = self.replicas * self.batch / self._service_s
        self.held = self.replicas * self._cores
        self.loss: FloatArray = config.accuracy_price * stage.percent_lost[self.variant]
        self.largest = int(self._served_rps.argmax())

    def latency_s(self, rate_rps: float) -> FloatArray:
        """Return the latency of each option at a rate; infinite if it cannot keep up."""
        whole_s = self._service_s + (self.batch - 1) / rate_rps
        return np.where(self._served_rps >= rate_rps, whole_s, np.inf)

    def allocation(self, at: int) -> StageAllocation:
        """Return an option."""
        batch, replicas, variant = (int(a[at]) for a in (self.batch, self.replicas, self.variant))
        return StageAllocation(self._cores, batch, replicas, variant)


ipa_switch = partial(IPA, mode="switch")
ipa_scale = partial(IPA, mode="scale")
