"""Which actions make sense at all, for learners that take masks.

Masked are core counts that cannot even serve what has lately arrived, and batch sizes that
no core count runs within the SLO (invalid action masking, Huang and Ontañón, 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sponge_env.fields import FIELDS
from sponge_env.interfaces import SystemSpec

_RATE = FIELDS.index("arrivals_5s")

SHARE = 0.7
"""Share of the recent rate that the fewest cores must serve: bursts end, and a queue may
wait for the next interval."""


class ActionMasks:
    """Masks for one system."""

    def __init__(self, spec: SystemSpec, joint: bool = False) -> None:
        """Tabulate what cores can serve.

        Args:
            spec: The system.
            joint: Whether actions choose replicas, too. These may serve what cores do not,
                so that then only batch sizes are masked.
        """
        latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
        batches = np.arange(1, spec.batch_max + 1)[:, None]
        self._served = (batches / latency_s).max(axis=0) / spec.capacity_rps
        self._fits = latency_s[:, -1] <= spec.slo_s
        self._fits[0] = True
        if joint:
            self._served = np.full(spec.cores_max, np.inf)
            self._fits = np.append(self._fits, np.ones(spec.replicas_max, np.bool_))

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which choices are allowed.

        Args:
            observations: (..., observed).

        Returns:
            (..., choices): every core count, every batch size, and every number of replicas
            under joint control.
        """
        wanted = SHARE * observations[..., _RATE, None]
        cores = self._served >= wanted
        cores[..., -1] = True
        batches = np.broadcast_to(self._fits, (*cores.shape[:-1], self._fits.size))
        return np.concatenate([cores, batches], axis=-1)
