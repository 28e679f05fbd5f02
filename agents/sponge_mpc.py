"""``sponge-mpc``: plays the next seconds for every allocation and takes the cheapest."""

from __future__ import annotations

from typing import Any

from agents.mpc_config import MPCConfig
from agents.mpc_episode import Episode, choose, make_episode, make_rules
from agents.mpc_paths import Chance, make_chance
from agents.mpc_price import cost_curve
from agents.mpc_service import ServiceTimes
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

__all__ = ["SpongeMPC", "make_rules"]


class SpongeMPC:
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

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`~agents.mpc_config.MPCConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(MPCConfig, options)
        self._chance: Chance = make_chance(self.config.risk)
        self._episode: Episode | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn. Compiles at the first call.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        times = ServiceTimes(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._episode = make_episode(spec, self.config, self._chance, times)

    def decide(self, view: SystemView) -> Allocation:
        """Choose cores and batch for the next interval.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._episode is None:
            raise RuntimeError("call reset() before decide()")
        episode, spec = self._episode, self._episode.spec
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max)
        if self.config.learning and episode.times.observe(view):
            episode.curve = cost_curve(episode.times.table_s)
        outlook = episode.flow.observe(view)
        return choose(episode, self._chance, self.config.backlog_price, view, outlook)
