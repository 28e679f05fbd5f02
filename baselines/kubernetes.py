"""What Kubernetes scales with: the Horizontal Pod Autoscaler.

After its public documentation and source (``autoscaling/v2``): every sync period

    desired = ceil(ready * utilisation / target)

unless utilisation and target differ by no more than the tolerance. Replicas that are not ready yet
are ignored when scaling in and count as unused when scaling out; if that would reverse the
direction, nothing changes. The number is at least the highest recommendation of the scale-in
window, and grows no faster than the policies allow. Metrics never go missing here, and the
scale-out window is 0 by default, so those rules are left out.
"""

from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from sponge_env.control.base import ArrayController, option
from sponge_env.interfaces import SystemSpec, SystemView

from .rules import BatchConfig, batch_size

TOLERANCE = 0.1  # Relative distance from the target utilisation within which nothing changes
_TINY = 1e-300
ROUNDING_S = 1e-9  # Time by which a decision may come early by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class HPAConfig(BatchConfig):
    """Options of :class:`HPA`; the defaults are those of Kubernetes, but for ``cores``."""

    target: float = option(0.8, above=0, at_most=1)  # Utilisation of the ready replicas to hold
    period_s: float = option(15.0, above=0)  # Time between two checks of the mean utilisation
    down_window_s: float = option(300.0, at_least=0)  # Its highest recommendation bounds scaling in
    min_replicas: int = option(1, at_least=1)  # Fewest replicas that are held
    cores: int = option(1, at_least=1)  # Of each replica, at most its limit
    policy_s: float = option(15.0, above=0)  # Time to double, or to grow by four if that is more


class HPA(ArrayController):
    """Keeps the mean utilisation of replicas of one size near a target."""

    config: HPAConfig

    def begin(self, spec: SystemSpec) -> None:
        """Start with the initial replicas as the first recommendation."""
        self._scaler = Scaler(self.config, spec.initial.replicas)
        self._sync_s = self.config.period_s
        self._used_core_s: Any = 0.0
        self._ready_core_s: Any = 0.0

    def choose(self, spec: SystemSpec, view: Any) -> tuple[Any, ...]:
        """Scale if a sync period has passed."""
        cores = min(self.config.cores, spec.first.cores_max)
        limit = spec.most_replicas(cores)
        replicas: Any = np.minimum(view.allocation.replicas, limit)
        if view.last is not None:
            used_core_s = view.last.utilisation * view.last.core_seconds
            ready_cores = view.first.replicas_ready * view.allocation.cores
            self._used_core_s = self._used_core_s + used_core_s
            self._ready_core_s = self._ready_core_s + ready_cores * spec.interval_s
            if view.now_s >= self._sync_s - ROUNDING_S:
                replicas = self._scaler.scale(view.now_s, replicas, self._desired(view), limit)
        return cores, batch_size(self.config, spec, cores), replicas

    def _desired(self, view: SystemView) -> Any:
        """End a sync period; return the replicas that it recommends."""
        used_core_s, ready_core_s = self._used_core_s, self._ready_core_s
        self._sync_s = view.now_s + self.config.period_s
        self._used_core_s = self._ready_core_s = 0.0
        ready, current = view.first.replicas_ready, view.allocation.replicas
        # Draining replicas are in the sum; ready ones cannot use more than all of their cores.
        share = np.minimum(1.0, used_core_s / np.maximum(ready_core_s, _TINY))
        desired = desired_replicas(share / self.config.target, ready, view.first.starting, current)
        return np.where((ready > 0) & (ready_core_s > 0), desired, current)


def desired_replicas(ratio: Any, ready: Any, starting: Any, current: Any) -> Any:
    """Return how many replicas, one number or (n,), would bring the utilisation to its target."""
    # ``ratio`` is the ready ones' utilisation over the target; ``current`` the last decision.
    out = ratio > 1
    soon = np.where(out, ready + starting, ready)
    # If none starts, the ratio stays the same to the bit.
    ratio = np.where(soon > ready, ratio * ready / np.maximum(soon, 1), ratio)
    desired = np.ceil(ratio * soon).astype(np.int64)
    desired = np.where(out, np.maximum(desired, current), desired)
    stays = (np.abs(1 - ratio) <= TOLERANCE) | (out & (ratio < 1))
    return np.where(stays, current, desired)


class Scaler:
    """Turns recommendations into numbers of replicas, by windows and policies."""

    def __init__(self, config: HPAConfig, replicas: int) -> None:
        self._config = config
        self._recommended: deque[tuple[float, Any]] = deque([(0.0, replicas)])
        self._changes: deque[tuple[float, Any]] = deque()

    def scale(self, now_s: float, current: Any, desired: Any, replicas_max: int) -> Any:
        """Return the replicas to ask for, given the current and the desired number."""
        # They grow as far as the policies allow, and shrink to the window's highest recommendation.
        recommended, changes = self._recommended, self._changes
        recommended.append((now_s, desired))
        _forget(recommended, now_s - self._config.down_window_s)
        highest = reduce(np.maximum, [count for _, count in recommended])
        stable = np.minimum(np.maximum(current, desired), highest)
        _forget(changes, now_s - self._config.policy_s + ROUNDING_S)
        before = current - sum(change for _, change in changes)
        most = np.minimum(np.maximum(before + 4, 2 * before), replicas_max)
        least = min(self._config.min_replicas, replicas_max)
        replicas = np.maximum(least, np.minimum(stable, np.maximum(current, most)))
        changes.append((now_s, replicas - current))
        return replicas


def _forget(entries: deque[tuple[float, Any]], since_s: float) -> None:
    while entries and entries[0][0] < since_s:
        entries.popleft()
