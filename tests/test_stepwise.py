"""Stepwise policies: what they see and remember, and what they may choose."""

import dataclasses
import math

import numpy as np
import pytest
from scenarios import CHAIN
from tiny_policies import BATCHES, EVERY, SCENARIO, SPEC, drawn_policy

from agents.history import INPUTS, JOINT_LAYOUT, REMEMBERED, layout_of, remember, units_of
from agents.learn import spec_of
from agents.learned import PolicyController
from agents.lookahead.service_times import RATIO_RANGE
from agents.policy import POLICY_FILE, save_policy
from agents.stepwise import MAX_REPLICAS, Form, PolicyState
from sponge_env import Allocation, make_system
from sponge_env.simulation.encoding import CLIP, JOINT

FIT_S = np.ascontiguousarray(SPEC.first.latency.table_s(16, 16).T)
SERVICE = INPUTS.index("service_ratio")


def seen_over_time(observations, batch_times=None):
    # ``batch_times`` (n, 4) are those of all intervals; no batch ends if left out.
    count = observations.shape[1]
    scales = np.array([units_of(SPEC, EVERY)] * count)
    memory = np.full((count, len(REMEMBERED)), np.nan, np.float32)
    times = np.zeros((count, 4)) if batch_times is None else np.array(batch_times)
    shown = []
    for k, each in enumerate(observations):
        seen = np.zeros((count, len(INPUTS)), np.float32)
        at = JOINT_LAYOUT.requests, JOINT_LAYOUT.stages
        counted = np.ones(count, np.bool_), np.full(count, k), scales
        remember(each, times, np.stack([FIT_S] * count), *counted, *at, memory, seen)
        shown.append(seen)
    return np.array(shown)


def test_what_is_remembered_begins_anew_and_is_the_same_for_one_and_for_many():
    observations = np.random.default_rng(0).random((40, 3, JOINT.obs_dim)).astype(np.float32)
    cells = (0.8, 1, 1), (1.2, 2, 3), (1.5, 3, 2)
    times = [(factor * FIT_S[c - 1, b - 1], b, c, 0) for factor, b, c in cells]
    together = seen_over_time(observations, times)
    assert np.isfinite(together).all()
    assert len(set(together[-1, :, SERVICE])) == 3
    for k in range(3):
        alone = seen_over_time(observations[:, k : k + 1], times[k : k + 1])
        assert np.array_equal(together[:, k : k + 1], alone)


def test_means_and_extremes_follow_the_arrivals():
    observations = np.zeros((100, 1, JOINT.obs_dim), np.float32)
    arrivals = JOINT.fields.index("arrivals_last")
    observations[1:50, 0, arrivals], observations[50:, 0, arrivals] = 0.2, 0.8
    seen = dict(zip(INPUTS, seen_over_time(observations)[:, 0].T, strict=True))
    assert seen["arrivals_mean_3s"][49] == pytest.approx(0.2)
    assert seen["arrivals_mean_3s"][53] == pytest.approx(0.8 - 0.6 * np.exp(-4 / 3), abs=1e-6)
    assert seen["arrivals_most"][50] == pytest.approx(0.8)
    assert 0.2 < seen["arrivals_least"][99] < 0.8 - 0.6 * np.exp(-50 / 60) + 1e-5
    assert seen["arrivals_before"][50] == pytest.approx(0.8)


def test_how_long_batches_take_is_remembered_relative_to_the_fit():
    observations = np.zeros((200, 1, JOINT.obs_dim), np.float32)

    def ratios(factor, batch, cores):
        row = FIT_S[round(cores) - 1]
        mean_s = factor * float(np.interp(batch, np.arange(1, len(row) + 1), row))
        return seen_over_time(observations, [(mean_s, batch, cores, 0.0)])[:, 0, SERVICE]

    for batch, cores in ((1.7, 2.9999), (SPEC.stages[0].batch_max, SPEC.stages[0].cores_max)):
        found = ratios(1.3, batch, cores)
        assert found[1] == 1.0
        assert found[21] == pytest.approx(1 + 0.3 * (1 - np.exp(-1)), abs=1e-6)
        assert found[-1] == pytest.approx(1.3, abs=1e-3)
    assert ratios(10.0, 1.0, 1.0)[-1] == pytest.approx(RATIO_RANGE[1], abs=1e-3)
    for nothing in ((0.0, 0.0, 0.0, 0.0), (np.nan, np.nan, 2.0, 0.0)):
        assert (seen_over_time(observations, [nothing])[:, 0, SERVICE] == 1.0).all()


def test_a_rate_beyond_what_an_observation_shows_is_counted():
    state, row = PolicyState([SPEC], Form(1, BATCHES)), np.zeros((1, JOINT.obs_dim), np.float32)
    row[0, JOINT.fields.index("arrivals_last")] = CLIP
    state.see(row, np.array([[0.0, 0.0, 0.0, 8 * SPEC.first.capacity_rps * SPEC.interval_s]]))
    assert state.seen[0, INPUTS.index("arrivals_mean_3s")] == pytest.approx(8)


def test_a_new_episode_begins_with_service_as_the_fit_says():
    state = PolicyState([SPEC] * 2, Form(EVERY, BATCHES))
    observations = np.zeros((2, JOINT.obs_dim), np.float32)
    slow = np.array([[2 * FIT_S[0, 0], 1.0, 1.0, 0.0]] * 2)
    for number in range(4):
        state.intervals[:] = number
        state.see(observations, slow)
    assert (state.seen[:, SERVICE] > 1.05).all()
    begun = np.array([True, False])
    state.begin(begun, state, np.array([0]))
    state.see(observations, None, begun)
    assert state.seen[0, SERVICE] == 1.0 < state.seen[1, SERVICE]


