"""Write a suite of random systems that no policy has learned on, to be played by ``evaluate.py``.

They are drawn like those of a training (:mod:`agents.learn.systems`), from a stream of their own,
and last as long as the cells of ``standard-v1``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.learn.systems import random_systems
from sponge_env.scenario.seeds import stream

DURATION_S, WARMUP_S = 930.0, 330.0
AGENTS = {
    "fixed-hindsight": {"controller": "static", "constant": "hindsight"},
    "fixed-fleet": {"controller": "static", "constant": "training"},
    "hpa": {},
    "sponge-joint": {},
    "ppo-joint": {"options": {"policy": "shipped"}},
}


def main() -> None:
    """Write the suite and its profiles into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unseen", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder; receives suite.toml and profiles")
    parser.add_argument("--count", type=int, default=100, help="systems (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    text = 'description = "Random systems"\nseeds = 1\nstarts = ["warm"]\n'
    text += "".join(f"agents.{name} = {_toml(entry)}\n" for name, entry in AGENTS.items())
    with random_systems(stream(arguments.seed, "unseen"), arguments.count) as systems:
        for each in systems:
            shutil.copy(each.profile, folder)
            longer = replace(each, duration_s=DURATION_S, warmup_s=WARMUP_S)
            changes = {key: own for key, own in asdict(longer).items() if own not in ((), None)}
            profile = Path(changes.pop("profile")).name
            text += f'\n[[cells]]\nscenarios = ["paper"]\nprofiles = ["{profile}"]\n'
            text += f"changes = {_toml(changes)}\n"
        (folder / "suite.toml").write_text(text)


def _toml(value: Any) -> str:
    """Return a value as TOML has it on one line; other than tables it is as in JSON."""
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(own)}" for key, own in value.items() if own is not None)
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
