"""All memory of a batch of environments, and the ledger read from it."""

import dataclasses
import math
import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.core import records
from sponge_env.core.compiled import rows
from sponge_env.core.records import Arrays
from sponge_env.core.settings import SETTINGS, STAGE_SETTINGS
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Outcome, SystemSpec

_MOST_ROOM = 1 << 18  # Tasks that the queue of a stage can hold, if there are not more requests
_UNASKED_BYTES = 1 << 28  # Memory that is taken without a check whether it is free
_NAMES = np.array([outcome.name.lower() for outcome in Outcome])


def free_bytes() -> float:
    """Return the memory that is free on this machine; infinite where that is unknown."""
    with suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        return 1024.0 * next(int(each.split()[1]) for each in lines if "MemAvailable" in each)
    return math.inf


class Pool:
    """Arrays one after the other in one array; equal ones are kept once."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._begins: dict[bytes, int] = {}
        self._parts: list[NDArray[Any]] = [np.zeros(1, dtype)]
        self._rows = 1

    @property
    def array(self) -> NDArray[Any]:
        """(rows,) all of them, after one empty row."""
        return np.concatenate(self._parts)

    def add(self, values: ArrayLike) -> int:
        """Add an array; return where it begins."""
        part = np.ravel(np.asarray(values, self._dtype))
        key = part.tobytes()
        if key not in self._begins:
            self._begins[key] = self._rows
            self._parts.append(part)
            self._rows += part.size
        return self._begins[key]


@dataclasses.dataclass(slots=True)
class Room:
    """How much an environment can hold."""

    queue: int = 1  # Requests that can wait and run, rounded up to a power of two
    ledger: int = 0  # Requests of an episode whose end is kept
    replicas: int = 1  # Replicas at one time, draining ones included
    pending: int = 1  # Resizes that wait for their time at once, and one
    group: int = 1
    private: int = 0  # Rows of bandwidth that belong to one environment

    def at_least(self, **needed: int) -> None:
        """Make so much room where there is less."""
        for name, count in needed.items():
            setattr(self, name, max(getattr(self, name), count))

    def hold(self, spec: SystemSpec, requests: int, tasks: int = 1) -> None:
        """Make room for so many requests at once, and for their tasks up to :data:`_MOST_ROOM`."""
        # ``tasks`` is how many an answer may lead to, if the scenario says fewer.
        most = math.prod(max(tasks, len(stage.tasks) - 1) for stage in spec.stages[:-1])
        self.ledger = requests
        self.queue = max(requests, min(requests * most, _MOST_ROOM))


class MemoryPlan:
    """The settings and tables that environments of some scenarios share, and each one's room."""

    def __init__(self, scenarios: int, stages: int = 1) -> None:
        self.settings = np.zeros(scenarios, SETTINGS)  # (scenarios,) records
        self.models = np.zeros((scenarios, stages), STAGE_SETTINGS)
        """(scenarios, stages) of :class:`~sponge_env.core.settings.StageSettings`."""
        self.numbers = Pool(np.float64)
        self.traces = Pool(records.SAMPLE)
        self.room = Room()

    def allocate(self, count: int) -> Arrays:
        """Allocate ``count`` environments; a :class:`ConfigError` if memory is short."""
        room, traces = self.room, self.traces.array
        shared, (_, several) = len(traces), self.models.shape
        capacity = 1 << (room.queue - 1).bit_length()
        each: dict[str, tuple[tuple[int, ...], Any]] = {
            "envs": ((), records.ENV), "stages": ((several,), records.STAGE),
            "replicas": ((several, room.replicas), records.REPLICA),
            "pending": ((several, room.pending), records.PENDING),
            "requests": ((1,), records.LISTED_REQUEST),
            "queue": ((several, capacity), records.WAITING),
            "opened": ((capacity if several > 1 else 1,), records.OPEN_REQUEST),
            "group": ((room.group,), np.dtype(np.float64)),
            "ledger": ((room.ledger,), records.LEDGER_ROW),
        }  # fmt: skip
        one = sum(math.prod(shape) * dtype.itemsize for shape, dtype in each.values())
        _check_free(count, one + room.private * records.SAMPLE.itemsize)
        made = {name: _zeros((count, *shape), dtype) for name, (shape, dtype) in each.items()}
        all_traces = np.zeros(shared + count * room.private, records.SAMPLE)
        all_traces[:shared] = traces
        made["envs"]["private_at"] = shared + np.arange(count) * room.private
        made["envs"]["interval"] = np.iinfo(np.int64).max
        made["stages"]["ring"] = capacity - 1
        made |= {"settings": self.settings, "models": self.models, "traces": all_traces}
        return Arrays(*map(rows, Arrays(**made, numbers=self.numbers.array, blank=records.BLANK)))