@pytest.mark.parametrize(("every", "intervals"), [(20, [*range(12), 20, 40]), (0, [])])
def test_the_replicas_step_in_the_first_seconds_and_then_seldom(every, intervals):
    state, due = PolicyState([SPEC], Form(every, (1, 2))), []
    logits = np.zeros((2, 1, sum(state.choices.actions)), np.float32)
    logits[0, 0, -1] = logits[1, 0, -3] = 1.0  # up from one replica, down from two
    for k in range(45):
        before = int(state.replicas[0, 0])
        state.see(np.zeros((1, JOINT.obs_dim), np.float32), None)
        due += [k] * bool(state.choose(logits[before - 1])[0, 0, 2] != before)
    assert due == intervals


def test_no_decision_asks_for_more_than_the_machine_has():
    for spec, sizes in ((SPEC, BATCHES), (spec_of(CHAIN), (1, 2, 4))):
        random, held, steps = np.random.default_rng(0), [], set[int]()
        state = PolicyState([spec] * 64, Form(1, sizes, holds_peak=False))
        for _ in range(40):
            before = state.replicas.copy()
            logits = random.normal(0, 3, (64, sum(state.choices.actions))).astype(np.float32)
            asked = state.choose(logits).copy()
            held.append((asked[..., 0] * asked[..., 2]).sum(axis=1))
            assert (asked[..., :3] >= 1).all()
            assert (asked <= state.choices.limits).all()
            assert np.isin(asked[..., 1], [*sizes, *state.choices.limits[:, 1]]).all()
            assert np.array_equal(state.replicas, asked[..., 2]), "without those without room"
            assert (asked[..., 2] <= before + 1).all()
            steps |= set((asked[..., 2] - before).flatten().tolist())
        assert np.max(held) == spec.total_cores
        assert {-1, 0, 1} <= steps
    assert (state.choices.counts[:, 3] > 0).tolist() == [len(s.variants) > 1 for s in CHAIN.stages]


def test_ready_replicas_get_what_those_that_start_leave():
    state = PolicyState([SPEC], Form(1, BATCHES))
    most, row = np.zeros((1, 16 + len(BATCHES) + 3)), np.zeros((1, JOINT.obs_dim))
    most[0, :16] = np.arange(16)
    most[0, -1] = 1.0  # one replica more
    row[0, JOINT.fields.index("replicas_ready")] = 2 / SPEC.first.replicas_max
    asked = []
    state.replicas[:] = 2
    for _ in range(4):
        state.see(row.astype(np.float32), None)
        asked.append(state.choose(most.astype(np.float32))[0, 0].tolist())
    assert SPEC.total_cores == 16
    assert [(cores, n) for cores, _, n, _ in asked] == [(7, 3), (7, 4), (6, 5), (6, 6)]


def test_replicas_stay_within_what_a_policy_knows():
    most, state = SPEC.stages[0].replicas_max, PolicyState([SPEC], Form(EVERY, (1,), replicas=8))
    for asked, followed in ((0, 1), (3, 3), (99, 8)):
        state.follow(Allocation(1, 1, replicas=asked))
        assert state.replicas.tolist() == [[followed]]
    state = PolicyState([SPEC], Form(EVERY, (1,)))
    state.follow(Allocation(1, 1, replicas=99))
    assert state.replicas.tolist() == [[min(MAX_REPLICAS, most)]]
    many = dataclasses.replace(SPEC, initial=Allocation(1, 1, replicas=most))
    assert PolicyState([many], Form(1, (1,), replicas=8)).replicas[0, 0] == 8 < most


def test_the_policy_goes_on_from_the_replicas_of_the_guard(tmp_path):
    nothing = np.zeros((2, len(INPUTS)), np.float32)
    save_policy(dataclasses.replace(drawn_policy(), input_range=nothing), tmp_path / POLICY_FILE)
    controller, system = PolicyController("ppo-joint", str(tmp_path)), make_system(SCENARIO, 0)
    controller.reset(system.spec, 0)
    for _ in range(12):
        answer = controller.decide(system.view())
        assert answer.guarded
        assert controller._state.replicas.tolist() == [[answer.replicas]]
        system.step(answer)


def test_inputs_of_a_pipeline_are_those_of_each_stage():
    spec = spec_of(CHAIN)
    layout = layout_of(spec)
    observed = np.random.default_rng(0).random((1, len(layout.fields))).astype(np.float32)
    state = PolicyState([spec], Form(1, (1,)))
    state.see(observed, None)
    shown = dict(zip(layout.inputs, state.seen[0].tolist(), strict=True))
    known = dict(zip(layout.fields, observed[0].tolist(), strict=True))
    for stage in spec.stages:
        name, requests = stage.name, stage.capacity_rps * spec.slo_s
        queue = math.log1p(known[f"{name}.queue_length"] * requests)
        assert shown[f"{name}.queue_length"] == pytest.approx(queue, rel=1e-6)
        held = known[f"{name}.cores"] * known[f"{name}.replicas"] * stage.replicas_max
        assert shown[f"{name}.cores_held"] == pytest.approx(held, rel=1e-6)
    assert shown["arrivals_mean_3s"] == pytest.approx(known["find.arrivals_last"], rel=1e-6)
    assert shown["cold_start"] == pytest.approx(math.log1p(1.5), rel=1e-6)
