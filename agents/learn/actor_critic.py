"""The networks of a stepwise policy in training.

They do not fit Stable-Baselines3's policies: the cores that an action may choose depend on the
replicas that it chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..policy import FloatMatrix
from ..stepwise import StageChoices

MAX_LOGIT = 4.0
"""Largest absolute logit of a number of cores: none becomes so improbable that it is given up."""
STEP_PROBABILITY = 0.03
"""Of one replica more, and of one fewer, when the replicas begin to be learned."""
VALUE_UNIT = 10.0
"""Unit of the critic's values."""
SATURATION = 5.0
"""Deviations from its mean at which an input begins to saturate: what is rare may be large."""
_NEVER = -1e9
"""Logit of what may not be chosen."""


class ActorCritic(nn.Module):
    """Both networks, and the mean and deviation of each input."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: Sequence[int], choices: StageChoices, inputs: int) -> None:
        super().__init__()
        self._counts: list[list[int]] = choices.counts.tolist()
        self._room = torch.from_numpy(choices.room)
        # (stages, replicas + 1, 3) steps that leave the replicas within their limits
        results = np.arange(choices.room.shape[1])[:, None] + np.array([-1, 0, 1])
        most = choices.limits[:, 2, None, None]
        self._steps = torch.from_numpy((results >= 1) & (results <= most))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.actor = _network(inputs, hidden, sum(choices.actions))
        self.critic = _network(inputs, hidden, 1)
        step, last = math.log(STEP_PROBABILITY / (1 - 2 * STEP_PROBABILITY)), self.actor[-1]
        assert isinstance(last, nn.Linear)
        at = 0
        with torch.no_grad():
            for cores, sizes, moves, variants in self._counts:
                own = slice(at + cores + sizes, at + cores + sizes + moves)
                last.weight[own] = 0.0
                last.bias[own] = torch.tensor([step, 0.0, step])
                at = own.stop + variants

    def normalise(self, seen: FloatMatrix) -> None:
        """Take mean and deviation from (n, inputs); a deviation is never 0."""
        mean, variance = (f(seen, axis=0, dtype=np.float64) for f in (np.mean, np.var))
        self.mean = torch.from_numpy(np.float32(mean))
        self.scale = torch.from_numpy(np.float32(1 / (SATURATION * np.sqrt(variance + 1e-4))))

    def inputs(self, seen: FloatMatrix) -> Tensor:
        """Return (n, inputs) normalised inputs: near the mean, deviations from it."""
        return SATURATION * torch.tanh((torch.from_numpy(seen) - self.mean) * self.scale)

    def values(self, inputs: Tensor) -> Tensor:
        """Return the (n,) values of states."""
        values: Tensor = VALUE_UNIT * self.critic(inputs)[:, 0]
        return values

    def _parts(self, inputs: Tensor, replicas: Tensor) -> list[list[Tensor]]:
        """Return for each stage the logits of its cores, and of the rest log-probabilities."""
        sizes, parts = [sum(each) for each in self._counts], []
        for k, logits in enumerate(self.actor(inputs).split(sizes, dim=1)):
            cores, batches, steps, variants = logits.split(self._counts[k], dim=1)
            bounded = MAX_LOGIT * torch.tanh(cores / MAX_LOGIT)
            allowed = steps.masked_fill(~self._steps[k, replicas[:, k]], _NEVER)
            rest = batches, allowed, variants
            parts.append([bounded, *(each.log_softmax(dim=1) for each in rest)])
        return parts

    def _fitting(self, k: int, cores: Tensor, replicas: Tensor) -> Tensor:
        """Return the log-probabilities of the cores of a stage that fit on the machine."""
        room = self._room[k, replicas, : cores.shape[1]]
        return cores.masked_fill(~room, _NEVER).log_softmax(dim=1)

    @torch.no_grad()
    def sample(self, inputs: Tensor, replicas: Tensor) -> tuple[Tensor, Tensor]:
        """Draw (n, stages, 4) choices in states of (n, stages) replicas.

        Their (n,) log-probabilities come with them.
        """
        logs, drawn = [], []
        for k, (cores, batches, steps, variants) in enumerate(self._parts(inputs, replicas)):
            # The step first: how many cores fit depends on the replicas that result from it.
            step, batch = _draw(steps), _draw(batches)
            fitting = self._fitting(k, cores, replicas[:, k] + step - 1)
            logs += [fitting, batches, steps, variants]
            drawn += [_draw(fitting), batch, step, _draw(variants)]
        choices = torch.stack(drawn, dim=1).reshape(len(inputs), -1, 4)
        return choices, _log_probability(logs, choices)

    def probabilities(
        self, inputs: Tensor, choices: Tensor, replicas: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the (n,) log-probabilities of choices, and the entropies of their parts."""
        logs = []
        after = replicas + choices[..., 2] - 1
        for k, (cores, *rest) in enumerate(self._parts(inputs, replicas)):
            logs += [self._fitting(k, cores, after[:, k]), *rest]
        entropy = -sum((each.exp() * each).sum(dim=1) for each in logs)
        return _log_probability(logs, choices), torch.as_tensor(entropy)

    def layers(self) -> list[tuple[FloatMatrix, FloatMatrix]]:
        """Return (weight, bias) of each layer of the actor, which then takes raw inputs."""
        linear = [layer for layer in self.actor if isinstance(layer, nn.Linear)]
        (first, bias), *others = [(as_array(each.weight), as_array(each.bias)) for each in linear]
        normalising = as_array(torch.diag(self.scale)), as_array(-self.mean * self.scale)
        return [normalising, (np.float32(SATURATION) * first, bias), *others]


def _network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [_linear(inputs, size, 2**0.5), nn.Tanh()]
        inputs = size
    return nn.Sequential(*layers, _linear(inputs, outputs, 0.01))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _draw(logs: Tensor) -> Tensor:
    """Draw from (n, choices) log-probabilities; 0 where there is nothing to choose."""
    if not logs.shape[1]:
        return torch.zeros(len(logs), dtype=torch.int64)
    return torch.multinomial(logs.exp(), 1)[:, 0]


def _log_probability(logs: Iterable[Tensor], choices: Tensor) -> Tensor:
    """Return the (n,) log-probabilities of all (n, stages, 4) choices together."""
    parts = zip(logs, choices.flatten(1).T, strict=True)
    each = [part.gather(1, choice[:, None])[:, 0] for part, choice in parts if part.shape[1]]
    return torch.as_tensor(sum(each))


def as_array(tensor: Tensor) -> FloatMatrix:
    """Return a copy of a tensor's numbers."""
    return np.array(tensor.detach().cpu().numpy(), np.float32)
