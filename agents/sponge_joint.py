"""Joint vertical and horizontal scaling: cores cover the load until cheaper replicas are warm.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Three
parts share each decision: :class:`~agents.joint_latency.Latency` knows what batches take,
:class:`~agents.joint_fleet.Fleet` says how many replicas to hold, and the look-ahead program of
:mod:`agents.sponge_mpc` with which cores and batch size they serve the next seconds best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from agents.joint_fleet import Fleet, FleetConfig
from agents.joint_latency import Latency
from agents.mpc_episode import Episode, choose, make_episode
from agents.mpc_paths import make_chance
from agents.mpc_price import cost_curve
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(FleetConfig):
    """Options of :class:`SpongeJoint`.

    The defaults were chosen on training seeds over several scenarios and profiles at once.
    """

    margin_probability: float = 0.95
    """Probability with which a latency that was never seen should stay below prediction plus
    margin, by the residuals of the profile's fit."""
    safety: float = 0.03
    """Relative allowance on latencies that were seen, for single batches scatter."""

    def __post_init__(self) -> None:
        FleetConfig.__post_init__(self)
        if not 0 <= self.margin_probability <= 1:
            raise ConfigError(
                f"margin_probability must be between 0 and 1, not {self.margin_probability!r}"
            )
        if not 0 <= self.safety < math.inf:
            raise ConfigError(f"safety must be a number of at least 0, not {self.safety!r}")


class SpongeJoint:
    """Sponge with replicas: chooses how many, their cores, and the batch size.

    Before the first interval has passed the load is unknown, and the replicas that there are
    take all cores.
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`SpongeJointConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(SpongeJointConfig, options)
        self._chance = make_chance(self.config.risk)
        self._state: tuple[Episode, Fleet] | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn. Compiles at the first call.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        config = self.config
        margin = max(0.0, spec.latency.residual_quantile(config.margin_probability))
        times = Latency(spec, margin, config.safety)
        episode = make_episode(spec, config, self._chance, times)
        self._state = episode, Fleet(config, spec)

    def decide(self, view: SystemView) -> Allocation:
        """Choose the fleet, then its cores and batch size.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._state is None:
            raise RuntimeError("call reset() before decide()")
        episode, fleet = self._state
        spec = episode.spec
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max, view.allocation.replicas)
        if self.config.learning:
            episode.times.observe(view)
        fleet.observe(view)
        outlook = episode.flow.observe(view)
        service_s = episode.times.table_s
        held = fleet.replicas(view, service_s)
        episode.curve = cost_curve(service_s)
        episode.rules = episode.rules._replace(service_s=service_s, held=held)
        return choose(episode, self._chance, self.config.backlog_price, view, outlook)
