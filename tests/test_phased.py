"""Stepwise policies: what they see, how they decide, and how they are trained in phases."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scenarios import CHAIN, VARIANTS, short

from agents.history import (
    INPUTS,
    JOINT_LAYOUT,
    REMEMBERED,
    Scales,
    inputs_of,
    layout_of,
    remember,
)
from agents.learn import TrainingPlan, settings
from agents.learn.actor_critic import ActorCritic, Inputs, Weights, update
from agents.learn.collect import Prices, _compared, collect
from agents.learn.episodes import (
    OTHER_DELAYS_S,
    OTHER_LOAD,
    OTHER_SPEEDS,
    Episodes,
    Outcomes,
    other,
    perturbed,
)
from agents.learn.imitation import (
    DISTURBED_MOST,
    Demonstrations,
    _Disturbance,
    demonstrations,
    imitate,
)
from agents.learn.judge import (
    FEW_VIOLATIONS,
    JOINT_PROGRAMS,
    Judge,
    Judgement,
    always,
    best_programs,
    best_rules,
    cost,
    fixed_allocations,
    judgement,
    known_rules,
    play_fixed,
    program_alone,
)
from agents.learn.phased import Training, blinded, score_of, steps_left, train
from agents.learn.phases import PhasedConfig
from agents.learn.systems import Spending, simulator, spec_of
from agents.learn.training import check_checkpoint
from agents.learned import PolicyController, ppo_joint
from agents.lookahead.service_times import RATIO_RANGE, fitted_s
from agents.policy import POLICY_FILE, Policy, PolicyInfo, load_policy, save_policy
from agents.stepwise import REPLICAS_MOST, PolicyState, StageChoices
from sponge_env.env.factory import make_spec, make_system, scenario_profile
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.interfaces import ACCURACY_PRICE, Allocation
from sponge_env.run.executor import Inline
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Arrivals, Initial, Network, Simulation, Stage
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.simulation.encoding import JOINT

SCENARIO = short(duration_s=30.0)
SPEC = make_spec(SCENARIO, scenario_profile(SCENARIO))
CONFIG = PhasedConfig(
    rollout_steps=4,
    minibatch=16,
    epochs=1,
    hidden=(8, 8),
    evaluations=2,
    evaluation_episodes=1,
    choice_episodes=1,
    imitations=2,
    demonstrations=1,
    imitation_epochs=2,
    durations_s=(5.0, 9.0),
    every=4,
)
CHOICES = StageChoices.of(SPEC, CONFIG.batches)
FIT_S = fitted_s(SPEC)[0, 0]


def plan(
    folder: Path, *, steps: int = 128, seed: int = 0, resume: Path | None = None
) -> TrainingPlan:
    folder.mkdir(exist_ok=True)
    made = TrainingPlan((SCENARIO,), steps, envs=4, seed=seed, folder=folder, agent="ppo-joint")
    return dataclasses.replace(made, resume=resume)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the trainings of these tests measure out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.learn.judge.cache_dir", lambda: tmp_path_factory.getbasetemp())
        # Episodes this short are over before a process has begun (tests/test_cli.py has some).
        patch.setattr("agents.learn.judge.Processes", lambda count: Inline())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that many only read."""
    folder = tmp_path_factory.mktemp("phased") / "trained"
    train(plan(folder), CONFIG)
    return folder


def judged_at(share: float, cores: float = 3.0) -> Judgement:
    return Judgement(np.array([cores]), np.array([share]), np.array([[share]]))


def drawn_policy(seed: int = 0) -> Policy:
    """Return a policy that no training made, of large weights, so that it moves about."""
    torch.manual_seed(seed)
    model = ActorCritic(CONFIG, CHOICES, len(INPUTS), 1)
    with torch.no_grad():
        model.actor[-1].weight.normal_()
        model.actor[-1].bias.normal_()
    return Policy(info(), tuple(model.layers(Inputs(len(INPUTS)))))


def info() -> PolicyInfo:
    actions = SPEC.first.cores_max, len(CONFIG.batches), 3
    fingerprint = JOINT.fingerprint(SPEC)
    return PolicyInfo(
        "ppo-joint",
        fingerprint,
        ("short",),
        actions,
        INPUTS,
        steps=1,
        seed=0,
        batches=CONFIG.batches,
        every=CONFIG.every,
    )


def seen_over_time(
    observations: np.ndarray, batch_times: Sequence[Sequence[float]] | None = None
) -> np.ndarray:
    """Return the (time, n, inputs) that policies see of (time, n, fields) observations.

    ``batch_times`` (n, 3) are those of all intervals; no batch ends if left out.
    """
    count = observations.shape[1]
    scales = np.array([Scales.of(SPEC, CONFIG.every).row] * count)
    memory = np.full((count, len(REMEMBERED)), np.nan, np.float32)
    times = np.zeros((count, 3)) if batch_times is None else np.array(batch_times)
    shown = []
    for k, each in enumerate(observations):
        seen = np.zeros((count, len(INPUTS)), np.float32)
        at = JOINT_LAYOUT.requests, JOINT_LAYOUT.stages
        remember(each, times, FIT_S, np.full(count, k), scales, *at, memory, seen)
        shown.append(seen)
    return np.array(shown)


