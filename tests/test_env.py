"""Single environments: every kind of control, and other action spaces."""

import copy
import dataclasses
import math
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from scenarios import CHAIN, CONTROLLED, SHORT, VARIANTS, short
from stable_baselines3.common.env_checker import check_env

import sponge_env  # noqa: F401  # registers the environments
from agents.learn import spec_of
from sponge_env import Allocation, StageAllocation, make_system
from sponge_env.core.fields import REQUEST_FIELDS, STAGE_FIELDS, STARTING_SLOTS, staged_names
from sponge_env.env.single import SpongeEnv
from sponge_env.env.vector import SpongeVectorEnv
from sponge_env.errors import ConfigError
from sponge_env.metrics import IntervalMetrics, names
from sponge_env.scenario.config import Arrivals, Limits, Network, Serving, Simulation
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.simulation import encoding
from sponge_env.simulation.encoding import CLIP, FIELDS, JOINT, control_named, decode, encode, fit
from sponge_env.simulation.system import SimulatedSystem

JOINTLY = CONTROLLED["SpongeJoint-v0"][0]
EACH = pytest.mark.parametrize("name", CONTROLLED)
WRAPPED = pytest.mark.parametrize("wrapped", ["SpongeDiscrete-v0", "SpongeContinuous-v0"])


def make(name, **options):
    return gymnasium.make(name, scenario=CONTROLLED[name][0], **options)


def started(scenario, control="vertical", **options):
    env = SpongeEnv(scenario, control=control, **options)
    env.reset(seed=0)
    return env


@EACH
def test_both_checkers_accept_the_environment(name):
    gymnasium_check_env(make(name).unwrapped)
    check_env(make(name).unwrapped)


@WRAPPED
@pytest.mark.parametrize("name", ["Sponge-v0", "SpongeVariants-v0", "SpongePipeline-v0"])
def test_both_checkers_accept_other_actions(name, wrapped):
    scenario, control, _ = CONTROLLED[name]
    env = gymnasium.make(wrapped, scenario=scenario, control=control)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)
    check_env(env)


def test_the_ids_are_presets_of_one_class():
    assert len({gymnasium.spec(name).entry_point for name in CONTROLLED}) == 1
    live = gymnasium.spec("SpongeJointLive-v0")
    assert live.nondeterministic
    assert live.kwargs == {"backend": "live", "scenario": "local", "control": "joint"}
    shape = gymnasium.make("SpongePipeline-v0").observation_space.shape
    assert shape == (len(REQUEST_FIELDS) + 2 * len(STAGE_FIELDS),)
    one_model = gymnasium.make("SpongePipeline-v0", scenario="paper")
    assert one_model.action_space == gymnasium.make("SpongeJoint-v0").action_space


@EACH
def test_an_action_chooses_what_there_is_to_choose(name):
    scenario, kind, counts = CONTROLLED[name]
    env = make(name)
    assert env.action_space == gymnasium.spaces.MultiDiscrete(counts)
    control = control_named(kind, spec_of(scenario))
    assert env.observation_space.shape == (len(control.fields),)
    env.reset(seed=0)
    action = np.arange(len(counts)) % counts
    numbers = {"cores": 1, "batch": 1, "replicas": 1, "variant": 0}
    expected = [dict(numbers) for _ in env.unwrapped.system.spec.stages]
    for chosen, (k, part) in zip(action.tolist(), control.parts, strict=True):
        expected[k][part] += chosen
    assert decode(action, control).stages == tuple(StageAllocation(**each) for each in expected)
    info = env.step(action)[4]
    asked = info["requested_cores"], info["batch"], info["replicas"]
    assert asked == decode(action, control).stages[0][:3]


def test_episodes_end_by_truncation_and_differ():
    env, seeds = SpongeEnv(SHORT), []
    for seed in (3, None):
        _, info = env.reset(seed=seed)
        seeds.append(info["episode_seed"])
        ends = [env.step(np.array([7, 7]))[2:4] for _ in range(SHORT.intervals)]
        assert ends == [(False, False)] * (SHORT.intervals - 1) + [(False, True)]
    assert EVALUATION_SEEDS <= seeds[0] != seeds[1]


