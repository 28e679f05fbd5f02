"""PPO for stepwise policies (Schulman et al., 2017): networks, rewards, advantages, updates.

Unlike in Stable-Baselines3's, the cores that an action may choose depend on the replicas that it
chooses, and advantages are compared within a scenario.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sponge_env.arrays import FloatArray

from ..policy import FloatMatrix
from ..stepwise import PER_REPLICA, SITUATIONS, StageChoices
from . import LearnConfig
from .episodes import Episodes, Outcomes

MAX_LOGIT = 4.0  # Largest absolute logit of a number of cores, so that none is ruled out
SATURATION = 5.0  # Deviations at which an input begins to saturate: rare values may be large
CLIP = 0.2  # Largest relative change of an action's probability that an update rewards
VIOLATION_PRICE = 2000.0  # Cost of missing all requests of a mean interval, before saturation
SATURATES = 50.0  # Cost beyond which it grows as its logarithm, so that no lost queue dominates
MIN_TYPICAL = 0.05  # Smallest typical advantage
_MOST_LOG = 11.0  # Largest logarithm that the critic is believed
_NEVER = -1e9  # Logit of what may not be chosen

Floats = NDArray[np.float32]


class ActorCritic(nn.Module):
    """Both networks, and the mean and deviation of each input."""

    def __init__(self, hidden: Sequence[int], machines: Sequence[StageChoices], inputs: int):
        """Draw weights for systems that differ only in their machines.

        Situations on the second machine count from :data:`~..stepwise.SITUATIONS` on, and so on.
        """
        super().__init__()
        self._counts: list[list[int]] = machines[0].counts.tolist()
        self._room = torch.from_numpy(np.concatenate([each.room for each in machines], axis=1))
        self._moves = torch.from_numpy(np.concatenate([each.moves for each in machines], axis=1))
        self.mean, self.scale = torch.zeros(inputs), torch.ones(inputs)
        self.actor = _network(inputs, hidden, sum(machines[0].actions))
        self.critic = _network(inputs, hidden, 1)

    def begin_with(self, layers: Sequence[tuple[FloatMatrix, FloatMatrix]]) -> None:
        """Take over the actor of a policy, whose layers are as :meth:`layers` returns them."""
        (scale, shift), (first, bias), *others = layers
        self.scale = torch.from_numpy(np.diag(scale).copy())
        self.mean = torch.from_numpy(-shift / np.diag(scale))
        numbers = chain((first / np.float32(SATURATION), bias), *others)
        with torch.no_grad():
            for own, given in zip(self.actor.parameters(), numbers, strict=True):
                own.copy_(torch.from_numpy(given))

    def normalise(self, seen: FloatMatrix) -> None:
        """Take mean and deviation from (n, inputs); a deviation is never 0."""
        mean, variance = (f(seen, axis=0, dtype=np.float64) for f in (np.mean, np.var))
        self.mean = torch.from_numpy(np.float32(mean))
        self.scale = torch.from_numpy(np.float32(1 / (SATURATION * np.sqrt(variance + 1e-4))))

    def inputs(self, seen: FloatMatrix) -> Tensor:
        """Return (n, inputs) normalised inputs: near the mean, deviations from it."""
        return SATURATION * torch.tanh((torch.from_numpy(seen) - self.mean) * self.scale)

    @torch.no_grad()
    def values(self, inputs: Tensor) -> Floats:
        """Return the (n,) values of states; the critic predicts logarithms, for some are large."""
        logs = self.critic(inputs)[:, 0]
        values: Floats = (logs.sign() * logs.abs().clamp_max(_MOST_LOG).expm1()).numpy()
        return values

    def decide(
        self, inputs: Tensor, situations: Tensor, choices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (n, stages, 4) choices in (n, stages) situations, drawn if none are given.

        Their (n,) log-probabilities and the entropies of their parts come with them.
        """
        sizes, logs, taken = [sum(each) for each in self._counts], [], []
        for k, logits in enumerate(self.actor(inputs).split(sizes, dim=1)):
            core, batch, step, variant = [None] * 4 if choices is None else choices[:, k].T
            cores, batches, steps, variants = logits.split(self._counts[k], dim=1)
            steps = steps.masked_fill(~self._moves[k, situations[:, k]], _NEVER)
            batches, steps, variants = (x.log_softmax(dim=1) for x in (batches, steps, variants))
            # The step first: the cores that fit depend on the replicas that result from it.
            step, batch = _taken(steps, step), _taken(batches, batch)
            room = self._room[k, situations[:, k] + (step - 1) * PER_REPLICA, : cores.shape[1]]
            bounded = MAX_LOGIT * torch.tanh(cores / MAX_LOGIT)
            cores = bounded.masked_fill(~room, _NEVER).log_softmax(dim=1)
            logs += [cores, batches, steps, variants]
            taken += [_taken(cores, core), batch, step, _taken(variants, variant)]
        entropy = -sum((each.exp() * each).sum(dim=1) for each in logs)
        pairs = zip(logs, taken, strict=True)
        chosen = [log.gather(1, one[:, None])[:, 0] for log, one in pairs if log.shape[1]]
        drawn = torch.stack(taken, dim=1).reshape(len(inputs), -1, 4)
        return drawn, torch.as_tensor(sum(chosen)), torch.as_tensor(entropy)

    def layers(self) -> list[tuple[FloatMatrix, FloatMatrix]]:
        """Return (weight, bias) of each layer of the actor, which then takes raw inputs."""
        normalising = torch.diag(self.scale), -self.mean * self.scale
        values = [each.detach().numpy().copy() for each in (*normalising, *self.actor.parameters())]
        values[2] *= SATURATION
        return list(zip(values[::2], values[1::2], strict=True))


