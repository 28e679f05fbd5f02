"""The batch simulator: many environments in arrays, stepped by compiled code."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core import entry
from sponge_env.core.compiled import CPUS, rows
from sponge_env.core.fields import OBS_DIM
from sponge_env.core.records import METRICS, Arrays
from sponge_env.core.settings import LISTED
from sponge_env.errors import ConfigError
from sponge_env.interfaces import SystemSpec
from sponge_env.scenario.config import MAX_TOTAL_CORES
from sponge_env.scenario.option import require
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.configuration import Configuration
from sponge_env.simulation.memory import allocations, asked_for, blank_metrics
from sponge_env.simulation.workload import Workload, list_requests

Observations = NDArray[np.float32]

WORTH_S = 1e-4  # With less work a step for each thread, waking another costs more than it saves


@dataclass(frozen=True, slots=True)
class BatchView:
    """The views of all environments at once: those parts of a view that are one number each.

    A rule written in NumPy works on it as on the view of one system.
    """

    _arrays: Arrays
    observations: Observations  # (n, obs_dim)
    last: Any  # (n,) records of the last interval's metrics; None before the first

    @property
    def now_s(self) -> float:
        """The time, which is the same in all."""
        return float(self._arrays.envs["now_s"][0])

    @property
    def first(self) -> "BatchView":
        """The first stage."""
        return self

    @property
    def allocation(self) -> Any:
        """(n,) records of what was asked for last."""
        return self._arrays.stages["wanted"][:, 0].view(np.recarray)

    @property
    def queued(self) -> IntArray:
        """(n,) requests that wait."""
        queued: IntArray = self._arrays.stages["tail"][:, 0] - self._arrays.stages["head"][:, 0]
        return queued

    @property
    def replicas_ready(self) -> IntArray:
        """(n,) replicas that can run a batch now."""
        return self._replicas(ready=True)

    @property
    def starting(self) -> IntArray:
        """(n,) replicas that are starting."""
        return self._replicas(ready=False)

    def _replicas(self, ready: bool) -> IntArray:
        held, replicas = self._arrays.stages["replicas"][:, 0], self._arrays.replicas[:, 0]
        counts = ~replicas["draining"] & (np.arange(replicas.shape[1]) < held[:, None])
        counts &= (replicas["ready_s"] <= self.now_s) == ready
        found: IntArray = counts.sum(axis=1)
        return found


class BatchSimulator:
    """``n`` environments that step together.

    Environment ``i`` runs episodes of ``scenarios[assignment[i]]``, each equal to what
    ``make_system(scenario, episode_seed)`` runs.
    """

    def __init__(
        self, scenarios: Sequence[Scenario], assignment: NDArray[np.int64], *,
        replicas_max: int | None = None, queue_capacity: int | None = None,
        threads: int | None = None, obs_dim: int = OBS_DIM, intervals_max: int | None = None,
        workloads: Sequence[Workload] = (), grows_ready: bool = False,
    ) -> None:  # fmt: skip
        """Allocate everything; :meth:`reset` starts the first episodes.

        Args:
            scenarios: A pool of scenarios with the same limits and interval.
            assignment: (n,) scenario of each environment, which its next reset reads again.
            replicas_max: Most replicas that an allocation asks for; fewer need less memory.
            queue_capacity: Requests that can wait and run in one environment, rounded up to a
                power of two. Further ones are dropped and counted as ``overflowed``. If left out,
                an episode's expected requests and a quarter more, between 1024 and 65536.
            threads: Threads that share the work, where a step has enough for them; if left out,
                all CPUs (``NUMBA_NUM_THREADS``).
            obs_dim: Length of an observation, of one of :mod:`sponge_env.simulation.encoding`.
            intervals_max: Intervals after which an episode is over even if its scenario is not.
            grows_ready: Whether more cores than there are may be asked for while replicas start.
            workloads: (n,) requests of each environment's only episode, which has a ledger.
        """
        self.num_envs = count = len(assignment)
        for name, value in (
            ("the number of environments", count), ("the number of scenarios", len(scenarios)),
            ("queue_capacity", queue_capacity), ("threads", threads),
            ("the number of steps", intervals_max),
        ):  # fmt: skip
            require(value is None or value >= 1, name, value, "at least 1")
        self.scenarios, self.assignment = tuple(scenarios), assignment
        self._obs_dim, self._workloads = obs_dim, workloads
        self.over = np.ones(count, np.bool_)  # (n,) whether each environment's episode is over
        self.threads = min(threads or CPUS, count)
        self._step_s = np.inf  # CPU time of the last step, if there was one
        self._configuration = Configuration(self.scenarios, replicas_max, listed=bool(workloads))
        self.specs: Sequence[SystemSpec] = self._configuration.specs
        """(scenarios,) what a controller may know about each system."""
        self._machine = np.array([self.specs[0].nodes] * 2)  # (2, nodes) cores of each, and memory
        self._shares = bool(self.specs[0].models)  # Whether by :mod:`sponge_env.core.sharing`
        unbound = grows_ready or self._shares
        self._nodes = np.array([[MAX_TOTAL_CORES]] * 2) if unbound else self._machine
        stages = self.specs[0].stages
        most = [(s.cores_max, s.batch_max, s.replicas_max, len(s.latencies) - 1) for s in stages]
        self._most = np.array(most)  # (stages, 4) cores, batch, replicas and variant
        self._most[:, 2] = replicas_max or self._most[:, 2]
        if intervals_max is not None:
            intervals = self._configuration.settings["intervals"]
            np.minimum(intervals, intervals_max, out=intervals)
        room = self._configuration.room
        room.queue = queue_capacity or room.queue
        if workloads:
            room.hold(self.specs[0], 2 * max(1, *(each.id.size for each in workloads)))
        self._arrays = self._configuration.allocate(count)
        self._numbers, self._wanted = allocations(count, len(self._most))
        self._seeds = np.full(count, -1)
        self._metrics = blank_metrics(count)
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()  # Whose threads the pool has

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the threads, and what is another view of memory."""
        return self.__dict__ | {"_pool": None, "_wanted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._wanted = asked_for(self._numbers)

    @property
    def episode_intervals(self) -> NDArray[np.int64]:
        """(n,) intervals of each environment's episode so far."""
        return np.array(self._arrays.envs["interval"])

    def reset(self, chosen: NDArray[np.bool_], episode_seeds: IntArray, out: Observations) -> None:
        """Start new episodes in the (n,) chosen environments, each with a seed of at least 0.

        The first observations are written to the chosen rows of ``out``, (n, obs_dim) float32.
        """
        chosen = _array("chosen", chosen, np.bool_, (self.num_envs,))
        seeds = _array("episode_seeds", episode_seeds, np.int64, (self.num_envs,))
        scenarios = _array("assignment", self.assignment, np.int64, (self.num_envs,))
        _array("out", out, np.float32, (self.num_envs, self._obs_dim))
        if out.dtype != np.float32 or not out.flags.carray:
            raise ValueError("out must be a contiguous float32 array, to be written to")
        least = int(seeds.min())
        require(least >= 0, "every episode seed", least, "at least 0")
        if scenarios.min() < 0 or scenarios.max() >= len(self.scenarios):
            raise ConfigError(f"assignment must lie between 0 and {len(self.scenarios) - 1}")
        # What the kernels do not draw one at a time.
        kinds = self._arrays.settings["arrival_kind"]
        kept = np.flatnonzero((kinds[self._arrays.envs["scenario"]] == LISTED) & ~chosen).tolist()
        for i in np.flatnonzero((kinds[scenarios] == LISTED) & chosen).tolist():
            drawn = int(scenarios[i]), int(seeds[i])
            given = self._workloads[i] if self._workloads else None
            workload = given or self._configuration.workload(*drawn)
            if i and chosen[0] and given is not None and given is self._workloads[0]:
                self._arrays.requests[i] = self._arrays.requests[0]
            else:
                self._arrays = list_requests(self._arrays, i, workload, kept)
            kept.append(i)
        self._arrays.envs["scenario"][chosen] = scenarios[chosen]
        self._seeds = np.where(chosen, seeds, -1)
        self._run(entry.begin_traffic_range, self._seeds, self._metrics)
        self._move(entry.RESET, out)

    def play(
        self, seeds: NDArray[np.int64], decide: Callable[[BatchView], IntArray]
    ) -> Iterator[NDArray[Any]]:
        """Play an episode in each environment; yield each interval's metrics, as of a step."""
        # ``decide`` returns the (n, stages, 4) allocations for an interval.
        observations, last = np.zeros((self.num_envs, self._obs_dim), np.float32), None
        self.reset(np.ones(self.num_envs, np.bool_), seeds, observations)
        while not self.over.all():
            shown = None if last is None else last.view(np.recarray)
            asked = decide(BatchView(self._arrays, observations, shown))
            observations, last = self.step(asked)
            yield last

    def only(self, i: int) -> Arrays:
        """Return the memory of one environment, as if it were the only one."""
        of_each = Arrays._fields.index("settings")
        each = (array[i : i + 1] for array in self._arrays[:of_each])
        return Arrays(*each, *self._arrays[of_each:])

    def step(self, allocations: NDArray[np.int64]) -> tuple[Observations, NDArray[Any]]:
        """Serve one interval; environments whose episode is over stand still.

        Of the (n, stages, 4) cores, batches, replicas and variants, or (n, 3) without variants
        where there is one stage, what the machine has no room for is left out, as by
        :meth:`~sponge_env.interfaces.SystemSpec.fitting`. Returned are new arrays: (n, obs_dim)
        observations and (n,) records of :data:`~sponge_env.core.records.METRICS`, all zeros where
        the episode was over. An allocation outside the limits is a ConfigError.
        """
        if np.ndim(allocations) == 2 and len(self._most) == 1:
            shape: tuple[int, ...] = (self.num_envs, 3)
            self._numbers[:, 0, :3] = _array("allocations", allocations, np.int64, shape)
        else:
            self._numbers[:] = _array("allocations", allocations, np.int64, self._numbers.shape)
        if not entry.fit(self._numbers, self._most, self._nodes):
            raise ConfigError(
                f"cores, batch and replicas must lie between 1 and {self._most[:, :3].tolist()}, "
                f"and variants between 0 and {self._most[:, 3].tolist()}, stage by stage, but one "
                "environment's do not"
            )
        if self._shares:
            entry.share(self._arrays, self._metrics, self._numbers, self._machine)
        new = np.zeros if self.over.any() else np.empty
        observations = new((self.num_envs, self._obs_dim), np.float32)
        self._metrics = rows(new(self.num_envs, METRICS))
        self._move(entry.STEP, observations)
        return observations, self._metrics

    def drain(self) -> NDArray[Any]:
        """End all episodes: serve what is left under the allocations in force."""
        # The (n,) metrics returned count how those requests ended, and mean nothing beyond that.
        self._metrics = blank_metrics(self.num_envs)
        self._move(entry.DRAIN, np.zeros((self.num_envs, self._obs_dim), np.float32))
        return self._metrics

    def close(self) -> None:
        """Stop the threads; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _move(self, move: int, observations: Observations) -> None:
        out = observations, self._metrics, self.over
        taken_s = self._run(entry.run_range, move, self._seeds, self._wanted, *out)
        if move == entry.STEP:
            self._step_s = taken_s

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> float:
        """Share the environments among threads; this one works, too. Return the CPU time of all."""
        threads = int(max(1, min(self.threads, self._step_s / WORTH_S)))
        edges = [self.num_envs * k // threads for k in range(threads + 1)]
        if threads > 1 and (self._pool is None or self._process != os.getpid()):
            # a fork has its parent's pool, without the threads
            self._pool = ThreadPoolExecutor(self.threads - 1, "sponge-vector")
            self._process = os.getpid()
        others = [
            self._pool.submit(kernel, self._arrays, *edges[k : k + 2], *arguments)
            for k in range(1, threads)
            if self._pool is not None
        ]
        begun_s = time.thread_time()
        kernel(self._arrays, *edges[:2], *arguments)
        taken_s = time.thread_time() - begun_s
        for other in others:
            other.result()
        return threads * taken_s


def _array(name: str, values: Any, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the one kind of array that the kernels are compiled for."""
    array = np.ascontiguousarray(values, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must be of shape {shape}, not {array.shape}")
    return array
