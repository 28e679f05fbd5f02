"""Between the physical view and the vectors of a learner, in both directions.

The environments and the learned controllers use the same functions, so training and
evaluation cannot differ. Two kinds of control share them: *vertical*, which chooses cores and
batch size of one replica, and *joint*, which chooses the number of replicas, too. The vertical
observation is the first part of the joint one. Actions that make no sense at all can be masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.config import ControlName, Limits
from sponge_env.core.compiled import rows
from sponge_env.core.entry import observe_one
from sponge_env.core.records import METRICS, RECENT, Arrays
from sponge_env.core.settings import LISTED, write_spec
from sponge_env.errors import ConfigError, unknown
from sponge_env.fields import CLIP as CLIP
from sponge_env.fields import FIELDS as FIELDS
from sponge_env.fields import JOINT_NAMES
from sponge_env.fields import OBS_DIM as OBS_DIM
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.simulation.memory import MemoryPlan, blank_metrics

_RATE = FIELDS.index("arrivals_5s")
_MASKED_SHARE = 0.7
"""Share of the recent rate that the fewest cores must serve: bursts end, and a queue may wait for
the next interval."""


@dataclass(frozen=True, slots=True)
class Control:
    """What an environment lets its agent see and choose."""

    fields: tuple[str, ...]
    """Names of the observation's entries, in order."""
    choices: tuple[str, ...]
    """Fields of :class:`~sponge_env.interfaces.StageAllocation` that an action chooses, in
    order; the others are 1."""

    @property
    def obs_dim(self) -> int:
        """Length of the observation."""
        return len(self.fields)

    def fingerprint(self, spec: SystemSpec) -> str:
        """Hash what gives observations and actions their meaning: a policy fits where it is equal.

        To one replica it makes no difference what a machine has beyond its limits.
        """
        shared = "replicas" in self.choices
        return f"{spec.fingerprint}-{spec.total_cores}" if shared else spec.fingerprint

    def spaces(self, limits: Limits) -> tuple[MultiDiscrete, Box[Any]]:
        """Return the spaces of actions, each choice less 1, and of observations."""
        most = [getattr(limits, name) for name in self.choices]
        return MultiDiscrete(most), Box(-CLIP, CLIP, (self.obs_dim,), np.float32)


VERTICAL = Control(FIELDS, ("cores", "batch"))
JOINT = Control(JOINT_NAMES, ("cores", "batch", "replicas"))
_CONTROLS: dict[str, Control] = {"vertical": VERTICAL, "joint": JOINT}


def control_named(name: ControlName) -> Control:
    """Return a kind of control by its name; a ConfigError if there is none."""
    if name not in _CONTROLS:
        raise ConfigError(unknown("control", name, _CONTROLS))
    return _CONTROLS[name]


def encode(view: SystemView, spec: SystemSpec, control: Control = VERTICAL) -> NDArray[np.float32]:
    """Turn a view of a system into an observation.

    It is (control.obs_dim,) float32 in [-CLIP, CLIP], in the order of ``control.fields``.
    """
    observation = np.zeros((1, control.obs_dim), np.float32)
    observe_one(*_recalled(view, spec), observation)
    first: NDArray[np.float32] = observation[0]
    return first


def decode(action: NDArray[np.int64]) -> Allocation:
    """Turn an action into an allocation.

    It is of ``MultiDiscrete([cores_max, batch_max])``: (2,) cores - 1 and batch - 1; or of
    ``MultiDiscrete([cores_max, batch_max, replicas_max])``: (3,) replicas - 1, too.
    """
    cores, batch, replicas = (*(int(choice) + 1 for choice in action), 1)[:3]
    return Allocation(cores, batch, replicas)


def combination(number: IntArray, choices: IntArray) -> IntArray:
    """Return the (parts,) choices that a number stands for; the last varies fastest."""
    return np.array(np.unravel_index(number, tuple(choices)), np.int64)


def stepped(action: NDArray[np.floating[Any]], choices: IntArray) -> IntArray:
    """Return the (parts,) choices at real numbers from -1, the least, to 1, the most.

    What is beyond the ends counts as the end.
    """
    share = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1) / 2
    chosen: IntArray = np.minimum((share * choices).astype(np.int64), choices - 1)
    return chosen


