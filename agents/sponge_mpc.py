"""``sponge-mpc``: plays the next seconds for every allocation and takes the cheapest."""

from __future__ import annotations

from sponge_env.controllers import BaseController
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .lookahead import LookAhead, MPCConfig
from .lookahead.service import ServiceTimes


class SpongeMPC(BaseController):
    """Vertical scaling by receding horizon: simulate, choose, and simulate anew.

    It plays the queue under a candidate allocation along weighted sample paths of arrivals and
    bandwidth, lets each path go on with the cores that suit it then (vertical scaling acts at
    once, so the next decision can come to the rescue), and minimises

        cores + late_price * late requests + price of the backlog left at the end.

    The price of the backlog is what serving one more request costs at the forecast rate. It
    keeps the cores at the level that the load needs in the long run: latency is convex in the
    cores, so a steady few are cheaper than few and many by turns.

    It asks for one replica always, and takes everything before the load is known.
    """

    config: MPCConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times; compiles at the first call."""
        self._times = ServiceTimes(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._program = LookAhead(spec, self.config, self._times.table_s)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose cores and batch size for the next interval."""
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max)
        if self.config.learning and self._times.observe(view):
            self._program.use(self._times.table_s)
        return self._program.choose(view, self._program.observe(view))
