"""From episodes to what an update learns from: rewards, advantages, returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sponge_env.arrays import FloatArray

from .actor_critic import Actions, ActorCritic, Inputs, Transitions
from .episodes import Episodes, Outcomes
from .phases import PhasedConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the reward charges, (scenarios,) each."""

    violation: FloatArray
    """Core-seconds for each violation."""
    cores: FloatArray
    """Core-seconds of an interval that count as 1: the fewest that the mean load needs."""

    def rewards(self, outcomes: Outcomes, scenario: NDArray[np.int64], most: int) -> Floats:
        """Return (n,) rewards."""
        cost = self.violation[scenario] * np.minimum(outcomes.violations, most)
        # In units of what the scenario needs at least: large and small ones then weigh alike.
        spent = (outcomes.core_seconds + cost) / self.cores[scenario]
        rewards: Floats = (1 - spent).astype(np.float32)
        return rewards


def collect(
    model: ActorCritic,
    inputs: Inputs,
    episodes: Episodes,
    prices: Prices,
    config: PhasedConfig,
) -> Transitions:
    """Let a policy act for a rollout; return what there is to learn from it."""
    scenario = torch.from_numpy(episodes.scenario)
    scenarios = torch.nn.functional.one_hot(scenario, len(prices.cores)).float()
    shown, actions = [inputs(episodes.seen)], []
    rewards, over, after = [], [], []
    for _ in range(config.rollout_steps):
        replicas = torch.from_numpy(episodes.state.replicas)
        actions.append(model.sample(shown[-1], replicas, torch.from_numpy(episodes.may_step)))
        outcomes = episodes.step(*(part.numpy() for part in actions[-1].chosen))
        rewards.append(prices.rewards(outcomes, episodes.scenario, config.violations_most))
        over.append(outcomes.over.copy())
        # An episode that is over would have gone on: its last state counts as any other.
        after.append(_values(model, inputs(episodes.seen), scenarios) if over[-1].any() else None)
        episodes.renew()
        shown.append(inputs(episodes.seen))
    values = [_values(model, each, scenarios) for each in shown]
    following = [
        v if a is None else np.where(o, a, v)
        for a, o, v in zip(after, over, values[1:], strict=True)
    ]
    advantages = _advantages(rewards, over, values[:-1], following, config)
    returns = advantages + np.stack(values[:-1])
    # Advantages are reckoned by then: a value and its unit must not change in between.
    if config.scaled:
        model.rescale(returns, episodes.scenario)
    compared = _compared(advantages, episodes.scenario, config.advantage_most)
    return Transitions(
        torch.cat(shown[:-1]),
        scenarios.repeat(config.rollout_steps, 1),
        Actions(*(torch.cat(parts) for parts in zip(*actions, strict=True))),
        torch.from_numpy(compared.reshape(-1)),
        torch.from_numpy(returns.reshape(-1)),
    )


@torch.no_grad()
def _values(model: ActorCritic, shown: Tensor, scenarios: Tensor) -> Floats:
    values: Floats = model.values(shown, scenarios).numpy()
    return values


def _advantages(
    rewards: Sequence[Floats],
    over: Sequence[NDArray[np.bool_]],
    values: Sequence[Floats],
    following: Sequence[Floats],
    config: PhasedConfig,
) -> Floats:
    """Return (steps, n) advantages (GAE: Schulman et al., 2016)."""
    found = np.zeros((len(rewards), len(rewards[0])), np.float32)
    later = np.zeros_like(found[0])
    for k in reversed(range(len(rewards))):
        surprise = rewards[k] + config.gamma * following[k] - values[k]
        found[k] = surprise + config.gamma * config.gae_lambda * np.where(over[k], 0, later)
        later = found[k]
    return found


def _compared(advantages: Floats, scenario: NDArray[np.int64], most: float) -> Floats:
    """Return (steps, n) advantages in units of what is usual in their scenario.

    The usual is half of what two thirds of them lie within: a deviation would follow the rare
    violations, whose advantages are then no longer large.
    """
    compared = np.empty_like(advantages)
    for each in np.unique(scenario):
        own = advantages[:, scenario == each]
        low, high = np.quantile(own, (0.16, 0.84))
        usual = max((high - low) / 2, 0.05)
        compared[:, scenario == each] = np.clip((own - own.mean()) / usual, -most, most)
    return compared
