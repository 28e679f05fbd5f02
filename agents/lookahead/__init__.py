"""``sponge-mpc`` and its look-ahead program: plays the next seconds and takes the cheapest.

Read on in :mod:`.planner`, which lays a decision out, in :mod:`.kernel`, which prices allocations
along the sample paths of :mod:`.forecast`, and in :mod:`.tandem`, where the queues are played.
"""

from __future__ import annotations

from sponge_env.chain import is_chain
from sponge_env.controllers import BaseController
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.split import shares, stage_views

from .options import MPCConfig
from .planner import LookAhead, everything
from .service_times import ServiceTimes, fitted_s


class SpongeMPC(BaseController):
    """Vertical scaling by receding horizon: simulate, choose, and simulate anew.

    It plays the queues of all stages under a candidate allocation along weighted sample paths of
    arrivals and bandwidth, lets each path go on with the cores that suit it then (vertical scaling
    acts at once, so the next decision can come to the rescue), and minimises

        cores + late_price * late requests + price of the backlog left at the end
        + accuracy_price * percent of accuracy lost.

    The price of the backlog, which is what serving one more request costs at the forecast rate,
    keeps the cores at the level that the load needs in the long run. It asks for one replica
    always, in a pipeline for those that each stage begins with, and takes everything before the
    load is known.
    """

    config: MPCConfig

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether the stages are a chain."""
        return is_chain(spec.stages)

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times; compiles at the first call."""
        self._service_s = fitted_s(spec)
        self._times = [
            [ServiceTimes(table_s[: s.cores_max, : s.batch_max]) for table_s in tables_s]
            for s, tables_s in zip(spec.stages, self._service_s, strict=True)
        ]
        self._shares = shares(spec, "proportional")
        held = [stage.replicas for stage in spec.initial.stages]
        self._replicas = held if len(held) > 1 else [1]
        self._program = LookAhead(spec, self.config, self._service_s)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose variant, cores and batch size of each stage for the next interval."""
        if not view.arrivals.size:
            return everything(spec, self._replicas)
        if self.config.learning:
            for k, part in enumerate(stage_views(view, spec, self._shares)):
                variant = view.stages[k].allocation.variant
                if self._times[k][variant].observe(part):
                    self._program.learnt(k, variant)
        return self._program.choose(view, self._replicas)
