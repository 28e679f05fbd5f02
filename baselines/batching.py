"""How the rules that scale cores or replicas choose their batch size.

None of them has a batch size in its published form: a batch may be as long as leaves time to
wait for the batch before it and for the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sponge_env.errors import ConfigError
from sponge_env.interfaces import SystemSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Options of the batch size."""

    batch: int | None = None
    """Largest batch, never above the scenario's limit; by ``batch_slo_share`` if left out."""
    batch_slo_share: float = 0.3
    """Share of the SLO within which a batch has to be served."""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {self.batch!r}")
        share("batch_slo_share", self.batch_slo_share)


def share(name: str, value: float) -> None:
    """Require a share above 0.

    Raises:
        ConfigError: It is not above 0 or above 1.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{name} must be above 0 and at most 1, not {value!r}")


def batch_size(config: BatchConfig, spec: SystemSpec, cores: int) -> int:
    """Return the largest batch for replicas of ``cores``, at least 1."""
    if config.batch is not None:
        return min(config.batch, spec.batch_max)
    latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)[:, cores - 1]
    fits = np.flatnonzero(latency_s <= config.batch_slo_share * spec.slo_s)
    return int(fits[-1]) + 1 if fits.size else 1
