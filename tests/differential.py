"""Drives the reference, the batch simulator and the single system side by side."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
from reference import make_system
from reference.encoding import encode

from sponge_env.core.compiled import rows
from sponge_env.core.records import LEDGER_ROW, METRICS
from sponge_env.interfaces import Allocation, Outcome
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import JOINT
from sponge_env.simulation.system import SimulatedSystem

TOLERANCE = 1e-9  # relative, and absolute near 0
OUTCOMES = np.array([outcome.name.lower() for outcome in Outcome])
WALL_TIMES = {"decision_s", "decision_p50_s", "decision_p99_s"}


def allocations(scenario, seed, replicas_max=None):
    """Return one random allocation for each interval, of no more cores than there are."""
    rng, limits = np.random.default_rng(seed), scenario.limits
    largest = (limits.cores, limits.batch, replicas_max or limits.replicas)
    drawn = rng.integers(1, largest, (scenario.intervals, 3), endpoint=True)
    drawn[:, 2] = np.minimum(drawn[:, 2], sum(node // drawn[:, 0] for node in limits.machine))
    return [tuple(row) for row in drawn.tolist()]


def simulator(scenarios, **settings):
    """Return a batch simulator with one environment for each scenario, which keeps ledgers."""
    options = {"queue_capacity": 1 << 16, "threads": 1, **settings}
    made = BatchSimulator(scenarios, np.arange(len(scenarios)), **options)
    ledgers = rows(np.zeros((len(scenarios), 1 << 16), LEDGER_ROW))
    made._arrays = made._arrays._replace(ledger=ledgers)
    return made


def ledger_of(batch, i):
    ended = batch._arrays.ledger[i, : batch._arrays.envs["ended"][i]]
    columns = {name: np.array(ended[name]) for name in LEDGER_ROW.names or ()}
    return {**columns, "outcome": OUTCOMES[columns["outcome"]]}


def check_equal(scenarios, seeds, replicas_max=None):
    """Run an episode of each scenario under random allocations in all three and compare."""
    # The single system shows the reference's, up to rounding, the batch simulator that to the bit.
    batch = simulator(scenarios, obs_dim=JOINT.obs_dim)
    singles = [SimulatedSystem(s, seed) for s, seed in zip(scenarios, seeds, strict=True)]
    plans = [allocations(s, seed, replicas_max) for s, seed in zip(scenarios, seeds, strict=True)]
    observations = np.zeros((len(scenarios), JOINT.obs_dim), np.float32)
    batch.reset(np.ones(len(scenarios), np.bool_), np.array(seeds), observations)
    for single, observation in zip(singles, observations, strict=True):
        np.testing.assert_array_equal(single.observe(JOINT), observation)
    for interval in range(max(s.intervals for s in scenarios)):
        rows = [plan[min(interval, len(plan) - 1)] for plan in plans]
        observations, metrics = batch.step(np.array(rows))
        for i, single in enumerate(singles):
            if not single.done:
                measured = single.step(Allocation(*rows[i]))
                np.testing.assert_array_equal(single.observe(JOINT), observations[i])
                for name in set(METRICS.names or ()) - {"overflowed"}:
                    # The single system adds latencies up in another order.
                    exact = 1e-12 if name == "latency_mean_s" else 0.0
                    check_same(float(metrics[name][i]), float(getattr(measured, name)), name, exact)
    assert batch.over.all()
    assert not batch.drain()["overflowed"].any()
    for i, (single, scenario, seed) in enumerate(zip(singles, scenarios, seeds, strict=True)):
        single.drain()
        _check_ledger(single, ledger_of(batch, i))
        check_alike(SimulatedSystem(scenario, seed), make_system(scenario, seed), plans[i])


def check_alike(system, reference, plan):
    assert system.spec == reference.spec
    check_view(system, reference, None)
    for numbers in plan[: reference.intervals]:
        allocation = Allocation(*numbers, feasible=sum(numbers) % 2 == 0)
        value, expected = system.step(allocation), reference.step(allocation)
        check_same({name: getattr(value, name) for name in expected}, expected, "metrics")
        check_view(system, reference, expected)
        check_same(system.view().last, value, "last")
    assert system.done
    assert reference.done
    check_columns(system, reference)
    system.drain()
    reference.drain()
    check_columns(system, reference)


def check_view(system, reference, last):
    """Check that a controller sees the same in both, and a learner, too."""
    view, expected = system.view(), reference.view()
    assert (view.last is None) == (last is None)
    for name, value in vars(expected).items():
        seen = view.first if isinstance(value, SimpleNamespace) else getattr(view, name)
        check_same(seen, value, name)
    observation = encode(expected, last, reference.spec)
    np.testing.assert_allclose(system.observe(JOINT), observation, rtol=1e-5, atol=1e-6)


def check_same(value, expected, name, tolerance=TOLERANCE):
    """Check that two values are the same: numbers that are not whole, up to a tolerance."""
    if dataclasses.is_dataclass(expected) or isinstance(expected, SimpleNamespace):
        for each in set(getattr(expected, "__slots__", ()) or vars(expected)) - WALL_TIMES:
            one, other = getattr(value, each), getattr(expected, each)
            check_same(one, other, f"{name}.{each}", tolerance)
    elif isinstance(expected, Mapping):
        assert value.keys() == expected.keys(), name
        for key, other in expected.items():
            check_same(value[key], other, f"{name}.{key}", tolerance)
    elif isinstance(expected, tuple):
        assert len(value) == len(expected), name
        for k, (one, other) in enumerate(zip(value, expected, strict=True)):
            check_same(one, other, f"{name}[{k}]", tolerance)
    elif np.asarray(expected).dtype.kind == "f":
        np.testing.assert_allclose(value, expected, tolerance, tolerance, err_msg=name)
    else:
        np.testing.assert_array_equal(value, expected, err_msg=name)


def check_columns(system, other, tolerance=TOLERANCE):
    check_same(dict(system.columns()), dict(other.columns()), "ledger", tolerance)


def _check_ledger(single, ledger):
    """Check the ledger of a batch, which has no requests but those that have ended."""
    columns = single.columns()
    assert not ledger["overflowed"].any()
    order = np.argsort(ledger["row"])
    np.testing.assert_array_equal(ledger["row"][order], np.arange(columns["id"].size))
    for name in set(ledger) & set(columns):
        np.testing.assert_array_equal(ledger[name][order], columns[name], err_msg=name)
