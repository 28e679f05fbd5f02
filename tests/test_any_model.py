"""One policy for any model: what it sees of a system, in its own units, and its training."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scenarios import CHAIN, episode_of, short
from tiny_policies import BATCHES, CONFIG, SCENARIO, SPEC

from agents.history import INPUTS
from agents.learn import TrainingPlan, spec_of
from agents.learn.phased import train
from agents.learned import PolicyController
from agents.needs import CORES, STATIC
from agents.policy import ANY_MODEL, load_policy
from agents.stepwise import Form, PolicyState
from agents.training import MACHINES, machines
from sponge_env.errors import PolicyError
from sponge_env.scenario.config import Limits
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.encoding import JOINT
from sponge_env.simulation.randomised import random_systems
from sponge_env.simulation.traffic import rate_rps

FORM = Form(1, BATCHES, any_model=True)


def observation(**observed):
    """Return an observation of which some fields are given, and all others are 0."""
    return np.array([[observed.get(name, 0.0) for name in JOINT.fields]], np.float32)


def needs(spec, replicas=1, **observed):
    """Return what a policy sees of such an observation."""
    state = PolicyState([spec], FORM)
    state.replicas[:] = replicas
    state.see(observation(replicas_ready=replicas / spec.first.replicas_max, **observed), None)
    return dict(zip(INPUTS, state.seen[0].tolist(), strict=True))


def served_rps(spec, cores):
    """Return the rate of batches that take no more than 0.4 of the SLO."""
    row_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)[:, cores - 1]
    return max([size / s for size, s in enumerate(row_s, 1) if s <= 0.4 * spec.slo_s or size == 1])


@pytest.mark.parametrize("cores", [1, 3, 8])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_rate_needs_the_cores_that_serve_it(cores, replicas):
    rate = 0.9999 * replicas * served_rps(SPEC, cores)
    seen = needs(SPEC, replicas, arrivals_last=rate / SPEC.first.capacity_rps)
    for name in ("before", "mean_3s", "mean_10s", "mean_60s", "most"):
        assert seen[f"needed_arrivals_{name}"] == pytest.approx(cores, rel=1e-3)
    same = seen["fleet_same_arrivals_most"]
    assert same == pytest.approx(8 * replicas * cores / SPEC.total_cores, rel=1e-3)
    assert max(range(1, CORES + 1), key=lambda k: seen[f"now_{k}"]) == cores
    assert seen["room"] == SPEC.total_cores // replicas


def test_slow_service_needs_more_cores():
    state = PolicyState([SPEC], FORM)
    row, needed = observation(arrivals_last=served_rps(SPEC, 4) / SPEC.first.capacity_rps), []
    for _ in range(60):
        alone_s = float(SPEC.first.latency.table_s(1, 1)[0, 0])
        state.see(row, np.array([[1.5 * alone_s, 1.0, 1.0, 0.0]]))
        state.intervals += 1
        needed.append(state.seen[0, INPUTS.index("needed_arrivals_before")])
    assert needed[0] == pytest.approx(4, rel=1e-3)
    assert needed[-1] > 6


def test_the_cheapest_fleet_is_marked_where_the_replicas_may_step_to_it():
    rate = served_rps(SPEC, SPEC.first.cores_max) / SPEC.first.capacity_rps
    for replicas, cheapest in ((1, "more"), (16, "fewer")):
        seen = needs(SPEC, replicas, arrivals_last=rate / 2)
        marks = {name: seen[f"cheapest_{name}"] for name in ("fewer", "same", "more")}
        assert marks == {name: float(name == cheapest) for name in marks}
    assert needs(SPEC, 1, arrivals_last=0.0)["cheapest_same"] == 1.0
    one = dataclasses.replace(SPEC, nodes=(1,))
    assert needs(one, 1, arrivals_last=rate)["cheapest_more"] == 0.0, "there is no room"
    two = dataclasses.replace(SPEC, stages=(dataclasses.replace(SPEC.first, replicas_max=2),))
    assert needs(two, 2, arrivals_last=rate)["cheapest_more"] == 0.0, "there may be no third"


def test_no_replica_is_given_up_that_the_highest_rate_needs():
    state = PolicyState([SPEC], FORM)
    down = np.zeros((1, sum(state.choices.actions)), np.float32)
    down[0, CORES + len(BATCHES)] = 1.0
    rates = {n: n * served_rps(SPEC, SPEC.total_cores // n) / 1.15 for n in (1, 2, 4)}
    for fewest, rate in rates.items():
        row = observation(arrivals_last=0.999 * rate / SPEC.first.capacity_rps)
        state.intervals[:] = 0
        state.replicas[:] = 6
        for _ in range(8):
            state.see(row, None)
            state.choose(down)
        assert state.replicas[0, 0] == fewest


def test_what_is_late_soon_and_what_the_network_took_need_more_cores():
    calm = needs(SPEC)
    assert calm["needed_now"] == calm["needed_delay_mean"] == 1.0
    due = needs(SPEC, due_1_of_8=0.3)
    assert due["needed_due"] > 4 > calm["needed_due"] == 0.0
    assert due["needed_now"] == due["needed_due"]
    slow = needs(SPEC, delay_mean=0.86, delay_max=0.9)
    assert slow["needed_delay_max"] > slow["needed_delay_mean"] > 1
    assert slow["needed_now"] == slow["needed_delay_mean"]


def test_systems_of_the_same_shape_look_alike_in_their_own_units():
    """Twice as fast a model under twice the load and half the SLO needs the same cores."""
    profile, spec = scenario_profile(SCENARIO), dataclasses.replace(SPEC, slo_s=0.8)
    quick = dataclasses.replace(spec.first, latencies=(profile.planned.scaled(0.5),))
    fast = dataclasses.replace(spec, slo_s=0.4, stages=(quick,))
    observed = {"arrivals_last": 0.4, "delay_mean": 0.3, "delay_max": 0.5, "due_2_of_8": 0.1}
    one, other = needs(spec, 2, **observed), needs(fast, 2, **observed)
    for name in INPUTS[INPUTS.index(STATIC[0]) :]:
        if name != "served":  # in an interval, which is as long for both
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def test_random_systems_are_of_all_kinds_and_possible():
    with random_systems(np.random.default_rng(0), machines(60)) as systems:
        specs = [spec_of(each) for each in systems]
        profiles = [scenario_profile(each) for each in systems]
        rates = [rate_rps(*each) for each in zip(systems, profiles, strict=True)]
    assert {spec.total_cores for spec in specs} == set(MACHINES)
    assert len({each.arrivals.kind for each in systems}) == 5
    assert any(spec.first.cpu_cores < np.inf for spec in specs)
    assert len({profile.latency for profile in profiles}) == len(systems)
    for spec, profile, rate in zip(specs, profiles, rates, strict=True):
        assert profile.fastest_s(spec.first.cores_max) <= spec.slo_s / 2 + 1e-9
        assert 0 < rate <= 801
    assert not Path(systems[0].profile).exists()


@contextmanager
def short_systems(random, cores):
    with random_systems(random, cores) as drawn:
        yield [dataclasses.replace(each, duration_s=20.0) for each in drawn]


def test_a_policy_for_any_model_decides_on_systems_it_never_saw(tmp_path, quick_rules, monkeypatch):
    monkeypatch.setattr("agents.learn.programs.random_systems", short_systems)
    with short_systems(np.random.default_rng(1), machines(6)) as drawn:
        made = TrainingPlan(tuple(drawn), 96, 24, 0, tmp_path, agent="ppo-joint", systems=6)
        for_any = train(made, CONFIG)
    assert load_policy(for_any).info.fingerprint == ANY_MODEL
    small = short(profile="resnet18", limits=Limits(cores=3, batch=5, replicas=2, total_cores=5))
    many = short(limits=Limits(cores=24, batch=32, replicas=32, total_cores=64))
    for scenario in (SCENARIO, small, many):
        controller = PolicyController("ppo-joint", str(for_any), guard=False)
        limits, seen = spec_of(scenario).first, episode_of(scenario, controller).columns
        assert 1 <= seen["replicas"].min() <= seen["replicas"].max() <= limits.replicas_max
        assert seen["batch"].max() <= limits.batch_max
        assert seen["cores"].max() <= scenario.limits.machine_cores + 1e-9
    with pytest.raises(PolicyError, match="whose profile or stages"):
        PolicyController("ppo-joint", str(for_any)).reset(spec_of(CHAIN), 0)
