"""The ledger: every offered request is accounted for, always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.records import Arrays
from sponge_env.interfaces import Outcome

_NAMES = np.array([outcome.name.lower() for outcome in Outcome])


def outcome_names(outcomes: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return outcomes as the words that stand in tables."""
    return _NAMES[outcomes]


def ledger_columns(
    arrays: Arrays, requests: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.generic]]:
    """Return what became of the requests that have arrived in the only environment.

    Args:
        arrays: All memory; the ledger has room for all requests.
        requests: (offered,) columns of the workload, in the order of arrival.

    Returns:
        Columns of the same shape and order: those of ``requests``; ``started_s`` of
        the last batch and ``finished_s``, NaN where there is none; ``outcome``;
        ``hopeless``; ``batch_size``; ``replica``; and ``attempts``, batches it was part of.
    """
    offered = len(requests["arrival_s"])
    ended = arrays.ledger[0, : arrays.envs["ended"][0]]
    queue, stage = arrays.queue[0], arrays.stages[0, 0]
    waiting = queue[np.arange(stage["head"], stage["tail"]) & stage["ring"]]
    running = queue[_running_positions(arrays) & stage["ring"]]
    outcome = np.full(offered, Outcome.QUEUED, np.int64)
    outcome[running["row"]] = Outcome.RUNNING
    outcome[ended["row"]] = ended["outcome"]
    attempts = np.zeros(offered, np.int64)
    attempts[waiting["row"]] = waiting["retries"]
    attempts[running["row"]] = running["retries"] + 1
    attempts[ended["row"]] = ended["attempts"]

    def spread(name: str, blank: float) -> NDArray[Any]:
        column = np.full(offered, blank)
        column[ended["row"]] = ended[name]
        return column

    budget_s = requests["deadline_s"] - requests["arrival_s"]
    return {
        **requests,
        "started_s": spread("started_s", np.nan),
        "finished_s": spread("finished_s", np.nan),
        "outcome": outcome_names(outcome),
        "hopeless": budget_s < arrays.settings["hopeless_below_s"][0],
        "batch_size": spread("batch_size", 0),
        "replica": spread("replica", -1),
        "attempts": attempts,
    }


def _running_positions(arrays: Arrays) -> NDArray[np.int64]:
    """Return the (running,) positions in the queue of the requests that run."""
    replicas = arrays.replicas[0, : arrays.stages["replicas"][0, 0]]
    spans = [np.arange(at, at + n) for at, n in replicas[["first", "batch_size"]].tolist()]
    return np.concatenate([np.zeros(0, np.int64), *spans])
