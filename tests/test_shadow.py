"""Fixed fleets that are played in the shadow of whoever decides."""

import copy
import dataclasses
from unittest.mock import Mock, call

import numpy as np
import pytest
from views import busy_view, make_spec, with_first

from agents.lookahead import SpongeJoint
from agents.rates import PastRates
from agents.shadow import ShadowFleets, ShadowState, play
from sponge_env.interfaces import Allocation, StageAllocation
from sponge_env.metrics import IntervalMetrics
from sponge_env.run.suite import cells, changed, load_suite, only
from sponge_env.scenario.config import Initial
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.workload import draw_workload

SPEC = make_spec(nodes=(16,))
SIZES = [(1, 16, 16), (3, 1, 2), (3, 1, 16), (4, 4, 8), (8, 1, 16), (7, 2, 4)]


# Times are twice too long in the table, and mended by scatter, pace and caution.
@pytest.mark.parametrize(("drop", "mended"), [("unmeetable", (0.25, 0.5, 2.0)),
                                              ("expired", (0.5, 9.0, 1.0))])  # fmt: skip
@pytest.mark.parametrize("name", ["swing-2-60s-0.75+yolov5s", "fades-0.4+resnet18",
                                  "classes-0.75+resnet18"])  # fmt: skip
def test_it_misses_what_the_core_counts(name, drop, mended):
    (cell,) = cells(only(load_suite("standard-v1"), f"{name}+warm"))
    shortened = {"warmup_s": 0.0, "duration_s": 60.0, "simulation.noise": 0.0}
    scenario = changed(cell, {**shortened, "serving.drop": drop})
    profile = scenario_profile(scenario)
    fifo = SimulatedSystem(changed(scenario, {"serving.order": "fifo"}), 5, profile)
    assert not fifo.spec.drops_early
    workload, shape = draw_workload(scenario, profile, 5), (len(SIZES), 2)
    fleets = ShadowState(
        np.array(SIZES), np.zeros((len(SIZES), 16)), np.zeros((len(SIZES), 1 << 12)),
        np.zeros(shape, np.int64), *np.zeros((2, len(SIZES)), np.int64), np.array(mended[:1]),
        *mended[1:], drop == "unmeetable",
    )  # fmt: skip
    table_s = np.ascontiguousarray(2 * profile.service_table_s(16, 16).T)
    due_s, arrival_s = workload.deadline_s, workload.arrival_s
    missed = np.zeros(len(SIZES), np.int64)
    for second in range(64):
        now = (arrival_s > second - 1e-12) & (arrival_s <= second + 1) & (second < 60)
        play(fleets, table_s, arrival_s[now], due_s[now], float(second), second + 1.0)
        missed += fleets.missed
    assert missed.max() > 100
    for (replicas, cores, batch), own in zip(SIZES, missed.tolist(), strict=True):
        started = scenario.starting_with([Initial(cores, batch, replicas)])
        system = SimulatedSystem(started, 5, profile, workload)
        assert system.spec.drops_early == fleets.drops_early
        while not system.done:
            system.step(Allocation(cores, batch, replicas))
        system.drain()
        # What comes in the last interval may be served under another rule.
        assert own == pytest.approx(sum(system.columns()["outcome"] != "on_time"), abs=2), cores


def shadow_of(spec, rate_rps, intervals, missed=0, together=False, cores=0.0):
    shadow = ShadowFleets(spec, table_s := spec.first.service_s(0))
    own = {"avoidable_violations": missed, "cores": cores}
    for second in range(1, intervals + 1):
        last = IntervalMetrics(offered=rate_rps, **own)
        came = {"arrived_s": np.full(rate_rps, second - 0.5)} if together else {}
        shadow.observe(busy_view(rate_rps=rate_rps, intervals=second, last=last, **came), table_s)
    return shadow


