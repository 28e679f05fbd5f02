"""Training in phases: episodes, imitation, practice, and what is kept and resumed."""

import dataclasses
import json
from contextlib import closing
from itertools import cycle, groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scenarios import CHAIN, VARIANTS, episode_of, short
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_policies import BATCHES, CHOICES, CONFIG, SCENARIO, SPEC, drawn_policy, plan

from agents.history import INPUTS
from agents.learn import episodes, phased, ppo, programs, settings, spec_of
from agents.learn.command import plan_of
from agents.learn.episodes import AccuracyCost, Episodes, Evaluation
from agents.learn.episodes import evaluated as played_policy
from agents.learn.phased import score_of, train
from agents.learned import PolicyController
from agents.policy import POLICY_FILE, load_policy
from agents.stepwise import MAX_REPLICAS, PER_REPLICA, Form
from agents.training import parse
from sponge_env.errors import ConfigError, PolicyError, RunDirectoryError
from sponge_env.metrics import MET
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Arrivals, Initial, Network, RequestClass
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.simulation.randomised import other

pytestmark = pytest.mark.usefixtures("quick_rules")
torch.set_num_threads(1)  # more do not help networks this small

SEVERAL_REPLICAS = dataclasses.replace(SCENARIO, initial=Initial(1, 1, 3))


def networks():
    torch.manual_seed(0)
    return ppo.ActorCritic((8, 8), [CHOICES], len(INPUTS))


def evaluated(rate, cores=3.0):
    return Evaluation(np.array([cores]), np.array([rate]))


def demonstrated(policy=None):
    return programs.demonstrations(dataclasses.replace(plan(Path()), steps=1), CONFIG, 0, policy)


def test_the_policy_file_decides_like_the_trained_networks():
    model = networks()
    seen = np.random.default_rng(0).normal(2.0, 3.0, (500, len(INPUTS))).astype(np.float32)
    model.normalise(seen)
    assert model.mean.numpy() == pytest.approx(seen.mean(axis=0), abs=1e-3)
    assert 1 / model.scale.numpy() == pytest.approx(ppo.SATURATION * seen.std(axis=0), abs=1e-2)
    policy = dataclasses.replace(drawn_policy(), layers=tuple(model.layers()))
    with torch.no_grad():
        expected = model.actor(model.inputs(seen)).numpy()
    assert policy.logits(seen) == pytest.approx(expected, abs=1e-4)
    again = ppo.ActorCritic((8, 8), [CHOICES], len(INPUTS))
    again.begin_with(policy.layers)
    with torch.no_grad():
        assert again.actor(again.inputs(seen)).numpy() == pytest.approx(expected, abs=1e-4)
    far = np.full((1, len(INPUTS)), 1e4, np.float32)
    assert np.array_equal(policy.logits(far), policy.logits(1e3 * far)), "inputs saturate"


def test_sampled_actions_have_the_probabilities_that_an_update_finds():
    model = networks()
    inputs, replicas = torch.randn(400, len(INPUTS)), torch.randint(1, MAX_REPLICAS + 1, (400, 1))
    keeps = torch.arange(400)[:, None] % 2
    situations = (keeps * PER_REPLICA + replicas) * PER_REPLICA + replicas
    choices, log_probability, _ = model.decide(inputs, situations)
    _, again, entropy = model.decide(inputs, situations, choices)
    assert torch.allclose(again, log_probability)
    assert (entropy > 0).all()
    cores, after = choices[..., 0] + 1, replicas + choices[..., 2] - 1
    serving = torch.minimum(replicas, after)
    assert (cores * serving + after - serving <= SPEC.total_cores).all()
    assert (after < replicas)[keeps == 0].any()
    assert (after >= replicas)[keeps == 1].all(), "none may be given up"
    assert set(after.flatten().tolist()) == set(range(1, MAX_REPLICAS + 1))


def test_rewards_charge_cores_and_violations_relative_to_the_load():
    counts = np.array([1, 0, 500])
    outcomes = episodes.Outcomes(np.array([4.0, 3.0, 2.0]), counts, np.zeros(3, np.bool_))
    earned = ppo.rewards(outcomes, np.array([4.0, 1.0, 2.0]), np.array([1e5, 1e5, 1e3]))
    few, many = ppo.VIOLATION_PRICE / 1e5, ppo.VIOLATION_PRICE / 2
    costs = [ppo.SATURATES * np.log1p(each / ppo.SATURATES) for each in (few, 0.0, many)]
    assert earned.tolist() == pytest.approx([-costs[0], -2.0, -costs[2]], rel=1e-6)
    assert costs[0] > 0.99 * few, "few count in proportion"
    assert costs[2] < many / 4, "a lost queue is not all that matters"