class ActionMasks:
    """Which choices make sense on a system (invalid action masking, Huang and Ontañón, 2022).

    Masked are core counts that cannot even serve what has lately arrived, and batch sizes that no
    core count runs within the SLO. Replicas, under joint control, may serve what cores do not, so
    that then only batch sizes are masked.
    """

    def __init__(self, spec: SystemSpec, joint: bool = False) -> None:
        latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
        batches = np.arange(1, spec.batch_max + 1)[:, None]
        self._served = (batches / latency_s).max(axis=0) / spec.capacity_rps
        self._fits = latency_s[:, -1] <= spec.slo_s
        self._fits[0] = True
        if joint:
            self._served = np.full(spec.cores_max, np.inf)
            self._fits = np.append(self._fits, np.ones(spec.replicas_max, np.bool_))

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which choices are allowed under (..., fields) observations.

        They are (..., choices): core counts, batch sizes, and replicas under joint control.
        """
        cores = self._served >= _MASKED_SHARE * observations[..., _RATE, None]
        cores[..., -1] = True
        batches = np.broadcast_to(self._fits, (*cores.shape[:-1], self._fits.size))
        return np.concatenate([cores, batches], axis=-1)


def _recalled(view: SystemView, spec: SystemSpec) -> tuple[Arrays, NDArray[np.void]]:
    """Write a view into memory, as of time 0; return it and the last interval's metrics."""
    replicas = len(view.running) + view.replicas_ready + len(view.starting_s)
    arrays = _memory(spec, _power_of_two(len(view.queued_deadlines_s)), _power_of_two(replicas))
    stage = arrays.stages[0, 0]
    stage["head"], stage["tail"] = 0, len(view.queued_deadlines_s)
    arrays.requests["deadline_s"][0, : stage["tail"]] = view.queued_deadlines_s - view.now_s
    wanted = view.allocation
    stage["wanted"] = wanted.cores, wanted.batch, wanted.replicas, wanted.variant
    _recall_history(arrays, view)
    _recall_replicas(arrays, view, replicas)
    metrics = blank_metrics(1)
    if view.last is not None:
        metrics[0] = (*_measured(view.last), 0)
    return arrays, metrics


_measured = attrgetter(*(METRICS.names or ())[:-1])
"""Returns an interval's metrics in the order of the core's record, the last of which is unknown."""


def _recall_history(arrays: Arrays, view: SystemView) -> None:
    env, past = arrays.envs[0], len(view.arrivals)
    env["interval"] = past
    arrays.stages[0, 0]["arrivals"][:past] = view.arrivals
    recent = {"mean_delays_s": view.mean_delays_s, "bandwidths": view.bandwidths_bytes_per_s}
    for name, values in recent.items():
        last = values[-RECENT:]
        env[name][np.arange(past - len(last), past) & (RECENT - 1)] = last
    env["delay_max_s"] = view.delays_s.max() if len(view.delays_s) else 0.0


def _recall_replicas(arrays: Arrays, view: SystemView, replicas: int) -> None:
    """Write one row for each running batch, each ready replica and each that starts."""
    rows_, running = arrays.replicas[0, 0], len(view.running)
    stage, ready = arrays.stages[0, 0], running + view.replicas_ready
    stage["replicas"], stage["running"] = replicas, sum(batch.size for batch in view.running)
    rows_["batch_size"][:replicas] = 0
    rows_["draining"][:replicas] = np.arange(replicas) < running  # so that none counts twice
    rows_["ready_s"][:ready] = 0.0
    rows_["ready_s"][ready:replicas] = view.starting_s
    for row, batch in enumerate(view.running):
        rows_[row]["batch_size"] = batch.size
        rows_[row]["planned_end_s"] = batch.expected_end_s - view.now_s


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@lru_cache(maxsize=32)
def _memory(spec: SystemSpec, queue: int, replicas: int) -> Arrays:
    """Return the memory of one environment in which a view finds room."""
    plan = MemoryPlan(1)
    row, stage = plan.settings[0], plan.models[0, 0]
    write_spec(row, stage, spec)
    stage["limits"]["cores"], stage["limits"]["batch"] = spec.cores_max, spec.batch_max
    stage["limits"]["replicas"] = spec.replicas_max
    row["arrival_kind"] = LISTED
    plan.room.at_least(queue=queue, replicas=replicas)
    arrays = plan.allocate(1)
    arrays.queue["row"][0, 0] = np.arange(queue)
    requests = rows(np.zeros((1, queue), arrays.requests.dtype))
    return arrays._replace(requests=requests)
