#!/usr/bin/env python3
"""Proximal policy optimisation in one file, in the manner of CleanRL.

It knows nothing of this project but the name of an environment, and runs as well on others:

    python examples/cleanrl_ppo.py --env-id SpongeDiscrete-v0
    python examples/cleanrl_ppo.py --env-options '{"control": "variants", "scenario": "variants"}'
    python examples/cleanrl_ppo.py --env-id CartPole-v1
"""

import argparse
import json
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import sponge_env  # noqa: F401  # registers the environments

OPTIONS = {
    "env_id": "SpongeDiscrete-v0", "env_options": "{}",
    "total_timesteps": 50_000, "num_envs": 4, "num_steps": 128,
    "learning_rate": 2.5e-3, "gamma": 0.95, "gae_lambda": 0.95, "num_minibatches": 4,
    "update_epochs": 4, "clip_coef": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5,
    "seed": 1,
}  # fmt: skip


def linear(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """Make a layer with orthogonal weights."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """An actor and a critic."""

    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        super().__init__()
        inputs = int(np.prod(envs.single_observation_space.shape))
        assert isinstance(envs.single_action_space, gym.spaces.Discrete)
        choices = int(envs.single_action_space.n)

        def network(outputs: int, gain: float) -> nn.Sequential:
            hidden = (linear(inputs, 64), nn.Tanh(), linear(64, 64), nn.Tanh())
            return nn.Sequential(*hidden, linear(64, outputs, gain))

        self.critic, self.actor = network(1, 1.0), network(choices, 0.01)

    def act(self, observation: torch.Tensor, action: torch.Tensor | None = None):
        """Return an action, its log probability, the entropy and the value."""
        distribution = Categorical(logits=self.actor(observation))
        action = distribution.sample() if action is None else action
        value = self.critic(observation).flatten()
        return action, distribution.log_prob(action), distribution.entropy(), value


def advantages(rewards, dones, values, last_value, last_done, args):
    """Estimate advantages by GAE, shape (steps, envs)."""
    result, carried = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        final = t == len(rewards) - 1
        alive = 1.0 - (last_done if final else dones[t + 1])
        next_value = last_value if final else values[t + 1]
        delta = rewards[t] + args.gamma * next_value * alive - values[t]
        result[t] = carried = delta + args.gamma * args.gae_lambda * alive * carried
    return result


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train; return the sums of rewards of the episodes that ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # networks this small get slower with more
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make(args.env_id, **json.loads(args.env_options))] * args.num_envs,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    observations = torch.zeros((*shape, *envs.single_observation_space.shape))
    actions, log_probs, rewards, dones, values, following = (torch.zeros(shape) for _ in range(6))
    returns: list[float] = []

    next_obs = torch.as_tensor(envs.reset(seed=args.seed)[0], dtype=torch.float32)
    next_done = torch.zeros(args.num_envs)
    updates = args.total_timesteps // (args.num_steps * args.num_envs)
    for done in range(1, updates + 1):
        for t in range(args.num_steps):
            observations[t], dones[t], following[t] = next_obs, next_done, 0.0
            with torch.no_grad():
                action, log_probs[t], _, values[t] = agent.act(next_obs)
            actions[t] = action
            obs, reward, terminations, truncations, infos = envs.step(action.numpy())
            rewards[t] = torch.as_tensor(reward, dtype=torch.float32)
            for i in np.flatnonzero(truncations):  # cut off, not ended: what would follow counts
                last = torch.as_tensor(infos["final_obs"][i], dtype=torch.float32)
                with torch.no_grad():
                    following[t, i] = args.gamma * agent.critic(last)[0]
            next_obs = torch.as_tensor(obs, dtype=torch.float32)
            next_done = torch.as_tensor(terminations | truncations, dtype=torch.float32)
            if "episode" in infos:
                returns += infos["episode"]["r"][infos["_episode"]].tolist()
        with torch.no_grad():
            earned, last_value = rewards + following, agent.act(next_obs)[3]
            gae = advantages(earned, dones, values, last_value, next_done, args)
        update(agent, optimizer, args, observations, actions, log_probs, gae, gae + values)
        print(f"update {done} of {updates}, mean reward {rewards.mean():.3f}", flush=True)
    envs.close()
    if returns:
        print(f"{len(returns)} episodes, the last five {np.mean(returns[-5:]):.1f} on average")
    return returns


def update(agent, optimizer, args, observations, actions, log_probs, gae, targets):
    """Improve actor and critic on one batch."""
    flat = observations.flatten(0, 1), actions.flatten(), log_probs.flatten()
    gae, targets = gae.flatten(), targets.flatten()
    for _ in range(args.update_epochs):
        for rows in torch.randperm(len(gae)).tensor_split(args.num_minibatches):
            observation, action, old = (values[rows] for values in flat)
            _, log_prob, entropy, value = agent.act(observation, action)
            ratio = (log_prob - old).exp()
            advantage = gae[rows] - gae[rows].mean()
            advantage /= gae[rows].std(correction=0) + 1e-8
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
            value_loss = 0.5 * (value - targets[rows]).square().mean()
            loss = policy_loss - args.ent_coef * entropy.mean() + args.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()


if __name__ == "__main__":
    main()