def _network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden, outputs)):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, 2**0.5 if len(layers) < 2 * len(hidden) else 0.01)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _taken(logs: Tensor, given: Tensor | None) -> Tensor:
    """Return a given choice, or draw from (n, choices) log-probabilities; 0 if there are none."""
    if given is not None:
        return given
    if not logs.shape[1]:
        return torch.zeros(len(logs), dtype=torch.int64)
    return torch.multinomial(logs.exp(), 1)[:, 0]


class Transitions(NamedTuple):
    """(n, ...) what an update learns from."""

    inputs: Tensor
    choices: Tensor  # (n, stages, 4)
    situations: Tensor  # (n, stages) before
    log_probabilities: Tensor  # (n,) of the choices when they were drawn
    advantages: Tensor
    returns: Tensor


def rewards(outcomes: Outcomes, least: FloatArray, offered: FloatArray) -> Floats:
    """Return (n,) rewards, scaled so that large and small systems weigh alike.

    ``least`` (n,) are the fewest core-seconds that the mean load of an interval needs, and
    ``offered`` (n,) the requests of that load.
    """
    missed = VIOLATION_PRICE * outcomes.violations / offered
    cost = SATURATES * np.log1p(missed / SATURATES)
    earned: Floats = (1 - outcomes.core_seconds / least - cost).astype(np.float32)
    return earned


def collect(model: ActorCritic, episodes: Episodes, config: LearnConfig) -> Transitions:
    """Let a policy act for a rollout; return what there is to learn from it."""
    state, scenario = episodes.state, episodes.scenario
    states, played, earned, over, final = [model.inputs(state.seen)], [], [], [], []
    for _ in range(config.rollout_steps):
        held = torch.from_numpy(state.situations + episodes.machine * SITUATIONS)
        with torch.no_grad():
            choices, log, _ = model.decide(states[-1], held)
        played.append((states[-1], choices, held, log))
        outcomes = episodes.step(choices.numpy())
        earned.append(rewards(outcomes, episodes.least, episodes.offered))
        over.append(outcomes.over)
        # Episodes are truncated, not terminated: the value of the last state counts.
        final.append(model.values(model.inputs(state.seen)) if over[-1].any() else None)
        episodes.renew()
        states.append(model.inputs(state.seen))
    values = [model.values(each) for each in states]
    steps = zip(final, over, values[1:], strict=True)
    following = [v if last is None else np.where(ended, last, v) for last, ended, v in steps]
    known = np.stack(values[:-1])
    advantages = _advantages(np.stack(earned), np.stack(over), known, np.stack(following), config)
    inputs, drawn, before, logs = (torch.cat(parts) for parts in zip(*played, strict=True))
    compared = torch.from_numpy(_compared(advantages, scenario).reshape(-1))
    returns = torch.from_numpy((advantages + known).reshape(-1))
    return Transitions(inputs, drawn, before, logs, compared, returns)


def _advantages(
    earned: Floats, over: NDArray[np.bool_], values: Floats, following: Floats, config: LearnConfig
) -> Floats:
    """Return (steps, n) advantages (GAE: Schulman et al., 2016), all of the same shape."""
    advantages = earned + config.gamma * following - values
    for k in reversed(range(len(earned) - 1)):
        later = np.where(over[k], 0, advantages[k + 1])
        advantages[k] += config.gamma * config.gae_lambda * later
    return advantages


def _compared(advantages: Floats, scenario: NDArray[np.int64]) -> Floats:
    """Return (steps, n) advantages relative to the typical one of their scenario."""
    # The typical one is half the range of the middle two thirds: a standard deviation would follow
    # the rare violations, whose advantages would then no longer be large.
    compared = np.empty_like(advantages)
    for each in np.unique(scenario):
        own = advantages[:, scenario == each]
        low, high = np.quantile(own, (0.16, 0.84))
        typical = max((high - low) / 2, MIN_TYPICAL)
        compared[:, scenario == each] = (own - own.mean()) / typical
    return compared


def update(
    model: ActorCritic, optimizer: torch.optim.Optimizer, batch: Transitions, config: LearnConfig,
    entropy: float, critic_only: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Learn from a batch, with a weight of the entropy; return numbers to plot."""
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(len(batch.inputs)), config.minibatch):
            inputs, choices, held, before, advantage, returns = (x[rows] for x in batch)
            _, now, entropies = model.decide(inputs, held, choices)
            ratio = (now - before).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
            squashed = model.critic(inputs)[:, 0], returns.sign() * returns.abs().log1p()
            value_loss = functional.smooth_l1_loss(*squashed)
            loss = 0.5 * value_loss
            if not critic_only:
                loss = loss - gain - entropy * entropies.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            # Clipped separately: a rare violation moves the critic far and would stop the actor.
            for network in (model.actor, model.critic):
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    return {"value_loss": value_loss.item(), "entropy": entropies.mean().item()}
