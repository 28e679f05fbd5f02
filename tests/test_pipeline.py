"""Several stages in the core, against a plain model of them and what must hold by construction."""

import dataclasses
import math

import numpy as np
import pytest
from core_doors import mixed_uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.pipeline import Pipeline, StageModel

from sponge_env.errors import ConfigError
from sponge_env.interfaces import BY_SLACK, Allocation, StageAllocation
from sponge_env.latency import LatencyModel
from sponge_env.scenario import config
from sponge_env.scenario.graph import always_passed, predecessors
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.workload import Workload

LIMITS = config.Limits(cores=4, batch=4, replicas=2)
PROFILES = ("video-classifier", "video-detector", "nlp-sentiment", "sentiment-text")


def stage(name, *profiles, **more):
    """Make a stage whose variants are ever more accurate."""
    accurate = ((p, round(0.6 + 0.1 * k, 1), f"v{k}") for k, p in enumerate(profiles))
    variants = tuple(config.Variant(*each) for each in accurate)
    return config.Stage(name, variants, **{"limits": LIMITS, **more})


def pipeline(*stages, **more):
    settings = {
        "name": "pipeline", "slo_s": 0.6, "duration_s": 8.0, "stages": stages,
        "limits": config.Limits(total_cores=64), "arrivals": config.Arrivals(rate_rps=12.0),
        "network": config.Network(base_delay_s=0.02), "simulation": config.Simulation(noise=0.0),
    }  # fmt: skip
    return Scenario(**settings | more)


def model_of(scenario, system):
    """Make the reference of a scenario; fan-outs are drawn as the core draws them."""
    key, after = np.uint64(system._env["fan_out_key"]), predecessors(scenario.stages)
    stages = []
    for k, each in enumerate(scenario.stages):
        profiles = [load_profile(v.profile) for v in each.variants]
        tables_s = [p.service_table_s(LIMITS.batch, LIMITS.cores).tolist() for p in profiles]
        accuracies = [v.accuracy for v in each.variants]
        scatter = np.mean(np.abs([p.noise_quantiles for p in profiles]))
        pace = 1 + scenario.simulation.noise * scatter
        own = after[k], each.initial.replicas, float(pace), always_passed(scenario.stages)[k]
        stages.append(StageModel(tables_s, accuracies, *own))

    def fan_out(row, k, done):
        ends, drawn = np.cumsum(system.plan.stages[k].tasks), mixed_uniform(key, row, k, done)
        return min(int(np.searchsorted(ends, drawn, side="right")), len(ends) - 1)

    first = (stage.initial for stage in scenario.stages)
    initial = [StageAllocation(each.cores, each.batch, variant=each.variant) for each in first]
    return Pipeline(stages, initial, fan_out, scenario.serving)


def compare(scenario, plan, seed):
    """Play an episode on both and compare what became of every request."""
    system = SimulatedSystem(scenario, seed)
    model = model_of(scenario, system)
    workload, arrival_s = system._workload, system._workload.arrival_s
    for interval in range(scenario.intervals):
        row, until_s = plan[interval % len(plan)], (interval + 1) * scenario.interval_s
        metrics = system.step(Allocation(stages=tuple(row)))
        now = (arrival_s > until_s - scenario.interval_s) & (arrival_s <= until_s)
        offered = arrival_s[now], workload.deadline_s[now], workload.enters[now]
        model.serve(list(zip(*offered, strict=True)), row, until_s)
        there = [ticket for ticket in model.tickets if not ticket.outcome]
        assert metrics.queued + metrics.running == len(there)
        assert metrics.core_seconds == pytest.approx(model.core_s)
        for k, measured in enumerate(metrics.stages.values()):
            assert measured["switches"] == model.switches[k]
            assert measured["answered"] == sum(model.done_by[k])
            shares = [v for name, v in measured.items() if name.startswith("share/")]
            if shares and measured["answered"]:
                done = np.array(model.done_by[k])
                np.testing.assert_allclose(shares, done / measured["answered"])
        model.core_s, model.switches = 0.0, [0] * len(scenario.stages)
        model.done_by = [[0] * len(stage.variants) for stage in scenario.stages]
        queued = [view.queued_deadlines_s.size for view in system.view().stages]
        assert queued == [*map(len, model.queues)]
    columns, ended = system.columns(), [ticket for ticket in model.tickets if ticket.outcome]
    rows = [ticket.row for ticket in ended]
    final = ~np.isin(columns["outcome"], ("queued", "running"))
    np.testing.assert_array_equal(np.flatnonzero(final), rows)
    assert columns["outcome"][rows].tolist() == [ticket.outcome for ticket in ended]
    accuracies = [math.nan if t.outcome == "dropped" else model.accuracy(t) for t in ended]
    finished_s = [ticket.finished_s for ticket in ended]
    np.testing.assert_allclose(columns["accuracy"][rows], accuracies, rtol=1e-9)
    np.testing.assert_allclose(columns["finished_s"][rows], finished_s, rtol=1e-9)
    np.testing.assert_array_equal(columns["stage"][rows], [ticket.stage for ticket in ended])


