"""FA2: horizontal scaling with one-core replicas and a common batch size.

After FA2 (Razavi et al., RTAS 2022) as the authors of Sponge (EuroMLSys 2024) implemented it for
their comparison, with one change. If no fleet fits its formula, theirs keeps what is in force, even
a single replica under a load for ten; this one asks for all replicas. ``when_infeasible="keep"`` is
the published form. A chain of stages has one budget, and their latencies are those of :mod:`.ipa`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sponge_env.control.base import BaseController, Planning, option
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView

from .ipa import IPA
from .rules import peak_load


@dataclass(frozen=True, slots=True, kw_only=True)
class FA2Config(Planning):
    """Options of :class:`FA2`."""

    slo_fraction: float = option(0.9, above=0, at_most=1)
    """Share of the SLO within which an interval's last batch must end, as published."""
    rate_windows: int = option(1, at_least=1)
    """Past intervals whose highest rate is planned for; 1 as published. With more, a short lull
    does not give up replicas, or cancel starting ones, that are needed again at once."""
    when_infeasible: Literal["largest", "keep"] = "largest"
    """What to ask for if no fleet fits: the largest one, or, as published, what is in force."""


class FA2(BaseController):
    """Chooses the fewest one-core replicas that meet the rate and the tightest budget.

    It knows nothing of the queue, of replicas that still start, or of single deadlines.
    """

    config: FA2Config

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether the stages are a chain."""
        return spec.is_chain and not spec.has_variants

    def begin(self, spec: SystemSpec) -> None:
        """Prepare the program for several stages, if there are several."""
        own = {"rate_windows": self.config.rate_windows, "slo_fraction": self.config.slo_fraction}
        self._chain = IPA(mode="scale", cores=1, **own) if len(spec.stages) > 1 else None
        if self._chain is not None:
            self._chain.begin(spec)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the smallest fleet that fits; if none does, what ``when_infeasible`` says."""
        if not view.first.arrivals.any():  # nothing to plan for yet
            return dataclasses.replace(view.allocation, feasible=True)
        config = self.config
        if self._chain is not None:
            answer = self._chain.allocate(spec, view)
        else:
            rate_rps, delay_max_s = peak_load(spec, view, config.rate_windows)
            fitting = smallest_fleet(spec, rate_rps, delay_max_s, config.slo_fraction)
            answer = fitting or largest_fleet(spec, config.slo_fraction)
        keep = not answer.feasible and config.when_infeasible == "keep"
        return dataclasses.replace(view.allocation, feasible=False) if keep else answer


def smallest_fleet(
    spec: SystemSpec, rate_rps: float, delay_max_s: float, slo_fraction: float
) -> Allocation | None:
    """Find the fewest replicas n, then the smallest batch b, that fit.

    With ``l`` the latency of ``b`` requests on one core, floored to whole milliseconds, and
    the budget ``q = SLO - cl``, a pair fits if ``l <= q``, ``n * floor(q / l) * b >= lambda``
    and ``l + ceil(lambda / (b * n)) * l + cl < slo_fraction * SLO``. Lambda are the requests of one
    SLO (as published the rate, for an SLO of 1 s), cl the largest communication delay.
    """
    batches = np.arange(1, spec.first.batch_max + 1)
    replicas = np.arange(1, spec.most_replicas(cores=1) + 1)[:, None]
    latency_ms, slo_ms, delay_ms = _latency_ms(spec), spec.slo_s * 1e3, delay_max_s * 1e3
    requests, budget_ms = rate_rps * spec.slo_s, slo_ms - delay_ms
    served = replicas * np.floor(budget_ms / latency_ms) * batches
    rounds = np.ceil(requests / (batches * replicas))
    end_ms = latency_ms + rounds * latency_ms + delay_ms
    fits = (latency_ms <= budget_ms) & (served >= requests) & (end_ms < slo_fraction * slo_ms)
    if not fits.any():
        return None
    # The first that fits, row by row: fewest replicas, then the smallest batch.
    row, column = divmod(int(fits.argmax()), spec.first.batch_max)
    return Allocation(cores=1, batch=column + 1, replicas=row + 1)


def largest_fleet(spec: SystemSpec, slo_fraction: float) -> Allocation:
    """Return all replicas with the batch size of the highest throughput within reason.

    A batch is within reason if a request can wait for it and still be served by the next one:
    ``2 * l < slo_fraction * SLO``. If none is, the batch size is 1.
    """
    latency_ms = _latency_ms(spec)
    reasonable = 2 * latency_ms < slo_fraction * spec.slo_s * 1e3
    throughput = np.where(reasonable, np.arange(1, spec.first.batch_max + 1) / latency_ms, 0.0)
    batch = int(throughput.argmax()) + 1
    return Allocation(cores=1, batch=batch, replicas=spec.most_replicas(1), feasible=False)


def _latency_ms(spec: SystemSpec) -> FloatArray:
    """Return the latency of each batch size on one core, (batch_max,) whole milliseconds."""
    return np.maximum(np.floor(spec.first.latency.table_s(spec.first.batch_max, 1)[:, 0] * 1e3), 1)
