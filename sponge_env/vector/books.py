"""What became of the requests that were given to an environment, in the reference's terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sponge_env.interfaces import Request
from sponge_env.serving.ledger import Outcome
from sponge_env.vector.layout import Arrays
from sponge_env.workload import Workload

_NAMES = np.array([outcome.name.lower() for outcome in Outcome])


class RequestList(Sequence[Request]):
    """The requests of a workload, each made when it is asked for."""

    def __init__(self, workload: Workload) -> None:
        self._columns = [getattr(workload, f.name) for f in dataclasses.fields(workload)]

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Request(*(column[index].item() for column in self._columns))


def ledger_columns(
    arrays: Arrays, workload: Workload, offered: int
) -> dict[str, NDArray[np.generic]]:
    """Return what became of the first requests of the only environment.

    Args:
        arrays: All memory; the ledger has room for all requests.
        workload: The requests.
        offered: How many have arrived.

    Returns:
        Columns of shape (offered,), see :meth:`sponge_env.serving.ledger.Ledger.columns`.
    """
    given = {f.name: getattr(workload, f.name)[:offered] for f in dataclasses.fields(workload)}
    ended = arrays.ledger[0, : arrays.envs["ended"][0]]
    outcome = np.full(offered, Outcome.QUEUED, np.int64)
    outcome[_running_rows(arrays)] = Outcome.RUNNING
    outcome[ended["row"]] = ended["outcome"]

    def spread(name: str, blank: float) -> NDArray[Any]:
        column = np.full(offered, blank)
        column[ended["row"]] = ended[name]
        return column

    budget_s = given["deadline_s"] - given["arrival_s"]
    return {
        **given,
        "started_s": spread("started_s", np.nan),
        "finished_s": spread("finished_s", np.nan),
        "outcome": _NAMES[outcome],
        "hopeless": budget_s < arrays.settings["hopeless_below_s"][0],
        "batch_size": spread("batch_size", 0),
        "replica": spread("replica", -1),
        "attempts": (~np.isin(outcome, (Outcome.QUEUED, Outcome.DROPPED))).astype(np.int64),
    }


def _running_rows(arrays: Arrays) -> NDArray[np.int64]:
    replicas = arrays.replicas[0, : arrays.envs["replicas"][0]]
    spans = [np.arange(first, first + size) for first, size in replicas[["first", "size"]]]
    positions = np.concatenate([np.zeros(0, np.int64), *spans])
    rows: NDArray[np.int64] = arrays.queue["row"][0, positions]
    return rows