SHAPES = {
    "one": ((),), "chain": ((), ("a",), ("b",)), "fork and join": ((), ("a",), ("a",), ("b", "c")),
    "set of models": ((), (), ()),
}  # fmt: skip


@st.composite
def episodes(draw):
    """Draw a pipeline, or a set of models, and the allocations of some intervals."""
    shape = draw(st.sampled_from(sorted(SHAPES)))
    stages, kinds, slo_s = [], [], draw(st.sampled_from([0.3, 0.8]))
    arrivals = draw(st.sampled_from([None, config.Arrivals("constant", rate_rps=7.0)]))
    for k, after in enumerate(SHAPES[shape]):
        names = draw(st.lists(st.sampled_from(PROFILES), min_size=1, max_size=3))
        tasks = draw(st.sampled_from([(1.0,), (0.0, 1.0), (0.3, 0.4, 0.3), (0.0, 0.0, 0.0, 1.0)]))
        if shape == "set of models":
            share = 1.0 if arrivals else 1.0 + k
            kinds.append(config.RequestClass(share, slo_s * (k + 1), 2e4 * k, "abc"[k], arrivals))
            tasks = ()
        more = {"after": after if k else None, "fan_out_shares": tasks if len(tasks) > 1 else ()}
        initial = config.Initial(cores=2, batch=2, replicas=draw(st.integers(1, 2)))
        stages.append(stage("abcd"[k], *names, **more, initial=initial))
    drop = draw(st.sampled_from(["none", "expired", "unmeetable"]))
    serving = config.Serving(drop, draw(st.sampled_from(["edf", "fifo"])))
    rate_rps = 20.0 if kinds and arrivals else draw(st.sampled_from([4.0, 20.0]))
    more = {"arrivals": config.Arrivals(rate_rps=rate_rps)}
    scenario = pipeline(*stages, serving=serving, slo_s=slo_s, classes=tuple(kinds), **more)
    plan = [[draw(_allocations(each)) for each in stages] for _ in range(3)]
    return scenario, plan, draw(st.integers(0, 1000))


def _allocations(stage):
    """Return what a controller may ask for without starting or stopping replicas."""
    numbers, count = st.integers(1, 4), len(stage.variants)
    variants = st.sampled_from([*range(count), *[BY_SLACK] * (count > 1)])
    return st.builds(StageAllocation, numbers, numbers, st.just(stage.initial.replicas), variants)


@settings(deadline=None, max_examples=50)
@given(episodes())
def test_it_does_what_the_plain_model_does(episode):
    compare(*episode)


def test_a_request_that_is_given_up_leaves_no_tasks_behind():
    first = stage("a", "video-detector", fan_out_shares=(0.2, 0.3, 0.5))
    flood = {"serving": config.Serving(drop="expired"), "arrivals": config.Arrivals(rate_rps=60.0)}
    scenario = pipeline(first, stage("b", "video-classifier"), **flood)
    compare(scenario, [[StageAllocation(1, 2), StageAllocation(1, 2)]], 3)


def test_one_listed_stage_is_a_scenario_of_its_own():
    listed, plain = pipeline(stage("only", "video-detector")), {"profile": "video-detector"}
    ledgers = []
    for scenario in (listed, pipeline(limits=LIMITS, **plain)):
        system = SimulatedSystem(scenario, 3)
        while not system.done:
            system.step(Allocation(4, 2))
        ledgers.append(system.columns())
    for name in ("outcome", "finished_s", "attempts", "batch_size", "replica"):
        np.testing.assert_array_equal(*(ledger[name] for ledger in ledgers))