def test_what_is_remembered_begins_anew_and_is_the_same_for_one_and_for_many() -> None:
    observations = np.random.default_rng(0).random((40, 3, JOINT.obs_dim)).astype(np.float32)
    cells = (0.8, 1, 1), (1.2, 2, 3), (1.5, 3, 2)
    times = [(factor * FIT_S[c - 1, b - 1], b, c) for factor, b, c in cells]
    together = seen_over_time(observations, times)
    assert np.isfinite(together).all()
    assert len(set(together[-1, :, INPUTS.index("service_ratio")])) == 3
    for k in range(3):
        alone = seen_over_time(observations[:, k : k + 1], times[k : k + 1])
        assert np.array_equal(together[:, k : k + 1], alone)


def test_means_and_extremes_follow_the_arrivals() -> None:
    observations = np.zeros((100, 1, JOINT.obs_dim), np.float32)
    arrivals = JOINT.fields.index("arrivals_last")
    observations[1:50, 0, arrivals], observations[50:, 0, arrivals] = 0.2, 0.8
    seen = dict(zip(INPUTS, seen_over_time(observations)[:, 0].T, strict=True))
    assert seen["arrivals_mean_3s"][49] == pytest.approx(0.2)
    assert seen["arrivals_mean_3s"][53] == pytest.approx(0.8 - 0.6 * np.exp(-4 / 3), abs=1e-6)
    assert seen["arrivals_most"][50] == pytest.approx(0.8)
    assert 0.2 < seen["arrivals_least"][99] < 0.8 - 0.6 * np.exp(-50 / 60) + 1e-5
    assert seen["arrivals_before"][50] == pytest.approx(0.8)


def test_how_long_batches_take_is_remembered_relative_to_the_fit() -> None:
    at, fit_s = INPUTS.index("service_ratio"), FIT_S
    observations = np.zeros((200, 1, JOINT.obs_dim), np.float32)

    def ratios(factor: float, batch: float, cores: float) -> np.ndarray:
        row = fit_s[round(cores) - 1]
        mean_s = factor * float(np.interp(batch, np.arange(1, len(row) + 1), row))
        return seen_over_time(observations, [(mean_s, batch, cores)])[:, 0, at]

    for batch, cores in ((1.0, 1.0), (1.7, 2.9999), (SPEC.first.batch_max, SPEC.first.cores_max)):
        found = ratios(1.3, batch, cores)
        assert found[1] == 1.0
        assert found[21] == pytest.approx(1 + 0.3 * (1 - np.exp(-1)), abs=1e-6)
        assert found[-1] == pytest.approx(1.3, abs=1e-3)
    assert ratios(10.0, 1.0, 1.0)[-1] == pytest.approx(RATIO_RANGE[1], abs=1e-3)
    for nothing in ((0.0, 0.0, 0.0), (np.nan, np.nan, 2.0)):
        assert (seen_over_time(observations, [nothing])[:, 0, at] == 1.0).all()


def test_a_new_episode_begins_with_service_as_the_fit_says() -> None:
    at, state = INPUTS.index("service_ratio"), PolicyState([SPEC] * 2, CONFIG.every, CONFIG.batches)
    observations = np.zeros((2, JOINT.obs_dim), np.float32)
    slow = np.array([[2 * FIT_S[0, 0], 1.0, 1.0]] * 2)
    for number in range(4):
        state.intervals[:] = number
        state.see(observations, slow)
    assert (state.seen[:, at] > 1.05).all()
    begun = np.array([True, False])
    state.begin(begun, state, np.array([0]))
    state.see_some(begun, observations)
    assert state.seen[0, at] == 1.0 < state.seen[1, at]


def test_the_replicas_step_in_the_first_seconds_and_then_seldom() -> None:
    assert steps_up(every=20) == [*range(12), 20, 40]
    assert steps_up(every=0) == []


def steps_up(every: int) -> list[int]:
    """Return in which of 45 intervals another replica may be asked for."""
    state, due = PolicyState([SPEC], every, (1, 2)), []
    for k in range(45):
        due += [k] * bool(state.steps_allowed()[0, 0, 2])
        state.take(*np.ones((3, 1, 1), np.int64), np.zeros((1, 1), np.int64))
    return due


def test_a_controller_decides_like_the_judge(tmp_path: Path) -> None:
    policy = drawn_policy(0)
    save_policy(policy, tmp_path / POLICY_FILE)
    judged = Judge([SCENARIO], 1)(policy)
    system = make_system(SCENARIO, SEED_LIMIT)
    run = Run("ppo-joint", "short", "sim", SEED_LIMIT)
    played = run_episode(system, ppo_joint(str(tmp_path), guard=False), run)
    replicas = [interval.replicas for interval in played.intervals]
    assert len(set(replicas)) > 1, "the policy steps"
    assert played.summary.mean_cores == pytest.approx(float(judged.cores[0]), abs=1e-9)
    expected = played.summary.avoidable_violation_rate
    assert judged.violation_rate[0] == pytest.approx(expected, abs=1e-12)


def test_the_guard_answers_for_a_stepwise_policy_beyond_what_it_has_seen(tmp_path: Path) -> None:
    nothing = np.zeros((2, len(INPUTS)), np.float32)
    save_policy(dataclasses.replace(drawn_policy(), input_range=nothing), tmp_path / POLICY_FILE)
    run = Run("ppo-joint", "short", "sim", SEED_LIMIT)
    played = run_episode(make_system(SCENARIO, SEED_LIMIT), ppo_joint(str(tmp_path)), run)
    assert played.summary.guarded > 20
    assert played.summary.avoidable_violation_rate < 0.05


