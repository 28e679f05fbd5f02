"""The clairvoyant bound: proven on small instances, attained on each, beside agents in suites."""

from dataclasses import replace
from pathlib import Path

import pytest
from schedules import replay, replay_all

import evaluate
from sponge_env import Allocation, Scenario, load_scenario
from sponge_env.env.factory import scenario_profile
from sponge_env.errors import ConfigError
from sponge_env.latency import LatencyModel
from sponge_env.oracle import bound, least_cores
from sponge_env.run.read import load_results
from sponge_env.run.suite import cells, load_suite
from sponge_env.scenario import config
from sponge_env.scenario.config import Arrivals, Initial, Limits, Network, RequestClass, Serving
from sponge_env.scenario.profile import load_profile, save_profile

TINY = Scenario(  # few enough intervals and cores to try all schedules
    name="tiny",
    duration_s=3.0,
    limits=Limits(cores=3, batch=3, replicas=2),
    arrivals=Arrivals(kind="poisson", rate_rps=9.0),
    network=Network(payload_bytes=500_000.0),
)

CLASSES = RequestClass(1.0, 0.6, 50_000.0), RequestClass(1.0, 1.5, 600_000.0)
CLASSED = replace(TINY, slo_s=0.6, classes=CLASSES)

KINDS = {
    "plain": TINY, "late requests dropped": replace(TINY, serving=Serving(drop="expired")),
    "unmeetable requests dropped": replace(CLASSED, serving=Serving(drop="unmeetable")),
    "two classes": CLASSED,
    "first come, first served": replace(CLASSED, serving=Serving(order="fifo")),
    "quota": replace(TINY, profile="lite0", arrivals=Arrivals("poisson", rate_rps=12.0)),
    "warm start": replace(TINY, start="warm", warmup_s=1.0),
}  # fmt: skip


# Few enough of everything to try all schedules with replicas, too.
FEW = replace(TINY, limits=Limits(2, 2, 2), simulation=config.Simulation(cold_start_s=1.0))
UNMEETABLE = replace(FEW, serving=Serving(drop="unmeetable"))
AT_ONCE = Network(trace="none", base_delay_s=0.0)
ALL_AT_ONCE = Limits(cores=3, batch=1, replicas=3)

TEAMS = {
    "whole cores": FEW,
    "a machine of three cores": replace(FEW, limits=Limits(2, 2, 2, total_cores=3)),
    "a machine of two nodes": replace(FEW, limits=Limits(2, 2, 2, nodes=(2, 1))),
    "a machine for all": replace(FEW, limits=Limits(2, 2, 2, total_cores=4)),
    "three at the start": replace(UNMEETABLE, limits=ALL_AT_ONCE, initial=Initial(replicas=3)),
    "quota": replace(UNMEETABLE, profile="lite0"),
    "warm start": replace(FEW, start="warm", warmup_s=1.0),
}


def check(scenario, seed, joint):
    found = bound(scenario, seed, joint)
    tried = replay_all(scenario, seed, scenario.limits.replicas if joint else 1)
    best = min(tried)
    assert found.violations_lower <= best[0] <= found.violations_upper
    assert best <= (found.violations_upper, found.core_seconds_upper + 1e-6)
    as_good = [cores for violations, cores in tried if violations <= found.violations_upper]
    assert found.core_seconds_lower <= min(as_good) + 1e-6
    for missed in (0.0, 0.3):
        met = [cores for violations, cores in tried if violations <= missed * found.offered]
        held = least_cores(scenario, [seed], missed) * (scenario.duration_s - scenario.count_from_s)
        assert held <= min(met, default=held) + 1e-6


def test_the_least_cores_are_close_to_what_schedules_hold():
    crowd = replace(load_scenario("flash-crowd"), duration_s=60.0)
    held = [bound(crowd, seed, joint=True).core_seconds_upper / 60.0 for seed in (1, 2)]
    least = [least_cores(crowd, (1, 2), missed) for missed in (0.0, 0.001, 0.1)]
    assert sum(held) / 2 > least[0] > least[1] > least[2] > 0.7 * sum(held) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_all_schedules_lies_between_both_sides(kind):
    for seed in (1, 2):
        check(KINDS[kind], seed, joint=False)


@pytest.mark.parametrize("team", TEAMS)
def test_the_best_of_all_teams_lies_between_both_sides(team):
    check(TEAMS[team], 1, joint=True)


def test_the_bound_knows_when_within_an_interval_requests_come(tmp_path):
    # In the last tenth of an interval, and due soon after: no core can have worked ahead.
    late = "".join(f"{second}.9{n}\n" for second in range(1, 9) for n in range(4))
    (tmp_path / "late.csv").write_text("arrival_s\n" + late)
    two = {"limits": Limits(cores=4, batch=4, replicas=2), "initial": Initial(replicas=2)}
    come = {"arrivals": Arrivals("trace", file=str(tmp_path / "late.csv")), "network": AT_ONCE}
    found = bound(replace(TINY, duration_s=10.0, slo_s=0.35, **two, **come), 0, joint=True)
    assert found.violations_upper == 0
    assert found.core_seconds_lower > 10.0, "4 in a second are less than a core can serve"


