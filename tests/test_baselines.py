"""Rules for one stage: fixed allocations, queue threshold, Kubernetes, FA2, Themis, throttling."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import NOTHING, busy_view, make_spec, make_view

from baselines.fa2 import FA2, largest_fleet, smallest_fleet
from baselines.kubernetes import HPA, HPAConfig, Scaler, desired_replicas
from baselines.rules import BatchConfig, QueueRule, Static, batch_size, static_8, static_16
from baselines.themis import Themis, grow
from sponge_env import Allocation
from sponge_env.metrics import IntervalMetrics

SPEC = make_spec()
PROFILES = st.sampled_from(["yolov5s", "resnet18"])


def decide(controller, *views, **spec):
    """Return the answer to the last of some views in a row."""
    controller.reset(make_spec(**spec), seed=0)
    return [controller.decide(view) for view in views or (make_view(),)][-1]


@pytest.mark.parametrize(
    ("rule", "held", "first"),
    [(QueueRule(batch_slo_share=0.01, down_after=1), Allocation(6, 9), Allocation(6, 1)),
     (HPA(batch_slo_share=0.01), Allocation(8, 2, 4), Allocation(1, 1, 4)),
     (FA2(), Allocation(4, 2, 3), Allocation(4, 2, 3)),
     (Themis(), Allocation(2, 3, 4), Allocation(2, 3, 4))],
)  # fmt: skip
def test_the_first_decision_keeps_what_a_rule_scales(rule, held, first):
    assert decide(rule, make_view(allocation=held)) == first


class TestStatic:
    def test_default_is_everything_and_the_limits_hold(self):
        assert decide(Static(), cores_max=12, batch_max=5) == Allocation(cores=12, batch=5)
        assert decide(static_8()) == Allocation(cores=8, batch=16)
        assert decide(static_16(), cores_max=4) == Allocation(cores=4, batch=16)
        assert decide(Static(cores=2, batch=99), busy_view(500)) == Allocation(cores=2, batch=16)

    @given(cores=st.integers(1, 16), share=st.floats(0.01, 1), profile=PROFILES)
    def test_the_batch_is_the_largest_that_fits(self, cores, share, profile):
        spec = make_spec(profile)
        batch = batch_size(BatchConfig(batch_slo_share=share), spec, cores)
        latency_s = spec.first.latency.table_s(16, 16)[:, cores - 1]
        assert batch == 1 or latency_s[batch - 1] <= share * spec.slo_s
        assert batch == 16 or latency_s[batch] > share * spec.slo_s


class TestQueueRule:
    @pytest.mark.parametrize(
        ("down_after", "queued", "held", "cores"),
        [(3, [5, 8, 0, 0, 0, 0, 0, 0], 4, [6, 9, 9, 9, 8, 8, 8, 7]),
         (1, [4, 2, 1, 3], 4, [4, 4, 4, 4]),  # between the thresholds
         (3, [0, 0, 3, 0, 0, 0], 4, [4, 4, 4, 4, 4, 3]),  # a busy interval interrupts
         (1, [0, 0], 2, [1, 1])],
    )  # fmt: skip
    def test_grows_at_once_and_shrinks_by_one_after_a_while(self, down_after, queued, held, cores):
        rule, answers = QueueRule(down_after=down_after), []
        rule.reset(SPEC, seed=0)
        for waiting in queued:
            view = busy_view(budgets_left_s=(0.5,) * waiting, allocation=Allocation(held, 1))
            held = rule.decide(dataclasses.replace(view, last=IntervalMetrics())).cores
            answers.append(held)
        assert answers == cores


def hpa_view(now_s, utilisation, replicas):
    """One-core replicas after an interval of one second."""
    last = IntervalMetrics(utilisation=utilisation, core_seconds=float(replicas))
    held = Allocation(cores=1, batch=1, replicas=replicas)
    return busy_view(now_s=now_s, allocation=held, replicas_ready=replicas, last=last)


class TestHPA:
    @staticmethod
    def started(controller):
        controller.reset(make_spec(initial=Allocation(1, 1, 4)), seed=0)
        return controller

    @pytest.mark.parametrize(
        ("ratio", "ready", "starting", "desired"), [(1.5, 4, 0, 6),
         (1.09, 4, 0, 4),  # within the tolerance
         (0.91, 4, 0, 4), (0.5, 4, 0, 2), (0.0, 4, 0, 0),
         (2.0, 2, 1, 4),  # the starting one counts as unused: 3 * 2 * 2/3
         (1.2, 2, 2, 4),  # that turns the direction round: no change
         (0.5, 2, 2, 1)],  # it has no say when scaling in
    )  # fmt: skip
    def test_recommendations_as_documented(self, ratio, ready, starting, desired):
        assert desired_replicas(ratio, ready, starting, ready + starting) == desired

    @pytest.mark.parametrize(("cores", "held"), [(3, (3, 5)), (99, (16, 1))])
    def test_replicas_of_any_size_find_room(self, cores, held):
        answer = decide(HPA(cores=cores), busy_view(allocation=Allocation(8, 2, 9)), nodes=(16,))
        assert (answer.cores, answer.replicas) == held

    def test_looks_once_per_period_at_the_mean_utilisation(self):
        controller = self.started(HPA(target=0.5))
        for second in range(1, 15):
            assert controller.decide(hpa_view(second, 1.0 if second < 8 else 0.5, 4)).replicas == 4
        # 7 s at 100 % and 8 s at 50 %: 73 % of a target of 50 %.
        assert controller.decide(hpa_view(15, 0.5, 4)).replicas == 6
        assert controller.decide(hpa_view(16, 1.0, 6)).replicas == 6

    def test_scales_in_only_after_its_window(self):
        controller = self.started(HPA(target=0.5, period_s=1, down_window_s=20, policy_s=1))
        replicas = [controller.decide(hpa_view(s, 0.1, 4)).replicas for s in range(1, 40)]
        assert (replicas[:20], set(replicas[20:])) == ([4] * 20, {1})

    def test_policies_bound_growth_within_their_period(self):
        scaler = Scaler(HPAConfig(policy_s=15.0), replicas=2)
        assert (scaler.scale(1.0, 2, 50, 16), scaler.scale(2.0, 6, 50, 16)) == (6, 6)
        assert scaler.scale(16.0, 6, 50, 64) == 12  # doubling is more than four
        assert scaler.scale(31.0, 12, 50, 16) == 16


def fa2_as_published(spec, rate, delay_s):
    """Return the first (replicas, batch) that fits, by the loops published for an SLO of 1 s."""
    rate *= spec.slo_s
    slo_ms, delay_ms = spec.slo_s * 1e3, delay_s * 1e3
    budget_ms = slo_ms - delay_ms
    for n in range(1, spec.first.replicas_max + 1):
        for b in range(1, spec.first.batch_max + 1):
            latency_ms = max(1, math.floor(float(spec.first.latency.predict_s(b, 1)) * 1e3))
            if latency_ms > budget_ms:
                continue
            if n * math.floor(budget_ms / latency_ms) * b < rate:
                continue
            if latency_ms + math.ceil(rate / (b * n)) * latency_ms + delay_ms < 0.9 * slo_ms:
                return n, b
    return None


OVERLOAD = busy_view(rate_rps=500, allocation=Allocation(cores=1, batch=2, replicas=1))


class TestFA2:
    @given(PROFILES, st.floats(0, 400), st.floats(0, 1.2), st.floats(0.1, 2.0))
    def test_equals_the_published_search(self, profile, rate, delay_s, slo_s):
        spec = make_spec(profile, slo_s=slo_s)
        answer = smallest_fleet(spec, rate, delay_s, slo_fraction=0.9)
        assert (answer and (answer.replicas, answer.batch)) == fa2_as_published(spec, rate, delay_s)

    def test_one_core_replicas_for_the_reference_load(self):
        view = busy_view(rate_rps=20, delay_s=0.1)
        # l(1, 1) = 136 ms: five replicas serve 20 requests in 4 rounds, 136 + 4 * 136 + 100 < 900.
        assert decide(FA2(), view) == Allocation(cores=1, batch=1, replicas=5)
        assert decide(FA2(), view, interval_s=2.0).replicas < 5
        slow = SPEC.first.latency.scaled(1.3)
        assert decide(FA2(headroom=0.3), view) == decide(FA2(), view, latency=slow)

    def test_where_nothing_fits_the_largest_fleet_or_as_published_what_there_is(self):
        answer = decide(FA2(), OVERLOAD)
        assert (answer.cores, answer.replicas, answer.feasible) == (1, 16, False)
        kept = decide(FA2(when_infeasible="keep"), OVERLOAD)
        assert (kept, kept.feasible) == (OVERLOAD.allocation, False)

    @pytest.mark.parametrize("slo_fraction", [0.2, 0.5, 1.0])
    def test_the_largest_fleet_has_the_fastest_batch_that_two_in_a_row_fit(self, slo_fraction):
        predict_s = SPEC.first.latency.predict_s
        latency_s = [math.floor(float(predict_s(b, 1)) * 1e3) / 1e3 for b in range(1, 17)]
        fit = [b for b in range(1, 17) if 2 * latency_s[b - 1] < slo_fraction * SPEC.slo_s]
        fastest = max(fit, key=lambda b: b / latency_s[b - 1], default=1)
        assert largest_fleet(SPEC, slo_fraction).batch == fastest

    def test_a_remembered_rate_keeps_replicas_through_a_lull(self):
        lull = busy_view(arrivals=np.array([30.0, 20.0, 1.0]))
        assert decide(FA2(), lull).replicas == 1
        silent = busy_view(arrivals=np.array([20.0, 0.0]), delays_s=NOTHING)
        assert decide(FA2(), silent).replicas == 1
        for windows, rate_rps in ((2, 20), (3, 30)):
            answer = decide(FA2(rate_windows=windows), lull)
            assert answer == decide(FA2(), busy_view(rate_rps=rate_rps))


class TestThemis:
    @staticmethod
    def meets(spec, answer, rate_rps, budget_s):
        """Return whether replicas keep up, and whether the first request of a batch is in time."""
        latency_s = float(spec.first.latency.predict_s(answer.batch, answer.cores))
        filling_s = (answer.batch - 1) * answer.replicas / rate_rps
        keeps_up = answer.replicas * answer.batch / latency_s >= rate_rps
        return keeps_up and filling_s + latency_s <= budget_s

    @given(PROFILES, st.integers(1, 6), st.floats(0.5, 300.0), st.floats(-0.2, 1.0))
    def test_growth_is_the_fewest_cores_that_keep_up(self, profile, replicas, rate_rps, budget_s):
        spec = make_spec(profile)
        answer = grow(spec, replicas, rate_rps, budget_s, 16)
        if answer.feasible:
            assert self.meets(spec, answer, rate_rps, budget_s)
        fewer = range(1, answer.cores if answer.feasible else 17)
        others = (Allocation(cores, batch, replicas) for cores in fewer for batch in range(1, 17))
        assert not any(self.meets(spec, other, rate_rps, budget_s) for other in others)

    def test_a_surge_grows_cores_and_a_load_that_stays_moves_to_one_core_replicas(self):
        view = busy_view(rate_rps=20, delay_s=0.1)
        surge = decide(Themis(), view)
        assert (surge.replicas, surge.feasible) == (1, True)
        assert surge.cores > 1
        stable = decide(Themis(), view, view, view)
        assert stable.replicas == 3
        assert stable.cores > 1, "one replica serves until the others are warm"
        warm = busy_view(rate_rps=20, delay_s=0.1, allocation=stable, replicas_ready=3)
        assert decide(Themis(), warm, warm, warm) == Allocation(cores=1, batch=1, replicas=3)
        slow = SPEC.first.latency.scaled(1.3)
        assert decide(Themis(headroom=0.3), view) == decide(Themis(), view, latency=slow) != surge

    def test_a_load_that_moves_changes_no_replicas(self):
        calm, busy = busy_view(rate_rps=5), busy_view(rate_rps=20)
        assert decide(Themis(rate_windows=1), calm, busy, calm, busy).replicas == 1
        hasty = Themis(rate_windows=1, stable_windows=1)
        assert decide(hasty, calm, busy, calm, busy).replicas == 3

    def test_replicas_start_only_beside_the_cores_that_are_needed_until_then(self):
        view = busy_view(rate_rps=20, delay_s=0.1)
        answer = decide(Themis(), view, view, view, nodes=(16,))
        assert (answer.cores, answer.replicas) == (7, 2)
        flood = busy_view(rate_rps=200, allocation=Allocation(1, 1, 4), replicas_ready=4)
        grown = decide(Themis(), flood, nodes=(16,))
        assert (grown.cores, grown.replicas) == (4, 4), "warm replicas do not go for larger ones"
        many = busy_view(rate_rps=80, allocation=Allocation(16, 4, 1), replicas_ready=1)
        assert not decide(Themis(), many, nodes=(16,)).feasible
        settled = decide(Themis(), many, many, many, nodes=(16,))
        assert settled.cores == 1 < settled.replicas, "one could not grow enough: room for others"