def test_no_decision_asks_for_more_than_the_machine_has() -> None:
    policy = drawn_policy(1)
    state = PolicyState([SPEC] * 64, CONFIG.every, CONFIG.batches)
    before, random = state.replicas.copy(), np.random.default_rng(1)
    for _ in range(60):
        shown = random.normal(0, 3, (64, JOINT.obs_dim)).astype(np.float32)
        may = state.steps_allowed()
        state.see(shown, None)
        asked = state.choose(policy.logits(state.seen))[:, 0].copy()
        assert (asked[:, 0] * asked[:, 2] <= SPEC.total_cores).all()
        assert may[np.arange(64), 0, asked[:, 2] - before[:, 0] + 1].all()
        assert np.isin(asked[:, 1], CONFIG.batches).all()
        before = asked[:, 2:3]
    assert before.max() > 1


def test_inputs_saturate() -> None:
    far = np.full((1, len(INPUTS)), 1e3, np.float32)
    assert np.array_equal(drawn_policy().logits(far), drawn_policy().logits(1e3 * far))


def test_replicas_go_on_from_those_of_the_guard() -> None:
    state = PolicyState([SPEC], CONFIG.every, (1,))
    for asked, followed in ((0, 1), (3, 3), (99, min(REPLICAS_MOST, SPEC.first.replicas_max))):
        state.follow(Allocation(1, 1, replicas=asked))
        assert state.replicas.tolist() == [[followed]]


def test_the_policy_file_decides_like_the_trained_networks() -> None:
    torch.manual_seed(0)
    model, inputs = ActorCritic(CONFIG, CHOICES, len(INPUTS), 1), Inputs(len(INPUTS))
    random = np.random.default_rng(0)
    seen = random.normal(2.0, 3.0, (500, len(INPUTS))).astype(np.float32)
    inputs.fit(seen)
    policy = Policy(info(), tuple(model.layers(inputs)))
    with torch.no_grad():
        expected = model.actor(inputs(seen)).numpy()
    assert policy.logits(seen) == pytest.approx(expected, abs=1e-4)


def test_inputs_are_told_by_mean_and_deviation() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, (300, len(INPUTS))).astype(np.float32)
    inputs = Inputs(len(INPUTS), hidden=[0])
    inputs.fit(values)
    assert inputs.mean == pytest.approx(values.mean(axis=0), abs=1e-3)
    assert inputs.variance == pytest.approx(values.var(axis=0), abs=1e-2)
    assert not inputs(values)[:, 0].any()


def test_sampled_actions_have_the_probabilities_that_an_update_finds() -> None:
    torch.manual_seed(0)
    model = ActorCritic(CONFIG, CHOICES, len(INPUTS), 1)
    shown, replicas = torch.randn(200, len(INPUTS)), torch.randint(1, 6, (200, 1))
    may = torch.rand(200, 1, 3) < 0.5
    may[..., 1] = True
    actions = model.sample(shown, replicas, may)
    again, entropy = model.judged(shown, actions)
    assert torch.allclose(again, actions.log_probability)
    assert (entropy > 0).all()
    asked = (actions.cores + 1) * (replicas + actions.steps - 1)
    assert (asked[replicas + actions.steps > 1] <= SPEC.total_cores).all()
    assert may.gather(2, actions.steps[..., None]).all()


def test_rewards_charge_cores_and_violations_in_core_seconds() -> None:
    prices = Prices(np.array([2.0, 5.0]), np.array([4.0, 1.0]))
    outcomes = Outcomes(np.array([4.0, 3.0]), np.array([1, 50]), np.zeros(2, np.bool_))
    rewards = prices.rewards(outcomes, np.array([0, 1]), most=30)
    assert rewards.tolist() == [1 - (4 + 2) / 4, 1 - (3 + 5 * 30) / 1]


def test_advantages_are_compared_within_their_scenario() -> None:
    random, scenario = np.random.default_rng(0), np.arange(40) % 2
    advantages = random.normal(size=(50, 40)).astype(np.float32)
    advantages[:, scenario == 1] *= 100
    advantages[0, 0] = -1e4
    compared = _compared(advantages, scenario, most=60.0)
    assert compared[0, 0] == -60
    assert compared[:, scenario == 1].std() == pytest.approx(1, abs=0.1)


def test_random_starts_stay_within_the_machine() -> None:
    episodes = Episodes([SCENARIO], 40, CONFIG, CONFIG.every, seed=0)
    assert len(set(episodes.state.replicas[:, 0].tolist())) > 1
    for _ in range(30):
        before = episodes.state.replicas.copy()
        over = episodes.step(
            *np.ones((3, 40, 1), np.int64), np.zeros((40, 1), np.int64)
        ).over.copy()
        assert np.array_equal(episodes.state.replicas, before)
        episodes.renew()
        assert (episodes.state.intervals[over] == 0).all()
    assert episodes.state.intervals.max() < 9
    episodes.close()


def test_where_replicas_never_step_episodes_begin_with_one() -> None:
    several = dataclasses.replace(SCENARIO, initial=Initial(1, 1, 3))
    episodes = Episodes([several], 40, CONFIG, 0, seed=0)
    assert set(episodes.state.replicas[:, 0].tolist()) == {1}
    assert not episodes.may_step[..., [0, 2]].any()
    episodes.close()


