"""What finds room on a machine of several nodes, when no replica lies on two of them."""

from collections.abc import Iterable, Sequence
from typing import Any


def places(nodes: Iterable[int], cores: int) -> int:
    """Return how many replicas of so many cores find room."""
    return sum(each // cores for each in nodes)


def most_cores(nodes: Any, replicas: int, starting: int = 0) -> int:
    """Return the most cores, at least 1, of so many replicas beside others of one core."""
    total, largest = 0, 0
    for each in nodes:
        total += each
        largest = max(largest, each)
    cores = min((total - starting) // replicas, largest)
    while cores > 1:
        found, fewer = 0, 1  # Where one more finds room on a node
        for each in nodes:
            found += each // cores
            fewer = max(fewer, each // (each // cores + 1))
        if found >= replicas:
            break
        cores = fewer
    return max(1, cores)


def placed(nodes: Sequence[int], sizes: Sequence[tuple[int, int]]) -> tuple[list[list[int]], bool]:
    """Return on which node each replica of each stage starts, and whether all find room."""
    # ``sizes`` are cores and replicas of each stage. The largest come first, each where most room
    # is left. One stage finds room wherever there is some; several may not.
    room, where = list(nodes), [list[int]() for _ in sizes]
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k][0]):
        cores, replicas = sizes[k]
        for _ in range(replicas):
            where[k].append(node := room.index(max(room)))
            room[node] -= cores
    return where, min(room) >= 0
