#!/usr/bin/env python3
"""Draw an episode as an animated GIF: the environment's own frames, joined by Pillow.

python examples/episode_gif.py --scenario bursty --out episode.gif
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

from sponge_env.simulation.encoding import FIELDS


def keep_up(observation: np.ndarray) -> tuple[int, int]:
    """Take about twice the cores that the recent load and the queue need, and batches of four."""
    load = observation[FIELDS.index("arrivals_1s")] + observation[FIELDS.index("queue_length")]
    return int(np.clip(np.ceil(32 * load), 2, 16)) - 1, 3


def episode(seconds: int, **options: object) -> list[Image.Image]:
    """Play an episode by a rule of thumb; return its frames."""
    env = gym.make("sponge_env:Sponge-v0", render_mode="rgb_array", **options)
    observation, _ = env.reset(options={"episode_seed": 0})
    frames = []
    for _ in range(seconds):
        observation, *_, truncated, _ = env.step(keep_up(observation))
        frames.append(Image.fromarray(env.render()))
        if truncated:
            break
    env.close()
    return frames


def save(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames as a small GIF, eight a second."""
    small = [frame.quantize(16, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(path, save_all=True, append_images=small[1:], duration=125, loop=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="bursty")
    parser.add_argument("--out", type=Path, default=Path("episode.gif"))
    args = parser.parse_args()
    save(episode(120, scenario=args.scenario), args.out)
    print(f"written to {args.out}")