@EACH
def test_a_copy_goes_on_by_itself_where_its_environment_is(name):
    env = started(*CONTROLLED[name][:2])
    env.action_space.seed(0)
    plan = [env.action_space.sample() for _ in range(4)]
    env.step(plan.pop())
    copies = copy.deepcopy(env), pickle.loads(pickle.dumps(env)), env
    seen = [[each.step(action)[:3] for action in plan] for each in copies]
    np.testing.assert_equal(seen[:2], [seen[2]] * 2)
    ahead = [each.reset()[1] for each in copies]
    assert ahead == [ahead[2]] * 3
    with pytest.raises(RuntimeError, match="call reset"):
        copy.deepcopy(SpongeEnv(SHORT, backend="live")).step(np.array([7, 7]))


def test_an_episode_seed_repeats_the_episode_of_an_evaluation():
    env = pickle.loads(pickle.dumps(SpongeEnv(SHORT)))
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    env.reset(options={"episode_seed": 5})
    info, metrics = env.step(np.array([7, 7]))[4], make_system(SHORT, 5).step(Allocation(8, 8))
    measured = {name: getattr(metrics, name) for name in names(IntervalMetrics) if name != "reward"}
    assert info == measured | {"episode_seed": 5}
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("rate_rps", [0.5, 60.0])  # hardly a request, and more than can be served
def test_infos_of_reset_and_step_have_the_same_numbers_without_nan(rate_rps):
    arrivals, drops = Arrivals("constant", rate_rps), Serving(drop="expired")
    env = SpongeEnv(short(arrivals=arrivals, serving=drops))
    infos = [env.reset(seed=0)[1], *(env.step(np.array([3, 7]))[4] for _ in range(8))]
    assert "reward" not in infos[0]
    assert all(math.isfinite(value) for info in infos for value in info.values())
    kinds = [{name: type(value) for name, value in info.items()} for info in infos]
    assert all(each == kinds[0] for each in kinds)


def test_a_latency_of_what_was_given_up_is_how_long_it_had_waited():
    flood = {"arrivals": Arrivals("constant", 200.0), "network": Network("none")}
    env = started(short(serving=Serving("expired"), duration_s=3.0, **flood))
    infos = [env.step(np.array([0, 0]))[4] for _ in range(3)]
    dropped = [info for info in infos if info["dropped"] > info["on_time"] + info["late"]]
    assert dropped
    for info in dropped:
        assert SHORT.slo_s < info["latency_p50_s"] == info["latency_p99_s"] < 3.0


def test_rendering():
    for name in ("Sponge-v0", "SpongeDiscrete-v0", "SpongeContinuous-v0"):
        env = gymnasium.make(name, scenario=SHORT, render_mode="rgb_array_list")
        env.reset(seed=0)
        env.step(env.action_space.sample())
        blank, drawn = env.render()
        assert drawn.shape == blank.shape == (320, 480, 3)
        assert drawn.dtype == np.uint8
        assert not np.array_equal(blank, drawn)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"scenario": "papre"}, "did you mean 'paper'"),
     ({"render_mode": "human"}, "render_mode must be one of"),
     ({"control": "joined"}, r"unknown control 'joined'.*did you mean 'joint'"),
     ({"scenario": CHAIN}, "a system with 3 stages; use control 'pipeline'"),
     ({"scenario": CHAIN, "control": "variants"}, "use control 'pipeline'"),
     ({"scenario": VARIANTS}, "3 variants of its model; use control 'variants'"),
     ({"scenario": VARIANTS, "control": "joint"}, "use control 'pipeline'")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SpongeEnv(**arguments)


