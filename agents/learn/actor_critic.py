"""The networks of a stepwise policy in training.

They do not fit Stable-Baselines3's policies: the cores that an action may choose depend on the
replicas that it chooses, and the critic sees which scenario it looks at while the actor does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..policy import FloatMatrix
from ..stepwise import StageChoices

MAX_LOGIT = 4.0
"""Largest absolute logit of a number of cores: none becomes so improbable that it is given up."""
STEP_PROBABILITY = 0.03
"""Of one replica more, and of one fewer, when the replicas begin to be learned."""
VALUE_SCALE = 10.0
"""First unit of the critic's values."""
RESCALING = 0.05
"""Share of the difference to the spread of the latest returns by which that unit changes after
each rollout."""
SATURATION = 5.0
"""Deviations from its mean at which an input begins to saturate: what is rare may be large."""
_NEVER = -1e9
"""Logit of what may not be chosen."""


class Inputs:
    """Mean and deviation of each input."""

    def __init__(self, count: int) -> None:
        self.mean, self.variance = np.zeros(count), np.ones(count)

    def fit(self, inputs: FloatMatrix) -> None:
        """Take mean and deviation from (n, inputs)."""
        self.mean = inputs.mean(axis=0, dtype=np.float64)
        self.variance = inputs.var(axis=0, dtype=np.float64)

    @property
    def scale(self) -> FloatMatrix:
        """(inputs,) factors; a deviation is never 0."""
        return (1 / (SATURATION * np.sqrt(self.variance + 1e-4))).astype(np.float32)

    def __call__(self, inputs: FloatMatrix) -> Tensor:
        """Return (n, inputs) normalised inputs: near the mean, deviations from it."""
        normalised = np.tanh((inputs - self.mean.astype(np.float32)) * self.scale)
        return torch.from_numpy(np.float32(SATURATION) * normalised)

    @property
    def layer(self) -> tuple[FloatMatrix, FloatMatrix]:
        """The same as (weight, bias) of a tanh layer, but for the factor."""
        return np.diag(self.scale), (-self.mean * self.scale).astype(np.float32)


