"""Requests served like water: small cases that can be worked out by hand."""

import numpy as np
import pytest

from sponge_env.oracle import fluid


def episode(arrived, due, *, start=0, replicas=1, replicas_max=1, violation=10.0, **arrays):
    """Describe an episode in which one core serves 2 requests per interval, two serve 3."""
    intervals, cores = len(arrived), [2] * replicas_max
    ends = np.array(arrived, dtype=np.float64)[:, None]
    usual = fluid.Fluid(
        arrived=ends, due=np.array(due, dtype=np.float64)[:, None],
        startable=np.stack([ends, ends], axis=2), hopeless=np.zeros((intervals, 1, 2)),
        served=np.array([2.0, 3.0]), ahead=np.zeros(3), ahead_awake=np.zeros(3), refill=np.zeros(3),
        cores=np.array(cores), mixed=np.full((replicas_max, replicas_max - 1, 4), fluid.NOWHERE),
        last_batch=np.zeros(1), cores_count=np.ones(intervals, np.int64),
        start=np.full(intervals, start), ready_from=1, replicas=replicas, replicas_max=replicas_max,
        answerable=int(arrived[-1]), violation=violation,
        **fluid.working_space(intervals, replicas_max, 2),
    )  # fmt: skip
    return usual._replace(**{name: np.array(values) for name, values in arrays.items()})


def solve(f):
    return int(fluid.least_cost(f)), fluid.cheapest_replicas(f).tolist()


TWO = {"replicas": 2, "replicas_max": 2}
GROW = {"replicas_max": 2}


@pytest.mark.parametrize(
    ("arrived", "due", "options", "expected"),
    [([3.0], [3.0], {}, (2, [1])),  # cores are taken when all that has arrived is due
     ([4.0, 4.0], [0.0, 4.0], {}, (2, [1, 1])),  # a backlog that may wait takes one core
     ([4.0], [4.0], {}, (2 + 10, [1])),  # what cannot be served is paid for
     # A replica that serves better than a core is started, but not for a long cold start ...
     ([0.0, 4.0, 8.0], [0.0, 4.0, 8.0], GROW, (5, [1, 2, 2])),
     ([0.0, 3.0, 6.0], [0.0, 3.0, 6.0], {"start": 9, **GROW}, (5, [1, 1, 1])),
     ([4.0, 8.0], [4.0, 8.0], GROW, (2 + 10 + 2, [1, 2])),  # ... and is not ready before its end
     # One that is taken away finishes its batch.
     ([7.0, 7.0], [0.0, 7.0], TWO, (2 + 2, [2, 2])),
     ([7.0, 7.0], [0.0, 7.0], {"last_batch": [1.0], **TWO}, (2 + 1, [2, 1])),
     ([7.0, 7.0], [0.0, 7.0], {"last_batch": [0.0, 1.0], **TWO}, (2 + 2, [2, 2])),
     ([3.0], [3.0], {"violation": 0.5}, (1, [1])),  # cheaper than a core
     # Replicas have no more cores than fit on the machine.
     ([6.0], [6.0], TWO, (4, [2])), ([6.0], [6.0], {"cores": [2, 1], **TWO}, (2 + 20, [2])),
     # A request without time on few cores needs more of them.
     ([1.0], [1.0], {}, (1, [1])), ([1.0], [1.0], {"hopeless": [[[1.0, 0.0]]]}, (2, [1])),
     # No more is done than could be started.
     ([2.0, 2.0], [0.0, 2.0], {"violation": 1.0}, (2, [1, 1])),
     ([2.0, 2.0], [0.0, 2.0], {"startable": [[[1.5, 2.0]]] * 2}, (3, [1, 1]))],
)  # fmt: skip
def test_the_cheapest_way_to_serve(arrived, due, options, expected):
    assert solve(episode(arrived, due, **options)) == expected


def test_eight_replicas_serve_on_one_core_each_until_a_ninth_has_gone():
    served = fluid.mixed(16 // np.arange(1, 17), np.arange(1.0, 17.0), np.zeros(16), 16, 0)[7, 0]
    assert (served[:8] == fluid.NOWHERE).all()
    assert served[9:].tolist() == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]


def test_nothing_is_served_before_it_arrives_within_an_interval():
    f = episode([3.0, 3.0], [0.0, 3.0])
    assert solve(f) == (2, [1, 1])
    arrived = np.array([[0.0, 3.0], [3.0, 3.0]])
    more = {"startable": np.stack([arrived, arrived], axis=2), "hopeless": np.zeros((2, 2, 2))}
    f = f._replace(arrived=arrived, due=np.array([[0.0, 0.0], [3.0, 3.0]]), **more)
    assert solve(f) == (4, [1, 1])


def test_a_quota_that_stays_fills_no_pool():
    f = episode([9.0, 9.0], [0.0, 6.0])._replace(**fluid.working_space(2, 1, 2, quota=True))
    f.ahead[1:] = f.ahead_awake[1:] = 1.0
    assert fluid.least_cost(f) == 1 + 2
    assert fluid.least_cost(f._replace(due=np.array([[0.0], [5.0]]))) == 1 + 1