@EACH
def test_a_scenario_survives_a_specification_as_json(name):
    again = gymnasium.make(EnvSpec.from_json(make(name).spec.to_json()))
    assert again.unwrapped.scenario == CONTROLLED[name][0]


def test_bad_resets_are_named():
    for options in ({"episode_sed": 1}, {"episode_seed": -1}, {"episode_seed": "3"}):
        with pytest.raises(ConfigError, match="episode_seed"):
            SpongeEnv(SHORT).reset(options=options)
    for env in (SpongeEnv(SHORT), SpongeVectorEnv(2, SHORT)):
        with pytest.raises(ConfigError, match=r"the options of reset must be a dict, not \[\]"):
            env.reset(options=[])
    with pytest.raises(ConfigError, match="unknown backend 'simm'"):
        SpongeEnv(SHORT, backend="simm").reset(seed=0)
    with pytest.raises(RuntimeError, match="call reset"):
        SpongeEnv(SHORT).step(np.array([0, 0]))


@pytest.mark.parametrize("action", [[3, 2], (3, 2), np.array([3.0, 2.0]), np.array([3, 2], "u1")])
def test_any_whole_numbers_are_an_action(action):
    info = started(SHORT).step(action)[4]
    assert (info["requested_cores"], info["batch"]) == (4, 3)


ODD = 5, [5], [1, 2, 3], "ab", None, [[1, 2]], [[1], [1, 2]]
OUTSIDE = [16, 0], [-1, 0], [0.5, 1], [np.nan, 1], [2**70, 1]


@pytest.mark.parametrize("action", [*ODD, *OUTSIDE])
def test_an_action_outside_the_space_is_named(action):
    with pytest.raises(ConfigError, match=r"must be 2 whole numbers from 0 to \[15, 15\], not"):
        started(SHORT).step(action)


def test_reward_charges_all_replicas_and_credits_accuracy():
    _, reward, _, _, info = started(JOINTLY, "joint").step(np.array([7, 0, 11]))
    missed = info["violations"] / max(1, info["on_time"] + info["violations"])
    held = 8 + 11  # one serves, the others start
    assert info["cores"] == pytest.approx(held)
    assert reward == pytest.approx(-held / 96 - JOINTLY.reward.violation_weight * missed)
    rewards = {}
    for weight in (0.0, 2.0):
        weights = dataclasses.replace(VARIANTS.reward, accuracy_weight=weight)
        env = started(dataclasses.replace(VARIANTS, reward=weights), "variants")
        _, rewards[weight], _, _, info = env.step(np.array([3, 3, 1]))
    assert 0 < info["effective_accuracy"] <= 0.7
    assert rewards[2.0] - rewards[0.0] == pytest.approx(2.0 * info["effective_accuracy"])
    quiet = dataclasses.replace(VARIANTS, arrivals=Arrivals(rate_rps=1e-6))
    assert started(quiet, "variants").step(np.array([2, 0, 0]))[1] == pytest.approx(-3 / 12)


def test_there_are_no_more_replicas_than_the_machine_has_room_for():
    one_machine = dataclasses.replace(JOINTLY, limits=Limits(cores=8, batch=8, replicas=12))
    env = started(one_machine, "joint")
    for cores, replicas in ((8, 1), (4, 2), (3, 2), (1, 8)):
        info = env.step(np.array([cores - 1, 0, 11]))[4]
        assert (info["requested_cores"], info["replicas"]) == (cores, replicas)
        assert info["cores"] <= 8
    info = started(CHAIN, "pipeline").step(np.array([3, 3, 2, 3, 3, 0, 1, 1, 2, 0]))[4]
    assert (info["requested_cores"], info["replicas"]) == (4, 1)
    assert info["cores"] <= 14 + 1e-9


