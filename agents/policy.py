"""Learned policies: a small network, and the file it comes in.

A policy file is a safetensors file: plain arrays, so loading it executes nothing, and deciding
needs neither PyTorch nor Stable-Baselines3. It names its inputs, so that a new field of the
observation changes nothing, and the fingerprint of the system whose numbers it knows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from sponge_env.arrays import IntArray
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.scenario.toml import from_mapping
from sponge_env.utils.files import parsed, read_bytes, replacing

from . import LEARNERS
from .history import FloatMatrix as FloatMatrix
from .needs import NEEDS
from .stepwise import MAX_REPLICAS, Form

FORMAT = 3  # Version of the file layout

STEPWISE_PARTS = 3  # Of a stage's action: cores, batch size, step of the replicas

ANY_MODEL = "any model"  # In place of a fingerprint: a policy for every system of one model
POLICY_FILE = "policy.safetensors"  # Its name in a run directory


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What a policy was trained for, and how."""

    agent: str  # Name of the learner
    fingerprint: str  # :meth:`sponge_env.simulation.encoding.Control.fingerprint` of the system
    scenarios: tuple[str, ...]  # Scenarios that it was trained on
    actions: tuple[int, ...]  # Number of choices of each part of an action, stage by stage
    inputs: tuple[str, ...]  # Names of the observation's fields that it reads, in order
    steps: int  # Environment steps it was trained for
    seed: int
    planned: int = 0  # Environment steps that the training was to have; 0 if the file does not say
    partial: bool = False  # Whether the training has not come to its end
    command: str = ""  # Command line that made it
    seconds: float = 0.0  # How long that took
    batches: tuple[int, ...] = ()  # Batch sizes that it chooses among (:mod:`.stepwise`)
    every: int = 0  # Intervals after which it may change the number of replicas; never if 0
    score: float | None = None  # By :func:`.phased.score_of`, lower is better; None if unknown
    median_of: int = 1  # Trainings, by seed, of which this was the median by that score
    replicas: int = 8  # Most replicas of a stage that it asks for; 8 in files that do not say so
    format: int = FORMAT

    @property
    def signature(self) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
        """Agent, inputs and choices: if they are the same, one can begin where another ended."""
        return self.agent, self.inputs, self.actions

    @property
    def form(self) -> Form:
        """What it chooses among."""
        kind = NEEDS[0] in self.inputs, self.fingerprint == ANY_MODEL
        return Form(self.every, self.batches, self.replicas, *kind)


@dataclass(frozen=True, slots=True)
class Policy:
    """A tanh network from observation to action logits."""

    info: PolicyInfo
    layers: tuple[tuple[FloatMatrix, FloatMatrix], ...]  # (weight, bias): (out, in), (out,)
    places: IntArray | None = None  # (inputs,) place of each in an observation; None: all of it
    input_range: FloatMatrix | None = None
    """(2, inputs) minimum and maximum of each input in validation; None if a file lacks them."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers, without the first one, which normalises."""
        return tuple(bias.size for _, bias in self.layers[1:-1])

    def logits(self, observation: FloatMatrix) -> FloatMatrix:
        """Return the (..., sum of choices) logits under (..., fields) observations."""
        hidden = self.inputs(observation)
        *inner, (last, last_bias) = self.layers
        for weight, bias in inner:
            hidden = np.tanh(hidden @ weight.T + bias)
        result: FloatMatrix = hidden @ last.T + last_bias
        return result

    def inputs(self, observation: FloatMatrix) -> FloatMatrix:
        """Return the (..., inputs) that it reads of (..., fields) observations."""
        # Rows stay contiguous, so that products come out the same to the bit.
        return observation if self.places is None else np.take(observation, self.places, axis=-1)


def reading(policy: Policy, shown: Sequence[str]) -> Policy:
    """Return a policy that finds its inputs among those shown; a PolicyError names missing ones."""
    inputs = policy.info.inputs
    if inputs == tuple(shown):
        return replace(policy, places=None)
    if missing := [name for name in inputs if name not in shown]:
        raise PolicyError(
            f"the policy reads {', '.join(missing)}, which observations do not hold; train it again"
        )
    return replace(policy, places=np.array([shown.index(name) for name in inputs]))


def save_policy(policy: Policy, path: Path) -> None:
    """Write a policy file, whole or not at all."""
    arrays = {}
    for index, (weight, bias) in enumerate(policy.layers):
        arrays[f"weight_{index}"] = np.ascontiguousarray(weight)
        arrays[f"bias_{index}"] = np.ascontiguousarray(bias)
    if policy.input_range is not None:
        arrays["seen"] = np.ascontiguousarray(policy.input_range)
    with replacing(path) as partial:
        save_file(arrays, partial, {"policy": json.dumps(asdict(policy.info))})


def load_policy(path: Path) -> Policy:
    """Read a policy file; a PolicyError says why it cannot be followed."""
    try:
        contents = read_bytes(path)
        header = contents[8 : 8 + int.from_bytes(contents[:8], "little")].decode()
        said = parsed(json.loads, header)["__metadata__"]["policy"]  # beside the arrays
        description = parsed(json.loads, said)
        if (form := description["format"]) != FORMAT:
            raise PolicyError(
                f"{path} is of format {form}, this version reads {FORMAT}; train it again"
            )
        if (agent := description["agent"]) not in LEARNERS or not description["batches"]:
            raise PolicyError(
                f"{path} is a policy of {agent} that this version cannot follow; train one of "
                f"{', '.join(LEARNERS)}, or follow a model of Stable-Baselines3 as sb3:FILE"
            )
        arrays = load(contents)
        numbers = range(sum(name.startswith("weight_") for name in arrays))
        layers = tuple((arrays[f"weight_{i}"], arrays[f"bias_{i}"]) for i in numbers)
        info = from_mapping(PolicyInfo, description)
    except PolicyError:
        raise
    except FileNotFoundError:
        raise PolicyError(f"there is no policy file {str(path)!r}") from None
    except (OSError, LookupError, TypeError, ValueError, SafetensorError, ConfigError) as error:
        raise PolicyError(
            f"{path} is damaged or not a policy file, which train.py writes as {POLICY_FILE}"
        ) from error
    policy = Policy(info, layers, input_range=arrays.get("seen"))
    if not _fits(policy):
        raise PolicyError(f"{path} is damaged: its numbers do not go together")
    return policy


def _fits(policy: Policy) -> bool:
    """Return whether all numbers are finite and all sizes go together."""
    width, sizes, actions = len(policy.info.inputs), policy.info.batches, policy.info.actions
    arrays = [array for layer in policy.layers for array in layer]
    if policy.input_range is not None:
        if policy.input_range.shape != (2, width):
            return False
        arrays.append(policy.input_range)
    for weight, bias in policy.layers:
        if bias.ndim != 1 or weight.shape != (bias.size, width):
            return False
        width = bias.size
    finite = all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
    chosen = 1 <= policy.info.replicas <= MAX_REPLICAS
    chosen &= len(actions) >= STEPWISE_PARTS and min(actions) >= 1 and len(sizes) == actions[1]
    return finite and chosen and sum(actions) == width
