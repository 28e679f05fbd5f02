"""The guard of learned policies: bounded inputs, and who decides where they have never been."""

import dataclasses
from itertools import groupby

import numpy as np
import pytest
from scenarios import episode_of
from tiny_policies import drawn_policy
from views import busy_view, make_spec

from agents.guard import Guard
from agents.history import INPUTS
from agents.learned import SHIPPED, ppo, ppo_joint
from agents.lookahead import SpongeJoint, SpongeMPC
from agents.policy import load_policy, reading, save_policy
from agents.stepwise import Form, PolicyState
from sponge_env import Allocation, load_scenario, make_system
from sponge_env.run.suite import changed
from sponge_env.simulation.encoding import JOINT, encode

SPEC = make_spec(nodes=(16,))
SEED = 1000


def shipped(name):
    return load_policy(SHIPPED / f"{name}.safetensors")


def over(bandwidth):
    return dataclasses.replace(busy_view(), bandwidths_bytes_per_s=np.full(10, bandwidth))


def shown(view):
    state = PolicyState([SPEC], Form(20, (1,)))
    state.see(encode(view, SPEC, JOINT)[None], None)
    return state.seen[0].copy()


def calm_policy():
    """Return a policy that has seen a calm load only."""
    seen = np.array([shown(over(bandwidth)) for bandwidth in (2e6, 4e6)])
    return dataclasses.replace(drawn_policy(), input_range=seen)


def play(controller, scenario):
    return episode_of(scenario, controller, SEED)


def flood(queued=300):
    return busy_view(rate_rps=60, budgets_left_s=tuple(np.linspace(-3.0, 0.8, queued)))


def measured(violations):
    last = make_system(load_scenario("paper"), SEED).step(SPEC.initial)
    counts = dict.fromkeys(("violations", "avoidable_violations"), violations)
    return dataclasses.replace(last, on_time=20 - violations, **counts)


def test_every_shipped_policy_has_a_range():
    for path in SHIPPED.glob("*.safetensors"):
        seen = load_policy(path).input_range
        assert seen is not None, path
        assert (seen[0] <= seen[1]).all()


def test_inputs_stay_in_the_range_that_was_seen():
    guard, place = Guard(calm_policy(), SPEC, scales_out=False), INPUTS.index("bandwidth")
    usual, fast, faster = (shown(over(bandwidth)) for bandwidth in (3e6, 15e6, 90e6))
    kept = [guard.watch(each, busy_view())[0] for each in (usual, fast, faster)]
    assert np.array_equal(kept[0], usual)
    assert fast[place] > kept[1][place] == kept[2][place] > usual[place]


def test_a_flood_is_left_to_the_program_until_it_has_been_calm_for_ten_seconds():
    guard, calm, wild = Guard(calm_policy(), SPEC, scales_out=False), busy_view(), flood()
    answers = [guard.watch(shown(view), view)[1] for view in [calm, wild, *[calm] * 12]]
    assert [answer is not None for answer in answers] == [False, *[True] * 10, *[False] * 3]
    assert (bool(answers[1].guarded), answers[1].replicas) == (True, 1)


def test_a_queue_that_grows_is_noticed_without_any_range():
    guard = Guard(drawn_policy(), SPEC, scales_out=False)
    views = [flood(queued) for queued in (50, 100, 150, 200)]
    taken = [guard.watch(shown(view), view)[1] is not None for view in views]
    assert taken == [False, False, True, True]
    observation = shown(views[0])
    assert np.shares_memory(guard.watch(observation, views[0])[0], observation)


@pytest.mark.parametrize(
    ("program", "scales_out", "before"), [(SpongeJoint, True, 150), (SpongeMPC, False, 5)]
)
def test_a_program_that_takes_over_knows_the_past(program, scales_out, before, monkeypatch):
    observed, observe, system = [], program.observe, make_system(load_scenario("bursty"), SEED)
    guard, views = Guard(calm_policy(), system.spec, scales_out), []
    calm, beyond = shown(busy_view()), shown(flood())
    for _ in range(before):
        views.append(system.view())
        assert guard.watch(calm, views[-1])[1] is None
        system.step(Allocation(16, 2))
    alone = program()
    alone.reset(system.spec, seed=0)
    for view in views[-120:]:
        alone.observe(view)
    monkeypatch.setattr(program, "observe", lambda self, v: (observed.append(v), observe(self, v)))
    for _ in range(20):
        view = system.view()
        answer = guard.watch(beyond, view)[1]
        assert answer.stages == alone.decide(view).stages
        system.step(answer)
    # Once each, when it takes over, and none of those in which it decides itself.
    assert [id(view) for view in observed] == [id(view) for view in views[-120:]]


def test_a_program_that_takes_over_plans_with_service_as_slow_as_it_was():
    policy = reading(shipped("ppo-joint-any"), INPUTS)
    view = busy_view(rate_rps=8, budgets_left_s=(0.6, 0.7, 0.8, 0.9))
    seen = shown(view)
    seen[INPUTS.index("late")] = 10.0  # which the policy has not seen
    asked = []
    for ratio in (0.8, 1.0, 1.5):
        seen[INPUTS.index("service_ratio")] = ratio
        asked.append(Guard(policy, SPEC, scales_out=True).watch(seen, view)[1].stages[0])
    assert (asked[0], asked[2].replicas) == (asked[1], asked[1].replicas)
    assert asked[2].cores > asked[1].cores