@pytest.mark.parametrize("nodes", [(20,), (12, 8)])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_batches_of_environments_share_a_machine_as_controllers_do(stages, nodes):
    asked = np.random.default_rng(stages).integers(1, 9, (200, stages, 4))
    limits, fitted, machine = np.full((stages, 4), 8), asked.copy(), np.array([nodes, nodes])
    assert fit(fitted, limits, machine)
    (one,) = spec_of(SHORT).stages
    spec = dataclasses.replace(spec_of(SHORT), nodes=nodes, stages=(one,) * stages)
    for before, now in zip(asked.tolist(), fitted.tolist(), strict=True):
        expected = spec.fitting(Allocation(stages=tuple(StageAllocation(*row) for row in before)))
        assert expected.stages == tuple(StageAllocation(*row) for row in now)
        assert sum(cores * replicas for cores, _, replicas, _ in now) <= 20
    for part, value in ((0, 0), (0, 9), (2, 9), (3, -1), (3, 9)):
        beyond = asked.copy()
        beyond[-1, -1, part] = value
        assert not fit(beyond, limits, machine)


def test_more_replicas_start_than_there_are_slots():
    env = started(JOINTLY, "joint")
    seen = env.step(np.array([0, 0, 1]))[0][len(FIELDS) :]
    assert seen == pytest.approx([1 / 12, 1.5 / 2.5, *[0.0] * (STARTING_SLOTS - 1)])
    seen = env.step(np.array([0, 0, 11]))[0][len(FIELDS) :]
    assert seen == pytest.approx([11 / 12, 0.5 / 2.5, *[1.5 / 2.5] * (STARTING_SLOTS - 1)])
    system = make_system(dataclasses.replace(JOINTLY, simulation=Simulation(cold_start_s=0.0)), 0)
    system.step(Allocation(1, 1, 5))
    assert not encode(system.view(), system.spec, JOINT)[len(FIELDS) :].any()


@EACH
def test_a_view_shows_what_the_core_observes(name):
    scenario, kind, counts = CONTROLLED[name]
    kept = dataclasses.replace(scenario, duration_s=40.0, serving=Serving(drop="expired"))
    system = SimulatedSystem(kept, 4)
    control, rng, seen = control_named(kind, system.spec), np.random.default_rng(3), []
    while not system.done:
        seen.append(system.observe(control))
        assert seen[-1].tobytes() == encode(system.view(), system.spec, control).tobytes()
        system.step(system.spec.fitting(decode(rng.integers(0, counts), control)))
    used = {control.fields[k] for k in np.flatnonzero(np.any(seen, axis=0))}
    staged = [f"{stage.name}." for stage in scenario.stages] or [""]
    expected = ("queue_length", "due_1_of_8", "arrivals_30s", "running_left", "utilisation")
    assert {f"{stage}{field}" for stage in staged for field in expected} <= used
    assert {"bandwidth", "delay_trend", "on_time"} <= used
    rarer = {"model.variant", "find.given_up", "name.variant", "judge.ready_in_2", "ready_in_2"}
    assert {field for field in rarer if field in control.fields} <= used


def test_fields_mean_what_their_names_say():
    """Those of several stages; those of one are compared with the reference."""
    system = SimulatedSystem(CHAIN, 0)
    control = control_named("pipeline", system.spec)
    assert control.fields == staged_names(["find", "name", "judge"])
    for _ in range(3):
        last = system.step(decode(np.array([1, 2, 1, 2, 0, 1, 0, 1, 0, 2]), control))
    view, seen = system.view(), dict(zip(control.fields, system.observe(control), strict=True))
    held = [seen[f"find.{each}"] for each in ("cores", "batch", "replicas")]
    assert held == pytest.approx([2 / 4, 3 / 4, 2 / 3])
    assert (seen["name.variant"], seen["judge.variant"]) == (1.0, 1.0)
    assert seen["effective_accuracy"] == pytest.approx(last.effective_accuracy)
    for own, spec in zip(view.stages, system.spec.stages, strict=True):
        rate, stage = spec.capacity_rps, spec.name
        assert seen[f"{stage}.done"] == pytest.approx(min(CLIP, own.last.answered / rate))
        assert seen[f"{stage}.given_up"] == pytest.approx(own.last.dropped / rate)
        assert seen[f"{stage}.utilisation"] == pytest.approx(own.last.utilisation)
        waiting = own.queued_deadlines_s.size / (rate * CHAIN.slo_s)
        assert seen[f"{stage}.queue_length"] == pytest.approx(min(CLIP, waiting))
        assert seen[f"{stage}.arrivals_last"] == pytest.approx(own.arrivals[-1] / rate)
    assert view.stages[0].arrivals[-1] == last.offered


