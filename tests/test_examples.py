"""The examples run as their pages say, and so does the benchmark of speed."""

import importlib
import re
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from PIL import Image
from scenarios import SHORT

import evaluate
from benchmarks import throughput

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).resolve().parent.parent


def example(name):
    return importlib.import_module(f"examples.{name}")


def test_ppo_in_the_manner_of_cleanrl_trains_here_as_on_cartpole(capsys):
    script = example("cleanrl_ppo")
    size = ["--num-envs", "2", "--num-steps", "64"]
    ended = script.main(["--env-id", "CartPole-v1", "--total-timesteps", "512", *size])
    assert len(ended) > 5
    capsys.readouterr()
    script.main(["--env-id", "SpongeDiscrete-v0", "--total-timesteps", "256", *size])
    assert "update 1 of 2, mean reward -" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RecurrentPPO", "MaskablePPO", "QRDQN", "TQC"])
def test_algorithms_of_sb3_contrib_train(name, monkeypatch):
    contrib = pytest.importorskip("sb3_contrib")
    if name == "MaskablePPO":  # else it collects 2,048 steps first
        monkeypatch.setattr(contrib, name, partial(contrib.MaskablePPO, n_steps=64))
    assert example("sb3_algorithms").train(name, 120, scenario=SHORT) < 0


def test_an_episode_becomes_a_gif_of_its_frames(tmp_path):
    script = example("episode_gif")
    frames = script.episode(5, scenario=SHORT)
    script.save(frames, tmp_path / "episode.gif")
    with Image.open(tmp_path / "episode.gif") as drawn:
        assert drawn.n_frames == len(frames) == 5
        assert drawn.size == (480, 320)


@pytest.mark.filterwarnings("default")  # those of other libraries are theirs
def test_a_controller_of_ones_own_takes_part(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "examples")
    arguments = "--agent keep_up:KeepUp static-8 --duration 30 --option keep_up:KeepUp.headroom=1.5"
    assert evaluate.main([*arguments.split(), "--run-dir", str(tmp_path / "run")]) == 0
    assert "keep_up:KeepUp" in capsys.readouterr().out


def test_the_page_shows_the_example_that_runs():
    page = (ROOT / "docs" / "controllers.md").read_text()
    shown = re.search(r"```python\n(class KeepUp.*?)```", page, re.DOTALL)
    code = [line.strip() for line in shown[1].splitlines() if line.strip()]
    source = (ROOT / "examples" / "keep_up.py").read_text()
    source = re.sub(r"(reset|decide)\(self, (.*?)\) -> \w+:", _without_types, source)
    lines = {line.strip() for line in source.splitlines()}
    assert [line for line in code if line not in lines] == []


def _without_types(match):
    names = ", ".join(part.split(":")[0] for part in match[2].split(", "))
    return f"{match[1]}(self, {names}):"


def test_everything_is_measured(monkeypatch, inline):
    cpu, wall = throughput.shortest_ns(lambda: sum(range(100_000)))
    assert 0 < cpu < 1.5 * wall
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(throughput, "BATCHES", {"a": (2, 1), throughput.GATE: (3, 2)})
    monkeypatch.setattr(throughput, "AGENTS", ("static-16",))
    monkeypatch.setattr(throughput, "STEPS", 600)
    monkeypatch.setattr(throughput, "SEEDS", 1)
    calls = count(1)

    def longer_each_time(work):
        work()
        return float(next(calls)), 1.0 + next(calls)

    monkeypatch.setattr(throughput, "shortest_ns", longer_each_time)
    found = throughput.measure(only_gate=False)
    assert [*found] == ["a", throughput.GATE, "one environment", "evaluate, static-16"]
    assert all(cpu > 0 and wall > 0 for cpu, wall in found.values())


def test_another_installation_is_not_measured(own_folder):
    with pytest.raises(RuntimeError, match="there is no sponge_env in"):
        throughput.measure(only_gate=True)
