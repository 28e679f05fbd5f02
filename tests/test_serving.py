"""The rules of queue, batches, drops and ledger: of the core, on requests made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import STEADY_PROFILE, requests_at, short

from sponge_env.interfaces import Allocation
from sponge_env.scenario.config import RequestClass, Serving
from sponge_env.simulation.system import SimulatedSystem

FAST, SLOW = Allocation(16, 1), Allocation(1, 1)
"""Batches of one request that take 0.1 s and 1.6 s."""
FIFO = {"classes": (RequestClass(1.0, 1.0, 0.0),), "slo_s": 1.0}


def serve(
    workload,
    *plan,
    serving=Serving("none"),  # noqa: B008  # it is frozen
    **changes,
):
    """Serve requests under one allocation after the other, an interval of 1 s each."""
    scenario = short(duration_s=float(len(plan)), serving=serving, **changes)
    system = SimulatedSystem(scenario, 0, STEADY_PROFILE, workload)
    for allocation in plan:
        system.step(allocation)
    return system


def by_id(system, name):
    """Return a column of the ledger in the order of the requests' ids."""
    columns = system.columns()
    return columns[name][np.argsort(columns["id"])].tolist()


def service_order(system):
    """Return the ids of the requests in the order in which they were started."""
    columns = system.columns()
    assert np.isin(columns["outcome"], ("on_time", "late")).all()
    return columns["id"][np.argsort(columns["started_s"])].tolist()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.01, 0.09), st.sampled_from([0.1, 2.0]) | st.floats(0.1, 9)),
        min_size=1,
        max_size=9,
    )
)
def test_the_order_of_service(times_s):
    """By deadline or by arrival, and where these are equal by id."""
    requests = requests_at((0.0, 9), *times_s)
    arrivals_s, deadlines_s = zip(*times_s, strict=True)
    for order, keys in (("edf", deadlines_s), ("fifo", arrivals_s)):
        serving = Serving("none", order)
        system = serve(requests, FAST, serving=serving, **(FIFO if order == "fifo" else {}))
        assert service_order(system) == [0, *(1 + np.argsort(keys, kind="stable")).tolist()]


def test_a_request_answered_exactly_at_its_deadline_is_on_time():
    for deadline_s, outcome in ((0.1, "on_time"), (math.nextafter(0.1, 0), "late")):
        assert by_id(serve(requests_at((0.0, deadline_s)), FAST), "outcome") == [outcome]


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        (Serving("expired"), ["on_time", "dropped", "on_time"]),
        (Serving("none"), ["on_time", "late", "on_time"]),
    ],
)
@pytest.mark.parametrize("order", ["edf", "fifo"])
def test_drop_policies(serving, expected, order):
    """The second is 0.05 s late when the first is answered at 0.1 s."""
    changes = FIFO if order == "fifo" else {}
    serving = Serving(serving.drop, order)
    requests = requests_at((0.0, 1.0), (0.01, 0.05), (0.02, 2.0))
    system = serve(requests, FAST, serving=serving, **changes)
    assert by_id(system, "outcome") == expected
    if "dropped" in expected:
        assert by_id(system, "finished_s")[1] == pytest.approx(0.1)
        assert math.isnan(by_id(system, "started_s")[1])
        assert by_id(system, "attempts") == [1, 0, 1]


@pytest.mark.parametrize(("late_s", "outcome"), [(0.0, "late"), (1e-9, "dropped")])
def test_exactly_at_its_deadline_a_request_has_not_expired(late_s, outcome):
    requests = requests_at((0.0, 1.0), (0.01, 0.1 - late_s))
    system = serve(requests, FAST, serving=Serving("expired"))
    assert by_id(system, "outcome")[1] == outcome


@pytest.mark.parametrize(("drop", "allocation"), [("expired", SLOW), ("none", FAST)])
def test_hopeless_requests_count_apart(drop, allocation):
    """Nothing can be answered in less than 0.1 s, which is the fourth one's budget."""
    deadlines_s = (0.15, 0.4, 0.2, math.nextafter(0.2, 0))
    requests = requests_at((0.0, 9.0), *((0.1, deadline_s) for deadline_s in deadlines_s))
    system = serve(requests, allocation, serving=Serving(drop))
    metrics = system.view().last
    assert by_id(system, "hopeless") == [False, True, False, False, True]
    assert (metrics.hopeless, metrics.violations, metrics.avoidable_violations) == (2, 4, 2)