def shown(policy: Policy | None = None) -> Demonstrations:
    made = TrainingPlan((SCENARIO,), 1, envs=1, seed=0, folder=Path(), agent="ppo-joint")
    return demonstrations(made, CONFIG, CONFIG.every, JOINT_PROGRAMS[:1], 0, policy)


def test_the_program_shows_what_a_stepwise_policy_could_do() -> None:
    for found in (shown(), shown(drawn_policy())):
        assert np.isfinite(found.seen).all()
        replicas = found.replicas + found.steps - 1
        assert ((found.cores + 1) * replicas <= SPEC.total_cores).all()
        assert np.take_along_axis(found.may_step, found.steps[..., None], axis=-1).all()
        assert found.batches.max() < len(CONFIG.batches)


def test_demonstrations_go_where_the_policy_leads() -> None:
    policy = drawn_policy()
    found, state = shown(policy), PolicyState([SPEC], CONFIG.every, CONFIG.batches)
    state.replicas[:] = found.replicas[0]
    for k, seen in enumerate(found.seen):
        assert state.replicas[0] == found.replicas[k]
        state.choose(policy.logits(seen[None]))


def test_what_was_shown_becomes_probable() -> None:
    torch.manual_seed(0)
    model, inputs = ActorCritic(CONFIG, CHOICES, len(INPUTS), 1), Inputs(len(INPUTS))
    found = shown()
    imitate(model, inputs, found, dataclasses.replace(CONFIG, imitation_epochs=300))
    seen = inputs(found.seen)
    assert seen.mean(dim=0).abs().max() < 1
    replicas, may_step = torch.from_numpy(found.replicas), torch.from_numpy(found.may_step)
    drawn = model.sample(seen, replicas, may_step)
    alike = [
        np.mean(part.numpy() == own) for part, own in zip(drawn.chosen, found[1:5], strict=True)
    ]
    assert min(alike) > 0.7


def test_the_critic_reckons_in_what_is_usual_in_each_scenario() -> None:
    model = ActorCritic(CONFIG, CHOICES, len(INPUTS), 2)
    random, scenario = np.random.default_rng(0), np.arange(40) % 2
    returns = random.normal(0, 1, (50, 40)).astype(np.float32) * np.where(scenario, 1000, 20)
    for _ in range(200):
        model.rescale(returns.astype(np.float32), scenario)
    assert model.value_scale.numpy() == pytest.approx([20, 1000], rel=0.1)
    shown, known = torch.zeros(2, len(INPUTS)), torch.eye(2)
    before = model.values(shown, known)
    model.value_scale *= 2
    assert torch.allclose(model.values(shown, known), 2 * before)


def test_the_critic_learns_before_the_policy_which_leaves_the_program_slowly(
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(CONFIG, values_share=0.25, kickstart=0.8, kickstart_share=0.5)
    run = Training(plan(tmp_path), config, lambda steps, status: None)
    learnt = []
    for run.steps in (0, 32, 48, 64, 128):
        learnt.append((run.weights.actor, round(run.weights.shown, 6)))
    assert learnt == [(False, 0.8), (True, 0.4), (True, 0.2), (True, 0), (True, 0)]


def test_an_update_of_the_values_alone_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    run = Training(plan(tmp_path), CONFIG, lambda steps, status: None)
    with closing(Episodes([SCENARIO], 4, CONFIG, CONFIG.every, seed=0)) as episodes:
        batch = collect(run.model, run.inputs, episodes, run.prices, CONFIG)
    before = [each.clone() for each in run.model.actor.parameters()]
    critic = [each.clone() for each in run.model.critic.parameters()]
    optimizer = torch.optim.Adam(run.model.parameters())
    for actor in (False, True):
        update(run.model, optimizer, batch, CONFIG, Weights(actor, 0.0, 0.0), None)
        alike = map(torch.equal, before, run.model.actor.parameters())
        assert all(alike) is not actor
    assert not all(map(torch.equal, critic, run.model.critic.parameters()))


def test_what_was_shown_counts_in_an_update(tmp_path: Path) -> None:
    run = Training(plan(tmp_path), CONFIG, lambda steps, status: None)
    known = imitate(run.model, run.inputs, shown(), CONFIG)
    with closing(Episodes([SCENARIO], 4, CONFIG, CONFIG.every, seed=0)) as episodes:
        batch = collect(run.model, run.inputs, episodes, run.prices, CONFIG)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=0.01)
    with torch.no_grad():
        before = run.model.judged(*known)[0].mean()
    for _ in range(50):
        update(run.model, optimizer, batch, CONFIG, Weights(True, 0.0, 10.0), known)
    with torch.no_grad():
        assert run.model.judged(*known)[0].mean() > before + 0.5


def test_other_systems_are_scenarios_of_their_own_to_the_learner() -> None:
    config = dataclasses.replace(CONFIG, other_share=0.25)
    both = [SCENARIO, dataclasses.replace(SCENARIO, name="second")]
    with closing(Episodes(both, 40, config, CONFIG.every, seed=0, randomised=True)) as episodes:
        delays = episodes.seen[:, INPUTS.index("resize_delay")]
        assert np.bincount(episodes.scenario).tolist() == [15, 15, 5, 5]
        assert not delays[episodes.scenario < 2].any()
        assert delays[episodes.scenario >= 2].any()