class Actions(NamedTuple):
    """(n, stages) choices of each part, and what they were chosen among."""

    cores: Tensor
    batches: Tensor
    steps: Tensor
    variants: Tensor
    replicas: Tensor
    """Requested before."""
    may_step: Tensor
    """(n, stages, 3) which steps were allowed."""

    def at(self, rows: Tensor) -> Actions:
        """Return some of them."""
        return Actions(*(part[rows] for part in self))

    @property
    def chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :meth:`..stepwise.PolicyState.take` takes."""
        return self[:4]


class ActorCritic(nn.Module):
    """Both networks."""

    def __init__(
        self, hidden: Sequence[int], choices: StageChoices, inputs: int, scenarios: int
    ) -> None:
        super().__init__()
        self._counts: list[list[int]] = choices.counts.tolist()
        self._room = torch.from_numpy(choices.room)
        self.actor = _network(inputs, hidden, sum(choices.actions))
        self.critic = _network(inputs + scenarios, hidden, 1)
        self.value_scale: Tensor
        self.register_buffer("value_scale", torch.full((scenarios,), VALUE_SCALE))
        step, last = math.log(STEP_PROBABILITY / (1 - 2 * STEP_PROBABILITY)), self.actor[-1]
        assert isinstance(last, nn.Linear)
        at = 0
        with torch.no_grad():  # until steps are allowed, nothing changes these
            for cores, sizes, moves, variants in self._counts:
                own = slice(at + cores + sizes, at + cores + sizes + moves)
                last.weight[own] = 0.0
                last.bias[own] = torch.tensor([step, 0.0, step])
                at = own.stop + variants

    def values(self, inputs: Tensor, scenarios: Tensor) -> Tensor:
        """Return the (n,) values of states, of which the critic also knows the scenario."""
        values: Tensor = self.critic(torch.cat([inputs, scenarios], dim=1))[:, 0]
        return values * self.units(scenarios)

    def units(self, scenarios: Tensor) -> Tensor:
        """Return the (n,) units of the values of states in some scenarios."""
        return scenarios @ self.value_scale

    def rescale(self, returns: FloatMatrix, scenario: NDArray[np.int64]) -> None:
        """Let the critic's units follow (steps, n) returns, for each scenario by itself.

        Where a violation costs two hundred core-seconds, its errors would otherwise hide what the
        critic has to learn of all other scenarios. Its values change with their units, slowly.
        """
        for k in np.unique(scenario).tolist():
            spread = max(float(returns[:, scenario == k].std()), 1.0)
            self.value_scale[k] += RESCALING * (spread - float(self.value_scale[k]))

    def _parts(self, inputs: Tensor, may_step: Tensor) -> list[list[Tensor]]:
        """Return for each stage the logits of its cores, and of the rest log-probabilities."""
        sizes, parts = [sum(each) for each in self._counts], []
        for k, logits in enumerate(self.actor(inputs).split(sizes, dim=1)):
            cores, batches, steps, variants = logits.split(self._counts[k], dim=1)
            bounded = MAX_LOGIT * torch.tanh(cores / MAX_LOGIT)
            rest = batches, steps.masked_fill(~may_step[:, k], _NEVER), variants
            parts.append([bounded, *(each.log_softmax(dim=1) for each in rest)])
        return parts

    def _fitting(self, k: int, cores: Tensor, replicas: Tensor) -> Tensor:
        """Return the log-probabilities of the cores of a stage that fit on the machine."""
        room = self._room[k, replicas, : cores.shape[1]]
        return cores.masked_fill(~room, _NEVER).log_softmax(dim=1)

    @torch.no_grad()
    def sample(self, inputs: Tensor, replicas: Tensor, may_step: Tensor) -> tuple[Actions, Tensor]:
        """Draw an action for each of n states; return them and their (n,) log-probabilities."""
        logs, drawn = [], []
        for k, (cores, batches, steps, variants) in enumerate(self._parts(inputs, may_step)):
            # The step first: how many cores fit depends on the replicas that result from it.
            step, batch = _draw(steps), _draw(batches)
            fitting = self._fitting(k, cores, replicas[:, k] + step - 1)
            logs += [fitting, batches, steps, variants]
            drawn.append((_draw(fitting), batch, step, _draw(variants)))
        chosen = (torch.stack(part, dim=1) for part in zip(*drawn, strict=True))
        actions = Actions._make((*chosen, replicas, may_step))
        return actions, _log_probability(logs, chain(*drawn))

    def probabilities(self, inputs: Tensor, actions: Actions) -> tuple[Tensor, Tensor]:
        """Return the (n,) log-probabilities of actions, and the entropies of their parts."""
        logs, chosen = [], []
        replicas = actions.replicas + actions.steps - 1
        for k, (cores, *rest) in enumerate(self._parts(inputs, actions.may_step)):
            logs += [self._fitting(k, cores, replicas[:, k]), *rest]
            chosen += [part[:, k] for part in actions.chosen]
        log_probability = _log_probability(logs, chosen)
        entropy = -sum((each.exp() * each).sum(dim=1) for each in logs)
        return log_probability, torch.as_tensor(entropy)

    def layers(self, inputs: Inputs) -> list[tuple[FloatMatrix, FloatMatrix]]:
        """Return (weight, bias) of each layer of the actor, which then takes raw inputs."""
        linear = [layer for layer in self.actor if isinstance(layer, nn.Linear)]
        (first, bias), *others = [(as_array(each.weight), as_array(each.bias)) for each in linear]
        return [inputs.layer, (np.float32(SATURATION) * first, bias), *others]


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
    """Draw from (n, choices) log-probabilities: the largest after Gumbel noise.

    It is 0 where there is nothing to choose.
    """
    if not logs.shape[1]:
        return torch.zeros(len(logs), dtype=torch.int64)
    noise = -torch.rand_like(logs).clamp(1e-9, 1 - 1e-7).log()
    return (logs - noise.log()).argmax(dim=1)


def _log_probability(logs: Iterable[Tensor], chosen: Iterable[Tensor]) -> Tensor:
    """Return the (n,) log-probabilities of all choices together."""
    parts = zip(logs, chosen, strict=True)
    each = [part.gather(1, choice[:, None])[:, 0] for part, choice in parts if part.shape[1]]
    return torch.as_tensor(sum(each))


def as_array(tensor: Tensor) -> FloatMatrix:
    """Return a copy of a tensor's numbers."""
    return np.array(tensor.detach().cpu().numpy(), np.float32)