def test_the_cheapest_constant_is_held_where_the_own_decisions_miss_more():
    assert shadow_of(SPEC, 20, 29, missed=1).to_hold(29.0, overloaded=False) is None, "too early"
    shadow = shadow_of(SPEC, 20, 40, missed=1)
    held = shadow.to_hold(40.0, overloaded=False)
    assert held == StageAllocation(1, held.batch, 3)
    assert shadow_of(SPEC, 20, 40, 1, together=True).to_hold(40.0, overloaded=False).replicas == 4
    assert shadow.to_hold(639.0, overloaded=False) == held
    assert shadow_of(SPEC, 20, 40).to_hold(40.0, overloaded=False) is None
    flood = [shadow_of(SPEC, 150, 40, missed=n).to_hold(40.0, overloaded=False) for n in (47, 50)]
    assert flood == [None, StageAllocation(1, 1, 16)], "the best one misses 48 a second"
    assert [b for n, c, b in shadow._fleets.sizes.tolist() if (n, c) == (4, 4)] == [3, 1, 16]


def test_a_constant_is_held_that_takes_fewer_cores():
    for intervals, cores, replicas in ((300, 3.2, 0), (280, 3.4, 0), (300, 3.4, 3)):
        shadow = shadow_of(SPEC, 20, intervals, cores=cores)
        assert shadow.to_hold(300.0, overloaded=False) is None
        held = shadow.to_hold(300.0, overloaded=False, asked_for=5, thrifty=True)
        assert (held.replicas if held else 0) == replicas


def test_what_a_forgotten_peak_missed_counts_once_it_comes_again():
    shadow, held, table_s = ShadowFleets(SPEC, SPEC.first.service_s(0)), {}, SPEC.first.service_s(0)
    for second in range(1, 1181):
        rate_rps = 40 if 350 < second % 800 <= 400 else 8
        last = IntervalMetrics(offered=rate_rps, avoidable_violations=30 * (350 < second <= 400))
        shadow.observe(busy_view(rate_rps=rate_rps, intervals=second, last=last), table_s)
        if second in (400, 1035, 1180):
            held[second] = copy.deepcopy(shadow).to_hold(second, overloaded=False)
    assert held[1035] is None is not held[400] == held[1180]


def test_peaks_are_expected_for_longer_once_one_came_again_that_was_forgotten():
    ages = {}
    for period in (400, 700, 900, 5000, 7200):
        past = PastRates(SPEC)
        for second in range(7200):
            past.add(np.array([70.0 if second % period > period - 60 else 8.0 * (period < 7200)]))
        ages[period] = past.peak_ago
    assert ages == {400: 600, 700: 798, 900: 1048, 5000: 600, 7200: 600}
    assert PastRates(with_first(SPEC, cold_start_s=400.0)).peak_ago == 800


def test_it_is_held_for_twice_as_long_each_time():
    shadow, ends = shadow_of(SPEC, 20, 40, missed=1), [40.0]
    for seconds in (600.0, 1200.0, 2400.0, 3600.0, 3600.0):
        assert shadow.to_hold(ends[-1], overloaded=False) is not None
        ends.append(ends[-1] + seconds)
        assert shadow.to_hold(ends[-1] - 0.1, overloaded=False) is not None


def test_where_resizes_are_slow_it_is_held_from_the_beginning():
    slow = dataclasses.replace(SPEC, resize_delay_s=1.8)
    assert shadow_of(slow, 20, 9).to_hold(9.0, overloaded=False) is None
    assert shadow_of(slow, 20, 10).to_hold(10.0, overloaded=False).replicas == 3
    quick = dataclasses.replace(SPEC, resize_delay_s=0.2)
    assert shadow_of(quick, 20, 10).to_hold(10.0, overloaded=False) is None
    flood = shadow_of(slow, 200, 20)
    assert flood.to_hold(20.0, overloaded=True) is None, "no fleet survives it"
    assert flood.to_hold(20.0, overloaded=False) is not None


