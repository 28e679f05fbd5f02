"""``sponge-joint``: its queue, its fleet, and what it makes of an episode."""

import dataclasses
import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios import CHAIN, episode_of
from views import busy_view, make_spec, make_view, with_first

from agents import fleet, shadow
from agents.fleet import FleetPlanner, backlog_end_s
from agents.learn import spec_of
from agents.lookahead import SpongeJoint, SpongeJointConfig
from agents.lookahead.planner import replica_states
from agents.lookahead.service_times import ServiceTimes, StageTimes
from agents.rates import rate_samples, smoothed
from baselines.themis import Themis
from sponge_env import Allocation, load_scenario
from sponge_env.core.compiled import entry_point
from sponge_env.interfaces import RunningBatch
from sponge_env.latency import LatencyModel
from sponge_env.metrics import IntervalMetrics
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Serving

SPEC = make_spec(replicas_max=8)


def decide(view, spec=SPEC, **options):
    """Return the first decision of a new controller that keeps its replicas."""
    controller = SpongeJoint(**options)
    with patch.object(fleet, "_ALONE", (0.9, 0.99)):
        controller.reset(spec, seed=0)
    return controller.decide(view)


def test_replicas_that_share_a_cpu_are_not_worth_having():
    """Under perfect scaling four replicas on one CPU serve what one does with all of it."""
    latency = LatencyModel(gamma_s=0.1, delta_s=0.0, epsilon_s=0.0, eta_s=0.0)
    service_s = np.ascontiguousarray(latency.table_s(16, 16).T)
    view, sizes = busy_view(rate_rps=300, allocation=Allocation(16, 16, 1)), []
    for cpu_cores in (math.inf, 16.0):
        spec = with_first(SPEC, latencies=(latency,), cpu_cores=cpu_cores)
        planner = FleetPlanner(SpongeJointConfig(), spec)
        for _ in range(60):
            planner.observe(view)
        sizes.append(planner.replicas(view, service_s))
    assert sizes[0] > 1
    assert sizes[1] == 1


def test_more_ready_replicas_need_fewer_cores():
    fleets = ({"allocation": Allocation(4, 4, n), "replicas_ready": n} for n in (1, 2, 3, 4))
    cores = [decide(busy_view(**fleet)).cores for fleet in fleets]
    assert cores == sorted(cores, reverse=True)
    assert cores[0] > cores[-1] == 1
    starting = {"allocation": Allocation(4, 4, 3), "replicas_ready": 1, "starting_s": (6.0, 6.0)}
    assert decide(busy_view(**starting)).cores > cores[2]


def test_replicas_start_only_beside_the_cores_that_are_needed_until_then():
    machine = dataclasses.replace(with_first(SPEC, cores_max=11), nodes=(11,))
    starting = busy_view(allocation=Allocation(4, 4, 3), replicas_ready=1, starting_s=(6.0, 6.0))
    unbound, bound = decide(starting), decide(starting, machine)
    assert (bound.cores, bound.batch) == (unbound.cores, unbound.batch)
    assert unbound.replicas == bound.replicas == 3, "each that starts takes one core"
    flood = busy_view(rate_rps=400, allocation=Allocation(2, 4, 4), replicas_ready=4)
    answer = decide(flood, machine)
    assert answer.cores == 2
    assert answer.replicas == 4 + 11 - 4 * 2, "warm replicas do not go for larger ones"
    at_once, crowd = with_first(MACHINE, cold_start_s=0.0), [8.0] * 60 + [64.0] * 5
    assert [fleet_size(crowd, 3, 3, spec=s) for s in (MACHINE, at_once)] == [4, 16], "one is free"


def test_replicas_are_ready_or_start_or_are_asked_for_now():
    running = RunningBatch(4, 4.9, 5.3), RunningBatch(1, 4.9, 4.95), RunningBatch(2, 4.9, 5.1)
    (stage,) = make_view(now_s=5.0, replicas_ready=2, starting_s=(3.0,), running=running).stages
    times_s, sizes = zip(*replica_states(stage, 5.0, asked_s=10.0, replicas=4), strict=True)
    assert (times_s, sizes) == (pytest.approx((0.1, 0.3, 3.0, 10.0)), (2, 4, 0, 0))
    assert [size for _, size in replica_states(stage, 5.0, 10.0, replicas=1)] == [4]
    (idle,) = make_view(replicas_ready=2).stages
    assert replica_states(idle, 5.0, 10.0, replicas=2) == [(0.0, 0), (0.0, 0)]