def test_advantages_sum_up_errors_until_the_end_of_the_episode():
    config = dataclasses.replace(CONFIG, gamma=0.5, gae_lambda=0.5)
    earned, values, following = (np.full((3, 2), x, np.float32) for x in (2, 1, 4))
    over = np.array([[False, False], [False, True], [False, False]])
    found = ppo._advantages(earned, over, values, following, config)
    assert found.T.tolist() == [[3 + 3 / 4 + 3 / 16, 3 + 3 / 4, 3], [3 + 3 / 4, 3, 3]]


def test_advantages_are_compared_within_their_scenario():
    random, scenario = np.random.default_rng(0), np.arange(40) % 2
    advantages = random.normal(size=(50, 40)).astype(np.float32)
    advantages[:, scenario == 1] *= 100
    advantages[0, 0] = -1e4
    compared = ppo._compared(advantages, scenario)
    assert compared[0, 0] < -5e3, "what is rare stays large"
    assert compared[:, scenario == 1].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("every", "replicas"), [(1, 3), (0, 1)])
def test_an_episode_that_is_over_begins_anew(every, replicas):
    with closing(Episodes([SEVERAL_REPLICAS], 40, Form(every, BATCHES), seed=0)) as played:
        state, stay = played.state, np.tile([1, 1, 1, 0], (40, 1, 1))
        down = np.where(state.replicas[..., None] > 1, [1, 1, 0, 0], stay)
        for choices in (down, *[stay] * 40):
            over = played.step(choices).over
            played.renew()
            assert (state.intervals[over] == 0).all()
            assert (state.replicas[over] == replicas).all()
        assert 9 < state.intervals.max() <= 21
        assert len(set(state.intervals.tolist())) > 5, "of many lengths"


def test_a_fifth_of_the_episodes_are_of_other_systems_which_the_policy_can_tell():
    with closing(Episodes([SCENARIO], 1000, Form(1, BATCHES), 0, randomised=True)) as played:
        seen = dict(zip(INPUTS, played.state.seen.T, strict=True))
    is_own = np.isclose(seen["slo"], np.log(SCENARIO.slo_s))
    assert 0.75 < is_own.mean() < 0.85
    assert not seen["resize_delay"][is_own].any()
    assert seen["resize_delay"].max() > 1
    assert np.exp(seen["slo"]).min() < 0.9 < 1.1 < np.exp(seen["slo"]).max()
    usual = np.log1p(SPEC.stages[0].cold_start_s)
    assert seen["cold_start"].min() < usual < seen["cold_start"].max()


def test_other_systems_are_busier_slower_and_half_of_their_networks_fade():
    random = np.random.default_rng(0)
    drawn = [other(SCENARIO, random) for _ in range(200)]
    assert {spec_of(each).fingerprint for each in drawn} == {SPEC.fingerprint}
    assert len({each.network.payload_bytes for each in drawn}) == 200
    rates = np.array([each.arrivals.rate_rps for each in drawn]) / SCENARIO.arrivals.rate_rps
    assert (rates.min(), rates.max()) == pytest.approx((1 / 1.2, 1.2), abs=0.02)
    speeds = [each.simulation.service_scale for each in drawn]
    assert (min(speeds), max(speeds)) == pytest.approx((0.9, 1.3), abs=0.02)
    fading = [each.network for each in drawn if each.network.fade_every_s is not None]
    assert 70 < len(fading) < 130
    assert len({network.fade_depth for network in fading}) == len(fading)
    both = load_scenario("two-models")  # whose classes have their own arrivals
    assert other(both, random).arrivals == both.arrivals
    still = dataclasses.replace(SCENARIO, network=Network(trace="none"))
    assert all(other(still, random).network.fade_every_s is None for _ in range(20))


