"""What train.py is asked to train on, and with which settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.learn.command import main, parse, plan_of, scenarios_of
from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.scenario.scenario import Scenario, load_scenario


def asked(line: str) -> list[Scenario]:
    return scenarios_of(parse(line.split()))


def test_a_suite_gives_the_cold_cells_of_a_profile() -> None:
    cells = asked("--suite standard --profile resnet18")
    names = [scenario.name for scenario in cells]
    assert len(names) == len(set(names)) == 9
    assert {(scenario.profile, scenario.start) for scenario in cells} == {("resnet18", "cold")}
    assert {s.arrivals.load for s in cells if s.name.startswith("paper")} == {0.55}
    left = asked("--suite standard --profile resnet18 --held-out paper-200kb mixed")
    assert left == [cell for cell in cells if cell.name not in ("paper-200kb", "mixed")]


@pytest.mark.parametrize(
    ("line", "phased", "steps", "envs"),
    [
        ("--agent ppo-joint --suite standard --profile lite0", True, 8_000_000, 864),
        ("--agent ppo --suite stages --like pipeline-video --envs 9", True, 8_000_000, 9),
        ("--agent sb3-ppo --steps 5", False, 5, 256),
        ("--agent ppo --scenario local --backend live", False, 1_000_000, 1),
    ],
)
def test_a_plan_has_the_learners_steps_and_environments(
    line: str, phased: bool, steps: int, envs: int
) -> None:
    arguments = parse(line.split())
    plan = plan_of(arguments, asked(line) if "local" not in line else [load_scenario("paper")])
    assert (plan.phased, plan.steps, plan.envs) == (phased, steps, envs)


def test_a_suite_gives_the_cells_of_the_stages_of_a_scenario() -> None:
    cells = asked("--agent ppo --suite stages --like pipeline-video")
    names = [scenario.name for scenario in cells]
    assert names == ["pipeline-video", "pipeline-video-constant", "pipeline-video-4g"]
    assert len(asked("--suite standard --like bursty --held-out bursty")) == 8


def test_each_scenario_has_an_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--agent ppo-joint --suite standard --profile lite0 --envs 8".split()
    assert main([*line, "--run-dir", str(tmp_path / "run")]) == cli.BAD_INPUT
    assert "9 scenarios need at least as many --envs, not 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_further_scenarios_have_the_profile_of_the_first() -> None:
    found = asked("--scenario bursty --also mixed --profile lite0 --load 0.5")
    assert [(s.name, s.profile) for s in found] == [("bursty", "lite0"), ("mixed", "lite0")]
    loads = [scenario.arrivals.load for scenario in found]
    assert loads == [0.5, load_scenario("mixed").arrivals.load]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--suite standard", "cells of yolov5s, resnet18, lite0; choose one with --profile"),
        ("--suite standard --profile resnet", "choose one with --profile"),
        ("--suite standard --profile lite0 --also bursty", "leave out --also"),
        ("--suite standard --profile lite0 --held-out burst", "did you mean 'bursty'"),
        ("--scenario bursty --held-out paper", "the cells of a --suite"),
        ("--scenario=paper --suite quick", "leave out --scenario=paper"),
        ("--scenario paper --like paper", "--like is about the cells of a --suite"),
        ("--suite stages", "has cells that list their stages; choose some with --like"),
        ("--suite stages --like paper", "has no cells of the stages of 'paper'"),
        ("--suite standard --like paper --profile lite0", "leave out --profile"),
        ("--suite stages --like variants-wide --held-out variants-wide", "leaves nothing to"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(line: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        asked(line)
