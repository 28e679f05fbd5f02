from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

import baselines
from baselines import cell_key, tune, tuned_options
from baselines.searches import SEARCHES, Candidate
from baselines.tune import Task, tune_cell
from sponge_env.errors import ConfigError
from sponge_env.run.executor import Processes
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.store import conditions_fingerprint
from sponge_env.run.suite import cells, load_suite
from sponge_env.scenario.config import Arrivals, Limits, Network, Reward, Serving, Start
from sponge_env.scenario.scenario import Scenario

SHORT = Scenario(
    name="short",
    profile="resnet18",
    duration_s=20.0,
    start="warm",
    warmup_s=5.0,
    arrivals=Arrivals(rate_rps=40.0),
)
SUITE = """
seeds = 1
[[cells]]
scenarios = ["{}"]
profiles = ["resnet18"]
[agents.static]
"""
SCENARIO = """
duration_s = 20.0
warmup_s = 5.0
[arrivals]
rate_rps = 40.0
"""


@pytest.mark.parametrize("agent", SEARCHES)
def test_a_search_has_an_ascending_grid_of_options(agent: str) -> None:
    grid = Task(agent, dataclasses.replace(SHORT, limits=Limits(cores=3)), ()).grid
    for values in grid.values():
        assert list(values) == sorted(set(values))
    for values in itertools.product(*grid.values()):
        make_controller(agent, known_controllers(), dict(zip(grid, values, strict=True)))


def outcome(violations: float, cores: float, options: dict[str, Any] | None = None) -> Candidate:
    return Candidate(options or {}, violations, cores, offered=1000)


def test_violations_come_first_and_the_allowed_ones_do_not_count() -> None:
    few, cheap, bad = outcome(0.0, 9.0), outcome(0.001, 8.0), outcome(0.002, 1.0)
    assert sorted([few, bad, cheap], key=lambda o: o.rank(allowed=0.001)) == [cheap, few, bad]


def tuned_to(
    monkeypatch: pytest.MonkeyPatch, cores: dict[tuple[int, ...], float], values: int
) -> tuple[Candidate, list[Any]]:
    """Tune options x and y by their cores, 9 unless given; return the best and what was tried."""
    grid = {name: tuple(range(1, values + 1)) for name in "xy"}
    tried: list[Any] = []

    def try_options(task: Task, options: dict[str, Any], to_beat: Any = None) -> Candidate:
        tried.append(tuple(options.values()))
        return outcome(0.0, cores.get(tried[-1], 9.0), dict(options))

    monkeypatch.setattr(Task, "grid", grid)
    monkeypatch.setattr(Task, "try_options", try_options)
    return tune_cell(Task("vpa", SHORT, (1000,))), tried


def test_all_of_a_small_grid_is_tried_and_the_first_of_equals_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best, tried = tuned_to(monkeypatch, {(5, 1): 8.0}, values=5)
    assert best.options == {"x": 5, "y": 1}
    assert tried[0] == (), "the defaults"
    assert sorted(tried[1:]) == sorted(itertools.product(range(1, 6), repeat=2))
    best, _ = tuned_to(monkeypatch, {}, values=5)
    assert best.options == {}