@EACH
def test_masks_leave_a_choice_for_each_part(name):
    scenario, kind, counts = CONTROLLED[name]
    for each in (scenario, dataclasses.replace(scenario, slo_s=0.02)):
        spec = spec_of(each)
        control = control_named(kind, spec)
        masks = encoding.ActionMasks(spec, control)(np.full((2, control.obs_dim), CLIP, np.float32))
        assert masks.shape == (2, sum(counts))
        for part in np.split(masks, np.cumsum(counts)[:-1], axis=1):
            assert part.any(axis=1).all()
    assert not masks.all()


def test_masks_know_slow_variants_and_few_cores():
    spec = spec_of(dataclasses.replace(VARIANTS, slo_s=0.018))
    control = control_named("variants", spec)
    masks = encoding.ActionMasks(spec, control)(np.full(control.obs_dim, CLIP, np.float32))
    slowest_s = [float(each.table_s(1, 4)[0, -1]) for each in spec.stages[0].latencies]
    assert masks[:4].tolist() == [False, False, False, True]
    assert masks[8:].tolist() == [each <= 0.018 for each in slowest_s]
    assert set(masks[8:]) == {False, True}


def wrapper(name, **options):
    """Return an environment of other actions, without Gymnasium's own wrappers."""
    return gymnasium.make(name, scenario=SHORT, **options).env.env


def test_every_combination_of_choices_has_one_number():
    env, plain = wrapper("SpongeDiscrete-v0"), gymnasium.make("Sponge-v0", scenario=SHORT)
    assert env.action_space.n == 256
    expected = [(cores, batch) for cores in range(16) for batch in range(16)]
    assert [tuple(env.action(k)) for k in range(256)] == expected
    for each in (plain, env):
        each.reset(seed=1)
    for number in (49, 255, 255, 255, 7):
        one, other = plain.step(np.array(expected[number])), env.step(number)
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1]
    parts = env.unwrapped.action_masks()
    assert not parts.all()
    masks = [parts[cores] and parts[16 + batch] for cores, batch in expected]
    assert env.action_masks().tolist() == masks
    for action in (256, -1, 1.5, [3], np.nan):
        with pytest.raises(ConfigError, match="a whole number from 0 to 255, not"):
            env.action(action)


def test_real_numbers_cover_every_choice_equally():
    env = wrapper("SpongeContinuous-v0")
    drawn = [env.action(np.array([x, -x], np.float32)) for x in np.linspace(-1, 1, 3201)]
    counts = np.bincount([cores for cores, _ in drawn])
    assert len(counts) == 16
    assert counts.max() - counts.min() <= 2
    assert list(env.action(np.array([9.0, -9.0], np.float32))) == [15, 0]
    for action in ([0.0], 0.0, [0.0, np.nan], [[0.0, 0.0]], ["a", "b"], [[0, 1], 0], [None, 0.0]):
        with pytest.raises(ConfigError, match="an action must be 2 real numbers, not"):
            env.action(action)


def test_too_many_combinations_for_one_number_are_counted():
    stages = tuple(dataclasses.replace(CHAIN.stages[0], name=name) for name in "abcdef")
    many = dataclasses.replace(CHAIN, stages=stages, limits=Limits(total_cores=64))
    with pytest.raises(ConfigError, match=r"12,230,590,464 combinations"):
        gymnasium.make("SpongeDiscrete-v0", scenario=many, control="pipeline")
