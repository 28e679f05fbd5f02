"""What finds room on a machine of several nodes, when no replica lies on two of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sponge_env.arrays import IntArray


def places(nodes: Iterable[int], cores: int) -> int:
    """Return how many replicas of so many cores find room."""
    return sum(each // cores for each in nodes)


def most_cores(nodes: Any, replicas: int, starting: int = 0) -> int:
    """Return the most cores that so many replicas can have beside others of one core; at least 1.

    ``nodes`` are a sequence, or an array where compiled code asks.
    """
    total, largest = 0, 0
    for each in nodes:
        total += each
        largest = max(largest, each)
    cores, found = min((total - starting) // replicas, largest) + 1, 0
    while found < replicas and cores > 1:
        cores, found = cores - 1, 0
        for each in nodes:
            found += each // cores
    return max(1, cores)


def take(room: IntArray, cores: int) -> int:
    """Return the node with the most room left, the first of several, less what is taken of it."""
    node = int(room.argmax())
    room[node] -= cores
    return node


def placed(nodes: Sequence[int], sizes: Iterable[tuple[int, int]]) -> tuple[list[list[int]], bool]:
    """Return on which node each replica of each stage starts, and whether all find room.

    ``sizes`` are the cores and the replicas of each stage. The largest come first, each where most
    room is left. For one stage this finds room wherever there is some; for several it may not.
    """
    room, sizes = np.array(nodes), list(sizes)
    where: list[list[int]] = [[] for _ in sizes]
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k][0]):
        cores, replicas = sizes[k]
        where[k] = [take(room, cores) for _ in range(replicas)]
    return where, bool(room.min() >= 0)