def test_of_a_large_grid_the_promising_part(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl: dict[tuple[int, ...], float] = {
        (x, y): (x - 7) ** 2 + (y - 4) ** 2 for x in range(1, 21) for y in range(1, 21)
    }
    best, tried = tuned_to(monkeypatch, bowl, values=20)
    assert best.mean_cores <= 2
    assert len(set(tried)) == len(tried) <= tune.TRIALS + 1


def test_static_gets_the_smallest_allocation_without_avoidable_violations() -> None:
    task = Task("static-tuned", SHORT, seeds=(1000, 1001))
    best = tune_cell(task)
    assert best.avoidable_violation_rate == 0.0
    assert best.mean_cores == best.options["cores"] < 16
    smaller = task.try_options({**best.options, "cores": best.options["cores"] - 1})
    assert smaller.avoidable_violation_rate > 0


def test_giving_up_early_changes_no_outcome() -> None:
    task = Task("static-tuned", SHORT, seeds=(1000, 1001, 1002))
    small, large = ({"batch": 4, "cores": cores} for cores in (1, 12))
    few, many = task.try_options(small), task.try_options(large)
    assert few.rank(task.allowed) > many.rank(task.allowed)
    assert task.try_options(large, to_beat=few) == many
    given_up = task.try_options(small, to_beat=many)
    assert many.rank(task.allowed) < given_up.rank(task.allowed) < few.rank(task.allowed)


def test_script_writes_what_the_suite_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.toml").write_text(SCENARIO)
    suite, out = tmp_path / "suite.toml", tmp_path / "tuned.json"
    suite.write_text(SUITE.format("short.toml"))
    arguments = ["--suite", str(suite), "--seeds", "1", "--jobs", "1", "--out", str(out)]
    assert tune.main([*arguments, "--agents", "sponge-no-scaling"]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    data = tune.read(out)
    entry = data["agents"]["sponge-no-scaling"]["cells"]["short/resnet18/warm"]
    run = data["runs"][entry["run"]]
    assert (run["suite"], run["starts"], run["seeds"]) == ("suite.toml", ["cold", "warm"], [1000])
    assert str(tmp_path) not in out.read_text()
    monkeypatch.setattr("baselines._tuned", lambda: data["agents"])
    conditions = entry["conditions"]
    chosen = tuned_options("sponge-no-scaling", "short", "resnet18", "warm", lambda: conditions)
    assert chosen == entry["options"]
    assert 1 <= chosen["cores_fixed"] <= 16


def test_tuning_again_replaces_its_cells_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    tune.write(out, "run1", {"suite": "one"}, {"hpa": {"a/x": {"n": 1}, "b/x": {"n": 1}}})
    tune.write(out, "run2", {"suite": "two"}, {"hpa": {"b/x": {"n": 2}}, "vpa": {"b/x": {}}})
    assert tune.read(out) == {
        "runs": {"run1": {"suite": "one"}, "run2": {"suite": "two"}},
        "agents": {
            "hpa": {"cells": {"a/x": {"n": 1, "run": "run1"}, "b/x": {"n": 2, "run": "run2"}}},
            "vpa": {"cells": {"b/x": {"run": "run2"}}},
        },
    }
    tune.write(out, "run3", {}, {"hpa": {"a/x": {}}})
    assert tune.read(out)["runs"].keys() == {"run2", "run3"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"agents": {}}'])
def test_a_file_of_something_else_is_not_replaced(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json"
    out.write_text(text)
    assert tune.main(["--suite", "quick", "--out", str(out)]) == 2
    assert "mine.json is not what python -m baselines.tune writes" in capsys.readouterr().err
    assert out.read_text() == text


def options_of(*cell: str, conditions: str = "as tuned", required: bool = False) -> dict[str, Any]:
    return tuned_options("hpa", *cell, lambda: conditions, required)  # type: ignore[arg-type]


def no_conditions() -> str:
    raise AssertionError("nobody needs a profile that may have to be measured first")


def test_a_cell_that_was_not_tuned_gets_defaults_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    baselines._warn.cache_clear()
    for _ in range(2):
        assert tuned_options("hpa", "my-own", "/home/me/mine.json", "warm", no_conditions) == {}
    assert caplog.text.count("no tuned options of hpa for my-own/mine/warm") == 1
    assert "python -m baselines.tune --agents hpa --suite" in caplog.text


@pytest.fixture
def two_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    baselines._warn.cache_clear()
    entry = {"options": {"target": 0.5}, "conditions": "as tuned"}
    cells = {f"{name}/yolov5s/warm": entry for name in ("a", "b")}
    monkeypatch.setattr("baselines._tuned", lambda: {"hpa": {"cells": cells}})


@pytest.mark.usefixtures("two_tuned")
def test_options_of_another_start_are_used_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert options_of("a", "yolov5s", "warm") == {"target": 0.5}
    assert options_of("a", "yolov5s", "cold") == {"target": 0.5}
    assert options_of("b", "yolov5s", "cold", required=True) == {"target": 0.5}
    assert caplog.text.count("of hpa for a cold start: those for a warm one are used") == 1


@pytest.mark.usefixtures("two_tuned")
def test_options_of_another_scenario_of_that_name_are_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert options_of("a", "yolov5s", "warm", conditions="others") == {}
    said = "no tuned options of hpa for a/yolov5s/warm as it is here: its defaults are used"
    assert said in caplog.text
    said = "hpa was not tuned for a/yolov5s/warm as it is here; leave out .* or tune it"
    with pytest.raises(ConfigError, match=said):
        options_of("a", "yolov5s", "warm", conditions="others", required=True)


def test_what_is_tuned_for_are_load_limits_and_files_and_not_how_long_it_lasts() -> None:
    same = [
        {"start": "cold", "duration_s": 60.0},
        {"name": "another", "reward": Reward(violation_weight=2.0)},
        {"limits": Limits(total_cores=256)},
    ]
    other = [
        {"arrivals": Arrivals(rate_rps=41.0)},
        {"limits": Limits(cores=8)},
        {"profile": "yolov5s"},
        {"network": Network(trace="none")},
        {"serving": Serving(drop="expired")},
    ]
    wanted = conditions_fingerprint(SHORT)
    for changes, equal in [(each, each in same) for each in same + other]:
        found = conditions_fingerprint(dataclasses.replace(SHORT, **changes))
        assert (found == wanted) == equal, changes


@pytest.mark.parametrize("name", ["standard", "stages"])
def test_every_cell_of_a_suite_has_what_was_tuned_for_it(name: str) -> None:
    shipped, suite = tune.read(baselines.TUNED_FILE)["agents"], load_suite(name)
    # ``static-tuned`` is tuned by its own name, the others by their controllers'.
    asked = [agent for agent, entry in suite.agents.items() if entry.tuned]
    agents = [a if a in shipped else suite.agents[a].controller for a in asked]
    assert len(agents) >= 5
    assert name != "standard" or set(agents) == shipped.keys() - {"ipa"}, "every other that ships"
    for cell in cells(suite):
        keys = [cell_key(*cell.cell[:2], start) for start in (cell.start, *get_args(Start))]
        for agent in agents:
            found = shipped[agent]["cells"]
            key = next(key for key in keys if key in found)
            assert found[key]["conditions"] == conditions_fingerprint(cell), (agent, key)


def test_what_is_shipped_fits_the_controllers() -> None:
    shipped = tune.read(baselines.TUNED_FILE)
    for agent, entry in shipped["agents"].items():
        for cell in entry["cells"].values():
            make_controller(agent, known_controllers(), cell["options"])
            assert agent in shipped["runs"][cell["run"]]["searches"]


def test_a_failing_controller_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = dataclasses.replace(SHORT, profile="no-such-profile")
    kept: list[list[str]] = []
    with pytest.raises(tune.ConfigError, match="static failed on short/no-such-profile/warm"):
        tune.tune(
            [SHORT, broken], ["vpa"], [1000], Processes(1), lambda n: kept.append([*n["static"]])
        )
    assert kept == [["short/resnet18/warm"]]  # what was found before is not lost