def test_a_rate_that_lasts_is_followed_and_a_short_burst_is_not():
    assert rate_samples(np.array([20.0]), lag=20) == pytest.approx([20.0])
    assert rate_samples(np.full(100, 20.0), lag=20) == pytest.approx(20.0)
    slow = 20 + 10 * np.sin(np.arange(400) / 80)
    assert rate_samples(smoothed(slow), lag=10).mean() == pytest.approx(slow[-1], abs=2)
    bursts = np.where(np.arange(400) % 40 < 8, 60.0, 20.0)
    assert rate_samples(smoothed(bursts[:366]), lag=20).mean() < 45
    assert np.all(rate_samples(smoothed(bursts), lag=20) >= 0)
    ramp = smoothed(np.append(np.random.default_rng(0).poisson(20, 300), np.linspace(20, 40, 20)))
    assert rate_samples(ramp, lag=20).mean() == pytest.approx(ramp[-1], abs=1)
    assert rate_samples(ramp[:300], lag=20).mean() == pytest.approx(20, abs=1)


def fleet_size(rates, replicas, ready, starting_s=(), spec=SPEC, hopeless=0, waiting=0):
    planner, answer = FleetPlanner(SpongeJointConfig(), spec), 0
    held = {"allocation": Allocation(4, 1, replicas), "replicas_ready": ready}
    for left, rate in zip(reversed(range(len(rates))), rates, strict=True):
        last = IntervalMetrics(hopeless=hopeless if rate > 60 else 0)
        seen = {"starting_s": starting_s, "budgets_left_s": () if left else (0.5,) * waiting}
        view = busy_view(round(rate * spec.interval_s), last=last, **held, **seen)
        planner.observe(view)
        answer = planner.replicas(view, np.ascontiguousarray(SPEC.first.latency.table_s(16, 16).T))
    return answer


def test_a_fleet_grows_with_a_load_that_lasts_and_shrinks_again():
    assert fleet_size([20.0] * 60, replicas=1, ready=1) > 1
    assert fleet_size([20.0] * 60, replicas=4, ready=4) == 3
    assert fleet_size([5.0] * 60, replicas=4, ready=4) == 2
    assert fleet_size([2.0] * 60, replicas=4, ready=4) == 1
    # Those that start are not cancelled as long as they are needed.
    assert fleet_size([20.0] * 60, replicas=3, ready=2, starting_s=(4.0,)) == 3


TWO = Allocation(2, 4)


def interval(**changes):
    """Return an interval in which 100 batches of one request ran for 0.12 s on two cores."""
    values = {"requested_cores": 2, "core_seconds": 60.0, "utilisation": 0.4, "on_time": 90}
    batches = {"late": 10, "batch_mean": 1.0, "service_mean_s": 0.12}
    return IntervalMetrics(**values | batches | changes)


LIMITED = make_spec(cpu_cores=96.0)
TABLE_S = LIMITED.first.service_s(0)


def learned_s(*lasts, spec=LIMITED, **view):
    times = ServiceTimes(spec, TABLE_S)
    for last in lasts:
        times.observe(make_view(last=last, allocation=TWO, **view))
    return float(times.table_s[1, 0])


def test_a_batch_tells_how_much_longer_all_others_take_on_its_cores():
    times = ServiceTimes(LIMITED, TABLE_S)
    assert times.table_s == pytest.approx(1.03 * TABLE_S)
    # Between two sizes, batches take what lies between.
    expected_s = (TABLE_S[1, 0] + TABLE_S[1, 1]) / 2
    last = interval(batch_mean=1.5, service_mean_s=1.4 * expected_s, utilisation=0.0)
    changed_s = [times.observe(make_view(last=last, allocation=TWO)) for _ in range(50)]
    assert changed_s[0]
    assert not changed_s[-1], "it is worth nothing to plan with the same times anew"
    factor = times.table_s / TABLE_S
    assert factor[1] == pytest.approx(1.4, rel=0.01)
    assert 1.35 < factor[7, 0] < factor[1, 0], "other cores are taken to be as slow"
    nothing = interval(batch_mean=np.nan, service_mean_s=np.nan)
    assert not times.observe(make_view(last=nothing, allocation=TWO))