def test_a_fleet_is_reached_through_fleets_that_serve_the_load_or_once_staying_has_cost_as_much():
    twelve, many = StageAllocation(1, 16, 12), StageAllocation(1, 16, 16)
    shadow = shadow_of(SPEC, 70, 20)
    assert shadow.may_become(twelve, 12, 12)
    assert not shadow.may_become(twelve, 8, 8), "nine of one core serve less than eight of two"
    assert shadow_of(SPEC, 40, 20).may_become(twelve, 8, 8)
    # Eight of two cores miss 16 requests a second; with one core each, while others start, 46.
    for cold_start_s, before, after in ((10.0, 15, 30), (30.0, 40, 70)):
        spec = with_first(SPEC, cold_start_s=cold_start_s)
        assert not shadow_of(spec, 100, before).may_become(many, 8, 8)
        missing = shadow_of(spec, 100, after)
        assert missing.may_become(many, 8, 8)
        assert not missing.may_become(StageAllocation(2, 16, 8), 16, 16), "they miss nothing"
        assert not missing.may_become(many, 8, 14), "14 will be there as soon"
    large = with_first(dataclasses.replace(SPEC, nodes=(32,)), cores_max=32, replicas_max=32)
    more = shadow_of(large, 150, 20).may_become(StageAllocation(1, 16, 30), 19, 19)
    assert more, "19 replicas, known as 16, keep their cores meanwhile"


def asked_for(delay_s, rates_rps, held, missed=0):
    controller, asked = SpongeJoint(), []
    controller.reset(dataclasses.replace(SPEC, resize_delay_s=delay_s), seed=0)
    for second, rate_rps in enumerate(rates_rps, start=1):
        last = IntervalMetrics(offered=rate_rps, avoidable_violations=missed)
        seen = {"allocation": held, "replicas_ready": held.replicas, "last": last}
        asked.append(controller.decide(busy_view(rate_rps=rate_rps, intervals=second, **seen)))
    return asked


def test_replicas_get_room_to_start_once_staying_has_cost_as_much():
    asked = asked_for(1.8, [100] * 60, Allocation(2, 16, 8), missed=2)
    assert (asked[14].replicas, asked[-1].replicas) == (8, 15)


def test_fewer_replicas_drain_a_queue_until_the_overload_ends(monkeypatch):
    controller, held, constant = SpongeJoint(), [8], StageAllocation(1, 16, 8)
    controller.reset(SPEC, seed=0)
    shadow = Mock(**{"to_hold.return_value": constant, "best_batch.return_value": 16})
    monkeypatch.setattr(controller, "_shadow", shadow)
    for planned, overloaded in ((8, True), (4, True), (4, True), (4, False)):
        fleets = Mock(overloaded=overloaded, **{"replicas.return_value": [planned]})
        monkeypatch.setattr(controller, "_fleets", fleets)
        view = busy_view(allocation=Allocation(2, 16, held[-1]), replicas_ready=held[-1] - 1)
        held.append(controller.decide(view).replicas)
    assert held == [8, 8, 4, 4, 8]
    assert shadow.may_become.call_args_list == 2 * [call(constant, 3, 4)]


@pytest.mark.parametrize(("drops_early", "batch"), [(True, 8), (False, 2)])
def test_a_batch_is_larger_than_the_constants_only_if_it_shrinks(drops_early, batch, monkeypatch):
    controller, constant = SpongeJoint(), StageAllocation(4, 2, 3)
    controller.reset(dataclasses.replace(SPEC, drops_early=drops_early), seed=0)
    says = {"to_hold": constant, "best_batch": 2, "replicas": [3], "choose": Allocation(2, 8, 3)}
    fake = Mock(overloaded=False, **{f"{name}.return_value": says[name] for name in says})
    for part in ("_shadow", "_fleets", "_program"):
        monkeypatch.setattr(controller, part, fake)
    view = busy_view(allocation=Allocation(2, 8, 3), replicas_ready=3)
    assert controller.decide(view) == Allocation(4, batch, 3)


def test_the_controller_follows_a_load_only_where_resizes_are_quick():
    loads, held = [20] * 29 + [6] * 10, Allocation(1, 1, 3)
    cores = [asked_for(delay_s, loads, held)[-1].total_cores for delay_s in (0.0, 1.8)]
    assert cores[0] < cores[1] == 3