def test_the_program_demonstrates_what_a_stepwise_policy_could_do():
    policy = drawn_policy()
    led = demonstrated(policy)
    for found in (demonstrated(), led):
        assert np.isfinite(found.seen).all()
        cores, batches, steps, _ = np.moveaxis(found.choices, -1, 0)
        replicas = found.situations // PER_REPLICA % PER_REPLICA + steps - 1
        serving = np.minimum(replicas, found.situations % PER_REPLICA)
        held = (cores + 1) * serving + replicas - serving
        assert (held <= SPEC.total_cores).all(), "those that start hold one core"
        assert ((replicas >= 1) & (replicas <= MAX_REPLICAS)).all()
        assert batches.max() < len(BATCHES)
    held = led.situations[:, 0]  # demonstrations go where the policy leads
    for before, after, seen in zip(held, held[1:], led.seen, strict=False):
        steps = np.where(CHOICES.moves[0, before], policy.logits(seen)[-3:], -np.inf)
        was, became = (each // PER_REPLICA % PER_REPLICA for each in (before, after))
        assert became == was + steps.argmax() - 1


def test_a_policy_leads_that_takes_back_a_resize_which_has_not_acted():
    slow = changed(SEVERAL_REPLICAS, {"simulation.actuation_delay_s": 1.8})
    steps = cycle(np.eye(3, dtype=np.float32)[[0, 2]])  # a replica less, then one more
    most = np.arange(sum(CHOICES.actions) - 3, dtype=np.float32)
    led = SimpleNamespace(logits=lambda _: np.append(most, next(steps))[None])
    form, task = Form(1, BATCHES), ("sponge-joint", 5, slow)
    assert len(programs._demonstrate(form, {slow.limits: 0}, led, task).seen) == slow.intervals


def test_random_cores_replace_the_programs_now_and_then_for_some_intervals():
    usual, most = np.array([[2, 3, 1, 0]]), np.array([8])
    disturbance = programs.Disturbance(seed=0)
    cores = [disturbance.apply(usual, most)[0, 0] + 1 for _ in range(3000)]
    assert 0.05 < np.mean(np.array(cores) != 3) < 0.2
    assert max(cores) == 8
    longest = max(len(list(group)) for each, group in groupby(cores) if each != 3)
    assert 2 <= longest <= 2 * programs.MAX_DISTURBED, "two in a row may choose the same"


def test_what_was_demonstrated_becomes_probable():
    model, shown = networks(), demonstrated()
    phased.imitate(model, shown, dataclasses.replace(CONFIG, imitation_epochs=2000))
    seen = model.inputs(shown.seen)
    assert seen.mean(dim=0).abs().max() < 1
    drawn, *_ = model.decide(seen, torch.from_numpy(shown.situations))
    assert (drawn.numpy() == shown.choices).mean(axis=(0, 1)).min() > 0.7


def test_an_update_makes_what_was_better_more_probable_and_teaches_the_critic():
    model = networks()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with closing(Episodes([SCENARIO], 4, Form(1, BATCHES), seed=0)) as played:
        batch = ppo.collect(model, played, CONFIG)

    def probable():
        with torch.no_grad():
            _, now, _ = model.decide(batch.inputs, batch.situations, batch.choices)
            errors = model.values(batch.inputs) - batch.returns.numpy()
        gained = ((now - batch.log_probabilities) * batch.advantages).mean()
        return float(gained), float(np.abs(errors).mean())

    _, error = probable()
    for _ in range(20):
        ppo.update(model, optimizer, batch, CONFIG, entropy=0.0)
    gained, less = probable()
    assert gained > 0
    assert less < error


def test_violations_beyond_the_rules_count_against_a_policy():
    for missed in (MET, 0.5):  # that a program misses many does not allow as many
        scores = [score_of(evaluated(rate), evaluated(missed, cores=4.0)) for rate in (0, 2e-3)]
        assert scores == pytest.approx([0.75, 0.75 + np.log1p(0.9)])


def test_a_training_goes_through_all_phases_and_can_be_followed(trained):
    policy = load_policy(trained / POLICY_FILE)
    assert (policy.info.planned, policy.info.partial) == (128, False)
    assert (policy.input_range[0] <= policy.input_range[1]).all()
    shown = EventAccumulator(str(trained)).Reload().Tags()["scalars"]
    assert "evaluation/cost" in shown
    assert "evaluation/score" not in shown, "of which more is better elsewhere"
    assert json.loads((trained / "judged.json").read_text()).keys() == {"policy", "program"}
    assert episode_of(SCENARIO, PolicyController("ppo-joint", str(trained))).summary.offered


def test_an_interrupted_training_goes_on_in_its_phase(tmp_path):
    said = list[str]()

    def interrupt(steps, status):
        said.append(status)
        if steps >= 80 or len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path / "early"), CONFIG, interrupt)
    assert not (tmp_path / "early" / POLICY_FILE).exists(), "it has not imitated"
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyboardInterrupt):
        train(plan(first), CONFIG, interrupt)
    assert said[3].startswith("imitating programs before the first step, round 1 of ")
    kept = load_policy(first / POLICY_FILE)
    assert kept.info.partial
    left, reports = kept.info.planned - kept.info.steps, []
    resumed = plan(second, steps=left, start=kept, resumed=True)
    train(resumed, CONFIG, lambda *report: reports.append(report))
    assert reports[-1][0] == left
    assert not any("imitating" in status for _, status in reports)
    assert load_policy(second / POLICY_FILE).info.planned == 128


