"""How the rules that scale cores or replicas choose their batch size.

None of them has a batch size in its published form: a batch may be as long as leaves time to
wait for the batch before it and for the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sponge_env.controllers import Options, option
from sponge_env.interfaces import SystemSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig(Options):
    """Options of the batch size."""

    batch: int | None = option(None, at_least=1)
    """Largest batch, never above the scenario's limit; by ``batch_slo_share`` if left out."""
    batch_slo_share: float = option(0.3, above=0, at_most=1)
    """Share of the SLO within which a batch has to be served."""


def batch_size(config: BatchConfig, spec: SystemSpec, cores: int) -> int:
    """Return the largest batch for replicas of ``cores``, at least 1."""
    if config.batch is not None:
        return min(config.batch, spec.batch_max)
    latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)[:, cores - 1]
    fits = np.flatnonzero(latency_s <= config.batch_slo_share * spec.slo_s)
    return int(fits[-1]) + 1 if fits.size else 1
