"""PPO for stepwise policies (Schulman et al., 2017): from episodes to rewards, advantages, updates.

It is not Stable-Baselines3's, because advantages are compared within a scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sponge_env.arrays import FloatArray

from . import PhasedConfig
from .actor_critic import VALUE_UNIT, ActorCritic
from .episodes import Episodes, Outcomes

CLIP = 0.2
"""Largest relative change of an action's probability that an update rewards."""
VIOLATION_PRICE = 50.0
"""Core-seconds that a violation costs."""
MAX_VIOLATIONS = 30
"""Violations of one interval that count at most, so that one lost queue is not all that matters."""
MIN_TYPICAL = 0.05
"""Smallest typical advantage."""

Floats = NDArray[np.float32]


class Transitions(NamedTuple):
    """(n, ...) what an update learns from."""

    inputs: Tensor
    choices: Tensor
    """(n, stages, 4)"""
    replicas: Tensor
    """(n, stages) before."""
    log_probabilities: Tensor
    """(n,) of the choices when they were drawn."""
    advantages: Tensor
    returns: Tensor


def rewards(outcomes: Outcomes, least: FloatArray) -> Floats:
    """Return (n,) rewards.

    ``least`` (n,) are the core-seconds of an interval that count as 1: the fewest that the mean
    load needs. So large and small scenarios weigh alike.
    """
    cost = VIOLATION_PRICE * np.minimum(outcomes.violations, MAX_VIOLATIONS)
    earned: Floats = (1 - (outcomes.core_seconds + cost) / least).astype(np.float32)
    return earned


def collect(
    model: ActorCritic, episodes: Episodes, least: FloatArray, config: PhasedConfig
) -> Transitions:
    """Let a policy act for a rollout; return what there is to learn from it.

    ``least`` (scenarios,) is that of :func:`rewards`.
    """
    state, scenario = episodes.state, episodes.scenario
    states, played, earned, over, final = [model.inputs(state.seen)], [], [], [], []
    for _ in range(config.rollout_steps):
        replicas = torch.from_numpy(state.replicas)
        choices, log = model.sample(states[-1], replicas)
        played.append((states[-1], choices, replicas, log))
        outcomes = episodes.step(choices.numpy())
        earned.append(rewards(outcomes, least[scenario]))
        over.append(outcomes.over)
        # An episode that is over would have gone on: its last state counts as any other.
        final.append(_values(model, model.inputs(state.seen)) if over[-1].any() else None)
        episodes.renew()
        states.append(model.inputs(state.seen))
    values = [_values(model, each) for each in states]
    following = [
        after if last is None else np.where(ended, last, after)
        for last, ended, after in zip(final, over, values[1:], strict=True)
    ]
    advantages = _advantages(earned, over, values[:-1], following, config)
    returns = advantages + np.stack(values[:-1])
    return Transitions(
        *(torch.cat(parts) for parts in zip(*played, strict=True)),
        torch.from_numpy(_compared(advantages, scenario).reshape(-1)),
        torch.from_numpy(returns.reshape(-1)),
    )


@torch.no_grad()
def _values(model: ActorCritic, inputs: Tensor) -> Floats:
    values: Floats = model.values(inputs).numpy()
    return values


def _advantages(
    earned: Sequence[Floats],
    over: Sequence[NDArray[np.bool_]],
    values: Sequence[Floats],
    following: Sequence[Floats],
    config: PhasedConfig,
) -> Floats:
    """Return (steps, n) advantages (GAE: Schulman et al., 2016)."""
    advantages = np.zeros((len(earned), len(earned[0])), np.float32)
    later = np.zeros_like(advantages[0])
    for k in reversed(range(len(earned))):
        error = earned[k] + config.gamma * following[k] - values[k]
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
        compared[:, scenario == each] = (own - own.mean()) / typical
    return compared


def update(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    config: PhasedConfig,
    entropy: float,
) -> dict[str, float]:
    """Learn from a batch with a weight of the entropy; return what is worth a curve."""
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(len(batch.inputs)), config.minibatch):
            inputs, choices, replicas, before, advantage, returns = (x[rows] for x in batch)
            now, entropies = model.probabilities(inputs, choices, replicas)
            ratio = (now - before).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
            value_loss = (((model.values(inputs) - returns) / VALUE_UNIT) ** 2).mean()
            loss = 0.5 * value_loss - gain - entropy * entropies.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            # Each by itself: a rare violation moves the critic far and would stop the actor.
            for network in (model.actor, model.critic):
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    return {"value_loss": value_loss.item(), "entropy": entropies.mean().item()}
