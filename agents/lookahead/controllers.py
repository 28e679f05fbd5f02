"""``sponge-mpc`` and ``sponge-joint``: play the next seconds, take the cheapest allocation."""

from dataclasses import dataclass

from sponge_env.control.base import BaseController
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView

from ..fleet import FleetOptions, Fleets, everything
from ..shadow import ShadowFleets
from .planner import LookAhead, MPCConfig
from .service_times import StageTimes, in_force


class SpongeMPC(BaseController):
    """Vertical scaling by receding horizon: simulate, choose, and simulate anew.

    It plays the queues of all stages under a candidate allocation along weighted sample paths of
    arrivals and bandwidth, lets each path go on with the cores that suit it then (vertical scaling
    acts at once, so the next decision can correct this one), and minimises

        cores + late_price * late requests + price of the backlog left at the end
        + accuracy_price * percent of accuracy lost.

    The price of the backlog is the cost of serving one more request at the forecast rate; it keeps
    the cores at the level that the load needs in the long run. It holds one replica, or in a
    pipeline the initial ones, and all cores until the load is known.
    """

    config: MPCConfig
    plans_for = "chains"

    def begin(self, spec: SystemSpec) -> None:
        """Start from the measured service times; compiles at the first call."""
        held = [stage.replicas for stage in spec.initial.stages]
        self._replicas = held if len(held) > 1 else [1]
        self._program = LookAhead(spec, self.config, StageTimes(spec))

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose variant, cores and batch size of each stage for the next interval."""
        if not view.first.arrivals.size:
            return everything(spec, self._replicas)
        self._observe(view)
        return self._program.choose(view, self._replicas)

    def observe(self, view: SystemView) -> None:
        """Take in an interval after which another controller decides."""
        if view.first.arrivals.size:
            self._observe(view)

    def _observe(self, view: SystemView) -> None:
        self._program.observe(view)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(MPCConfig, FleetOptions):
    """Options of :class:`SpongeJoint`; defaults chosen on training seeds of several systems."""


class SpongeJoint(SpongeMPC):
    """Sponge with replicas: cores cover the load until cheaper replicas are warm.

    As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
    few cores are the cheapest way to serve a load and cores the fastest way to follow one. So
    :class:`FleetPlanner` decides how many replicas to keep, which takes a cold start to change, and
    the look-ahead program with which cores and batch size they serve the next seconds. Until the
    load is known, the initial replicas share all cores. With one model, :class:`ShadowFleets` says
    when the best constant of the last minutes would have missed less or taken fewer cores.
    """

    config: SpongeJointConfig
    grows_ready = True

    def begin(self, spec: SystemSpec) -> None:
        """Start from the measured service times; compiles at the first call."""
        self._times = StageTimes(spec)
        self._program = LookAhead(spec, self.config, self._times)
        self._fleets = Fleets(self.config, spec, self.part_of_pipeline or len(spec.stages) > 1)
        self._going_to = 0  # Replicas of the constant that the present ones are left for
        self._draining = False  # Whether fewer replicas serve a queue until the overload ends
        alone = spec.is_one_model and not self.part_of_pipeline
        self._shadow = ShadowFleets(spec, self._times.table_s(0, 0)) if alone else None

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose the fleets, then their variants, cores and batch sizes."""
        if not view.first.arrivals.size:
            return everything(spec, [stage.allocation.replicas for stage in view.stages])
        self._observe(view)
        tables = [self._times.table_s(k, in_force(s.allocation)) for k, s in enumerate(view.stages)]
        replicas, overloaded = self._fleets.replicas(tables), self._fleets.overloaded
        shadow, asked = self._shadow, view.first.allocation.replicas
        constant = shadow.to_hold(view.now_s, overloaded, asked, thrifty=True) if shadow else None
        if shadow is None or constant is None:
            if not overloaded:
                self._going_to, self._draining = 0, False
            return self._program.choose(view, replicas, make_room=overloaded)
        return self._holding(constant, shadow, view, replicas[0])

    def _holding(
        self, constant: StageAllocation, shadow: ShadowFleets, view: SystemView, replicas: int
    ) -> Allocation:
        """Return at least the constant, unless the way costs too much or a queue drains first."""
        # Until then, all cores go to the present replicas.
        spec, first, overloaded = self.spec, view.first, self._fleets.overloaded
        asked_for = first.allocation.replicas
        ready = max(1, min(first.replicas_ready, asked_for))
        if constant.replicas != asked_for:
            may_go = shadow.may_become(constant, ready, asked_for)
            self._going_to = constant.replicas if may_go else 0
        going = self._going_to == constant.replicas
        # What waits here does not wait in the shadow, and fewer replicas may serve it sooner.
        fewer = replicas < min(ready, constant.replicas)
        self._draining = overloaded and (self._draining or fewer)
        held = (constant.replicas == asked_for or going) and not self._draining
        replicas = constant.replicas if held else replicas
        plan = self._program.choose(view, [replicas], make_room=going or overloaded)
        serving = max(1, min(first.replicas_ready, plan.replicas))
        room = spec.most_cores(serving, plan.replicas - serving)
        cores = min(constant.cores, room) if held else room
        if held and serving == plan.replicas and spec.resize_delay_s:
            return plan.changed(cores=cores, batch=constant.batch)  # it comes too late for more
        if cores < plan.cores:
            return plan
        # A larger batch does no harm where it shrinks to what is in time, and ends backlogs sooner.
        larger = plan.batch if spec.drops_early or overloaded else 1
        return plan.changed(cores=cores, batch=max(shadow.best_batch(serving, cores), larger))

    def _observe(self, view: SystemView) -> None:
        super()._observe(view)
        self._fleets.observe(view)
        if self._shadow:
            self._shadow.observe(view, self._times.table_s(0, 0))
