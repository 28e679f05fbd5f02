"""Joint vertical and horizontal scaling: cores cover the load until cheaper replicas are warm.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Two
parts share each decision: :class:`FleetPlanner` says how many replicas to keep, which takes a cold
start to change, and the look-ahead program of ``sponge-mpc`` with which cores and batch size they
serve the next seconds best.
"""

from __future__ import annotations

from dataclasses import dataclass

from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .fleet import FleetOptions, Fleets, everything
from .lookahead import SpongeMPC
from .lookahead.planner import LookAhead, MPCConfig
from .lookahead.service_times import StageTimes, in_force

_MARGIN_PROBABILITY = 0.95
"""Probability with which a latency that was never measured should stay below prediction plus
margin, by the residuals of the profile's fit."""
_SAFETY = 0.03
"""Relative allowance on measured latencies, for single batches scatter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(MPCConfig, FleetOptions):
    """Options of :class:`SpongeJoint`: of the fleet, and of the program that chooses its cores.

    The defaults were chosen on training seeds over several scenarios and profiles at once.
    """


class SpongeJoint(SpongeMPC):
    """Sponge with replicas: chooses how many, their cores, and the batch size.

    Before the first interval has passed the load is unknown, and the replicas that there are
    share all cores.
    """

    config: SpongeJointConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times and a margin; compiles at the first call."""
        self._times = StageTimes(spec, _MARGIN_PROBABILITY, _SAFETY)
        self._program = LookAhead(spec, self.config, self._times)
        self._fleets = Fleets(self.config, spec, self.part_of_pipeline or len(spec.stages) > 1)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose the fleets, then their variants, cores and batch sizes."""
        if not view.first.arrivals.size:
            return everything(spec, [stage.allocation.replicas for stage in view.stages])
        self._observe(view)
        replicas = self._fleets.replicas(
            [self._times.table_s(k, in_force(s.allocation)) for k, s in enumerate(view.stages)]
        )
        return self._program.choose(view, replicas, make_room=self._fleets.overloaded)

    def _observe(self, view: SystemView) -> None:
        super()._observe(view)
        self._fleets.observe(view)
