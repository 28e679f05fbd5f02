"""Training in phases: episodes, imitation, practice, and what is kept and resumed."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from scenarios import CHAIN, VARIANTS
from tiny_policies import BATCHES, CHOICES, CONFIG, EVERY, SCENARIO, SPEC, drawn_policy, plan

from agents.history import INPUTS
from agents.learn import settings, spec_of
from agents.learn.actor_critic import ActorCritic, Inputs
from agents.learn.command import check_checkpoint
from agents.learn.episodes import (
    OTHER_DELAYS_S,
    OTHER_LOAD,
    OTHER_SPEEDS,
    Episodes,
    Outcomes,
    other,
    perturbed,
    random_starts,
)
from agents.learn.evaluation import AccuracyCost, Evaluation, PolicyEvaluator
from agents.learn.imitation import (
    MAX_DISTURBED,
    Demonstrations,
    Disturbance,
    demonstrations,
    imitate,
)
from agents.learn.phased import Training, score_of, steps_left, train
from agents.learn.ppo import (
    MAX_ADVANTAGE,
    MAX_VIOLATIONS,
    Prices,
    Weights,
    _advantages,
    _compared,
    collect,
    update,
)
from agents.learned import PolicyController
from agents.policy import POLICY_FILE, Policy, load_policy
from agents.stepwise import PolicyState
from sponge_env.env.factory import make_system
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.interfaces import Allocation
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Initial, Network
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT

pytestmark = pytest.mark.usefixtures("quick_rules")

DURATIONS_S = CONFIG.durations_s
SEVERAL_REPLICAS = dataclasses.replace(SCENARIO, initial=Initial(1, 1, 3))


def networks(scenarios: int = 1) -> tuple[ActorCritic, Inputs]:
    torch.manual_seed(0)
    return ActorCritic((8, 8), CHOICES, len(INPUTS), scenarios), Inputs(len(INPUTS))


def in_training(folder: Path, **changes: object) -> Training:
    return Training(plan(folder, **changes), CONFIG, lambda steps, status: None)


def evaluated(rate: float, cores: float = 3.0) -> Evaluation:
    return Evaluation(np.array([cores]), np.array([rate]), np.array([[rate]]))


def demonstrated(policy: Policy | None = None) -> Demonstrations:
    made = dataclasses.replace(plan(Path()), steps=1)
    return demonstrations(made, CONFIG, EVERY, ["sponge-joint"], 0, policy)


def test_the_policy_file_decides_like_the_trained_networks() -> None:
    model, inputs = networks()
    seen = np.random.default_rng(0).normal(2.0, 3.0, (500, len(INPUTS))).astype(np.float32)
    inputs.fit(seen)
    assert inputs.mean == pytest.approx(seen.mean(axis=0), abs=1e-3)
    assert inputs.variance == pytest.approx(seen.var(axis=0), abs=1e-2)
    policy = dataclasses.replace(drawn_policy(), layers=tuple(model.layers(inputs)))
    with torch.no_grad():
        expected = model.actor(inputs(seen)).numpy()
    assert policy.logits(seen) == pytest.approx(expected, abs=1e-4)
    far = np.full((1, len(INPUTS)), 1e4, np.float32)
    assert np.array_equal(policy.logits(far), policy.logits(1e3 * far)), "inputs saturate"


def test_sampled_actions_have_the_probabilities_that_an_update_finds() -> None:
    model, _ = networks()
    inputs, replicas = torch.randn(200, len(INPUTS)), torch.randint(1, 6, (200, 1))
    may = torch.rand(200, 1, 3) < 0.5
    may[..., 1] = True
    actions, log_probability = model.sample(inputs, replicas, may)
    again, entropy = model.probabilities(inputs, actions)
    assert torch.allclose(again, log_probability)
    assert (entropy > 0).all()
    requested = (actions.cores + 1) * (replicas + actions.steps - 1)
    assert (requested[replicas + actions.steps > 1] <= SPEC.total_cores).all()
    assert may.gather(2, actions.steps[..., None]).all()


def test_rewards_charge_cores_and_violations_in_core_seconds() -> None:
    prices = Prices(np.array([2.0, 5.0]), np.array([4.0, 1.0]))
    outcomes = Outcomes(np.array([4.0, 3.0]), np.array([1, 50]), np.zeros(2, np.bool_))
    rewards = prices.rewards(outcomes, np.array([0, 1]))
    assert rewards.tolist() == [1 - (4 + 2) / 4, 1 - (3 + 5 * MAX_VIOLATIONS) / 1]


def test_advantages_sum_up_errors_until_the_end_of_the_episode() -> None:
    config = dataclasses.replace(CONFIG, gamma=0.5, gae_lambda=0.5)
    column = np.float32([[1.0, 1.0]])
    rewards, values, following = ([factor * column[0]] * 3 for factor in (2, 1, 4))
    over = [np.array([False, False]), np.array([False, True]), np.array([False, False])]
    found = _advantages(rewards, over, values, following, config)
    assert found.T.tolist() == [[3 + 3 / 4 + 3 / 16, 3 + 3 / 4, 3], [3 + 3 / 4, 3, 3]]


def test_advantages_are_compared_within_their_scenario() -> None:
    random, scenario = np.random.default_rng(0), np.arange(40) % 2
    advantages = random.normal(size=(50, 40)).astype(np.float32)
    advantages[:, scenario == 1] *= 100
    advantages[0, 0] = -1e4
    compared = _compared(advantages, scenario)
    assert compared[0, 0] == -MAX_ADVANTAGE
    assert compared[:, scenario == 1].std() == pytest.approx(1, abs=0.1)


def test_the_critic_has_a_unit_for_each_scenario() -> None:
    model, _ = networks(scenarios=2)
    random, scenario = np.random.default_rng(0), np.arange(40) % 2
    returns = random.normal(0, 1, (50, 40)).astype(np.float32) * np.where(scenario, 1000, 20)
    for _ in range(200):
        model.rescale(returns.astype(np.float32), scenario)
    assert model.value_scale.numpy() == pytest.approx([20, 1000], rel=0.1)
    inputs, known = torch.zeros(2, len(INPUTS)), torch.eye(2)
    before = model.values(inputs, known)
    model.value_scale *= 2
    assert torch.allclose(model.values(inputs, known), 2 * before)


def test_random_starts_stay_within_the_machine() -> None:
    with closing(Episodes([SCENARIO], 40, DURATIONS_S, EVERY, seed=0)) as episodes:
        assert len(set(episodes.state.replicas[:, 0].tolist())) > 1
        for _ in range(30):
            before = episodes.state.replicas.copy()
            stay = *np.ones((3, 40, 1), np.int64), np.zeros((40, 1), np.int64)
            over = episodes.step(*stay).over.copy()
            assert np.array_equal(episodes.state.replicas, before)
            episodes.renew()
            assert (episodes.state.intervals[over] == 0).all()
        assert episodes.state.intervals.max() < 9
    with closing(Episodes([SEVERAL_REPLICAS], 40, DURATIONS_S, 0, seed=0)) as episodes:
        assert set(episodes.state.replicas[:, 0].tolist()) == {1}
        assert not episodes.may_step[..., [0, 2]].any()


def test_random_starts_of_all_stages_stay_within_the_machine() -> None:
    random, seen = np.random.default_rng(0), set()
    for number in range(200):
        starts = random_starts(CHAIN, 1, random)
        assert sum(each.cores * each.replicas for each in starts) <= CHAIN.limits.machine_cores
        seen.add(tuple((each.replicas, each.variant) for each in starts))
        drawn = perturbed(CHAIN, DURATIONS_S, 1, number, random)  # a scenario checks that it fits
        for one, own in zip(drawn.stages, CHAIN.stages, strict=True):
            assert dataclasses.replace(one, initial=own.initial) == own
        assert 0.95 <= drawn.slo_s / CHAIN.slo_s <= 0.99
        assert DURATIONS_S[0] <= drawn.duration_s <= DURATIONS_S[1]
    assert len(seen) > 10
    assert [each.replicas for each in random_starts(CHAIN, 0, random)] == [1, 1, 1]


def test_other_systems_are_scenarios_of_their_own_which_the_policy_can_tell() -> None:
    both = [SCENARIO, dataclasses.replace(SCENARIO, name="second")]
    with closing(Episodes(both, 400, DURATIONS_S, EVERY, 0, randomised=True)) as episodes:
        assert np.bincount(episodes.scenario).tolist() == [160, 160, 40, 40]
        own, others = (episodes.seen[episodes.scenario // 2 == k] for k in (0, 1))
        seen = {
            name: others[:, INPUTS.index(name)] for name in ("slo", "resize_delay", "cold_start")
        }
        assert not own[:, INPUTS.index("resize_delay")].any()
    assert sorted(set(seen["resize_delay"].tolist())) == pytest.approx(OTHER_DELAYS_S, abs=1e-6)
    assert np.exp(seen["slo"]).min() < 0.9 < 1.1 < np.exp(seen["slo"]).max()
    usual = np.log1p(SPEC.stages[0].cold_start_s)
    assert seen["cold_start"].min() < usual < seen["cold_start"].max()


def test_other_systems_are_busier_slower_and_half_of_their_networks_fade() -> None:
    random, usual = np.random.default_rng(0), SCENARIO.arrivals.rate_rps
    drawn = [other(SCENARIO, random) for _ in range(200)]
    assert {spec_of(each).fingerprint for each in drawn} == {SPEC.fingerprint}
    assert len({each.network.payload_bytes for each in drawn}) == 200
    rates, speeds = zip(
        *((each.arrivals.rate_rps, each.simulation.service_scale) for each in drawn), strict=True
    )
    assert usual is not None
    extremes = min(rates) / usual, max(rates) / usual
    assert np.exp([-OTHER_LOAD, OTHER_LOAD]) == pytest.approx(extremes, abs=0.02)
    assert (min(speeds), max(speeds)) == pytest.approx(OTHER_SPEEDS, abs=0.02)
    fading = [each.network for each in drawn if each.network.fade_every_s is not None]
    assert 70 < len(fading) < 130
    assert len({network.fade_depth for network in fading}) == len(fading)
    still = dataclasses.replace(SCENARIO, network=Network(trace="none"))
    assert all(other(still, random).network.fade_every_s is None for _ in range(20))


def test_the_program_demonstrates_what_a_stepwise_policy_could_do() -> None:
    policy = drawn_policy()
    led = demonstrated(policy)
    for found in (demonstrated(), led):
        assert np.isfinite(found.seen).all()
        replicas = found.replicas + found.steps - 1
        assert ((found.cores + 1) * replicas <= SPEC.total_cores).all()
        assert np.take_along_axis(found.may_step, found.steps[..., None], axis=-1).all()
        assert found.batches.max() < len(BATCHES)
    # Demonstrations go where the policy leads.
    state = PolicyState([SPEC], EVERY, BATCHES)
    state.replicas[:] = led.replicas[0]
    for k, seen in enumerate(led.seen):
        assert state.replicas[0] == led.replicas[k]
        state.choose(policy.logits(seen[None]))


def test_random_cores_replace_the_programs_now_and_then_for_some_intervals() -> None:
    usual, disturbance = Allocation(3, 4, replicas=2), Disturbance(SPEC, seed=0)
    cores = [disturbance.apply(usual).cores for _ in range(3000)]
    assert 0.05 < np.mean(np.array(cores) != 3) < 0.2
    assert max(cores) == SPEC.total_cores // 2
    longest = max(len(list(group)) for each, group in groupby(cores) if each != 3)
    assert 2 <= longest <= 2 * MAX_DISTURBED, "two in a row may choose the same"


def test_what_was_demonstrated_becomes_probable() -> None:
    model, inputs = networks()
    shown = demonstrated()
    imitate(model, inputs, shown, dataclasses.replace(CONFIG, imitation_epochs=300))
    seen = inputs(shown.seen)
    assert seen.mean(dim=0).abs().max() < 1
    replicas, may_step = torch.from_numpy(shown.replicas), torch.from_numpy(shown.may_step)
    drawn, _ = model.sample(seen, replicas, may_step)
    pairs = zip(drawn.chosen, shown[1:5], strict=True)
    assert min(np.mean(part.numpy() == own) for part, own in pairs) > 0.7


def test_an_update_teaches_the_critic_the_policy_and_what_was_demonstrated(tmp_path: Path) -> None:
    run = in_training(tmp_path)
    model, optimizer = run.model, torch.optim.Adam(run.model.parameters(), lr=0.01)
    shown = imitate(model, run.inputs, demonstrated(), CONFIG)
    with closing(Episodes([SCENARIO], 4, DURATIONS_S, EVERY, seed=0)) as episodes:
        batch = collect(model, run.inputs, episodes, run.prices, CONFIG)
    before = [each.clone() for each in model.actor.parameters()]
    critic = [each.clone() for each in model.critic.parameters()]
    for actor in (False, True):
        update(model, optimizer, batch, CONFIG, Weights(actor, 0.0, 0.0), None)
        assert all(map(torch.equal, before, model.actor.parameters())) is not actor
    assert not all(map(torch.equal, critic, model.critic.parameters()))
    with torch.no_grad():
        probable = model.probabilities(*shown)[0].mean()
    for _ in range(50):
        update(model, optimizer, batch, CONFIG, Weights(True, 0.0, 10.0), shown)
    with torch.no_grad():
        assert model.probabilities(*shown)[0].mean() > probable + 0.5


def test_the_critic_learns_first_and_the_policy_leaves_the_program_slowly(tmp_path: Path) -> None:
    run, weights = in_training(tmp_path, steps=1000), []
    for run.steps in (0, 39, 40, 150, 300, 1000):
        weights.append((run.weights.actor, round(run.weights.imitation, 6)))
    assert weights == [
        *((False, 0.5), (False, 0.435), (True, 0.433333)),
        *((True, 0.25), (True, 0), (True, 0)),
    ]


def test_violations_beyond_the_rules_count_against_a_policy() -> None:
    rule = evaluated(1e-3, cores=4.0)
    scores = [score_of(evaluated(rate), rule) for rate in (0, 2e-3)]
    assert scores == pytest.approx([0.75, 0.75 + 0.9])


def test_prices_rise_where_violations_are_above_their_target(tmp_path: Path) -> None:
    run = in_training(tmp_path)
    run.target[:] = 1e-3
    before = run.prices.violation.copy()
    run.move_prices(evaluated(1e-2))
    assert (run.prices.violation > before).all()
    for _ in range(30):
        run.move_prices(evaluated(0.0))
    assert (run.prices.violation == before).all(), "never less than at first"


def test_a_training_goes_through_all_phases_and_can_be_followed(trained: Path) -> None:
    policy = load_policy(trained / POLICY_FILE)
    assert (policy.info.planned, policy.info.partial) == (128, False)
    assert policy.input_range is not None
    assert (policy.input_range[0] <= policy.input_range[1]).all()
    assert list(trained.glob("events.out.tfevents.*"))
    assert json.loads((trained / "judged.json").read_text()).keys() == {"policy", "rules"}
    assert steps_left(trained / "checkpoint.zip") == 0
    controller = PolicyController("ppo-joint", str(trained))
    system = make_system(SCENARIO, 0)
    assert run_episode(system, controller, Run("ppo-joint", "short", "sim", 0)).summary.offered


def test_the_same_seed_trains_the_same_policy(trained: Path, tmp_path: Path) -> None:
    first, same, other_seed = (
        load_policy(folder / POLICY_FILE).layers
        for folder in (
            trained,
            train(plan(tmp_path / "same"), CONFIG).parent,
            train(plan(tmp_path / "other", seed=1), CONFIG).parent,
        )
    )
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[1][0], other_seed[1][0])


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
    reports: list[tuple[int, str]] = []
    resumed = plan(second, steps=left, resume=first / "checkpoint.zip")
    train(resumed, CONFIG, lambda *report: reports.append(report))
    assert reports[-1][0] == left
    assert not any("imitating" in status or "measuring" in status for _, status in reports)
    assert load_policy(second / POLICY_FILE).info.planned == 128


def test_the_demonstrations_count_after_a_resume_too(tmp_path: Path) -> None:
    first, second = (in_training(tmp_path / name, randomised=True) for name in "ab")
    first._imitate()
    first._choose(first.export(), np.inf)
    first.steps = 16
    first.move_prices(evaluated(1e-2))
    first.save()
    second.load(tmp_path / "a" / "checkpoint.zip")
    assert first._demonstrated is not None
    assert second._demonstrated is not None
    assert torch.equal(first._demonstrated.inputs, second._demonstrated.inputs)
    assert second._rates == first._rates
    assert np.array_equal(first.prices.violation, second.prices.violation)


def test_a_checkpoint_of_something_else_is_refused(trained: Path, tmp_path: Path) -> None:
    checkpoint, damaged = trained / "checkpoint.zip", tmp_path / "checkpoint.zip"
    with pytest.raises(PolicyError, match="was learned in phases and cannot go on without them"):
        check_checkpoint(checkpoint, plan(tmp_path, backend="live"))
    with pytest.raises(PolicyError, match="there is no checkpoint"):
        check_checkpoint(damaged, plan(tmp_path))
    with pytest.raises(PolicyError, match="one of ppo-joint, not of ppo"):
        check_checkpoint(checkpoint, plan(tmp_path, agent="ppo"))
    damaged.write_text("nothing")
    with pytest.raises(PolicyError, match="cannot be resumed"):
        steps_left(damaged)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hidden": "0"}, "hidden must be"),
        ({"hidden": "wide"}, "hidden must be a whole number"),
        ({"gamma": 2.0}, "gamma must be"),
        ({"kickstart": 0.5}, "unknown key 'kickstart'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings(type(CONFIG), options)


@pytest.mark.parametrize(
    ("agent", "scenario", "actions"),
    [
        ("ppo", SEVERAL_REPLICAS, (16, 8, 3)),
        ("ppo", VARIANTS, (4, 4, 3, 3)),
        ("ppo-joint", CHAIN, (4, 4, 3, 4, 4, 3, 2, 2, 4, 3, 3)),
    ],
)
def test_every_kind_of_system_is_learned_and_followed(
    agent: str, scenario: Scenario, actions: tuple[int, ...], tmp_path: Path
) -> None:
    longer, folder = dataclasses.replace(scenario, duration_s=20.0), tmp_path / "run"
    made = plan(folder, agent=agent, scenarios=(longer,), randomised=True, envs=16, seed=1)
    config = dataclasses.replace(CONFIG, every=2, demonstrations=4)
    policy = load_policy(train(made, config))
    assert policy.info.actions == actions
    assert policy.info.inputs == made.inputs
    assert len(set(made.inputs)) == len(made.inputs)
    assert policy.input_range is not None
    _, most_s = policy.input_range[:, made.inputs.index("resize_delay")]
    assert most_s > 0, "it knows other deployments"
    result = PolicyEvaluator([longer], 1)(policy)
    run = Run(agent, scenario.name, "sim", SEED_LIMIT)
    controller = PolicyController(agent, str(folder), guard=False)
    played = run_episode(make_system(longer, SEED_LIMIT), controller, run)
    one = played.summary
    spent = one.mean_cores + AccuracyCost([longer]).of_episode(played.intervals) / one.duration_s
    assert result.cores[0] == pytest.approx(spent)
    assert result.violation_rate[0] == pytest.approx(one.avoidable_violation_rate)
    if agent == "ppo" and not scenario.stages:
        assert policy.info.every == 0
        assert {interval.replicas for interval in played.intervals[1:]} == {1}