def test_a_training_begins_where_a_policy_ended(tmp_path):
    def interrupt(steps, status):
        assert "imitating" not in status
        if steps:  # only the critic has learned
            raise KeyboardInterrupt

    model, seen = networks(), demonstrated().seen
    model.normalise(seen)
    start = dataclasses.replace(drawn_policy(), layers=tuple(model.layers()))
    with pytest.raises(KeyboardInterrupt):
        train(plan(tmp_path, start=start, steps=10_000), CONFIG, interrupt)
    begun = load_policy(tmp_path / POLICY_FILE)
    assert begun.logits(seen) == pytest.approx(start.logits(seen), abs=1e-4)


def test_the_run_of_something_else_is_not_resumed(trained, tmp_path):
    asked = parse(["--agent", "ppo-joint", "--resume", str(trained)])
    assert plan_of(asked, [SCENARIO]).resumed
    with pytest.raises(PolicyError, match="trained on short, whose profile or stages"):
        plan_of(asked, [short(profile="resnet18")])
    with pytest.raises(PolicyError, match="has other inputs or choices"):
        plan_of(parse(["--agent", "ppo", "--resume", str(trained)]), [SCENARIO])
    assert settings({"epochs": 5}, trained) == dataclasses.replace(CONFIG, epochs=5)
    with pytest.raises(RunDirectoryError, match=r"cannot read .*learn\.json"):
        settings({}, tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"hidden": "0"}, "hidden must be"), ({"hidden": "wide"}, "hidden must be a whole number"),
     ({"gamma": 2.0}, "gamma must be"), ({"every": 20}, "unknown key 'every'")],
)  # fmt: skip
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        settings(options)


@pytest.mark.parametrize(
    ("agent", "scenario", "actions"),
    [("ppo", SEVERAL_REPLICAS, (16, 8, 3)), ("ppo", VARIANTS, (4, 4, 3, 3)),
     ("ppo-joint", CHAIN, (4, 4, 3, 4, 4, 3, 2, 2, 4, 3, 3))],
)  # fmt: skip
def test_every_kind_of_system_is_learned_and_followed(agent, scenario, actions, tmp_path):
    longer, folder = dataclasses.replace(scenario, duration_s=20.0), tmp_path / "run"
    made = plan(folder, agent=agent, scenarios=(longer,), randomised=True, envs=16, seed=1)
    policy = load_policy(train(made, dataclasses.replace(CONFIG, demonstrations=2, imitations=1)))
    assert (policy.info.actions, policy.info.inputs) == (actions, made.info.inputs)
    assert len(set(made.info.inputs)) == len(made.info.inputs)
    _, most_s = policy.input_range[:, made.info.inputs.index("resize_delay")]
    assert most_s > 0, "it knows other deployments"
    result = played_policy(policy, [longer], 1)
    played = episode_of(longer, PolicyController(agent, str(folder), guard=False), SEED_LIMIT)
    one = played.summary
    lost = AccuracyCost([longer]).of(played.columns, np.zeros(longer.intervals, np.int64)).sum()
    assert result.cores[0] == pytest.approx(one.mean_cores + lost / one.duration_s)
    assert result.violation_rate[0] == pytest.approx(one.avoidable_violation_rate)
    if agent == "ppo" and not scenario.stages:
        assert policy.info.every == 0
        assert {interval.replicas for interval in played.intervals[1:]} == {1}


def test_the_same_seed_trains_the_same_policy(trained, tmp_path):
    again = train(plan(tmp_path / "same"), CONFIG)
    files = (trained / POLICY_FILE, again, train(plan(tmp_path / "other", seed=1), CONFIG))
    first, same, other_seed = (load_policy(file).layers for file in files)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[1][0], other_seed[1][0])


def test_an_episode_with_classes_has_no_more_requests_than_there_is_room_for():
    many = short(classes=(RequestClass(1.0, 1.0, 0.0),), arrivals=Arrivals(rate_rps=5e3))
    assert 5e3 * episodes.changed(many, False, np.random.default_rng(0)).duration_s <= 50_000