@pytest.mark.parametrize(
    ("changes", "starting_s", "spec", "expected_s"),
    [# 30 core-seconds for 100 batches on two cores, though each was done after 0.12 s.
     ({"utilisation": 0.5}, (), LIMITED, 0.15), ({"utilisation": 0.5}, (), SPEC, 0.12),
     # With serial parts, two cores are not busy all the time that a batch runs.
     ({"utilisation": 0.2}, (), LIMITED, 0.12),
     # Loading a model is no service.
     ({"utilisation": 0.5}, (3.0,), LIMITED, 0.12),
     ({"utilisation": 0.5, "restarts": 1}, (), LIMITED, 0.12)],
)  # fmt: skip
def test_a_batch_lasts_until_its_quota_is_granted(changes, starting_s, spec, expected_s):
    learned = learned_s(interval(**changes), starting_s=starting_s, spec=spec)
    assert learned == pytest.approx(expected_s, abs=0.01)


def test_intervals_in_which_replicas_loaded_or_changed_their_cores_tell_less():
    times = ServiceTimes(LIMITED, TABLE_S)
    times.observe(make_view(last=None, starting_s=(0.5,), allocation=TWO))
    times.observe(make_view(last=interval(utilisation=0.5), allocation=TWO))
    assert times.table_s[1, 0] == pytest.approx(0.12, abs=0.01)
    times = ServiceTimes(LIMITED, TABLE_S)
    times.observe(make_view(last=None, allocation=Allocation(3, 4)))
    assert not times.observe(make_view(last=interval(), allocation=TWO))
    assert times.observe(make_view(last=interval(), allocation=TWO))


def test_stages_of_different_limits_are_planned_with_their_own_service_times():
    times = StageTimes(spec_of(CHAIN))
    for k, stage in enumerate(CHAIN.stages):
        own_s = times.service_s[k, 0, : stage.limits.cores, : stage.limits.batch]
        assert own_s == pytest.approx(times.table_s(k, 0))


def test_what_is_learned_stays_near_the_profile():
    for spec, seen_s, factor in ((LIMITED, 10, 2), (SPEC, 1e-4, 0.5), (LIMITED, 1e-4, 1)):
        intervals = [interval(service_mean_s=seen_s, utilisation=0.0)] * 20
        assert learned_s(*intervals, spec=spec) == pytest.approx(factor * TABLE_S[1, 0], rel=0.02)


MACHINE = make_spec(nodes=(16,))


def test_more_than_the_ready_replicas_serve_is_planned_for_once_requests_must_be_late():
    held = Allocation(16, 8, 1)
    late = busy_view(rate_rps=38, allocation=held, budgets_left_s=(0.5,) * 60)
    answer = decide(late, MACHINE)
    assert answer.replicas > 2
    assert answer.cores < 15
    assert answer.cores + answer.replicas - 1 <= 16, "the ready one makes room"
    answer = decide(busy_view(rate_rps=20, allocation=held, budgets_left_s=(0.5,) * 60), MACHINE)
    assert (answer.replicas, answer.cores) == (2, 15), "a backlog that one can work off"
    answer = decide(busy_view(rate_rps=38, allocation=held, budgets_left_s=(0.5,) * 10), MACHINE)
    assert (answer.replicas, answer.cores) == (2, 15), "nobody is late yet, and room costs cores"
    answer = decide(late, MACHINE, overload_windows=0)
    assert (answer.replicas, answer.cores) == (2, 15)


def test_replicas_that_start_in_an_overload_are_not_given_up():
    starting = {"allocation": Allocation(1, 1, 12), "starting_s": (4.0,) * 11}
    overload = busy_view(rate_rps=30, budgets_left_s=(-2.0,) * 200, **starting)
    assert decide(overload, MACHINE).replicas == 12


@pytest.mark.parametrize(("rate_rps", "drops_early", "starts"), [
    (42, True, False), (42, False, True), (50, True, True),
])  # fmt: skip
def test_none_starts_where_more_are_dropped_meanwhile_than_after(rate_rps, drops_early, starts):
    held = {"allocation": Allocation(8, 8, 2), "replicas_ready": 2}
    late = busy_view(rate_rps=rate_rps, budgets_left_s=(0.1,) * 150, **held)
    spec = dataclasses.replace(MACHINE, drops_early=drops_early)
    assert (decide(late, spec).replicas > 2) is starts


