"""The networks of a stepwise policy in training, and how they learn: PPO (Schulman et al., 2017).

A compact PPO of its own, because three things do not fit Stable-Baselines3's: the cores that an
action may choose depend on the replicas that it chooses, the critic sees which scenario it looks
at and the actor does not, and advantages are compared within a scenario.
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
from .phases import PhasedConfig

LOGIT_MOST = 4.0
"""Largest absolute logit of a number of cores: none becomes so improbable that it is given up."""
STEP_PROBABILITY = 0.03
"""Of one replica more, and of one fewer, when the replicas begin to be learned."""
VALUE_SCALE = 10.0
"""What the critic's 1 stands for at first."""
RESCALING = 0.05
"""Share of the way to the spread of the latest returns that it goes after each rollout."""
DEVIATIONS = 5.0
"""So many deviations from its mean an input begins to saturate: what is rare may be large."""
_NEVER = -1e9


class Inputs:
    """Mean and deviation of each input, and which of them are seen at all."""

    def __init__(self, count: int, hidden: Sequence[int] = ()) -> None:
        self.mean, self.variance = np.zeros(count), np.ones(count)
        self._seen = np.ones(count, np.float32)
        self._seen[list(hidden)] = 0.0

    def fit(self, seen: FloatMatrix) -> None:
        """Take mean and deviation from (n, inputs)."""
        self.mean = seen.mean(axis=0, dtype=np.float64)
        self.variance = seen.var(axis=0, dtype=np.float64)

    @property
    def scale(self) -> FloatMatrix:
        """(inputs,) factors of what is seen; a deviation is never 0."""
        deviation = np.sqrt(self.variance + 1e-4)
        return (self._seen / (DEVIATIONS * deviation)).astype(np.float32)

    def __call__(self, seen: FloatMatrix) -> Tensor:
        """Return (n, inputs) what the networks are shown: near the mean, deviations from it."""
        shown = np.tanh((seen - self.mean.astype(np.float32)) * self.scale)
        return torch.from_numpy(np.float32(DEVIATIONS) * shown)

    @property
    def layer(self) -> tuple[FloatMatrix, FloatMatrix]:
        """The same as (weight, bias) of a tanh layer, but for the factor."""
        return np.diag(self.scale), (-self.mean * self.scale).astype(np.float32)


