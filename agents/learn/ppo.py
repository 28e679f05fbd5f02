"""PPO for stepwise policies (Schulman et al., 2017): from episodes to rewards, advantages, updates.

It is not Stable-Baselines3's, because advantages are compared within a scenario, and because it
goes on imitating while its critic knows little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sponge_env.arrays import FloatArray

from . import PhasedConfig
from .actor_critic import Actions, ActorCritic, Inputs
from .episodes import Episodes, Outcomes

CLIP = 0.2
"""Largest relative change of an action's probability that an update rewards."""
MAX_VIOLATIONS = 30
"""Violations of one interval that count at most, so that one lost queue is not all that matters."""
MAX_ADVANTAGE = 200.0
"""Largest advantage, in typical ones. A rare violation is as bad as a hundred cores."""
MIN_TYPICAL = 0.05
"""Smallest typical advantage."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the reward charges, (scenarios,) each."""

    violation: FloatArray
    """Core-seconds for each violation."""
    cores: FloatArray
    """Core-seconds of an interval that count as 1: the fewest that the mean load needs."""

    def rewards(self, outcomes: Outcomes, scenario: NDArray[np.int64]) -> Floats:
        """Return (n,) rewards."""
        cost = self.violation[scenario] * np.minimum(outcomes.violations, MAX_VIOLATIONS)
        # In units of what the scenario needs at least, large and small ones weigh alike.
        spent = (outcomes.core_seconds + cost) / self.cores[scenario]
        rewards: Floats = (1 - spent).astype(np.float32)
        return rewards


class Transitions(NamedTuple):
    """(n, ...) what an update learns from."""

    inputs: Tensor
    scenarios: Tensor
    """(n, scenarios) a one for the right one."""
    actions: Actions
    log_probabilities: Tensor
    """(n,) of the actions when they were drawn."""
    advantages: Tensor
    returns: Tensor


class Demonstrated(NamedTuple):
    """(n, ...) states that a program has seen, and its actions there."""

    inputs: Tensor
    actions: Actions

    def sample(self, count: int) -> Demonstrated:
        """Draw some of it."""
        rows = torch.randint(len(self.inputs), (count,))
        return Demonstrated(self.inputs[rows], self.actions.at(rows))


class Weights(NamedTuple):
    """Of the parts of an update, beside the values."""

    actor: bool
    """Whether the policy learns from its advantages."""
    entropy: float
    imitation: float


def collect(
    model: ActorCritic, inputs: Inputs, episodes: Episodes, prices: Prices, config: PhasedConfig
) -> Transitions:
    """Let a policy act for a rollout; return what there is to learn from it."""
    scenario = torch.from_numpy(episodes.scenario)
    scenarios = torch.nn.functional.one_hot(scenario, len(prices.cores)).float()
    states, actions, logs = [inputs(episodes.seen)], [], []
    rewards, over, final = [], [], []
    for _ in range(config.rollout_steps):
        replicas = torch.from_numpy(episodes.state.replicas)
        drawn, log = model.sample(states[-1], replicas, torch.from_numpy(episodes.may_step))
        actions.append(drawn)
        logs.append(log)
        outcomes = episodes.step(*(part.numpy() for part in drawn.chosen))
        rewards.append(prices.rewards(outcomes, episodes.scenario))
        over.append(outcomes.over.copy())
        # An episode that is over would have gone on: its last state counts as any other.
        final.append(_values(model, inputs(episodes.seen), scenarios) if over[-1].any() else None)
        episodes.renew()
        states.append(inputs(episodes.seen))
    values = [_values(model, each, scenarios) for each in states]
    following = [
        after if last is None else np.where(ended, last, after)
        for last, ended, after in zip(final, over, values[1:], strict=True)
    ]
    advantages = _advantages(rewards, over, values[:-1], following, config)
    returns = advantages + np.stack(values[:-1])
    # Only now: values and their units must not change before advantages are computed.
    model.rescale(returns, episodes.scenario)
    return Transitions(
        torch.cat(states[:-1]),
        scenarios.repeat(config.rollout_steps, 1),
        Actions(*(torch.cat(parts) for parts in zip(*actions, strict=True))),
        torch.cat(logs),
        torch.from_numpy(_compared(advantages, episodes.scenario).reshape(-1)),
        torch.from_numpy(returns.reshape(-1)),
    )


@torch.no_grad()
def _values(model: ActorCritic, inputs: Tensor, scenarios: Tensor) -> Floats:
    values: Floats = model.values(inputs, scenarios).numpy()
    return values


def _advantages(
    rewards: Sequence[Floats],
    over: Sequence[NDArray[np.bool_]],
    values: Sequence[Floats],
    following: Sequence[Floats],
    config: PhasedConfig,
) -> Floats:
    """Return (steps, n) advantages (GAE: Schulman et al., 2016)."""
    advantages = np.zeros((len(rewards), len(rewards[0])), np.float32)
    later = np.zeros_like(advantages[0])
    for k in reversed(range(len(rewards))):
        error = rewards[k] + config.gamma * following[k] - values[k]
        advantages[k] = error + config.gamma * config.gae_lambda * np.where(over[k], 0, later)
        later = advantages[k]
    return advantages


def _compared(advantages: Floats, scenario: NDArray[np.int64]) -> Floats:
    """Return (steps, n) advantages relative to the typical one of their scenario.

    That is half of the range of the middle two thirds: a standard deviation would follow the rare
    violations, whose advantages would then no longer be large.
    """
    compared = np.empty_like(advantages)
    for each in np.unique(scenario):
        own = advantages[:, scenario == each]
        low, high = np.quantile(own, (0.16, 0.84))
        typical = max((high - low) / 2, MIN_TYPICAL)
        relative = np.clip((own - own.mean()) / typical, -MAX_ADVANTAGE, MAX_ADVANTAGE)
        compared[:, scenario == each] = relative
    return compared


def update(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    config: PhasedConfig,
    weights: Weights,
    demonstrated: Demonstrated | None,
) -> dict[str, float]:
    """Learn from a batch and from demonstrations; return what is worth a curve."""
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(len(batch.inputs)), config.minibatch):
            now, entropies = model.probabilities(batch.inputs[rows], batch.actions.at(rows))
            ratio, advantage = (now - batch.log_probabilities[rows]).exp(), batch.advantages[rows]
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
            values = model.values(batch.inputs[rows], batch.scenarios[rows])
            units = model.units(batch.scenarios[rows])
            value_loss = (((values - batch.returns[rows]) / units) ** 2).mean()
            loss = 0.5 * value_loss
            if weights.actor:
                loss = loss - gain - weights.entropy * entropies.mean()
            if weights.imitation and demonstrated is not None:
                imitated, _ = model.probabilities(*demonstrated.sample(config.minibatch))
                loss = loss - weights.imitation * imitated.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            # Each by itself: a rare violation moves the critic far and would stop the actor.
            for network in (model.actor, model.critic):
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    return {"value_loss": value_loss.item(), "entropy": entropies.mean().item()}
