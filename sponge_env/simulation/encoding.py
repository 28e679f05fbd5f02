"""Between the physical view and the vectors of a learner, in both directions.

Training and evaluation use the same functions. Four kinds of control share them: *vertical*, which
chooses cores and batch size of one replica; *joint*, which chooses the number of replicas, too;
*variants*, which chooses the model variant instead; and *pipeline*, which chooses what there is to
choose in every stage. The vertical observation is the first part of the joint one; the other two
see all stages. Actions that make no sense at all can be masked.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, get_args

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.entry import fit as fit
from sponge_env.core.entry import observe_one
from sponge_env.core.fields import CLIP as CLIP
from sponge_env.core.fields import FIELDS as FIELDS
from sponge_env.core.fields import JOINT_NAMES, JOINT_OBS_DIM, staged_names
from sponge_env.core.fields import OBS_DIM as OBS_DIM
from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView
from sponge_env.scenario.config import ControlName
from sponge_env.simulation.recall import recalled

_RATE = "arrivals_5s"
_MASKED_SHARE = 0.7  # Of the recent rate: bursts end, and queues may wait


@dataclass(frozen=True, slots=True)
class Control:
    """What an environment lets its agent see and choose."""

    fields: tuple[str, ...]  # Names of the observation's entries, in order
    choices: tuple[tuple[str, ...], ...]
    """For each stage, the fields of :class:`~sponge_env.interfaces.StageAllocation` that an
    action chooses, in order; the others are the least there is."""

    @property
    def obs_dim(self) -> int:
        """Length of the observation."""
        return len(self.fields)

    @property
    def sees_stages(self) -> bool:
        """Whether the observation is that of all stages."""
        return self.obs_dim > JOINT_OBS_DIM

    @property
    def parts(self) -> list[tuple[int, str]]:
        """Stage and field of each part of an action."""
        return [(k, name) for k, names in enumerate(self.choices) for name in names]

    @property
    def scales_out(self) -> bool:
        """Whether an action chooses a number of replicas."""
        return any("replicas" in names for names in self.choices)

    def fingerprint(self, spec: SystemSpec) -> str:
        """Hash the meaning of observations and actions: a policy fits where it is equal."""
        # To one replica it makes no difference what a machine has beyond its limits.
        return f"{spec.fingerprint}-{spec.total_cores}" if self.scales_out else spec.fingerprint

    def spaces(self, spec: SystemSpec) -> tuple[MultiDiscrete, "Box[Any]"]:
        """Return the spaces of actions, each choice less its least, and of observations."""
        counts = [_count(spec, k, name) for k, name in self.parts]
        return MultiDiscrete(counts), Box(-CLIP, CLIP, (self.obs_dim,), np.float32)

    def write(self, actions: NDArray[Any], out: IntArray) -> None:
        """Write (n, parts) actions into (n, stages, 4) cores, batches, replicas and variants."""
        for part, (k, name) in enumerate(self.parts):
            column = out[:, k, StageAllocation._fields.index(name)]
            np.add(actions[:, part], name != "variant", out=column, dtype="i8", casting="unsafe")


VERTICAL = Control(FIELDS, (("cores", "batch"),))
JOINT = Control(JOINT_NAMES, (("cores", "batch", "replicas"),))


def control_named(name: ControlName, spec: SystemSpec) -> Control:
    """Return a kind of control by its name; a ConfigError if it does not reach all of a system."""
    if name not in get_args(ControlName):
        raise ConfigError(unknown("control", name, get_args(ControlName)))
    if (wanted := reaching(name, spec)) != name:
        has = f"{len(spec.stages)} stages"
        if len(spec.stages) == 1:
            has = f"{len(spec.stages[0].latencies)} variants of its model"
        raise ConfigError(
            f"control {name!r} does not reach all of a system with {has}; use control {wanted!r}"
        )
    if name in ("vertical", "joint"):
        return VERTICAL if name == "vertical" else JOINT
    choices = tuple(
        ("cores", "batch") + ("replicas",) * (name == "pipeline" and stage.replicas_max > 1)
        + ("variant",) * (len(stage.latencies) > 1) for stage in spec.stages
    )  # fmt: skip
    return Control(staged_names([stage.name for stage in spec.stages]), choices)


def reaching(name: ControlName, spec: SystemSpec) -> ControlName:
    """Return the kind of control that takes another's place where a system has more to choose."""
    if len(spec.stages) > 1:
        return "pipeline"
    if len(spec.first.latencies) > 1 and name in ("vertical", "joint"):
        return "variants" if name == "vertical" else "pipeline"
    return name


