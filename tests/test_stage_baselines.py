"""Rules for several stages and variants: IPA, FA2 on a chain, SlackFit, GrandSLAm."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scenarios import decisions

from agents.lookahead import SpongeMPC
from agents.sponge_ip import SpongeIP
from baselines.fa2 import FA2
from baselines.ipa import IPA, TICKS
from baselines.rules import GrandSLAm, SlackFit
from sponge_env import Allocation, load_scenario
from sponge_env.control.split import shares
from sponge_env.interfaces import BY_SLACK
from sponge_env.scenario.config import Arrivals, Variant
from sponge_env.simulation.system import SimulatedSystem


def played(name, controller, seconds=20.0):
    steady = Arrivals(kind="constant", rate_rps=24.0)
    scenario = dataclasses.replace(load_scenario(name), duration_s=seconds, arrivals=steady)
    system = SimulatedSystem(scenario, 1)
    *_, (view, answer) = decisions(system, controller)
    return system.spec, view, answer


def cheapest(spec, view, slo_fraction, cores):
    """Return the fewest cores of all allocations that IPA's program allows, by trying them."""
    rate_rps, tick_s = float(view.first.arrivals[-1]) / spec.interval_s, spec.slo_s / TICKS
    left = math.floor((slo_fraction * spec.slo_s - float(view.delays_s.max())) / tick_s)
    options = []
    for stage in spec.stages:
        table_s = stage.latencies[-1].table_s(stage.batch_max, stage.cores_max)[:, cores - 1]
        found = []
        sizes = range(1, stage.batch_max + 1), range(1, stage.replicas_max + 1)
        for batch, replicas in itertools.product(*sizes):
            rate = rate_rps * stage.mean_tasks
            if replicas * batch / table_s[batch - 1] >= rate:
                latency_s = table_s[batch - 1] + (batch - 1) / rate
                found.append((math.ceil(latency_s / tick_s - 1e-9), replicas * cores))
        options.append(found)
    ways = (map(sum, zip(*way, strict=True)) for way in itertools.product(*options))
    return min(held for ticks, held in ways if ticks <= left)


@pytest.mark.parametrize("name", ["pipeline-video", "pipeline-nlp", "pipeline-fanout"])
@pytest.mark.parametrize("cores", [1, 2])
def test_ipa_finds_the_fewest_cores(name, cores):
    ipa = IPA(cores=cores, mode="scale", slo_fraction=1.0, headroom=0.0, rate_windows=1)
    spec, view, answer = played(name, ipa)
    assert answer.feasible
    assert answer.total_cores == cheapest(spec, view, 1.0, cores)
    assert {stage.cores for stage in answer.stages} == {cores}


def test_fa2_on_a_chain_is_ipa_with_one_core_and_less_time():
    spec, view, answer = played("pipeline-video", FA2())
    assert answer.total_cores == cheapest(spec, view, 0.9, 1)


def test_ipa_in_its_modes():
    _, _, switched = played("variants", IPA(mode="switch", cores=16))
    assert switched.replicas == 1
    _, _, scaled = played("variants", IPA(mode="scale", cores=2))
    assert scaled.variant == 2
    assert scaled.replicas > 1
    _, _, cheap = played("variants", IPA(accuracy_price=0.0, cores=2))
    _, _, dear = played("variants", IPA(accuracy_price=100.0, cores=2))
    assert cheap.variant < dear.variant == 2
    assert cheap.total_cores < dear.total_cores


def test_ipa_asks_for_all_replicas_where_nothing_fits():
    _, _, answer = played("pipeline-video", IPA(slo_fraction=0.1))
    assert not answer.feasible
    assert [stage.replicas for stage in answer.stages] == [8, 8]


def test_slackfit_lets_batches_choose():
    spec, _, answer = played("variants", SlackFit(cores=12))
    assert answer == Allocation(12, spec.first.batch_max, 1, BY_SLACK)
    _, _, plain = played("pipeline-video", SlackFit())
    assert [stage.variant for stage in plain.stages] == [0, 0]


def test_grandslam_fills_the_slack_of_each_stage():
    spec, view, answer = played("pipeline-video", GrandSLAm(cores=2))
    for k, (share, after) in enumerate(shares(spec, "proportional")):
        stage, chosen = spec.stages[k], answer.stages[k]
        assert (chosen.cores, chosen.replicas) == (2, 1)
        due_s, slack_s = view.stages[k].queued_deadlines_s, share * spec.slo_s
        if due_s.size:
            slack_s = due_s[0] - view.now_s - after * spec.slo_s
        table_s = stage.latencies[0].table_s(stage.batch_max, stage.cores_max)[:, 1]
        assert chosen.batch == max([1, *1 + np.flatnonzero(table_s <= slack_s)])


def test_splits_take_any_variant_that_is_in_force_at_first():
    scenario = load_scenario("pipeline-video")
    models = Variant("video-classifier", 0.7), Variant("video-detector", 0.8)
    initial = dataclasses.replace(scenario.stages[0].initial, variant=1)
    first = dataclasses.replace(scenario.stages[0], variants=models, initial=initial)
    both = dataclasses.replace(scenario, stages=(first, scenario.stages[1]), duration_s=15.0)
    for controller in (SpongeIP(budget="equal"), SpongeMPC(), SpongeIP()):
        system = SimulatedSystem(both, 1)
        *_, (_, answer) = decisions(system, controller)
        assert answer.stages[0].variant == 1 or controller.plans(system.spec)


def test_the_look_ahead_trades_accuracy_for_cores():
    _, _, dear = played("variants", SpongeMPC(accuracy_price=50.0), 30.0)
    _, _, cheap = played("variants", SpongeMPC(accuracy_price=0.0), 30.0)
    assert (cheap.variant, dear.variant) == (0, 2)
    assert cheap.cores < dear.cores
