"""Drives the reference system and the batch simulator side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import make_system
from reference.encoding import encode
from reference.system import System

from sponge_env.core.records import METRICS
from sponge_env.encoding import JOINT
from sponge_env.interfaces import Allocation
from sponge_env.scenario import Scenario
from sponge_env.vector.simulator import BatchSimulator

OWN_ORDER = ("latency_mean_s",)
"""Sums that the reference takes in another order."""


def allocations(
    scenario: Scenario, seed: int, replicas_max: int | None = None
) -> list[tuple[int, int, int]]:
    """Return one random allocation for each interval."""
    rng = np.random.default_rng(seed)
    limits = scenario.limits
    most = (limits.cores, limits.batch, replicas_max or limits.replicas)
    return [
        tuple(map(int, row))
        for row in rng.integers(1, most, (scenario.intervals, 3), endpoint=True)
    ]  # type: ignore[misc]


def simulator(scenarios: Sequence[Scenario], **settings: Any) -> BatchSimulator:
    """Return a batch simulator with one environment for each scenario."""
    options = {"queue_capacity": 1 << 16, "ledger_capacity": 1 << 16, "threads": 1, **settings}
    return BatchSimulator(scenarios, np.arange(len(scenarios)), **options)


def check_equal(
    scenarios: Sequence[Scenario], seeds: Sequence[int], replicas_max: int | None = None
) -> None:
    """Run one episode of each scenario under random allocations both ways and compare.

    Observations, metrics and rewards are compared after every interval, and the ledgers
    in the end.
    """
    batch = simulator(scenarios, obs_dim=JOINT.obs_dim)
    systems = [make_system(s, seed) for s, seed in zip(scenarios, seeds, strict=True)]
    plans = [allocations(s, seed, replicas_max) for s, seed in zip(scenarios, seeds, strict=True)]
    observations = np.zeros((len(scenarios), JOINT.obs_dim), np.float32)
    batch.reset(np.ones(len(scenarios), np.bool_), np.array(seeds), observations)
    for i, system in enumerate(systems):
        _check_observation(system, observations[i])
    for interval in range(max(s.intervals for s in scenarios)):
        wanted = [plan[min(interval, len(plan) - 1)] for plan in plans]
        observations, metrics = batch.step(np.array(wanted))
        for i, system in enumerate(systems):
            if not system.done:
                system.step(Allocation(*wanted[i]))
                _check_metrics(system, metrics[i])
                _check_observation(system, observations[i])
    for i, system in enumerate(systems):
        assert system.done
        assert batch.over[i]
        _check_ledger(system, batch.ledger(i))


def _check_observation(system: System, observation: NDArray[np.float32]) -> None:
    # The vertical observation is its first part.
    expected = encode(system.view(), system.spec)
    for name, value, wanted in zip(JOINT.fields, observation, expected, strict=True):
        assert value == wanted, name


def _check_metrics(system: System, metrics: Any) -> None:
    assert system.view().last is not None
    assert metrics["overflowed"] == 0
    for name in METRICS.names or ():
        if name != "overflowed":
            value, wanted = metrics[name], getattr(system.view().last, name)
            tolerance = 1e-12 if name in OWN_ORDER else 0.0
            both_nan = math.isnan(value) and math.isnan(wanted)
            assert both_nan or math.isclose(value, wanted, rel_tol=tolerance), name


def _check_ledger(system: System, ledger: dict[str, NDArray[Any]]) -> None:
    expected = system.columns()
    final = np.isin(expected["outcome"], ["on_time", "late", "dropped"])
    expected = {name: column[final] for name, column in expected.items()}
    assert not ledger["overflowed"].any()
    order = np.argsort(ledger["row"])
    expected["row"] = np.flatnonzero(final)
    for name in set(ledger) - {"overflowed"}:
        np.testing.assert_array_equal(ledger[name][order], expected[name], err_msg=name)
