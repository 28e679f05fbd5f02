"""What a suite is, and what it says about bad ones."""

from pathlib import Path

import pytest

from sponge_env.errors import ConfigError
from sponge_env.run import suite as suites
from sponge_env.run.suite import SUITE_DIR, AgentEntry, CellGroup, Suite, cells
from sponge_env.run.unit import AgentUnit, BoundUnit, units
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation import randomised

PAPER = CellGroup(("paper",), ("yolov5s",))


def suite(**changes):
    return Suite(**{"name": "s", "cells": (PAPER,), "agents": {"fa2": AgentEntry()}, **changes})


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITE_DIR.glob("*.toml")))
def test_every_shipped_suite_can_run(name):
    shipped = suites.load_suite(name)
    if any(group.traces for group in shipped.cells):
        folder = Path(__file__).parent / "data" / "traces"
        loaded = {"arrivals.load": 0.5, "arrivals.rate_rps": None}
        shipped, left_out = suites.with_traces(shipped, folder, loaded)
        assert len(cells(shipped)) + len(left_out) == len(list(folder.iterdir()))
    assert shipped.compared_with in shipped.agents
    assert len(units(shipped)) == len(cells(shipped)) * (len(shipped.agents) + len(shipped.bounds))


def test_a_suite_crosses_agents_with_cells_and_puts_bounds_first():
    work = units(suite(agents={"fa2": AgentEntry(), "static-8": AgentEntry()}, bounds=("joint",)))
    agents = ["oracle-joint", "oracle-joint", "fa2", "static-8", "fa2", "static-8"]
    assert [unit.agent for unit in work] == agents
    assert [unit.scenario.start for unit in work] == ["cold", "warm"] + 2 * ["cold"] + 2 * ["warm"]
    assert isinstance(work[0], BoundUnit)


def test_a_file_names_scenarios_beside_itself(tmp_path):
    (tmp_path / "own.toml").write_text("duration_s = 5.0\n[arrivals]\nrate_rps = 3.0\n")
    path = tmp_path / "suite.toml"
    cell = '[[cells]]\nscenarios = ["own.toml"]\nprofiles = ["resnet18"]\n'
    path.write_text(f'starts = ["cold"]\n{cell}[agents.static-8]\n')
    (scenario,) = cells(suites.load_suite(path))
    assert (scenario.name, scenario.profile, scenario.duration_s) == ("own", "resnet18", 5.0)


def test_a_scenario_keeps_its_profiles_unless_the_suite_names_others():
    own = cells(suite(cells=(CellGroup(("bursty",)),)))
    assert [cell.profile for cell in own] == ["resnet18"] * 2
    staged = suite(cells=(CellGroup(("pipeline-video",), ("lite0",)),))
    with pytest.raises(ConfigError, match=r"lists stages.*leave out the profile 'lite0'"):
        cells(staged)


def test_a_change_replaces_a_table_or_one_key_of_it():
    fading = load_scenario("deep-fade")
    fifo = suites.changed(fading, {"serving.order": "fifo"})
    assert (fifo.serving.order, fifo.serving.drop) == ("fifo", fading.serving.drop)
    load = suites.changed(fading, {"arrivals": {"kind": "constant", "load": 0.5}, "duration_s": 9})
    assert (load.arrivals.rate_rps, load.arrivals.load, load.duration_s) == (None, 0.5, 9.0)


