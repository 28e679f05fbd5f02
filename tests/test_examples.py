"""The examples run as their pages say."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from scenarios import SHORT

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).resolve().parent.parent


def example(name: str) -> ModuleType:
    return importlib.import_module(f"examples.{name}")


def test_ppo_in_the_manner_of_cleanrl_trains_here_as_on_cartpole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = example("cleanrl_ppo")
    size = ["--num-envs", "2", "--num-steps", "64"]
    ended = script.main(["--env-id", "CartPole-v1", "--total-timesteps", "512", *size])
    assert len(ended) > 5
    capsys.readouterr()
    script.main(["--env-id", "SpongeDiscrete-v0", "--total-timesteps", "256", *size])
    assert "update 1 of 2, mean reward -" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RecurrentPPO", "MaskablePPO", "QRDQN", "TQC"])
def test_algorithms_of_sb3_contrib_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    if name == "MaskablePPO":  # else it collects 2,048 steps first
        monkeypatch.setattr(contrib, name, partial(contrib.MaskablePPO, n_steps=64))
    assert example("sb3_algorithms").train(name, 120, scenario=SHORT) < 0


def test_an_episode_becomes_a_gif_of_its_frames(tmp_path: Path) -> None:
    script = example("episode_gif")
    frames = script.episode(5, scenario=SHORT)
    script.save(frames, tmp_path / "episode.gif")
    with Image.open(tmp_path / "episode.gif") as drawn:
        assert drawn.n_frames == len(frames) == 5
        assert drawn.size == (480, 320)


def test_the_page_shows_the_example_that_runs() -> None:
    page = (ROOT / "docs" / "controllers.md").read_text()
    shown = re.search(r"\n(class KeepUp.*?)```", page, re.DOTALL)
    assert shown is not None
    code = [line.strip() for line in shown[1].splitlines() if line.strip()]
    source = (ROOT / "examples" / "keep_up.py").read_text()
    source = re.sub(r"(reset|decide)\(self, (.*?)\) -> \w+:", _without_types, source)
    lines = {line.strip() for line in source.splitlines()}
    assert [line for line in code if line not in lines] == []


def _without_types(match: re.Match[str]) -> str:
    names = ", ".join(part.split(":")[0] for part in match[2].split(", "))
    return f"{match[1]}(self, {names}):"