def encode(view: SystemView, spec: SystemSpec, control: Control = VERTICAL) -> NDArray[np.float32]:
    """Turn a view into (control.obs_dim,) float32 in [-CLIP, CLIP], as ``control.fields`` says."""
    observation = np.zeros((1, control.obs_dim), np.float32)
    observe_one(*recalled(view, spec), observation)
    first: NDArray[np.float32] = observation[0]
    return first


def decode(action: IntArray, control: Control = VERTICAL) -> Allocation:
    """Turn an action, (parts,) of a control's action space, into an allocation."""
    chosen = iter(np.asarray(action).tolist())
    stages = [{n: next(chosen) + (n != "variant") for n in names} for names in control.choices]
    return Allocation(stages=tuple(StageAllocation(**each) for each in stages))


def combination(number: IntArray, choices: IntArray) -> IntArray:
    """Return the (parts,) choices that a number stands for; the last varies fastest."""
    return np.array(np.unravel_index(number, tuple(choices)), np.int64)


def combined(masks: NDArray[np.bool_], choices: IntArray) -> NDArray[np.bool_]:
    """Return which numbers of :func:`combination` make sense: those whose every choice does."""
    parts = np.split(masks, np.cumsum(choices)[:-1])
    whole: NDArray[np.bool_] = reduce(np.logical_and.outer, parts).ravel()
    return whole


def stepped(action: NDArray[np.floating[Any]], choices: IntArray) -> IntArray:
    """Return the (parts,) choices at real numbers, clipped to -1, the least, to 1, the most."""
    share = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1) / 2
    return np.minimum((share * choices).astype(np.int64), choices - 1)


def _count(spec: SystemSpec, k: int, name: str) -> int:
    """Return how many choices there are of something in a stage's allocation."""
    stage = spec.stages[k]
    return len(stage.latencies) if name == "variant" else getattr(stage, f"{name}_max")


class ActionMasks:
    """Which choices make sense on a system (invalid action masking, Huang and Ontañón, 2022).

    Masked are core counts that cannot even serve what has lately arrived, and batch sizes and
    variants that no core count runs within the SLO. Replicas, where an action chooses them, may
    serve what cores do not, so that then no core count is masked.
    """

    def __init__(self, spec: SystemSpec, control: Control = VERTICAL) -> None:
        up_to = [_sensible(spec, control, k, name) for k, name in control.parts]
        own = [f"{spec.stages[k].name}." if control.sees_stages else "" for k, _ in control.parts]
        rates = [control.fields.index(name + _RATE) for name in own]
        self._up_to = np.concatenate(up_to)
        self._rates = np.repeat(rates, [len(each) for each in up_to])

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which (..., choices) are allowed under (..., fields) observations."""
        # Those are all choices of the first part of an action, then all of the next.
        return self._up_to >= _MASKED_SHARE * observations[..., self._rates]


def _sensible(spec: SystemSpec, control: Control, k: int, name: str) -> FloatArray:
    """Return up to which arrival rate, as it is observed, each choice for a stage makes sense."""
    stage = spec.stages[k]
    models = stage.latencies if control.sees_stages else stage.latencies[:1]
    latency_s = np.array([each.table_s(stage.batch_max, stage.cores_max) for each in models])
    if name == "cores" and "replicas" not in control.choices[k]:
        batches = np.arange(1, stage.batch_max + 1)[:, None]
        served = (batches / latency_s).max(axis=(0, 1)) / stage.capacity_rps
        return np.append(served[:-1], np.inf)
    shortest_s = np.zeros(_count(spec, k, name))
    if name in ("batch", "variant"):
        shortest_s = latency_s[:, :, -1].min(axis=0) if name == "batch" else latency_s[:, 0, -1]
    fits = shortest_s <= spec.slo_s
    fits[0 if name == "batch" else shortest_s.argmin()] = True
    return np.where(fits, np.inf, -np.inf)
