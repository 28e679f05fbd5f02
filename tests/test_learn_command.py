"""What train.py is asked to train on, and with which settings."""

import json
import re
from contextvars import copy_context
from pathlib import Path

import numpy as np
import pytest

import evaluate
from agents.learn import phased
from agents.learn.command import plan_of, scenarios_of
from agents.policy import load_policy
from agents.training import main, parse
from sponge_env import cli, load_scenario
from sponge_env.errors import ConfigError
from sponge_env.utils.console import Progress

SETTINGS = [
    f"--option={setting}"
    for setting in """hidden=8,8 rollout_steps=8 minibatch=64 imitations=1 demonstrations=1
    imitation_epochs=1 evaluations=2 evaluation_episodes=1""".split()
]


def asked(line):
    return scenarios_of(parse(line.split()))


def test_a_suite_gives_the_cold_cells_of_a_profile():
    cells = asked("--suite standard-v1 --profile resnet18")
    names = [scenario.name for scenario in cells]
    assert len(names) == len(set(names)) == 24
    assert {(scenario.profile, scenario.start) for scenario in cells} == {("resnet18", "cold")}
    left = asked("--suite standard-v1 --profile resnet18 --held-out steps-0.4 fades-0.15")
    assert left == [cell for cell in cells if cell.name not in ("steps-0.4", "fades-0.15")]


@pytest.mark.parametrize(
    ("line", "steps", "envs"),
    [("--agent ppo-joint --suite standard-v1 --profile lite0", 2_000_000, 1152),
     ("--agent ppo --suite stages --like pipeline-video --envs 9 --steps 5", 5, 9)],
)  # fmt: skip
def test_a_plan_has_steps_and_environments(line, steps, envs):
    plan = plan_of(parse(line.split()), asked(line))
    assert (plan.steps, plan.envs) == (steps, envs)


def test_a_suite_gives_the_cells_of_the_stages_of_a_scenario():
    cells = asked("--agent ppo --suite stages --like pipeline-video")
    names = [scenario.name for scenario in cells]
    assert names == ["pipeline-video", "pipeline-video-constant", "pipeline-video-4g"]
    assert len(asked("--suite standard-v1 --like bursty --held-out steps-0.4")) == 23


def test_further_scenarios_have_the_profile_of_the_first():
    found = asked("--scenario bursty --also mixed --profile lite0 --load 0.5")
    assert [(s.name, s.profile) for s in found] == [("bursty", "lite0"), ("mixed", "lite0")]
    loads = [scenario.arrivals.load for scenario in found]
    assert loads == [0.5, load_scenario("mixed").arrivals.load]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("--suite standard-v1", "cells of yolov5s, resnet18, lite0; choose those of one"),
     ("--suite standard-v1 --profile resnet", "of one with --profile"),
     ("--suite standard-v1 --profile lite0 --also bursty", "leave out --also"),
     ("--suite standard-v1 --profile lite0 --held-out steps-0.3", "did you mean 'steps-0.4'"),
     ("--scenario bursty --held-out paper", "the cells of a --suite"),
     ("--scenario=paper --suite quick", "leave out --scenario=paper"),
     ("--scenario paper --like paper", "--like is about the cells of a --suite"),
     ("--suite quick --random-start", "leave out --random-start"),
     ("--suite stages --like paper", "of the stages of a scenario with --like"),
     ("--suite standard-v1 --like paper --profile lite0", "leave out --profile"),
     ("--systems 12 --suite quick", "--systems says what to train on; leave out --suite"),
     ("--systems 12 --randomised", "leave out --randomised"),
     ("--start a --resume b", "leave out --start"),
     ("--systems 3", "--systems: must be a whole number of at least 6"),
     ("--suite stages --like variants-wide --held-out variants-wide", "leaves nothing to")],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(line, sentence):
    with pytest.raises(ConfigError, match=sentence):
        asked(line)


