"""What Python calls: a range of environments at a time, one range for each thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.vector.compiler import entry_point, inlined
from sponge_env.vector.kernels.encoding import encode
from sponge_env.vector.kernels.system import drain, reset, step
from sponge_env.vector.layout import Arrays, World


@entry_point
def step_range(
    arrays: Arrays,
    first: int,
    last: int,
    allocations: NDArray[np.int64],
    observations: NDArray[np.float32],
    metrics: NDArray[Any],
    over: NDArray[np.bool_],
) -> None:
    """Step the environments [first, last), but for those whose episode is over.

    Args:
        arrays: All memory.
        first: First environment.
        last: Environment after the last.
        allocations: (n, 3) cores, batch and replicas of each environment.
        observations: (n, obs_dim) is written.
        metrics: (n,) of ``METRICS``, is written.
        over: (n,) whether the episode is over now, is written.
    """
    for i in range(first, last):
        w = _world(arrays, i, metrics)
        if w.env.interval < w.settings.intervals:
            step(w, allocations[i, 0], allocations[i, 1], allocations[i, 2])
            encode(w, observations[i])
            over[i] = w.env.interval == w.settings.intervals


@entry_point
def within(allocations: NDArray[np.int64], cores: int, batch: int, replicas: int) -> bool:
    """Return whether all (n, 3) allocations lie between 1 and the limits."""
    for i in range(len(allocations)):
        if not 1 <= allocations[i, 0] <= cores:
            return False
        if not 1 <= allocations[i, 1] <= batch:
            return False
        if not 1 <= allocations[i, 2] <= replicas:
            return False
    return True


@entry_point
def reset_range(
    arrays: Arrays,
    first: int,
    last: int,
    chosen: NDArray[np.bool_],
    scenarios: NDArray[np.int64],
    seeds: NDArray[np.int64],
    observations: NDArray[np.float32],
    metrics: NDArray[Any],
    over: NDArray[np.bool_],
) -> None:
    """Start new episodes in the chosen environments of [first, last).

    Args:
        arrays: All memory.
        first: First environment.
        last: Environment after the last.
        chosen: (n,) which ones.
        scenarios: (n,) row in ``settings`` of each.
        seeds: (n,) episode seed of each.
        observations: (n, obs_dim) is written where chosen.
        metrics: (n,) of ``METRICS``.
        over: (n,) is cleared where chosen.
    """
    for i in range(first, last):
        if chosen[i]:
            arrays.envs[i].scenario = scenarios[i]
            w = _world(arrays, i, metrics)
            reset(w, seeds[i])
            encode(w, observations[i])
            over[i] = False


@entry_point
def drain_one(arrays: Arrays, i: int, metrics: NDArray[Any]) -> None:
    """Serve what is left after the last interval of environment ``i``.

    Args:
        arrays: All memory.
        i: The environment.
        metrics: (n,) of ``METRICS``; those of the environment lose their meaning.
    """
    drain(_world(arrays, i, metrics))


@inlined
def _world(arrays: Arrays, i: int, metrics: NDArray[Any]) -> World:
    env = arrays.envs[i]
    return World(
        env,
        arrays.settings[env.scenario],
        arrays.replicas[i],
        arrays.pending[i],
        arrays.given[i],
        arrays.queue[i],
        arrays.group[i],
        arrays.ledger[i],
        arrays.traces,
        arrays.numbers,
        metrics[i],
    )
