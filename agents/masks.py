"""Which actions make sense at all: the masks of ``maskable-ppo``.

Masked are core counts that cannot even serve what has lately arrived, and batch sizes that
no core count runs within the SLO (invalid action masking, Huang and Ontañón, 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.learners import LEARNERS
from sponge_env.encoding import FIELDS, capacity_rps
from sponge_env.interfaces import SystemSpec

_RATE = FIELDS.index("arrivals_5s")

SHARE = 0.7
"""Share of the recent rate that the fewest cores must serve: bursts end, and a queue may
wait for the next interval."""


def masks_for(agent: str, spec: SystemSpec) -> ActionMasks | None:
    """Return the masks that an agent was trained with, if it was."""
    return ActionMasks(spec) if LEARNERS[agent].algorithm == "maskable" else None


class ActionMasks:
    """Masks for one system."""

    def __init__(self, spec: SystemSpec) -> None:
        latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
        batches = np.arange(1, spec.batch_max + 1)[:, None]
        self._served = (batches / latency_s).max(axis=0) / capacity_rps(spec)
        self._fits = latency_s[:, -1] <= spec.slo_s
        self._fits[0] = True

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which choices are allowed.

        Args:
            observations: (..., observed).

        Returns:
            (..., cores_max + batch_max): every core count, then every batch size.
        """
        wanted = SHARE * observations[..., _RATE, None]
        cores = self._served >= wanted
        cores[..., -1] = True
        batches = np.broadcast_to(self._fits, (*cores.shape[:-1], self._fits.size))
        return np.concatenate([cores, batches], axis=-1)