def test_a_lull_in_an_overload_does_not_call_off_what_starts():
    controller, rates = SpongeJoint(), [8.0] * 60 + [50.0] * 3
    controller.reset(MACHINE, seed=0)

    def decided(held, starting_s, waiting):
        seen = {"arrivals": np.array(rates), "replicas_ready": 2, "starting_s": starting_s}
        queue = {"intervals": len(rates), "budgets_left_s": (-1.0,) * waiting}
        return controller.decide(busy_view(allocation=held, **seen, **queue))

    first = decided(Allocation(8, 6, 2), (), 80)
    assert first.replicas > 2
    starting_s = (7.0,) * (first.replicas - 2)
    assert decided(first, starting_s, 10).replicas == first.replicas, "two do not serve 50 rps"
    rates += [30.0] * 3
    assert decided(first, starting_s, 116).replicas == first.replicas, "nor so many in time"
    rates += [8.0]
    after = [decided(first, starting_s, 10).replicas for _ in range(16)]
    assert after[0] >= first.replicas > after[-1], "a rise may go on; then they have caught up"


@pytest.mark.parametrize("ready", [1, 8])
def test_a_rate_that_no_fleet_serves_gets_the_one_that_serves_most(ready):
    held = {"allocation": Allocation(16 // ready, 2, ready), "replicas_ready": ready}
    flood = busy_view(rate_rps=200, budgets_left_s=(-1.0,) * 300, **held)
    assert decide(flood, MACHINE).replicas == 16


@pytest.mark.parametrize("rate_rps", [32, 38, 45])
@pytest.mark.parametrize("waiting", [70, 300])
def test_an_overload_gets_few_replicas_with_which_it_ends_soon(rate_rps, waiting):
    sizes, service_s = np.arange(1, 17)[:, None], MACHINE.first.latency.table_s(16, 16)
    throughput_rps = np.where(service_s <= 0.4, sizes / service_s, 0.0).max(axis=0)

    def end_s(replicas):
        each_rps, backlog, now_s = throughput_rps[16 // replicas - 1], float(waiting), 0.0
        while backlog > 0 and now_s < 300:
            served_rps = replicas * each_rps
            if now_s < MACHINE.first.cold_start_s:  # a core goes to each that starts
                served_rps = throughput_rps[16 - replicas]
            backlog += 0.01 * (rate_rps - served_rps)
            now_s += 0.01
        return now_s

    queue = {"allocation": Allocation(16, 8, 1), "budgets_left_s": (-1.0,) * waiting}
    chosen = decide(busy_view(rate_rps=rate_rps, **queue), MACHINE).replicas
    ends_s = [end_s(replicas) for replicas in range(1, 17)]
    assert ends_s[chosen - 1] <= 1.55 * min(ends_s)
    nearly = next(k for k, end in enumerate(ends_s, 1) if end <= 1.25 * min(ends_s))
    assert chosen <= nearly, "more would be little sooner, and leave the ready one fewer cores"


@entry_point
def ended(waiting, before_rps, after_rps, change_s):
    return backlog_end_s(waiting, before_rps, after_rps, change_s)


@given(
    st.integers(0, 500), st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 20), st.floats(0, 1)
)
def test_a_backlog_ends_when_all_of_it_is_served(waiting, before_rps, after_rps, change_s, share):
    end_s = ended(waiting, before_rps, after_rps, change_s)

    def left(now_s):
        return waiting + before_rps * min(now_s, change_s) + after_rps * max(0, now_s - change_s)

    if after_rps >= 0:
        assert end_s == math.inf
    elif after_rps < -1e-6:
        assert left(end_s) == pytest.approx(0, abs=1e-6 * (1 + waiting))
        assert left(share * end_s) >= -1e-6


def test_load_steps_beyond_one_replica_are_followed():
    """The target is twice the late requests of Themis."""
    scenario, late = load_scenario("load-step"), []
    scenario = dataclasses.replace(scenario, serving=Serving(drop="none"))
    for fewest, controller in [(2, SpongeJoint()), (1, SpongeJoint()), (2, Themis())]:
        with patch.object(fleet, "_FEWEST", fewest):
            late.append(episode_of(scenario, controller, 1000).summary.late)
    pair, follows, themis = late
    assert pair < follows / 4, "two replicas follow a step to where one cannot"
    assert follows <= 2 * themis


def test_an_overload_is_followed_where_the_usual_fleet_would_not_be():
    steps = {"flash_factor": 6.0, "flash_s": 60.0, "flash_every_s": 120.0, "peak": 0.9}
    changes = {"duration_s": 240.0, "arrivals": {"kind": "flash-crowd", **steps}}
    scenario = changed(load_scenario("flash-crowd"), changes)
    both = (SpongeJoint(), SpongeJoint(overload_windows=0))
    with patch.object(shadow, "_JUDGED", math.inf):  # no constant takes the fleet's place
        missed = [episode_of(scenario, each, 1001).summary.violations for each in both]
    assert missed[0] < missed[1] / 2


def test_a_larger_fleet_that_does_not_serve_the_peak_is_not_chosen():
    """Of 16 cores, nine replicas have one each and serve 66 requests/s, eight of two cores 87."""
    assert [fleet_size([n] * 10 + [56] * 60, 9, 9, spec=MACHINE) for n in (56, 78)] == [9, 12]
    assert fleet_size([68] * 10 + [48] * 60, 6, 6, spec=make_spec(nodes=(16,), replicas_max=6)) == 5
    assert fleet_size([78] * 10 + [56] * 60, 9, 9, spec=MACHINE, waiting=80) == 8
    assert fleet_size([40] * 100 + [61] * 5, 5, 5, spec=MACHINE) == 5, "six serve less"


def test_none_starts_for_hopeless_requests_or_while_those_are_late_that_the_ready_ones_serve():
    fade, held = [20.0] * 60 + [0.0] * 3 + [80.0] + [20.0] * 5, {"replicas": 2, "ready": 2}
    assert [fleet_size(fade, hopeless=n, spec=MACHINE, **held) for n in (0, 60)] == [5, 2]
    assert [fleet_size([24.0] * 60, waiting=n, spec=MACHINE, **held) for n in (0, 50)] == [4, 2]


def test_a_rise_beyond_all_that_is_known_is_taken_to_go_on():
    rise = [10.0] * 60 + [10.0 + 3 * k for k in range(1, 11)]
    assert fleet_size(rise, replicas=2, ready=2) == 5
    assert fleet_size([40.0] * 10 + rise, replicas=2, ready=2) == 2, "it has been as high before"
    assert [fleet_size(rise + [20.0] * k, replicas=2, ready=2) for k in (8, 14)] == [4, 2]


def test_a_rise_is_as_fast_as_it_was_and_known_for_as_long_as_replicas_take_to_start():
    minutes = dataclasses.replace(SPEC, interval_s=60.0)
    assert fleet_size([10.0] * 20 + [20.0], replicas=2, ready=2, spec=minutes) == 2
    slow = with_first(SPEC, cold_start_s=600.0)
    assert fleet_size([16.0] * 400 + [10.0] * 5 + [16.0] * 295, replicas=2, ready=2, spec=slow) == 2


def test_a_load_that_grows_has_a_way_to_the_fleet_that_serves_most(tmp_path):
    """Eight replicas of two cores serve 87 requests/s, and 58 while others start beside them."""
    grows = [20 + k / 10 for k in range(300)]
    assert [fleet_size(grows, n, n, spec=MACHINE) for n in (5, 8, 9, 13)] == [8, 12, 9, 13]
    assert [fleet_size([50.0] * 300, n, n, spec=MACHINE) for n in (8, 13)] == [8, 8]
    (path := tmp_path / "ramp").write_text(" ".join(str(5 + k // 7) for k in range(600)))
    played = {"arrivals": {"kind": "trace", "file": str(path)}, "serving": {"drop": "unmeetable"}}
    played |= {"network": {"trace": "none"}, "duration_s": 600.0, "start": "warm"}
    summary = episode_of(changed(load_scenario("paper"), played), SpongeJoint(), 1000).summary
    assert (summary.violations, summary.mean_cores < 10) == (0, True)


def test_where_one_core_is_half_busy_there_are_two_replicas():
    assert fleet_size([8.0] * 10 + [1.0] * 60, replicas=2, ready=2) == 2
    assert fleet_size([8.0] * 10 + [1.0] * 600, replicas=2, ready=2) == 1
    assert fleet_size([1.0] * 60, replicas=2, ready=2) == 1
