"""``sponge-mpc`` and its look-ahead program: plays the next seconds and takes the cheapest.

Read on in :mod:`.planner`, which lays a decision out, in :mod:`.kernel`, which prices allocations
along the sample paths of :mod:`.paths`, and in :mod:`.tandem`, where the queues are played.
"""

from __future__ import annotations

from sponge_env.control.base import BaseController
from sponge_env.control.chain import is_chain
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from ..fleet import everything
from .planner import LookAhead, MPCConfig
from .service_times import StageTimes


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
        """Return whether it can play the stages: a chain."""
        return is_chain(spec.stages)

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times; compiles at the first call."""
        held = [stage.replicas for stage in spec.initial.stages]
        self._replicas = held if len(held) > 1 else [1]
        # The gaps between full batches tell most, but nothing where several tasks come at once.
        times = StageTimes(spec, full_batches=spec.is_one_model)
        self._program = LookAhead(spec, self.config, times)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose variant, cores and batch size of each stage for the next interval."""
        if not view.first.arrivals.size:
            return everything(spec, self._replicas)
        self._observe(view)
        return self._program.choose(view, self._replicas)

    def observe(self, view: SystemView) -> None:
        """Take in an interval after which another decides, as :meth:`decide` does for its own."""
        if view.first.arrivals.size:
            self._observe(view)

    def _observe(self, view: SystemView) -> None:
        self._program.observe(view)
