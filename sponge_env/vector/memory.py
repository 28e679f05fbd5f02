"""All memory of a batch of environments, and requests put into it."""

from __future__ import annotations

import dataclasses

import numpy as np

from sponge_env.vector.configuration import Configuration
from sponge_env.vector.layout import (
    ENDED,
    ENV,
    GIVEN_REQUEST,
    PENDING,
    REPLICA,
    SAMPLE,
    WAITING,
    Arrays,
)
from sponge_env.workload import Workload

_SPARE = 8
"""Room for given requests grows by an eighth more than is needed, so that it grows seldom."""


def allocate(
    configuration: Configuration, count: int, queue_capacity: int, ledger_capacity: int
) -> Arrays:
    """Allocate everything.

    Args:
        configuration: The scenarios.
        count: Number of environments.
        queue_capacity: Requests that can wait and run in one environment, rounded up to a
            power of two.
        ledger_capacity: Requests of an episode whose end is kept.
    """
    traffic = configuration.traffic
    shared, private = traffic.traces.array, traffic.private_rows
    traces = np.zeros(len(shared) + count * private, SAMPLE)
    traces[: len(shared)] = shared
    capacity = 1 << (queue_capacity - 1).bit_length()
    envs = np.zeros(count, ENV)
    envs["private_at"] = len(shared) + np.arange(count) * private
    envs["ring"] = capacity - 1
    envs["interval"] = np.iinfo(np.int64).max
    return Arrays(
        envs=envs,
        replicas=np.zeros((count, configuration.replica_slots), REPLICA),
        pending=np.zeros((count, configuration.pending_slots), PENDING),
        given=np.zeros((count, 1), GIVEN_REQUEST),
        queue=np.zeros((count, capacity), WAITING),
        group=np.zeros((count, traffic.group_size)),
        ledger=np.zeros((count, ledger_capacity), ENDED),
        settings=configuration.settings,
        traces=traces,
        numbers=configuration.numbers.array,
    )


def give(arrays: Arrays, i: int, workload: Workload) -> Arrays:
    """Put the requests of an episode where environment ``i`` finds them at its next reset.

    Returns:
        The memory, with more room for given requests if they needed it.
    """
    count, given = workload.id.size, arrays.given
    if given.shape[1] <= count:
        room = count + count // _SPARE + 1
        given = np.zeros((len(given), room), GIVEN_REQUEST)
        given[:, : arrays.given.shape[1]] = arrays.given
    for f in dataclasses.fields(workload):
        given[f.name][i, :count] = getattr(workload, f.name)
    given["sent_s"][i, count] = given["arrival_s"][i, count] = np.inf
    return arrays._replace(given=given)