def _zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros; many of them take memory only where they are written to, by small pages."""
    # NumPy asks for huge ones, each of which has room for whole queues that are hardly ever used.
    needed = math.prod(shape) * dtype.itemsize
    if needed <= _UNASKED_BYTES:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, needed, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # where there are none
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, memory)


def _check_free(count: int, one_bytes: int) -> None:
    if (needed := count * one_bytes) > _UNASKED_BYTES and needed > (free := free_bytes()):
        raise ConfigError(
            f"{count} environments would take {needed / 1e9:.3g} GB of memory, "
            f"{one_bytes / 1e6:.3g} MB each, and {free / 1e9:.3g} GB are free; take fewer of them, "
            "a smaller queue_capacity, fewer limits.replicas or a longer interval_s"
        )


def allocations(count: int, stages: int = 1) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return (count, stages, 4) allocations, and the records that share their memory."""
    numbers = np.ones((count, stages, 4), np.int64)
    numbers[..., 3] = 0
    return numbers, asked_for(numbers)


def asked_for(numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Return the (count, stages) records that share the memory of such numbers."""
    return rows(numbers.view(records.ALLOCATION)[..., 0])


def blank_metrics(count: int) -> NDArray[Any]:
    """Return (count,) metrics of intervals in which nothing was measured."""
    return rows(np.repeat(records.BLANK, count))


def ledger_columns(arrays: Arrays, requests: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return how the requests that have arrived in the only environment ended.

    The (offered,) columns are those of the workload, and ``started_s`` of the last batch and
    ``finished_s``, NaN if there is none; ``outcome``; ``hopeless``; ``needs_cores``, whether one
    core would be too slow; ``batch_size``; ``replica``; ``attempts``, batches it was part of;
    ``accuracy`` of the answer, NaN without; and the ``stage`` where it ended, -1 if it has not.
    """
    offered = len(requests["arrival_s"])
    ended = arrays.ledger[0, : arrays.envs["ended"][0]]
    outcome = np.full(offered, Outcome.QUEUED, np.int64)
    attempts = np.zeros(offered, np.int64)
    _write_open(arrays, outcome, attempts)
    outcome[ended["row"]] = ended["outcome"]
    attempts[ended["row"]] = ended["attempts"]

    def spread(name: str, blank: float) -> NDArray[Any]:
        column = np.full(offered, blank)
        column[ended["row"]] = ended[name]
        return column

    budget_s = requests["deadline_s"] - requests["arrival_s"]
    models = arrays.models[arrays.envs["scenario"][0]]
    enters = arrays.requests["enters"][0, :offered]
    hopeless = budget_s < models["hopeless_below_s"][enters]
    return {
        **requests, "started_s": spread("started_s", np.nan),
        "finished_s": spread("finished_s", np.nan), "outcome": _NAMES[outcome],
        "hopeless": hopeless,
        "needs_cores": ~hopeless & (budget_s < models["one_core_below_s"][enters]),
        "batch_size": spread("batch_size", 0), "replica": spread("replica", -1),
        "attempts": attempts, "accuracy": spread("accuracy", np.nan), "stage": spread("stage", -1),
    }  # fmt: skip


def _write_open(arrays: Arrays, outcome: NDArray[Any], attempts: NDArray[Any]) -> None:
    """Write what is known of the requests in the system, by their place in order of arrival."""
    if arrays.stages.shape[1] > 1:
        there = arrays.opened[0][: int(arrays.envs["places"][0]) + 1]
        there = there[there["request"] > 0]
        outcome[there["request"][there["running"] > 0] - 1] = Outcome.RUNNING
        attempts[there["request"] - 1] = there["batches"]
        return
    queue, stage = arrays.queue[0, 0], arrays.stages[0, 0]
    waiting = queue[np.arange(stage["head"], stage["tail"]) & stage["ring"]]
    replicas = arrays.replicas[0, 0, : stage["replicas"]][["first", "batch_size"]].tolist()
    spans = [np.arange(first, first + count) for first, count in replicas]
    running = queue[np.concatenate([np.zeros(0, np.int64), *spans]) & stage["ring"]]
    outcome[running["row"]] = Outcome.RUNNING
    attempts[waiting["row"]] = waiting["retries"]
    attempts[running["row"]] = running["retries"] + 1