FALLING = config.Variant("x", 0.8), config.Variant("y", 0.7)


@pytest.mark.parametrize(
    ("stages", "words"), [([("a", {}), ("a", {})], "of different names"),
     ([("a", {}), ("b", {"after": ("c",)})], "stage in stages.b.after"),
     ([("a", {}), ("b", {"after": ("b",)})], "none follows itself"),
     ([("a", {}), ("b", {"after": ("c",)}), ("c", {})], "listed before 'b'"),
     ([("a", {"after": ("b",)}), ("b", {})], "stages.a.after"),
     ([("a", {}), ("b", {"after": ()})], "where requests enter, each in one class"),
     ([(name, {}) for name in "abcdefghi"], "at most 8"), ([("a", {"variants": ()})], "not empty"),
     ([("a", {"variants": (config.Variant("x"), config.Variant("x"))})], "of different names"),
     ([("a", {"variants": FALLING})], "ascending order"), ([("a", {"fan_out": -1})], "at least 0"),
     ([("a", {"fan_out": 1000})], "at most 256"),
     ([("a", {"fan_out_shares": (0.5, math.nan)})], "at least 0"),
     ([("a", {"fan_out_shares": (0.0, 0.0)})], "above 0"),
     ([("a", {"initial": config.Initial(variant=1)})], "between 0 and 0"),
     ([("a", {"initial": config.Initial(cores=5)})], "between 1 and 4")],
)  # fmt: skip
def test_stages_that_make_no_pipeline_are_refused(stages, words):
    detector = stage("a", "video-detector")
    with pytest.raises(ConfigError, match=words):
        pipeline(*(dataclasses.replace(detector, name=name, **more) for name, more in stages))


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan])
def test_accuracies_lie_between_0_and_1(accuracy):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        config.Variant("x", accuracy)


@pytest.mark.parametrize(("batch", "ended_s"), [(2, [0.16, 0.26, 0.36]), (1, [0.22, 0.34, 0.46])])
def test_the_example_of_the_docs(tmp_path, batch, ended_s):
    first = stage("detector", with_service(tmp_path, "detector", 0.1), fan_out=2)
    second = stage("classifier", with_service(tmp_path, "classifier", 0.06))
    scenario = pipeline(first, second, slo_s=0.3, serving=config.Serving(drop="none"))
    sent_s = np.array([0.0, 0.05, 0.1])
    rest = sent_s + scenario.slo_s, np.zeros(3), np.zeros(3, np.int64)
    workload = Workload(np.arange(3), sent_s, sent_s, *rest)
    system = SimulatedSystem(scenario, seed=0, workload=workload)
    metrics = system.step(Allocation(stages=(StageAllocation(4, 1), StageAllocation(4, batch))))
    columns = system.columns()
    np.testing.assert_allclose(columns["finished_s"], ended_s, rtol=0, atol=1e-12)
    late = np.array(ended_s) - sent_s > scenario.slo_s
    assert list(columns["outcome"]) == ["late" if each else "on_time" for each in late]
    assert late.sum() == (batch == 1)
    detector, classifier = metrics.stages.values()
    assert (detector["joined"], detector["answered"], detector["batches"]) == (3, 3, 3)
    assert detector["waiting_mean_s"] == pytest.approx((0.0 + 0.05 + 0.1) / 3)
    assert detector["service_mean_s"] == pytest.approx(0.1)
    assert detector["utilisation"] == pytest.approx(0.3)
    assert (classifier["joined"], classifier["taken"], classifier["batch_mean"]) == (6, 6, batch)
    waited_s = [0.0, 0.06, 0.02, 0.08, 0.04, 0.1] if batch == 1 else [0.0]
    assert (classifier["waited_s"], classifier["cores"]) == (pytest.approx(sum(waited_s)), 4.0)
    assert (classifier["queued"], classifier["dropped"], classifier["switches"]) == (0, 0, 0)