def test_other_systems_are_told_to_the_policy_where_it_can_know_them() -> None:
    episodes = Episodes([SCENARIO], 200, CONFIG, CONFIG.every, seed=0, randomised=True)
    others = episodes.seen[episodes.scenario > 0]
    delays = set(others[:, INPUTS.index("resize_delay")].tolist())
    assert sorted(delays) == pytest.approx(OTHER_DELAYS_S, abs=1e-6)
    slos_s = np.exp(others[:, INPUTS.index("slo")])
    assert slos_s.min() < 0.9 < 1.1 < slos_s.max()
    cold_starts = others[:, INPUTS.index("cold_start")]
    assert cold_starts.min() < np.log1p(SPEC.first.cold_start_s) < cold_starts.max()
    episodes.close()


def test_another_system_keeps_what_gives_actions_their_meaning() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        drawn = other(SCENARIO, random)
        made = make_spec(drawn, scenario_profile(drawn))
        assert made.fingerprint == SPEC.fingerprint
        assert drawn.network.payload_bytes != SCENARIO.network.payload_bytes


def test_other_systems_are_busier_slower_and_half_of_their_networks_fade() -> None:
    random, usual = np.random.default_rng(0), SCENARIO.arrivals.rate_rps
    drawn = [other(SCENARIO, random) for _ in range(200)]
    rates, speeds = zip(
        *((each.arrivals.rate_rps, each.simulation.service_scale) for each in drawn), strict=True
    )
    assert usual is not None
    assert np.exp([-OTHER_LOAD, OTHER_LOAD]) == pytest.approx(
        (min(rates) / usual, max(rates) / usual), abs=0.02
    )
    assert (min(speeds), max(speeds)) == pytest.approx(OTHER_SPEEDS, abs=0.02)
    fading = [each.network for each in drawn if each.network.fade_every_s is not None]
    assert 70 < len(fading) < 130
    assert len({network.fade_depth for network in fading}) == len(fading)
    still = dataclasses.replace(SCENARIO, network=Network(trace="none"))
    assert all(other(still, random).network.fade_every_s is None for _ in range(20))


def test_the_best_rule_is_the_cheapest_with_few_violations() -> None:
    rule = judgement(best_rules(True, (SCENARIO,), 1))
    assert rule.violation_rate[0] <= 0.001
    assert 1 <= rule.cores[0] < 16


def test_rules_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.learn.judge.cache_dir", lambda: tmp_path)
    measured: list[int] = []
    asked = True, (SCENARIO,), 1, lambda: measured.append(1)
    rules, programs = known_rules(*asked)
    again, same = known_rules(*asked)
    np.testing.assert_array_equal(rules, best_rules(True, (SCENARIO,), 1))
    np.testing.assert_array_equal(rules, again)
    assert programs == same == best_programs(True, (SCENARIO,), 1)
    assert len(measured) == 1
    (kept,) = (tmp_path / "rules").iterdir()
    kept.write_text("damaged")
    assert known_rules(*asked)[1] == programs
    known_rules(False, *asked[1:])
    known_rules(True, (short(duration_s=31.0),), *asked[2:])
    assert len(measured) == 4
    monkeypatch.setattr("agents.learn.judge.cache_dir", lambda: Path("/proc/nowhere"))
    assert known_rules(*asked)[1] == programs


def test_where_programs_miss_many_a_fixed_allocation_may_be_the_rule() -> None:
    simulation = Simulation(actuation_delay_s=1.5, cold_start_s=0.0)
    arrivals = Arrivals(kind="bursty", load=0.45)
    hard = short(duration_s=60.0, arrivals=arrivals, simulation=simulation)
    played = (SCENARIO, hard), 5
    programs = [judgement(program_alone(name, *played)) for name in JOINT_PROGRAMS]
    rule = judgement(best_rules(True, *played))
    assert min(program.violation_rate[1] for program in programs) > FEW_VIOLATIONS
    assert all(cost(rule)[1] < cost(program)[1] for program in programs)
    assert rule.cores[0] in [program.cores[0] for program in programs]
    # Its figures are those of all episodes, and not of the few on which it was found.
    rows = product(range(1, 17), (1, 4, 8, 16), range(1, 9))
    every = np.array([row for row in rows if row[0] * row[2] <= 16])
    found = judgement(play_fixed([hard], every, 5, SEED_LIMIT))
    of_all = zip(found.cores[:, 0], found.violation_rate[:, 0], strict=True)
    assert (rule.cores[1], rule.violation_rate[1]) in set(of_all)
    # A vertical policy is not measured by what only replicas can do.
    alone = judgement(best_rules(False, (hard,), 5))
    assert cost(alone)[0] > cost(rule)[1]


def test_who_serves_nobody_is_no_rule_however_few_its_cores() -> None:
    beyond = short(duration_s=20.0, arrivals=Arrivals(rate_rps=200.0))
    program = judgement(program_alone("sponge-mpc", (beyond,), 1))
    idle = judgement(play_fixed([beyond], np.array([[1, 1, 1]]), 1, SEED_LIMIT))
    assert cost(idle)[0, 0] < cost(program)[0]
    rule = judgement(best_rules(False, (beyond,), 1))
    assert rule.violation_rate[0] <= program.violation_rate[0] < idle.violation_rate[0, 0]
    # Nor does it keep those from being found that serve more, on fewer cores.
    assert cost(rule)[0] < cost(program)[0]