@pytest.mark.parametrize(
    ("name", "is_alarming"),
    [("arrivals_most", False), ("arrivals_spread", False), ("arrivals_1s", True), ("slo", True)],
)
def test_a_burst_that_is_over_is_left_to_the_policy(name, is_alarming):
    policy, view = reading(shipped("ppo-joint-any"), INPUTS), busy_view()
    seen = shown(view)
    usual = seen[[INPUTS.index(each) for each in policy.info.inputs]]
    known = dataclasses.replace(policy, input_range=np.array([usual, usual]))
    assert Guard(known, SPEC, scales_out=True).watch(seen, view)[1] is None
    seen[INPUTS.index(name)] += 1.0
    assert (Guard(known, SPEC, scales_out=True).watch(seen, view)[1] is not None) == is_alarming


@pytest.mark.parametrize(
    ("changes", "is_known"), [({}, True), ({"simulation.actuation_delay_s": 0.2}, True),
     ({"simulation.actuation_delay_s": 3.0}, False), ({"slo_s": 5.0}, False),
     ({"simulation.cold_start_s": 100.0}, False), ({"simulation.service_scale": 0.95}, True)],
)  # fmt: skip
def test_another_deployment_than_any_in_training_is_left_to_the_program(changes, is_known):
    scenario = changed(load_scenario("paper-200kb"), {"duration_s": 60.0, **changes})
    assert play(ppo_joint("shipped"), scenario).summary.guarded == (0 if is_known else 60)


@pytest.mark.parametrize("name", ["pipeline-video", "variants"])
def test_a_usual_load_of_stages_or_variants_is_left_to_the_policy(name):
    scenario = changed(load_scenario(name), {"duration_s": 30.0})
    assert play(ppo("shipped"), scenario).summary.guarded == 0


def test_a_slower_machine_is_known_until_fixed_fleets_would_miss_less():
    changes = {"duration_s": 60.0, "simulation.service_scale": 1.1}
    episode = play(ppo_joint("shipped"), changed(load_scenario("paper-200kb"), changes))
    assert [bool(each.guarded) for each in episode.intervals] == [False] * 30 + [True] * 30


def test_a_policy_that_misses_more_than_a_fixed_fleet_is_suspended_for_ten_minutes():
    spec = make_spec(nodes=(16,), interval_s=10.0)  # few intervals last long
    guard, guarded = Guard(calm_policy(), spec, scales_out=False), []
    for now_s in np.arange(0.0, 2800.0, 10.0):
        came_s = now_s - np.linspace(10, 0, 20, endpoint=False)
        view = busy_view(last=measured(4 * (now_s in (400, 1500))), now_s=now_s, arrived_s=came_s)
        guarded.append(guard.watch(shown(view), view)[1] is not None)
    runs = [(each, len(list(group))) for each, group in groupby(guarded)]
    first, again = [(False, 40), (True, 60)], [(False, 50), (True, 120)]
    assert runs == [*first, *again, (False, 10)], "the second time for twice as long"


def test_a_machine_that_was_measured_again_is_still_known(tmp_path):
    """What a training without other systems knows of the cold start is one number."""
    policy = shipped("ppo-joint-any")
    place, seen = policy.info.inputs.index("cold_start"), policy.input_range.copy()
    seen[:, place] = np.log1p(10.0)
    save_policy(dataclasses.replace(policy, input_range=seen), tmp_path / "policy.safetensors")
    for cold_start_s, is_known in ((8.0, True), (13.0, True), (5.0, False), (20.0, False)):
        changes = {"duration_s": 30.0, "simulation.cold_start_s": cold_start_s}
        scenario = changed(load_scenario("paper-200kb"), changes)
        assert play(ppo_joint(str(tmp_path)), scenario).summary.guarded == (0 if is_known else 30)


@pytest.mark.parametrize("make", [ppo, ppo_joint])
def test_within_its_range_a_policy_decides_as_without_a_guard(make):
    scenario = dataclasses.replace(load_scenario("flash-crowd"), duration_s=120.0)
    with_guard, without = (play(make("shipped", guard=each), scenario) for each in (True, False))
    assert (with_guard.summary.guarded, with_guard.summary.reward) == (0, without.summary.reward)
    assert with_guard.summary.core_seconds == without.summary.core_seconds


def test_what_the_guard_decides_is_counted(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "burst.csv"
    sent_s = [rng.uniform(*edges, count) for edges, count in (((0, 60), 400), ((20, 40), 1200))]
    path.write_text("\n".join(["arrival_s", *map(str, np.sort(np.concatenate(sent_s)))]) + "\n")
    arrivals = {"kind": "trace", "file": str(path)}
    changes = {"arrivals": arrivals, "duration_s": 60.0, "serving.drop": "expired"}
    scenario = changed(load_scenario("paper"), changes)
    episode = play(ppo_joint("shipped"), scenario)
    assert 0 < episode.summary.guarded < 60
    assert episode.summary.guarded == sum(each.guarded for each in episode.intervals)
    unguarded = play(ppo_joint("shipped", guard=False), scenario).summary
    assert unguarded.guarded == 0
    assert episode.summary.violation_rate < 0.9 * unguarded.violation_rate