@pytest.mark.parametrize(("spare_s", "end"), [(-1e-6, ("dropped", 0)), (1e-6, ("on_time", 1))])
def test_what_later_stages_need_is_no_time_for_this_one(spare_s, end):
    scenario = pipeline(stage("a", "video-detector"), stage("b", "video-classifier"))
    profiles = map(load_profile, ("video-detector", "video-classifier"))
    first, second = (each.service_table_s(LIMITS.batch, LIMITS.cores) for each in profiles)
    # On one core in the first stage, on all in the second, however fast the first could be.
    budget_s = first[0, 0] + second[0].min() + spare_s
    workload = Workload(*np.array([[0], [0.0], [0.0], [budget_s], [0.0], [0]]))
    system = SimulatedSystem(scenario, seed=0, workload=workload)
    system.step(Allocation(stages=(StageAllocation(1, 1), StageAllocation(LIMITS.cores, 1))))
    columns = system.columns()
    assert (columns["outcome"][0], columns["stage"][0]) == end


@pytest.mark.parametrize("seed", range(4))
def test_stages_share_every_node(seed):
    nodes, rng, seen = (5, 4, 2), np.random.default_rng(seed), set()
    stages = [stage(name, "video-classifier", limits=config.Limits(4, 2, 6)) for name in "abc"]
    scenario = pipeline(
        *stages, interval_s=0.1, arrivals=config.Arrivals(rate_rps=60.0),
        limits=config.Limits(cores=5, nodes=nodes), simulation=config.Simulation(cold_start_s=0.15),
    )  # fmt: skip
    system = SimulatedSystem(scenario, seed)
    for _ in range(60):
        drawn = rng.integers(1, (4, 2, 6), (3, 3), endpoint=True).tolist()
        fitted = system.spec.fit_stages([StageAllocation(*each) for each in drawn])
        system.step(Allocation(stages=fitted))
        rows = zip(system._arrays.replicas[0], system._arrays.stages[0]["replicas"], strict=True)
        held = np.concatenate([replicas[:count] for replicas, count in rows])
        assert (np.bincount(held["node"], held["cores"], len(nodes)) <= nodes).all()
        seen |= {*held["node"].tolist()}
    assert seen == {0, 1, 2}


def test_stages_share_the_machine():
    first = stage("a", "video-detector", initial=config.Initial(cores=4))
    second = stage("b", "video-classifier", initial=config.Initial(cores=2))
    scenario = pipeline(first, second, limits=config.Limits(cores=4, total_cores=6))
    system = SimulatedSystem(scenario, seed=1)
    held = system._arrays.stages[0]
    for cores in ((2, 4), (4, 2), (3, 3), (1, 1), (4, 2)):
        metrics = system.step(Allocation(stages=tuple(StageAllocation(each, 1) for each in cores)))
        assert (tuple(held["cores"]), metrics.cores) == (cores, pytest.approx(sum(cores)))
    with pytest.raises(ConfigError, match="more than the 6 cores of the machine"):
        system.step(Allocation(stages=(StageAllocation(4, 1), StageAllocation(3, 1))))
    # A replica that has to finish its batch keeps its cores until then.
    arrivals, network = config.Arrivals("constant", 200.0), config.Network("none")
    at_once = config.Simulation(noise=0.0, cold_start_s=0.0)
    more = {"interval_s": 0.1, "arrivals": arrivals, "network": network, "simulation": at_once}
    system = SimulatedSystem(dataclasses.replace(scenario, **more), seed=1)
    second, held = StageAllocation(4, 1), []
    for k in range(20):
        first = StageAllocation(1, 4, replicas=2) if k % 2 else StageAllocation(2, 4)
        held.append(system.step(Allocation(stages=(first, second))).cores)
    assert max(held) == pytest.approx(6.0)


def with_service(folder, name, service_s):
    """Write a profile whose batches of any size take the same time on any cores."""
    usual = load_profile("video-detector")
    latency = LatencyModel(gamma_s=0.0, delta_s=0.0, epsilon_s=0.0, eta_s=service_s)
    table = tuple((service_s,) * len(usual.cores) for _ in usual.batches)
    path = folder / f"{name}.json"
    save_profile(dataclasses.replace(usual, name=name, latency=latency, latency_s=table), path)
    return str(path)