def test_a_script_that_trains_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "trains.py"
    script.write_text(
        "from dataclasses import replace\n"
        "from agents.learn.judge import program_alone\n"
        "from sponge_env.scenario.scenario import load_scenario\n"
        "program_alone('sponge-joint', (replace(load_scenario('paper'), duration_s=2.0),), 1)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sponge_env.errors.ConfigError: sponge-joint plays in processes of its")
    assert last.endswith('a script that trains needs if __name__ == "__main__":')


def test_fixed_allocations_together_do_what_each_does_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.learn.judge._AT_ONCE", 3)  # so that they do not all fit
    rows, other_one = np.array([[4, 2, 1], [2, 1, 2]]), short(duration_s=40.0)
    together = judgement(play_fixed([SCENARIO, other_one], rows, 2, SEED_LIMIT))
    for row, cores, rates in zip(rows, together.cores, together.violation_rate, strict=True):
        judge = Judge([SCENARIO, other_one], 2)
        alone = judge.play(always(np.tile(row, (4, 1))))
        np.testing.assert_array_equal(alone.cores, cores)
        np.testing.assert_array_equal(alone.violation_rate, rates)


def test_replicas_begin_within_what_a_policy_knows() -> None:
    many = dataclasses.replace(SPEC, initial=Allocation(1, 1, replicas=SPEC.first.replicas_max))
    assert PolicyState([many], 1, (1,)).replicas[0, 0] == REPLICAS_MOST < SPEC.first.replicas_max


def test_violations_beyond_the_rules_count_against_a_policy() -> None:
    rule = judged_at(1e-3, cores=4.0)
    scores = [score_of(judged_at(rate), rule) for rate in (0, 2e-3)]
    assert scores[0] == pytest.approx(0.75)
    assert scores[1] == pytest.approx(0.75 + 0.9)


def test_prices_rise_where_violations_are_above_their_target(tmp_path: Path) -> None:
    run = Training(plan(tmp_path), CONFIG, lambda steps, status: None)
    run.target[:] = 1e-3
    before = run.prices.violation.copy()
    run._move_prices(judged_at(1e-2))
    assert (run.prices.violation > before).all()
    for _ in range(30):
        run._move_prices(judged_at(0.0))
    assert (run.prices.violation == before).all(), "never less than at first"


def test_a_training_goes_through_all_phases_and_can_be_followed(trained: Path) -> None:
    policy = load_policy(trained / POLICY_FILE)
    assert policy.info.planned == 128
    assert not policy.info.partial
    assert policy.input_range is not None
    assert (policy.input_range[0] <= policy.input_range[1]).all()
    assert list(trained.glob("events.out.tfevents.*"))
    assert steps_left(trained / "checkpoint.zip") == 0
    controller = PolicyController("ppo-joint", str(trained))
    system = make_system(SCENARIO, 0)
    assert run_episode(system, controller, Run("ppo-joint", "short", "sim", 0)).summary.offered


def test_a_vertical_policy_keeps_one_replica(tmp_path: Path) -> None:
    several = dataclasses.replace(SCENARIO, initial=Initial(1, 1, 3))
    made = dataclasses.replace(plan(tmp_path / "run"), agent="ppo", scenarios=(several,))
    policy = load_policy(train(made, CONFIG))
    assert policy.info.every == 0
    assert made.fingerprint == make_spec(several, scenario_profile(several)).fingerprint
    controller, asked = PolicyController("ppo", str(tmp_path / "run"), guard=False), []
    system = make_system(several, 0)
    controller.reset(system.spec, 0)
    while not system.done:
        asked.append(controller.decide(system.view()))
        system.step(asked[-1])
    assert {each.replicas for each in asked} == {1}
    assert len({each.cores for each in asked}) > 1


def test_each_scenario_has_the_program_that_is_cheapest_there() -> None:
    scenarios = tuple(short(duration_s=30.0, arrivals=Arrivals(load=load)) for load in (0.2, 0.8))
    chosen = best_programs(True, scenarios, 3)
    costs = [cost(judgement(program_alone(name, scenarios, 3))) for name in JOINT_PROGRAMS]
    assert chosen == [JOINT_PROGRAMS[place] for place in np.argmin(costs, axis=0)]
    assert len(set(chosen)) == 2
    assert best_programs(False, scenarios) == ["sponge-mpc"] * 2
    # On more episodes than it was chosen on, the rule is still what the chosen program reaches.
    rule = judgement(best_rules(True, scenarios, 3, looked_at=1))
    assert rule.cores[0] in [
        judgement(program_alone(name, scenarios, 3)).cores[0] for name in chosen
    ]


def test_a_randomised_training_knows_other_deployments(tmp_path: Path) -> None:
    train(dataclasses.replace(plan(tmp_path / "r"), randomised=True, envs=16), CONFIG)
    ranges = load_policy(tmp_path / "r" / POLICY_FILE).input_range
    assert ranges is not None
    delay = INPUTS.index("resize_delay")
    assert ranges[1, delay] == pytest.approx(max(OTHER_DELAYS_S))


def same(one: Path, other: Path) -> bool:
    layers = (load_policy(folder / POLICY_FILE).layers for folder in (one, other))
    return all(np.array_equal(a[0], b[0]) for a, b in zip(*layers, strict=True))


def test_the_same_seed_trains_the_same_policy(trained: Path, tmp_path: Path) -> None:
    train(plan(tmp_path / "same"), CONFIG)
    train(plan(tmp_path / "other", seed=1), CONFIG)
    assert same(trained, tmp_path / "same")
    assert not same(trained, tmp_path / "other")


