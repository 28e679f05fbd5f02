import dataclasses
import json
import math
from collections import Counter
from itertools import product, repeat, starmap
from statistics import fmean

import pytest

import baselines
from baselines import tune, tuned_options
from baselines.searches import SEARCHES, Range
from baselines.tune import Task, tune_task
from benchmarks import live
from sponge_env import Scenario
from sponge_env.cli import parse_options
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, StageAllocation, cores_held
from sponge_env.metrics import MET
from sponge_env.run.executor import Processes
from sponge_env.run.hindsight import best_constant, constants
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Replay, Run, run_episode
from sponge_env.run.suite import cells, load_suite
from sponge_env.scenario.config import Arrivals, Initial, Limits
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.system import SimulatedSystem

SHORT = Scenario(
    name="short", profile="resnet18", duration_s=20.0, start="warm", warmup_s=5.0,
    arrivals=Arrivals(rate_rps=40.0),
)  # fmt: skip
SUITE = """
seeds = 1
[[cells]]
scenarios = ["short.toml"]
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
def test_a_search_goes_over_options_that_there_are(agent):
    space = SEARCHES[agent]
    for at in ("low", "high", "least", "most"):
        ends = {n: getattr(own, at) for n, own in space.items() if isinstance(own, Range)}
        options = {name: end for name, end in ends.items() if math.isfinite(end)}
        make_controller(agent, known_controllers(), options)
    for name, own in space.items():
        for word in own if isinstance(own, tuple) else ():
            make_controller(agent, known_controllers(), {name: word})


def test_a_range_is_widened_where_the_best_lies_at_its_end():
    plain = Range(0.0, 1.0, least=0.0)
    assert plain.widened(0.5) == plain == plain.widened(0.0)
    assert plain.widened(0.99).high == 2.0
    whole = Range(1, 16, log=True, least=1)
    assert (whole.widened(16).high, whole.widened(15), whole.widened(1)) == (64, whole, whole)
    wide = Range(0.06, 16.0, log=True)
    assert wide.widened(0.3) == wide, "near by the logarithm"
    assert wide.widened(0.061).low == pytest.approx(0.015)


def tuned_to(monkeypatch, best, elsewhere=None):
    tried = []

    def costs(task, options, seeds=()):
        value, ideal = options.get("x", 5.0), best if elsewhere is None or not seeds else elsewhere
        tried.extend([value] * (not seeds))
        yield from (abs(value - ideal) + cell for cell in range(24))

    monkeypatch.setitem(SEARCHES, "queue-rule", {"x": Range(0.0, 10.0, least=0.0)})
    monkeypatch.setattr(Task, "costs", costs)
    return tune_task(Task("queue-rule", "resnet18", (SHORT,), 40)), tried


def test_the_best_is_found_beyond_the_range_as_well(monkeypatch):
    found, tried = tuned_to(monkeypatch, 7.0)
    assert tried[0] == 5.0, "the defaults"
    assert found["options"]["x"] == pytest.approx(7.0, abs=0.3)
    assert found["configurations"] == len(tried) == 41
    found, tried = tuned_to(monkeypatch, 15.0)
    assert found["options"]["x"] == pytest.approx(15.0, abs=0.5)
    assert len(tried) > 41
    assert tuned_to(monkeypatch, 5.0)[0]["options"] == {}, "the first of equals wins"
    found, _ = tuned_to(monkeypatch, 7.0, elsewhere=5.5)
    assert (found["options"], found["cost_cores"]) == ({}, round(math.exp(2 + 11.5), 4))


def test_violations_beyond_the_objective_cost_cores():
    assert tune.cost_cores(4.0, 0.0) == tune.cost_cores(4.0, MET) == 4.0
    assert tune.cost_cores(4.0, 3 * MET) == pytest.approx(12.0)


def test_what_is_worse_in_the_first_cells_is_left_at_that(monkeypatch):
    played = []

    def play(task, cell, seed, options):
        played.append((options.get("cores", 1), cell.name))
        return 2.0 ** played[-1][0] * (1 + seed % 3)

    monkeypatch.setitem(SEARCHES, "ipa", {"cores": Range(1, 8, least=1)})
    monkeypatch.setattr(Task, "_play", play)
    short = [dataclasses.replace(SHORT, name=f"cell-{k}") for k in range(24)]
    found = tune_task(Task("ipa", "resnet18", tuple(short), 10))
    runs = Counter(cores for cores, _ in played)
    assert found["options"].get("cores", 1) == min(runs) == 1
    assert runs[max(runs)] % 24 in (4, 8, 16), "the worst"
    assert {name for _, name in played[:24]} == {cell.name for cell in short}


def missed(scenario, held, seeds):
    warmed = scenario.starting_with([Initial(*fleet) for fleet in held])
    replay, run = Replay(repeat(Allocation(stages=held))), Run.of("static", warmed, "sim", 0)
    played = [run_episode(SimulatedSystem(warmed, seed), replay, run) for seed in seeds]
    return fmean(each.summary.avoidable_violation_rate for each in played)


def test_no_constant_beats_the_best_in_hindsight():
    # One core misses 9 %, two nothing.
    limits, arrivals = Limits(4, 4, 4, 4), Arrivals(rate_rps=30.0)
    scenario = dataclasses.replace(SHORT, limits=limits, arrivals=arrivals)
    profile, seeds = scenario_profile(scenario), (1, 2, 3)
    best = best_constant(scenario, profile, seeds)
    fleets = [held for own in constants(make_spec(scenario, profile)) for held in own]
    assert len(set(fleets)) == len(fleets) == 4 * 8, "batches times pairs that fit"
    good = [held for held in fleets if missed(scenario, held, seeds) <= MET]
    assert best in good
    assert cores_held(best) == min(map(cores_held, good))
    hard = dataclasses.replace(scenario, arrivals=Arrivals(rate_rps=300.0))
    least = min(missed(hard, held, seeds) for held in fleets)
    assert missed(hard, best_constant(hard, profile, seeds), seeds) == least > MET


@pytest.mark.parametrize("rate_rps", [25.0, 75.0])
def test_no_fixed_fleets_of_two_stages_beat_those_that_are_found(rate_rps):
    scenario, small = load_scenario("pipeline-video"), Limits(cores=2, batch=2, replicas=3)
    stages = [dataclasses.replace(s, limits=small, initial=Initial()) for s in scenario.stages]
    scenario = dataclasses.replace(
        scenario, duration_s=20.0, warmup_s=5.0, arrivals=Arrivals(rate_rps=rate_rps),
        start="warm", limits=Limits(cores=2, total_cores=8), stages=tuple(stages),
    )  # fmt: skip
    best = best_constant(scenario, scenario_profile(scenario), seeds := (1, 2))
    fleets = [*starmap(StageAllocation, product(range(1, 3), range(1, 3), range(1, 4)))]
    fitting = [held for held in product(fleets, fleets) if cores_held(held) <= 8]
    rates = {held: missed(scenario, held, seeds) for held in fitting}
    good = [held for held in fitting if rates[held] <= MET]
    assert (rate_rps == 25.0) == bool(good)
    if good:
        assert best in good
        assert cores_held(best) == min(map(cores_held, good)) < 8
    else:
        assert rates[best] == min(rates.values())


@pytest.mark.usefixtures("inline")
def test_script_writes_what_the_suite_reads(tmp_path, capsys, monkeypatch):
    (tmp_path / "short.toml").write_text(SCENARIO)
    suite, out = tmp_path / "suite.toml", tmp_path / "tuned.json"
    suite.write_text(SUITE)
    out.write_text(json.dumps({"agents": {"hpa": {"resnet18": {"options": {"target": 0.5}}}}}))
    arguments = ["--suite", str(suite), "--jobs", "1", "--out", str(out), "--agents", "queue-rule"]
    assert tune.main([*arguments, "--configurations", "2"]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()
    monkeypatch.setattr("baselines._tuned", lambda: tune.load_tuned(out))
    (cell, _) = cells(load_suite(suite))
    assert tuned_options("hpa", cell) == {"target": 0.5}, "what was there stays"
    assert tuned_options("queue-rule", cell).keys() in ({*()}, {*SEARCHES["queue-rule"]})
    monkeypatch.setattr(live, "load_suite", lambda _: load_suite(suite))
    assert live.main(["short", str(out)]) == 0
    sized = parse_options(capsys.readouterr().out.split()[1::2], ["static", "hpa"])
    assert sized == {"static": {"cores": 2, "batch": 2, "replicas": 1}, "hpa": {"target": 0.5}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"agents": {"hpa": {"a": {}}}}'])
def test_a_file_of_something_else_is_not_replaced(text, tmp_path, capsys):
    out = tmp_path / "mine.json"
    out.write_text(text)
    assert tune.main(["--suite", "quick", "--out", str(out)]) == 2
    assert "mine.json is not what python -m baselines.tune writes" in capsys.readouterr().err
    assert out.read_text() == text


def test_what_was_not_tuned_has_its_defaults_and_one_warning(caplog, monkeypatch):
    baselines._warn.cache_clear()
    monkeypatch.setattr("baselines._tuned", lambda: {"hpa": {"yolov5s": {"options": {}}}})
    for _ in range(2):
        assert tuned_options("hpa", SHORT) == {}
    assert caplog.text.count("hpa was not tuned for resnet18: its defaults are used") == 1


def test_what_is_shipped_fits_suites_and_controllers():
    shipped = tune.load_tuned(baselines.TUNED_FILE)
    for agent, own in shipped.items():
        for found in own.values():
            make_controller(agent, known_controllers(), found["options"])
    suite = load_suite("standard-v1")
    asked = {e.controller or agent for agent, e in suite.agents.items() if e.tuned}
    assert asked <= shipped.keys()
    for cell in cells(suite):
        assert all(cell.cell[1] in shipped[agent] for agent in asked)


def test_a_failing_controller_is_named(tmp_path):
    broken = dataclasses.replace(SHORT, profile="no-such-profile")
    work = [Task(agent, "no-such-profile", (broken,)) for agent in ("static", "hpa")]
    with pytest.raises(ConfigError, match=r"static failed on no-such-profile.*; hpa failed"):
        tune.tune(work, Processes(1), tmp_path / "tuned.json")
