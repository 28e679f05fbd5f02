"""Drives the reference, the batch simulator and the single system side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import make_system
from reference.encoding import encode
from reference.system import System as Reference

from sponge_env.core.records import METRICS
from sponge_env.interfaces import Allocation
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import JOINT
from sponge_env.simulation.system import SimulatedSystem, System

OWN_ORDER = ("latency_mean_s",)
"""Sums that the reference takes in another order than the batch simulator."""
WALL_TIMES = {"decision_s", "decision_p50_s", "decision_p99_s"}


def allocations(
    scenario: Scenario, seed: int, replicas_max: int | None = None
) -> list[tuple[int, int, int]]:
    """Return one random allocation for each interval, of no more cores than there are."""
    rng = np.random.default_rng(seed)
    limits = scenario.limits
    most = (limits.cores, limits.batch, replicas_max or limits.replicas)
    drawn = rng.integers(1, most, (scenario.intervals, 3), endpoint=True)
    drawn[:, 2] = np.minimum(drawn[:, 2], limits.machine_cores // drawn[:, 0])
    return [tuple(row) for row in drawn.tolist()]  # type: ignore[misc]


def simulator(scenarios: Sequence[Scenario], **settings: Any) -> BatchSimulator:
    """Return a batch simulator with one environment for each scenario."""
    options = {"queue_capacity": 1 << 16, "ledger_capacity": 1 << 16, "threads": 1, **settings}
    return BatchSimulator(scenarios, np.arange(len(scenarios)), **options)


def check_equal(
    scenarios: Sequence[Scenario], seeds: Sequence[int], replicas_max: int | None = None
) -> None:
    """Run one episode of each scenario under random allocations in all three and compare.

    Observations, metrics and rewards are compared after every interval, and the ledgers
    in the end.
    """
    batch = simulator(scenarios, obs_dim=JOINT.obs_dim)
    references = [make_system(s, seed) for s, seed in zip(scenarios, seeds, strict=True)]
    singles = [SimulatedSystem(s, seed) for s, seed in zip(scenarios, seeds, strict=True)]
    plans = [allocations(s, seed, replicas_max) for s, seed in zip(scenarios, seeds, strict=True)]
    observations = np.zeros((len(scenarios), JOINT.obs_dim), np.float32)
    batch.reset(np.ones(len(scenarios), np.bool_), np.array(seeds), observations)
    for reference, single, observation in zip(references, singles, observations, strict=True):
        _check_observation(reference, single, observation)
    for interval in range(max(s.intervals for s in scenarios)):
        wanted = [plan[min(interval, len(plan) - 1)] for plan in plans]
        observations, metrics = batch.step(np.array(wanted))
        for i, (reference, single) in enumerate(zip(references, singles, strict=True)):
            if not reference.done:
                expected = reference.step(Allocation(*wanted[i]))
                check_same(single.step(Allocation(*wanted[i])), expected, "metrics")
                _check_metrics(reference, metrics[i])
                _check_observation(reference, single, observations[i])
    for i, (reference, single) in enumerate(zip(references, singles, strict=True)):
        assert reference.done
        assert single.done
        assert batch.over[i]
        check_columns(single, reference)
        _check_ledger(reference, batch.ledger(i))


def check_alike(
    system: System,
    reference: Reference,
    plan: Sequence[tuple[int, int, int]],
    tolerance: float = 0.0,
) -> None:
    """Drive both by the same allocations to the end and compare all that they show."""
    assert system.spec == reference.spec
    check_same(system.view(), reference.view(), "view", tolerance)
    check_columns(system, reference, tolerance)
    for wanted in plan[: reference.plan.intervals]:
        allocation = Allocation(*wanted, feasible=sum(wanted) % 2 == 0)
        value, expected = system.step(allocation), reference.step(allocation)
        check_same(value, expected, "metrics", tolerance)
        check_same(system.view(), reference.view(), "view", tolerance)
        check_columns(system, reference, tolerance)
    assert system.done
    assert reference.done
    system.drain()
    reference.drain()
    check_columns(system, reference, tolerance)


def check_same(value: Any, wanted: Any, name: str, tolerance: float = 0.0) -> None:
    """Check that two values are the same: to the last bit, unless a tolerance says otherwise."""
    if dataclasses.is_dataclass(wanted):
        assert type(value) is type(wanted), name
        for f in dataclasses.fields(wanted):
            if f.name not in WALL_TIMES:
                one, other = getattr(value, f.name), getattr(wanted, f.name)
                check_same(one, other, f"{name}.{f.name}", tolerance)
    elif isinstance(wanted, dict):
        assert value.keys() == wanted.keys(), name
        for key, other in wanted.items():
            check_same(value[key], other, f"{name}.{key}", tolerance)
    elif isinstance(wanted, tuple):
        assert len(value) == len(wanted), name
        for k, (one, other) in enumerate(zip(value, wanted, strict=True)):
            check_same(one, other, f"{name}[{k}]", tolerance)
    elif isinstance(wanted, float) or getattr(wanted, "dtype", None) == np.float64:
        assert getattr(value, "dtype", None) == getattr(wanted, "dtype", None), name
        np.testing.assert_allclose(value, wanted, rtol=0, atol=tolerance, err_msg=name)
    elif isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(value, wanted, err_msg=name)
    else:
        assert (value, type(value)) == (wanted, type(wanted)), name


def check_columns(system: System, reference: Reference, tolerance: float = 0.0) -> None:
    """Check that two ledgers are the same."""
    columns, expected = system.columns(), reference.columns()
    assert list(columns) == list(expected)
    for name, column in expected.items():
        assert columns[name].dtype.kind == column.dtype.kind, name
        if column.dtype.kind == "f":
            np.testing.assert_allclose(columns[name], column, 0, tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(columns[name], column, err_msg=name)


def check_episode(scenario: Scenario, seed: int, profile: Profile | None = None) -> None:
    """Compare an episode of the single system with one of the reference."""
    system = SimulatedSystem(scenario, seed, profile)
    reference = make_system(scenario, seed, profile)
    check_alike(system, reference, allocations(scenario, seed))


def _check_observation(
    reference: Reference, single: SimulatedSystem, observation: NDArray[np.float32]
) -> None:
    # The vertical observation is its first part.
    expected = encode(reference.view(), reference.spec)
    for name, value, wanted in zip(JOINT.fields, observation, expected, strict=True):
        assert value == wanted, name
    np.testing.assert_array_equal(single.observe(JOINT), expected)


def _check_metrics(reference: Reference, metrics: Any) -> None:
    assert reference.view().last is not None
    assert metrics["overflowed"] == 0
    for name in METRICS.names or ():
        if name != "overflowed":
            value, wanted = metrics[name], getattr(reference.view().last, name)
            tolerance = 1e-12 if name in OWN_ORDER else 0.0
            both_nan = math.isnan(value) and math.isnan(wanted)
            assert both_nan or math.isclose(value, wanted, rel_tol=tolerance), name


def _check_ledger(reference: Reference, ledger: dict[str, NDArray[Any]]) -> None:
    expected = reference.columns()
    final = np.isin(expected["outcome"], ["on_time", "late", "dropped"])
    expected = {name: column[final] for name, column in expected.items()}
    assert not ledger["overflowed"].any()
    order = np.argsort(ledger["row"])
    expected["row"] = np.flatnonzero(final)
    for name in set(ledger) - {"overflowed"}:
        np.testing.assert_array_equal(ledger[name][order], expected[name], err_msg=name)