def test_an_interrupted_training_goes_on_in_its_phase(tmp_path: Path) -> None:
    def interrupt(steps: int, status: str) -> None:
        if steps >= 80:
            raise KeyboardInterrupt

    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyboardInterrupt):
        train(plan(first), CONFIG, interrupt)
    assert load_policy(first / POLICY_FILE).info.partial
    left = steps_left(first / "checkpoint.zip")
    assert 48 <= left < 128
    seen: list[tuple[int, str]] = []
    resumed = plan(second, steps=left, resume=first / "checkpoint.zip")
    train(resumed, CONFIG, lambda *shown: seen.append(shown))
    assert seen[-1][0] == left
    assert not any("imitating" in status or "measuring" in status for _, status in seen)
    assert load_policy(second / POLICY_FILE).info.planned == 128


def test_a_checkpoint_of_phases_is_not_gone_on_with_on_the_real_worker(
    trained: Path, tmp_path: Path
) -> None:
    live = dataclasses.replace(plan(tmp_path / "live"), backend="live")
    with pytest.raises(PolicyError, match="was learned in phases and cannot go on without them"):
        check_checkpoint(trained / "checkpoint.zip", live)


def test_what_the_program_has_shown_counts_after_a_resume_too(tmp_path: Path) -> None:
    first, second = (Training(plan(tmp_path / name), CONFIG, noted) for name in "ab")
    first._imitate()
    first._choose(first.export(), np.inf)
    first.steps = 16
    first._move_prices(judged_at(1e-2))
    first.save()
    second.load(tmp_path / "a" / "checkpoint.zip")
    assert first._shown is not None
    assert second._shown is not None
    assert torch.equal(first._shown.seen, second._shown.seen)
    assert second._rates == first._rates


def noted(steps: int, status: str) -> None:
    """Report nothing."""