@pytest.mark.parametrize(
    ("changes", "sentence"), [({"servng": {}}, "unknown key 'servng'.*did you mean 'serving'"),
     ({"serving.ordr": "fifo"}, "unknown key 'serving.ordr'.*did you mean 'serving.order'"),
     ({"serving.order": "lifo"}, "unknown serving.order 'lifo'"),
     ({"duration_s.x": 1}, "duration_s must be a number")],
)  # fmt: skip
def test_a_change_that_cannot_be_made_is_named(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        cells(suite(cells=(CellGroup(("paper",), changes=dict(changes)),)))
    with pytest.raises(ConfigError, match=sentence):
        suites.changed(load_scenario("paper"), changes)


@pytest.mark.parametrize(
    ("text", "sentence"), [("seed = 3", "unknown key 'seed'.*did you mean 'seeds'"),
     ("seeds = 0", "seeds must be at least 1, not 0"), ('starts = ["hot"]', "unknown starts 'hot'"),
     ("starts = []", "starts must be not empty"),
     ("starts = 'cold'", "starts must be a list of strings, not 'cold'"),
     ("[agents]\n", "agents must be not empty"),
     ("[agents.'../up']\n", "agents must be names of letters"),
     ('reference = "fa3"', "unknown reference 'fa3'.*did you mean 'fa2'"),
     ('featured = ["fa3"]', "unknown featured 'fa3'.*did you mean 'fa2'"),
     ("[agents.fa2]\noption = 1", "unknown key 'agents.fa2.option'"),
     ("cells = [", "is not a TOML suite")],
)  # fmt: skip
def test_a_bad_suite_is_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.toml"
    rest = "" if "agents" in text else "[agents.fa2]\n"
    path.write_text(f'{text}\n{rest}[[cells]]\nscenarios = ["paper"]\nprofiles = ["yolov5s"]\n')
    with pytest.raises(ConfigError, match=sentence):
        suites.load_suite(path)


def recorded(**changes):
    both = (CellGroup(("paper",), ("yolov5s",), traces=kind) for kind in ("bandwidth", "arrivals"))
    return suite(cells=tuple(both), starts=("cold",), **changes)


def test_each_trace_in_a_folder_is_a_cell(tmp_path):
    (tmp_path / "my bus.csv").write_text("time_s,bandwidth_bytes_per_s\n0,1e6\n1,2e6\n")
    (tmp_path / "my_load").write_text("3\n4\n1\n")
    (tmp_path / "my-bus.csv").write_text("0 1\n1 2\n")
    (tmp_path / "README.md").write_text("From the bus.\n")
    (tmp_path / ".hidden").write_text("?")
    (tmp_path / "folder").mkdir()
    found, left_out = suites.with_traces(recorded(), tmp_path, {"serving.drop": "expired"})
    played = {scenario.name: scenario for scenario in cells(found)}
    assert list(played) == ["my-bus.csv", "my-bus.csv-2", "my_load"]
    assert played["my-bus.csv"].network.trace == str(tmp_path / "my bus.csv")
    assert played["my_load"].arrivals.file == str(tmp_path / "my_load")
    assert played["my_load"].arrivals.rate_rps is None
    assert {scenario.serving.drop for scenario in played.values()} == {"expired"}
    (reason,) = left_out
    assert "README.md is in no known format" in reason
    with pytest.raises(ConfigError, match="needs --traces"):
        cells(recorded())


def test_there_is_no_bound_where_the_load_is_beyond_the_machine(tmp_path):
    (tmp_path / "40").write_text("40\n")
    (tmp_path / "20").write_text("20\n")
    (tmp_path / "200").write_text("200\n")
    work = units(suites.with_traces(recorded(bounds=("vertical", "joint")), tmp_path, {})[0])
    bounds = {(unit.agent, unit.scenario.name) for unit in work if isinstance(unit, BoundUnit)}
    assert bounds == {("oracle", "20"), ("oracle-joint", "20"), ("oracle-joint", "40")}


def test_keys_of_one_table_change_together():
    crowds = {"arrivals.flash_s": 200.0, "arrivals.flash_every_s": 300.0}
    assert suites.changed(load_scenario("paper"), crowds).arrivals.flash_s == 200.0
    load = suites.changed(load_scenario("paper"), {"arrivals.load": 0.5, "arrivals.rate_rps": None})
    assert (load.arrivals.kind, load.arrivals.load) == ("constant", 0.5)
    recorded = suites.changed(load_scenario("paper"), {"network.trace": "bus.csv"})
    assert suites.changed(recorded, {"network.start": "random"}).network.start == "random"


def test_scenarios_that_differ_in_one_value_are_groups():
    across = {"network.payload_bytes": (3e5, 1e5), "arrivals.rate_rps": (8.0, 20.0)}
    groups = CellGroup(("paper",), ("yolov5s",), across=across), PAPER
    found, sizes, rates = suites.arranged(suite(cells=groups)), (300000, 100000), (8, 20)
    assert found.groups == {f"paper-{n}-{k}": f"rate_rps {k}" for n in sizes for k in rates}


def test_each_combination_of_values_is_a_cell_named_after_them():
    across = {"network.trace": ("4g", "3g-bus"), "slo_s": (0.5, 2.0)}
    group = CellGroup(("paper",), ("yolov5s",), across=across)
    found = {c.name: (c.network.trace, c.slo_s) for c in cells(suite(cells=(group,)))}
    assert found == {
        "paper-4g-0.5": ("4g", 0.5), "paper-4g-2": ("4g", 2.0),
        "paper-3g-bus-0.5": ("3g-bus", 0.5), "paper-3g-bus-2": ("3g-bus", 2.0),
    }  # fmt: skip


def test_random_systems_are_cells_the_same_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(randomised, "cache_dir", lambda: tmp_path)
    randomised.suite_systems.cache_clear()
    few, more = (suite(cells=(), systems=n, starts=("warm",)) for n in (3, 5))
    found = cells(more)
    assert cells(few) == found[:3]
    of_each = [(each.limits.total_cores, each.warmup_s) for each in found]
    assert of_each == [(n, 330.0) for n in (4, 8, 16, 32, 4)]
    assert len({scenario_profile(each).latency for each in found}) == 5
    assert [each.name for each in cells(suites.only(more, "*4+*"))] == ["system-004"]
    text = (kept := Path(found[0].profile)).read_text()
    kept.write_text(text[:100])  # a full disk
    randomised.suite_systems.cache_clear()
    assert (cells(more), kept.read_text()) == (found, text)
    randomised.suite_systems.cache_clear()


def test_agents_are_chosen_from_the_suite_the_registry_or_ones_own_modules():
    entry = AgentEntry(controller="static", options={"cores": 3})
    some = suites.with_agents(suite(agents={"three": entry}), ["three", "static-8", "mine:Own"])
    assert some.agents == {"three": entry, "static-8": AgentEntry(), "mine:Own": AgentEntry()}
    assert some.compared_with == "three"
    with pytest.raises(ConfigError, match=r"unknown agent 'thre'.*did you mean 'three'"):
        suites.with_agents(suite(agents={"three": entry}), ["thre"])


def test_a_constant_is_sized_where_it_is_played():
    agents, _ = suites.chosen(["fixed-fleet", "fixed-hindsight"])
    cells = (CellGroup(("paper-300kb",), ("yolov5s",)),)
    training, hindsight = units(suite(agents=agents, cells=cells, starts=("cold",)))
    assert (training.constant, hindsight.constant) == ("training", "hindsight")
    assert training.options == hindsight.options == {}


def test_bounds_are_chosen_like_agents():
    agents, bounds = suites.chosen(["oracle-joint", "static-8"])
    assert (list(agents), bounds) == (["static-8"], ("joint",))
    with pytest.raises(ConfigError, match="oracle stands beside agents in a suite"):
        suites.with_agents(suite(), ["oracle"])


def test_a_file_is_followed_by_what_the_registry_has_for_it():
    agents, _ = suites.chosen(["sb3:some/model.zip"])
    assert agents["sb3:model"].options == {"file": "some/model.zip"}
    with pytest.raises(ConfigError, match="two agents are called 'sb3:model'"):
        suites.chosen(["sb3:some/model.zip", "sb3:other/model.zip"])


@pytest.mark.parametrize(
    ("name", "entry", "sentence"),
    [("fa3", AgentEntry(), "unknown agent 'fa3'.*did you mean 'fa2'"),
     ("fa2", AgentEntry(options={"slo": 1}), "slo"),
     ("oracle", AgentEntry(controller="fa2"), "taken by a bound")],
)  # fmt: skip
def test_an_agent_that_cannot_run_is_refused_before_anything_does(name, entry, sentence):
    with pytest.raises(ConfigError, match=sentence):
        units(suite(agents={name: entry}))


def test_tuned_options_come_first(monkeypatch):
    def tuned(agent, scenario):
        assert (agent, scenario.cell[:2]) == ("static", ("paper", "yolov5s"))
        return {"cores": {"cold": 5, "warm": 3}[scenario.start], "batch": 4}

    monkeypatch.setattr("baselines.tuned_options", tuned)
    entry = AgentEntry(controller="static", options={"batch": 2}, tuned=True)
    work = units(suite(agents={"tuned": entry}))
    options = [unit.options for unit in work if isinstance(unit, AgentUnit)]
    assert options == [{"cores": 5, "batch": 2}, {"cores": 3, "batch": 2}]
