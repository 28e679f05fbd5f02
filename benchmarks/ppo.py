"""PPO on the batch simulator against the same PPO on an environment that does nothing.

python benchmarks/ppo.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper

from agents.learn import LearnConfig, TrainingPlan
from agents.learn.training import make_model
from sponge_env.results.layout import aligned
from sponge_env.scenario import load_scenario
from sponge_env.vector.sb3_env import SpongeVecEnv

ENVS = 256


class NothingEnv(VecEnvWrapper):
    """Costs nothing: the same observation, reward and empty infos at every step."""

    def reset(self) -> Any:
        """Remember what looks like an environment's answer."""
        count = self.num_envs
        observations = np.zeros((count, *self.observation_space.shape), np.float32)
        rewards, ends = np.zeros(count, np.float32), np.zeros(count, np.bool_)
        self._answer = observations, rewards, ends, [{}] * count
        return observations

    def step_async(self, actions: Any) -> None:
        """Do nothing."""

    def step_wait(self) -> Any:
        """Return the same as ever."""
        return self._answer


def steps_per_s(model: PPO, steps: int) -> float:
    """Train on and time it."""
    begin_s, before = time.perf_counter(), model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (time.perf_counter() - begin_s)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds, less exact")
    quick = parser.parse_args().quick
    rounds, steps = (2, 16_384) if quick else (9, 65_536)
    torch.set_num_threads(1)
    scenario, config = load_scenario("paper"), LearnConfig()
    sponge = SpongeVecEnv(scenario=scenario, num_envs=ENVS)
    models = {}
    for name, envs in (("batch simulator", sponge), ("nothing", NothingEnv(sponge))):
        plan = TrainingPlan((scenario,), steps, ENVS, 0, Path(tempfile.gettempdir()))
        models[name] = make_model(plan, config, envs)
        steps_per_s(models[name], config.rollout_steps * ENVS)  # compiles and warms up
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            speeds[name].append(steps_per_s(model, steps))
    # Each round's pair ran side by side, so its ratio is free of the machine's drift.
    ratio = statistics.median(
        one / other for one, other in zip(speeds["batch simulator"], speeds["nothing"], strict=True)
    )
    rows = [[f"PPO, {ENVS} environments", "steps/s", "of the one that does nothing"]]
    for name, values in speeds.items():
        share = f"{ratio:.0%}" if name == "batch simulator" else ""
        rows.append([name, f"{statistics.median(values):,.0f}", share])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