def test_what_is_kept_before_any_practice_knows_the_deployments_that_were_shown(
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(CONFIG, demonstrations=8)
    run = Training(dataclasses.replace(plan(tmp_path), randomised=True), config, noted)
    run._imitate()
    run._choose(run.export(), np.inf)
    ranges = load_policy(run.policy_path).input_range
    assert ranges is not None
    assert ranges[1, INPUTS.index("resize_delay")] > ranges[0, INPUTS.index("resize_delay")]


def test_others_choose_the_cores_now_and_then_for_some_intervals() -> None:
    usual = Allocation(3, 4, replicas=2)
    disturbance = _Disturbance(SPEC, seed=0)
    cores = [disturbance.of(usual).cores for _ in range(3000)]
    assert 0.05 < np.mean(np.array(cores) != 3) < 0.2
    assert max(cores) == SPEC.most_cores(2)
    longest = max(len(list(group)) for other, group in groupby(cores) if other != 3)
    assert 2 <= longest <= 2 * DISTURBED_MOST, "two in a row may choose the same"


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.zip").write_text("nothing")
    with pytest.raises(PolicyError, match="cannot be resumed"):
        steps_left(tmp_path / "checkpoint.zip")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batches": "2,4"}, "batches must ascend from 1"),
        ({"hidden": "0"}, "hidden must be"),
        ({"price": 0.0}, "price must be"),
        ({"price": 300.0}, "price must not exceed price_most, 200"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(PhasedConfig, {}, options)


@pytest.mark.parametrize("scenario", [SCENARIO, VARIANTS, CHAIN])
def test_what_is_simulated_is_learned_in_phases(scenario: Scenario, tmp_path: Path) -> None:
    made = dataclasses.replace(plan(tmp_path), scenarios=(scenario,))
    assert made.phased
    assert dataclasses.replace(made, agent="ppo").phased
    assert not dataclasses.replace(made, agent="maskable-ppo").phased
    assert not dataclasses.replace(made, backend="live").phased


@pytest.mark.parametrize(
    ("agent", "scenario", "actions"),
    [
        ("ppo", VARIANTS, (4, 4, 3, 3)),
        ("ppo-joint", VARIANTS, (4, 4, 3, 3)),
        ("ppo-joint", CHAIN, (4, 4, 3, 4, 4, 3, 2, 2, 4, 3)),
    ],
)
def test_variants_and_pipelines_are_learned_and_followed_like_one_model(
    agent: str, scenario: Scenario, actions: tuple[int, ...], tmp_path: Path
) -> None:
    longer = dataclasses.replace(scenario, duration_s=20.0)
    made = dataclasses.replace(
        plan(tmp_path / "run"), agent=agent, scenarios=(longer,), randomised=True, envs=16, seed=1
    )
    policy = load_policy(train(made, dataclasses.replace(CONFIG, every=2)))
    assert policy.info.actions == actions
    assert policy.info.inputs == made.inputs
    assert len(set(made.inputs)) == len(made.inputs)
    judged = Judge([longer], 1)(policy)
    run = Run(agent, scenario.name, "sim", SEED_LIMIT)
    system = make_system(longer, SEED_LIMIT)
    played = run_episode(system, PolicyController(agent, str(tmp_path / "run"), False), run)
    one = played.summary
    spent = one.mean_cores + Spending([longer]).of_episode(played.intervals) / one.duration_s
    assert spent > one.mean_cores, "some answers are not the most accurate ones"
    assert judged.cores[0] == pytest.approx(spent)
    assert judged.violation_rate[0] == pytest.approx(one.avoidable_violation_rate)


def test_all_stages_together_ask_for_no_more_than_the_machine_has() -> None:
    spec, random = spec_of(CHAIN), np.random.default_rng(0)
    state, held = PolicyState([spec] * 64, 1, (1, 2, 4)), []
    for _ in range(40):
        before, may = state.replicas.copy(), state.steps_allowed()
        logits = random.normal(0, 3, (64, sum(state.choices.actions))).astype(np.float32)
        asked = state.choose(logits).copy()
        held.append((asked[..., 0] * asked[..., 2]).sum(axis=1))
        assert (asked[..., :3] >= 1).all()
        assert (asked <= state.choices.limits).all()
        assert np.array_equal(state.replicas, asked[..., 2]), "without those that found no room"
        assert may[..., 2][asked[..., 2] > before].all()
    assert np.max(held) == spec.total_cores
    variants = state.choices.counts[:, 3].tolist()
    assert variants == [0, 2, 0], "the last stage's batches choose by themselves"


def test_a_policy_finds_its_inputs_wherever_they_stand() -> None:
    policy, order = drawn_policy(1), np.random.default_rng(0).permutation(len(INPUTS))
    (first, bias), *others = policy.layers
    inputs = tuple(INPUTS[k] for k in order)
    moved = dataclasses.replace(
        policy,
        info=dataclasses.replace(policy.info, inputs=inputs),
        layers=((first[:, order], bias), *others),
    )
    judge = Judge([SCENARIO], 1)
    assert judge(moved).cores == judge(policy).cores
    unknown = dataclasses.replace(policy.info, inputs=("no_such_field", *INPUTS[1:]))
    with pytest.raises(PolicyError, match="reads no_such_field, which"):
        judge(dataclasses.replace(policy, info=unknown))


def test_random_starts_of_all_stages_stay_within_the_machine() -> None:
    config, random = dataclasses.replace(CONFIG, random_starts=1.0), np.random.default_rng(0)
    seen = set()
    for number in range(200):
        drawn = perturbed(CHAIN, config, 1, number, random)  # a scenario checks that it fits
        seen.add(tuple((each.initial.replicas, each.initial.variant) for each in drawn.stages))
        assert list(map(begun_alike, drawn.stages)) == list(map(begun_alike, CHAIN.stages))
    assert len(seen) > 10
    alone = perturbed(CHAIN, config, 0, 0, random)
    assert [stage.initial.replicas for stage in alone.stages] == [1, 1, 1]


def begun_alike(stage: Stage) -> Stage:
    return dataclasses.replace(stage, initial=Initial())


def test_a_percent_of_accuracy_costs_what_it_does_to_the_programs() -> None:
    spending = Spending([VARIANTS, SCENARIO])
    # An interval of 30 requests at 30 per second, all answered by the model of 0.7, not 0.9.
    counts = {"on_time": (20, 0, 15), "late": (10, 0, 0), "accuracy": (0.7, 0.0, 1.0)}
    metrics = {name: np.array(values) for name, values in counts.items()}
    costs = spending.accuracy(metrics, np.array([0, 0, 1]))
    assert costs == pytest.approx([ACCURACY_PRICE * 100 * (1 - 0.7 / 0.9), 0.0, 0.0])


def test_inputs_of_a_pipeline_are_those_of_each_stage() -> None:
    spec = spec_of(CHAIN)
    layout = layout_of(spec)
    assert inputs_of(layout.fields) == layout.inputs
    observed = np.random.default_rng(0).random((1, len(layout.fields))).astype(np.float32)
    state = PolicyState([spec], 1, (1,))
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
    hidden = [layout.inputs[k] for k in blinded(layout.inputs, ("due", "age"))]
    due = [name for name in layout.inputs if ".due_" in name]
    assert hidden == [*due, "age_30s", "age_300s"]


def test_fixed_allocations_of_all_stages_find_room_and_can_be_the_rule() -> None:
    variants = fixed_allocations(VARIANTS, REPLICAS_MOST)
    assert len(variants) == len(np.unique(variants, axis=0)) == 4 * 2 * 3 * 3
    rows = fixed_allocations(CHAIN, REPLICAS_MOST)
    assert rows.shape[1:] == (3, 4)
    assert 1000 < len(rows) < 4097, "drawn ones"
    assert (rows[..., 0] * rows[..., 2]).sum(axis=1).max() == CHAIN.limits.machine_cores
    assert (rows[0, :, :3] == 1).all()
    assert (fixed_allocations(CHAIN, 1)[..., 2] == 1).all()
    simulator(2 * [CHAIN], np.zeros(len(rows), np.int64)).step(rows)  # which checks all limits
    programs = [judgement(program_alone(name, (CHAIN,), 2)) for name in JOINT_PROGRAMS]
    rule = judgement(best_rules(True, (CHAIN,), 2))
    assert cost(rule)[0] < min(cost(program)[0] for program in programs)


def test_policies_that_choose_other_things_are_refused(tmp_path: Path) -> None:
    policy = drawn_policy()
    fewer = dataclasses.replace(
        policy.info, actions=(SPEC.first.cores_max - 1, len(CONFIG.batches), 4)
    )
    save_policy(dataclasses.replace(policy, info=fewer), tmp_path / POLICY_FILE)
    with pytest.raises(PolicyError, match="chooses other things than there are"):
        PolicyController("ppo-joint", str(tmp_path)).reset(SPEC, 0)