class Actions(NamedTuple):
    """(n, stages) choices of each part, among what they were chosen, and how probable all were."""

    cores: Tensor
    batches: Tensor
    steps: Tensor
    variants: Tensor
    replicas: Tensor
    """Asked for before."""
    may_step: Tensor
    """(n, stages, 3) which steps were allowed."""
    log_probability: Tensor
    """(n,)"""

    def at(self, chosen: Tensor) -> Actions:
        """Return some of them."""
        return Actions(*(part[chosen] for part in self))

    @property
    def chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :meth:`..stepwise.PolicyState.take` takes."""
        return self[:4]


class Transitions(NamedTuple):
    """(n, ...) what an update learns from."""

    shown: Tensor
    scenarios: Tensor
    """(n, scenarios) a one for the right one."""
    actions: Actions
    advantages: Tensor
    returns: Tensor


class Shown(NamedTuple):
    """(n, ...) what a program has shown: states and its actions there."""

    seen: Tensor
    actions: Actions

    def some(self, count: int) -> Shown:
        """Draw some of it."""
        chosen = torch.randint(len(self.seen), (count,))
        return Shown(self.seen[chosen], self.actions.at(chosen))


class ActorCritic(nn.Module):
    """Both networks."""

    def __init__(
        self, config: PhasedConfig, choices: StageChoices, inputs: int, scenarios: int
    ) -> None:
        super().__init__()
        self._config = config
        self._counts: list[list[int]] = choices.counts.tolist()
        self._room = torch.from_numpy(choices.room)
        self.actor = _network(inputs, config.hidden, sum(choices.actions))
        knows = scenarios if config.asymmetric else 0
        self.critic = _network(inputs + knows, config.hidden, 1)
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

    def values(self, shown: Tensor, scenarios: Tensor) -> Tensor:
        """Return the (n,) values of states."""
        known = torch.cat([shown, scenarios], dim=1) if self._config.asymmetric else shown
        values: Tensor = self.critic(known)[:, 0] * self.units(scenarios)
        return values

    def units(self, scenarios: Tensor) -> Tensor:
        """Return the (n,) units of the values of states in some scenarios, if the critic knows."""
        own = scenarios @ self.value_scale
        return own if self._config.asymmetric else self.value_scale.mean().expand_as(own)

    def rescale(self, returns: FloatMatrix, scenario: NDArray[np.int64]) -> None:
        """Let the critic's units follow (steps, n) returns, for each scenario by itself.

        Where a violation costs two hundred core-seconds, its errors would else drown what the
        critic has to learn of all other scenarios. Its values change with their units, slowly.
        """
        for k in np.unique(scenario).tolist():
            spread = max(float(returns[:, scenario == k].std()), 1.0)
            self.value_scale[k] += RESCALING * (spread - float(self.value_scale[k]))

    def _parts(self, shown: Tensor, may_step: Tensor) -> list[list[Tensor]]:
        """Return for each stage the logits of its cores, and of the rest log-probabilities."""
        of_stages, found = self.actor(shown).split([sum(each) for each in self._counts], dim=1), []
        for k, logits in enumerate(of_stages):
            cores, batches, steps, variants = logits.split(self._counts[k], dim=1)
            bounded = LOGIT_MOST * torch.tanh(cores / LOGIT_MOST)
            rest = batches, steps.masked_fill(~may_step[:, k], _NEVER), variants
            found.append([bounded, *(each.log_softmax(dim=1) for each in rest)])
        return found

    def _fitting(self, k: int, cores: Tensor, replicas: Tensor) -> Tensor:
        """Return the log-probabilities of the cores of a stage that the machine has room for."""
        room = self._room[k, replicas, : cores.shape[1]]
        return cores.masked_fill(~room, _NEVER).log_softmax(dim=1)

    @torch.no_grad()
    def sample(self, shown: Tensor, replicas: Tensor, may_step: Tensor) -> Actions:
        """Draw an action for each of n states."""
        logs, drawn = [], []
        for k, (cores, batches, steps, variants) in enumerate(self._parts(shown, may_step)):
            # The step first: the replicas that come of it say for how many cores there is room.
            step, batch = _drawn(steps), _drawn(batches)
            fitting = self._fitting(k, cores, replicas[:, k] + step - 1)
            logs += [fitting, batches, steps, variants]
            drawn.append((_drawn(fitting), batch, step, _drawn(variants)))
        chosen = (torch.stack(part, dim=1) for part in zip(*drawn, strict=True))
        log_probability = _sum_of(logs, chain(*drawn))
        return Actions._make((*chosen, replicas, may_step, log_probability))

    def judged(self, shown: Tensor, actions: Actions) -> tuple[Tensor, Tensor]:
        """Return the (n,) log-probabilities of actions, and the entropies of their parts."""
        logs, chosen = [], []
        replicas = actions.replicas + actions.steps - 1
        for k, (cores, *rest) in enumerate(self._parts(shown, actions.may_step)):
            logs += [self._fitting(k, cores, replicas[:, k]), *rest]
            chosen += [part[:, k] for part in actions.chosen]
        log_probability = _sum_of(logs, chosen)
        entropy = -sum((each.exp() * each).sum(dim=1) for each in logs)
        return log_probability, torch.as_tensor(entropy)

    def layers(self, inputs: Inputs) -> list[tuple[FloatMatrix, FloatMatrix]]:
        """Return (weight, bias) of each layer of the actor, which is then shown raw inputs."""
        linear = [layer for layer in self.actor if isinstance(layer, nn.Linear)]
        (first, bias), *others = [(_numpy(each.weight), _numpy(each.bias)) for each in linear]
        return [inputs.layer, (np.float32(DEVIATIONS) * first, bias), *others]


class Weights(NamedTuple):
    """Of what an update learns from, beside the values."""

    actor: bool
    """Whether the policy learns from its advantages."""
    entropy: float
    shown: float
    """Of what the program has shown."""


def update(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    config: PhasedConfig,
    weights: Weights,
    shown: Shown | None,
) -> dict[str, float]:
    """Learn from a batch, and from what was shown; return what is worth a curve."""
    for _ in range(config.epochs):
        for chosen in torch.split(torch.randperm(len(batch.shown)), config.minibatch):
            actions = batch.actions.at(chosen)
            now, entropies = model.judged(batch.shown[chosen], actions)
            ratio, advantage = (now - actions.log_probability).exp(), batch.advantages[chosen]
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            gained = torch.minimum(ratio * advantage, clipped * advantage).mean()
            values = model.values(batch.shown[chosen], batch.scenarios[chosen])
            units = model.units(batch.scenarios[chosen])
            missed = (((values - batch.returns[chosen]) / units) ** 2).mean()
            loss = 0.5 * missed
            if weights.actor:
                loss = loss - gained - weights.entropy * entropies.mean()
            if weights.shown and shown is not None:
                imitated, _ = model.judged(*shown.some(config.minibatch))
                loss = loss - weights.shown * imitated.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            # Each by itself: a rare violation moves the critic far and would else stop the actor.
            for network in (model.actor, model.critic):
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    return {"value_loss": missed.item(), "entropy": entropies.mean().item()}


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


def _drawn(logs: Tensor) -> Tensor:
    """Draw from (n, choices) log-probabilities: the largest after Gumbel noise.

    Where there is nothing to choose that is 0.
    """
    if not logs.shape[1]:
        return torch.zeros(len(logs), dtype=torch.int64)
    noise = -torch.rand_like(logs).clamp(1e-9, 1 - 1e-7).log()
    return (logs - noise.log()).argmax(dim=1)


def _sum_of(logs: Iterable[Tensor], chosen: Iterable[Tensor]) -> Tensor:
    """Return the (n,) log-probabilities of all that was chosen together."""
    parts = zip(logs, chosen, strict=True)
    found = [part.gather(1, each[:, None])[:, 0] for part, each in parts if part.shape[1]]
    return torch.as_tensor(sum(found))


def _numpy(tensor: Tensor) -> FloatMatrix:
    return np.array(tensor.detach().numpy(), np.float32)
