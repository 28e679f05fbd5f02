"""Few requests that stand for many, so that a decision takes no longer however high the load.

Where more requests wait or are expected than can be played in time, the controllers that play
queues put ``group`` of them together and play the groups: each is served as a whole, batches are
multiples of a group, and rates are groups per second. With groups of one all stays as it is.
"""

from __future__ import annotations

import math

import numpy as np

from sponge_env.interfaces import FloatArray


def group_size(requests: float, most: float) -> int:
    """Return how many requests go into one group so that there are at most ``most`` groups."""
    return max(1, math.ceil(requests / most))


def grouped_service_s(service_s: FloatArray, group: int) -> FloatArray:
    """Return the time that batches of groups take.

    Args:
        service_s: (cores_max, batch_max) seconds of a batch of requests.
        group: Requests in a group.

    Returns:
        (cores_max, max(1, batch_max // group)) seconds; column ``n - 1`` is a batch of ``n``
        groups. A group larger than the largest batch takes as many of those as it needs.
    """
    if group == 1:
        return service_s
    batch_max = service_s.shape[1]
    if group > batch_max:
        return np.ascontiguousarray(service_s[:, -1:] * (group / batch_max))
    return np.ascontiguousarray(service_s[:, group - 1 :: group])


def in_groups(requests: int, group: int, largest: int) -> int:
    """Return a batch's size in groups, between 1 and ``largest``."""
    return min(max(1, round(requests / group)), largest)
