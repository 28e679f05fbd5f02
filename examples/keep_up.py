"""A controller of one's own in twenty lines: hold what the recent load needs.

Run from this folder:  python ../evaluate.py --agent keep_up:KeepUp sponge-ip fa2
"""

import numpy as np

from sponge_env import Allocation, SystemSpec, SystemView


class KeepUp:
    """Fewest cores whose throughput leaves some headroom over the last five seconds' load."""

    def __init__(self, headroom: float = 1.3) -> None:
        self.headroom = headroom

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start an episode: tabulate the throughput of every batch size and core count."""
        stage = spec.first
        latency_s = stage.latency.table_s(stage.batch_max, stage.cores_max)
        batches = np.arange(1, stage.batch_max + 1)[:, None]
        in_time = latency_s <= spec.slo_s / 3  # wait for one batch, be in the next
        self.interval_s = spec.interval_s
        self.recent = max(1, round(5 / spec.interval_s))
        self.throughput_rps = np.where(in_time, batches / latency_s, 0.0)

    def decide(self, view: SystemView) -> Allocation:
        """Choose for the next interval; before the first arrivals, take everything."""
        stage = view.first
        if not stage.arrivals.size:
            return Allocation(cores=self.throughput_rps.shape[1], batch=1)
        demand = stage.arrivals[-self.recent :].mean() + stage.queued_deadlines_s.size / self.recent
        enough = self.throughput_rps.max(axis=0) >= self.headroom * demand / self.interval_s
        cores = int(enough.argmax()) + 1 if enough.any() else enough.size
        batch = int(self.throughput_rps[:, cores - 1].argmax()) + 1
        return Allocation(cores, batch)