@pytest.mark.parametrize(
    ("name", "profile", "start", "joint", "drop"), [("bursty", "yolov5s", "warm", False, "none"),
     ("deep-fade", "lite0", "cold", False, "unmeetable"),
     ("mixed", "resnet18", "cold", False, "unmeetable"),
     ("bursty", "resnet18", "cold", True, "expired"),
     ("mixed", "lite0", "cold", True, "unmeetable")],
)  # fmt: skip
def test_the_schedule_attains_what_it_claims(name, profile, start, joint, drop):
    changes = {"profile": profile, "start": start, "duration_s": 40.0}
    scenario = replace(load_scenario(name), **changes, serving=Serving(drop=drop))
    found = bound(scenario, 3, joint)
    run = replay(scenario, scenario_profile(scenario), 3, found.schedule)
    most = max(allocation.total_cores for allocation in found.schedule)
    assert most <= scenario.limits.machine_cores
    assert (run.offered, run.violations) == (found.offered, found.violations_upper)
    assert run.core_seconds == pytest.approx(found.core_seconds_upper, abs=1e-6)
    assert found.violations_lower <= found.violations_upper
    assert found.core_seconds_lower <= found.core_seconds_upper + 1e-6


def test_a_replica_that_drains_while_it_serves_is_not_cheaper_than_the_bound(tmp_path):
    slow = LatencyModel(gamma_s=0.655, delta_s=0.0, epsilon_s=0.0, eta_s=0.0)
    table = {"batches": (1, 2), "cores": (1, 2), "latency_s": ((0.655, 0.3275), (1.31, 0.655))}
    profile = replace(load_profile("yolov5s"), **table, latency=slow)
    save_profile(profile, tmp_path / "slow.json")
    # The last one is answered after the end, when nothing counts any more.
    (tmp_path / "six.csv").write_text("arrival_s\n" + "0.0\n" * 5 + "1.999\n")
    scenario = replace(
        TINY, profile=str(tmp_path / "slow.json"), duration_s=2.0, slo_s=1.99,
        limits=Limits(cores=1, batch=1, replicas=2, total_cores=2), initial=Initial(replicas=2),
        arrivals=Arrivals(kind="trace", file=str(tmp_path / "six.csv")), network=AT_ONCE,
    )  # fmt: skip
    drained = replay(scenario, profile, 0, (Allocation(1, 1, 2), Allocation(1, 1, 1)))
    assert drained.violations == 0
    assert drained.core_seconds < 4.0, "the second replica has gone before the end"
    check(scenario, 0, joint=True)


def test_nothing_to_do_costs_a_core():
    quiet = replace(TINY, arrivals=Arrivals(kind="constant", rate_rps=0.5))
    found = bound(replace(quiet, network=Network(trace="none")), 1)
    assert (found.violations_upper, found.core_seconds_lower, found.core_seconds_upper) == (0, 3, 3)
    nobody = replace(TINY, network=Network(payload_bytes=5e7))
    for joint in (False, True):
        found = bound(nobody, 1, joint)
        assert (found.offered, found.violations_upper, found.core_seconds_upper) == (0, 0, 3.0)


def test_what_has_no_bound_is_refused():
    late = replace(TINY, simulation=config.Simulation(actuation_delay_s=0.1))
    classes = tuple(RequestClass(1.0, 1.0 + k, 1000.0) for k in range(5))
    mixed, staged = replace(TINY, slo_s=1.0, classes=classes), replace(TINY, stages=TINY.pipeline)
    for scenario, message in (
        (late, "resize to act at once"),
        (mixed, "at most 4 for the oracle"),
        (staged, "stages, which have no bound"),
    ):
        with pytest.raises(ConfigError, match=message):
            bound(scenario, 1)


STAGES = """
seeds = 2
starts = ["cold"]
bounds = ["vertical", "joint"]
[[cells]]
scenarios = ["pipeline-video", "paper"]
changes = { duration_s = 5.0 }
[agents.static-8]
"""


@pytest.mark.usefixtures("unpainted", "inline", "own_folder")
def test_cells_with_stages_run_without_a_bound(capsys):
    Path("stages.toml").write_text(STAGES)
    assert evaluate.main("--suite stages.toml --run-dir run --jobs 1".split()) == 0
    staged, plain = capsys.readouterr().out.split("paper, yolov5s, cold start")[:2]
    assert "over bound" not in staged.partition("paper, ")[0]
    assert "oracle-joint" in plain
    results = load_results(Path("run"))
    played = results[results["agent"] == "oracle-joint"]
    assert set(played["scenario"]) == {"paper"}
    _, paper = cells(load_suite("stages.toml"))
    for episode in played.to_dict("records"):
        found = bound(paper, episode["seed"], joint=True)
        assert episode["violations"] == found.violations_upper
        assert episode["core_seconds"] == pytest.approx(found.core_seconds_upper)
    assert evaluate.main("--agent oracle --scenario pipeline-video".split()) != 0
    assert "'pipeline-video' has stages, which have no bound" in capsys.readouterr().err
    assert evaluate.main("--agent oracle --scenario bursty --load 1.5".split()) != 0
    assert "'bursty' is overloaded all the time, and so has no bound" in capsys.readouterr().err