@pytest.mark.usefixtures("quick_rules", "inline")
def test_a_training_for_each_of_several_seeds_is_that_of_the_seed(own_folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_folder / "cache"))
    Path("tiny.toml").write_text("profile = 'yolov5s'\nduration_s = 5.0\n")
    line = f"--scenario tiny.toml --drop=expired --envs 2 --steps 32 {' '.join(SETTINGS)}".split()
    several = [*line, "--seeds", "3-4", "--jobs", "1", "--run-dir", "all"]
    assert copy_context().run(main, several) == 0, "what a process of many sets is not for others"
    assert main([*line, "--seed", "4", "--run-dir", "one"]) == 0
    folders = "one", "all/seed-4", "all/seed-3"
    one, same, other = (load_policy(Path(each, "policy.safetensors")).layers for each in folders)
    np.testing.assert_equal(one, same)
    assert not np.array_equal(one[0][0], other[0][0])
    assert sorted(path.name for path in Path("all").iterdir()) == ["seed-3", "seed-4"]
    assert main([*line, "--seeds", "4-3"]) == cli.BAD_INPUT
    assert "a range such as 5-9 or 0-0, not '4-3'" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_rules", "own_folder")
@pytest.mark.parametrize(("called", "kept"), [("demonstrations", False), ("evaluated", True)])
def test_a_training_keeps_a_policy_once_it_has_imitated(monkeypatch, called, kept):
    interrupted, usual = [], getattr(phased, called)

    def interrupt(*args):
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return usual(*args)

    monkeypatch.setattr(phased, called, interrupt)
    Path("tiny.toml").write_text("profile = 'yolov5s'\nduration_s = 20.0\n")
    line = f"--scenario tiny.toml --load 0.4 --envs 2 {' '.join(SETTINGS)} --run-dir run"
    assert main(line.split()) == cli.INTERRUPTED
    assert Path("run/policy.safetensors").exists() == kept


@pytest.mark.usefixtures("quick_rules", "own_folder")
def test_an_interrupted_training_says_how_to_go_on_and_what_it_reached(monkeypatch, capsys):
    least = 0

    def interrupt(self, done, status=""):
        if done >= least:
            raise KeyboardInterrupt

    Path("tiny.toml").write_text("profile = 'yolov5s'\nduration_s = 20.0\n")
    conditions = "--scenario tiny.toml --load 0.4 --drop=expired"
    line = f"{conditions} --envs 2 {' '.join(SETTINGS)}"
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "show", interrupt)
        assert main(line.split()) == cli.INTERRUPTED
        assert "before there was a policy; nothing is kept" in capsys.readouterr().out
        least = 32
        assert main(f"{line} --steps 64 --run-dir elsewhere/one".split()) == cli.INTERRUPTED
    printed, follow = capsys.readouterr().out, f"evaluate.py --agent ppo {conditions}"
    assert f"{follow} --policy elsewhere/one/policy.safetensors\n" in printed
    assert re.search(r"best so far +after \d+ of 64 steps, by validation", printed)
    more = f"{line} --resume elsewhere/one"
    assert f"interrupted; go on with\n  {cli.program('train')} {more}\n" in printed
    assert json.loads(Path("elsewhere/one/learn.json").read_text())["hidden"] == [8, 8]
    assert main([*more.split(), "--option=hidden=9"]) == cli.BAD_INPUT
    assert "hidden must be (8, 8): the layers are those of the policy" in capsys.readouterr().err
    assert main([*more.split(), "--run-dir", "runs/two"]) == 0
    info = load_policy(Path("runs/two/policy.safetensors")).info
    assert (info.planned, info.partial) == (64, False)
    printed, reached = capsys.readouterr().out, r"\d+\.\d{3}% missed on \d+\.\d\d cores"
    reached = f"^reached      {reached}; the program sponge-mpc {reached}$"
    assert re.search(reached, printed, re.MULTILINE)
    assert f"{follow}\n" in printed, "the newest is found by itself"
    assert evaluate.main(f"--agent ppo {conditions} --run-dir run".split()) == 0
    assert "agent ppo follows runs/two/policy.safetensors" in capsys.readouterr().out
    assert main(["--agent", "ppo-joint", *more.split()[:-1], "runs/two"]) == cli.BAD_INPUT
    assert "has other inputs or choices than a policy" in capsys.readouterr().err
