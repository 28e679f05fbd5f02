"""Learned policies: their file format, and the controller that follows one.

A policy file is a NumPy archive of plain arrays: loading it executes nothing, and deciding
needs neither PyTorch nor Stable-Baselines3. It carries the version of the observation
layout and the hash of the system it was trained on, because to any other its numbers mean
nothing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.encoding import LAYOUT_VERSION, OBS_DIM, decode, encode
from sponge_env.errors import PolicyError
from sponge_env.files import replacing
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

FORMAT = 1
"""Version of the file layout."""

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What a policy was trained on."""

    scenario: str
    system_hash: str
    """:attr:`sponge_env.scenario.Scenario.system_hash` of the training scenario."""
    cores_max: int
    batch_max: int
    steps: int
    """Environment steps it was trained for."""
    seed: int
    layout: int = LAYOUT_VERSION
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Policy:
    """A tanh network from observation to action logits."""

    info: PolicyInfo
    layers: tuple[tuple[FloatMatrix, FloatMatrix], ...]
    """(weight, bias) of each layer: (out, in) and (out,)."""

    def act(self, observation: FloatMatrix) -> NDArray[np.int64]:
        """Return the most probable action.

        Args:
            observation: (..., OBS_DIM) float32.

        Returns:
            (..., 2) cores - 1 and batch - 1.
        """
        hidden = observation
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        cores, batch = np.split(hidden @ weight.T + bias, [self.info.cores_max], axis=-1)
        return np.stack([cores.argmax(axis=-1), batch.argmax(axis=-1)], axis=-1)


def save_policy(policy: Policy, path: Path) -> None:
    """Write a policy file, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    arrays: dict[str, Any] = {"info": np.array(json.dumps(asdict(policy.info)))}
    for index, (weight, bias) in enumerate(policy.layers):
        arrays[f"weight_{index}"], arrays[f"bias_{index}"] = weight, bias
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: There is no such file, it is damaged, not a policy, or of another
            layout.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            info = PolicyInfo(**json.loads(str(archive["info"])))
            count = sum(name.startswith("weight_") for name in archive.files)
            layers = tuple((archive[f"weight_{i}"], archive[f"bias_{i}"]) for i in range(count))
    except FileNotFoundError:
        raise PolicyError(f"there is no policy file {str(path)!r}") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise PolicyError(
            f"{path} is damaged or not a policy file, which train.py writes as policy.npz"
        ) from error
    if (info.format, info.layout) != (FORMAT, LAYOUT_VERSION):
        raise PolicyError(
            f"{path} was made for observation layout {info.layout} in file format {info.format}, "
            f"this version has {LAYOUT_VERSION} and {FORMAT}; train it again"
        )
    _check_shapes(path, info, layers)
    return Policy(info, layers)


def find_policy(system_hash: str, runs: Path) -> Path | None:
    """Return the newest policy in the run directories that was trained on this system."""
    for path in sorted(runs.glob("*/policy.npz"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            if load_policy(path).info.system_hash == system_hash:
                return path
        except PolicyError:
            continue
    return None


def _check_shapes(
    path: Path, info: PolicyInfo, layers: Sequence[tuple[FloatMatrix, FloatMatrix]]
) -> None:
    width = OBS_DIM
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise PolicyError(f"{path} is damaged: its layers do not fit together")
        width = weight.shape[0]
    if not layers or width != info.cores_max + info.batch_max:
        raise PolicyError(f"{path} is damaged: its output does not fit its limits")


class PolicyController:
    """Follows a trained policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._spec: SystemSpec | None = None

    def check(self, system_hash: str, scenario: str) -> None:
        """Check that the policy was trained on this system.

        Raises:
            PolicyError: It was not.
        """
        info = self.policy.info
        if info.system_hash != system_hash:
            raise PolicyError(
                f"the policy was trained on scenario {info.scenario!r}, whose profile, SLO, "
                f"limits or drop policy differ from those of {scenario!r}; train one with: "
                f"python train.py --agent ppo --scenario {scenario}"
            )

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; the policy is deterministic."""
        self._spec = spec

    def decide(self, view: SystemView) -> Allocation:
        """Return the policy's most probable allocation."""
        assert self._spec is not None, "call reset first"
        return decode(self.policy.act(encode(view, self._spec)))
