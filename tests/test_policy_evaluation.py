"""How policies, programs and fixed allocations are evaluated, and which rule is the best."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scenarios import CHAIN, VARIANTS, short
from tiny_policies import PLAIN, SCENARIO, STEPWISE, drawn_policy

from agents.history import INPUTS
from agents.learn import spec_of
from agents.learn.evaluation import (
    FEW_VIOLATIONS,
    JOINT_PROGRAMS,
    AccuracyCost,
    Evaluation,
    PolicyEvaluator,
    always,
    best_rules,
    fixed_allocations,
    known_rules,
    play_fixed,
    play_program,
    simulator,
)
from agents.learned import PolicyController
from agents.policy import POLICY_FILE, PolicyInfo, save_policy
from agents.stepwise import MAX_REPLICAS
from sponge_env.env.factory import make_system
from sponge_env.errors import PolicyError
from sponge_env.interfaces import ACCURACY_PRICE
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Arrivals, Simulation
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT

pytestmark = pytest.mark.usefixtures("quick_rules")


def of_program(name: str, scenarios: tuple[Scenario, ...], episodes: int) -> Evaluation:
    return Evaluation.of(play_program(name, scenarios, episodes))


def best_rule(scales_out: bool, scenarios: tuple[Scenario, ...], episodes: int) -> Evaluation:
    return Evaluation.of(best_rules(scales_out, scenarios, episodes)[0])


@pytest.mark.parametrize("info", [PLAIN, STEPWISE], ids=["plain", "stepwise"])
def test_a_controller_decides_like_the_evaluator(tmp_path: Path, info: PolicyInfo) -> None:
    policy = drawn_policy(info)
    save_policy(policy, tmp_path / POLICY_FILE)
    result = PolicyEvaluator([SCENARIO], 1)(policy)
    controller = PolicyController(info.agent, str(tmp_path), guard=False)
    run = Run(info.agent, "short", "sim", SEED_LIMIT)
    played = run_episode(make_system(SCENARIO, SEED_LIMIT), controller, run)
    if info.batches:
        assert len({interval.replicas for interval in played.intervals}) > 1, "the policy steps"
    assert result.cores[0] == pytest.approx(played.summary.mean_cores, abs=1e-9)
    expected = played.summary.avoidable_violation_rate
    assert result.violation_rate[0] == pytest.approx(expected, abs=1e-12)
    assert result.input_range is not None
    slo = result.input_range[:, INPUTS.index("slo")] if info.batches else (0, 0)
    assert (slo[0], slo[1]) == (0.0, 0.0), "the logarithm of a second"


def test_a_policy_finds_its_inputs_wherever_they_stand() -> None:
    policy, order = drawn_policy(), np.random.default_rng(0).permutation(len(INPUTS))
    (first, bias), *others = policy.layers
    info = dataclasses.replace(policy.info, inputs=tuple(INPUTS[k] for k in order))
    moved = dataclasses.replace(policy, info=info, layers=((first[:, order], bias), *others))
    evaluate = PolicyEvaluator([SCENARIO], 1)
    expected, result = evaluate(policy), evaluate(moved)
    assert result.cores == expected.cores
    assert expected.input_range is not None
    np.testing.assert_array_equal(result.input_range, expected.input_range[:, order])
    unknown = dataclasses.replace(policy.info, inputs=("no_such_field", *INPUTS[1:]))
    with pytest.raises(PolicyError, match="reads no_such_field, which"):
        evaluate(dataclasses.replace(policy, info=unknown))


def test_rates_of_episodes_add_up_to_that_of_all_requests() -> None:
    offered, violations = np.array([[1000], [10]]), np.array([[10], [0]])
    result = Evaluation.of(np.array([offered, violations, offered, offered], np.float64))
    assert result.episode_rates.mean() == pytest.approx(result.violation_rate[0])


def test_a_percent_of_accuracy_costs_what_it_does_to_the_programs() -> None:
    cost = AccuracyCost([VARIANTS, SCENARIO])
    # An interval of 30 requests at 30 per second, all answered by the model of 0.7, not 0.9.
    counts = {"on_time": (20, 0, 15), "late": (10, 0, 0), "accuracy": (0.7, 0.0, 1.0)}
    metrics = {name: np.array(values) for name, values in counts.items()}
    costs = cost.of(metrics, np.array([0, 0, 1]))
    assert costs == pytest.approx([ACCURACY_PRICE * 100 * (1 - 0.7 / 0.9), 0.0, 0.0])


def test_each_scenario_has_the_program_that_is_cheapest_there() -> None:
    scenarios = tuple(short(duration_s=30.0, arrivals=Arrivals(load=load)) for load in (0.2, 0.8))
    costs = [of_program(name, scenarios, 3).cost for name in JOINT_PROGRAMS]
    sums, chosen = best_rules(True, scenarios, 3)
    assert chosen == [JOINT_PROGRAMS[place] for place in np.argmin(costs, axis=0)]
    assert len(set(chosen)) == 2
    assert best_rules(False, scenarios, 3)[1] == ["sponge-mpc"] * 2
    rule = Evaluation.of(sums)
    assert rule.violation_rate[0] <= FEW_VIOLATIONS
    assert rule.cores[0] == of_program(chosen[0], scenarios, 3).cores[0]


def test_rules_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.learn.evaluation.cache_dir", lambda: tmp_path)
    measured: list[int] = []
    question = True, (SCENARIO,), 1, lambda: measured.append(1)
    rules, programs = known_rules(*question)
    again, same = known_rules(*question)
    np.testing.assert_array_equal(rules, again)
    assert programs == same == best_rules(True, (SCENARIO,), 1)[1]
    assert len(measured) == 1
    (kept,) = (tmp_path / "rules").iterdir()
    kept.write_text("damaged")
    assert known_rules(*question)[1] == programs
    known_rules(False, *question[1:])
    known_rules(True, (short(duration_s=31.0),), *question[2:])
    assert len(measured) == 4
    monkeypatch.setattr("agents.learn.evaluation.cache_dir", lambda: Path("/proc/nowhere"))
    assert known_rules(*question)[1] == programs


def test_where_programs_miss_many_a_fixed_allocation_may_be_the_rule() -> None:
    simulation = Simulation(actuation_delay_s=1.5, cold_start_s=0.0)
    arrivals = Arrivals(kind="bursty", load=0.45)
    hard = short(duration_s=60.0, arrivals=arrivals, simulation=simulation)
    programs = [of_program(name, (SCENARIO, hard), 5) for name in JOINT_PROGRAMS]
    rule = best_rule(True, (SCENARIO, hard), 5)
    assert min(program.violation_rate[1] for program in programs) > FEW_VIOLATIONS
    assert all(rule.cost[1] < program.cost[1] for program in programs)
    assert rule.cores[0] in [program.cores[0] for program in programs]
    # Its figures are those of all episodes, and not of the few on which it was chosen.
    rows = product(range(1, 17), (1, 4, 8, 16), range(1, 9))
    every = np.array([row for row in rows if row[0] * row[2] <= 16])
    fixed = Evaluation.of(play_fixed([hard], every, 5, SEED_LIMIT))
    of_all = zip(fixed.cores[:, 0], fixed.violation_rate[:, 0], strict=True)
    assert (rule.cores[1], rule.violation_rate[1]) in set(of_all)
    # A vertical policy is not measured by what only replicas can do.
    assert best_rule(False, (hard,), 5).cost[0] > rule.cost[1]


def test_an_allocation_that_serves_nothing_is_no_rule_however_few_its_cores() -> None:
    beyond = short(duration_s=20.0, arrivals=Arrivals(rate_rps=200.0))
    program = of_program("sponge-mpc", (beyond,), 1)
    idle = Evaluation.of(play_fixed([beyond], np.array([[1, 1, 1]]), 1, SEED_LIMIT))
    assert idle.cost[0, 0] < program.cost[0]
    rule = best_rule(False, (beyond,), 1)
    assert rule.violation_rate[0] <= program.violation_rate[0] < idle.violation_rate[0, 0]
    # Nor does it hide those that serve more, on fewer cores.
    assert rule.cost[0] < program.cost[0]


def test_fixed_allocations_together_do_what_each_does_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.learn.evaluation._AT_ONCE", 3)  # so that they do not all fit
    rows, scenarios = np.array([[4, 2, 1], [2, 1, 2]]), [SCENARIO, short(duration_s=40.0)]
    together = Evaluation.of(play_fixed(scenarios, rows, 2, SEED_LIMIT))
    for row, cores, rates in zip(rows, together.cores, together.violation_rate, strict=True):
        alone = PolicyEvaluator(scenarios, 2).play(always(np.tile(row, (4, 1))))
        np.testing.assert_array_equal(alone.cores, cores)
        np.testing.assert_array_equal(alone.violation_rate, rates)


def test_fixed_allocations_of_all_stages_fit_and_can_be_the_rule() -> None:
    variants = fixed_allocations(VARIANTS, MAX_REPLICAS)
    assert len(variants) == len(np.unique(variants, axis=0)) == 4 * 2 * 3 * 3
    rows = fixed_allocations(CHAIN, MAX_REPLICAS)
    assert rows.shape[1:] == (3, 4)
    assert 1000 < len(rows) < 4097, "a random choice"
    assert (rows[..., 0] * rows[..., 2]).sum(axis=1).max() == CHAIN.limits.machine_cores
    assert (rows[0, :, :3] == 1).all()
    assert (fixed_allocations(CHAIN, 1)[..., 2] == 1).all()
    simulator(2 * [CHAIN], np.zeros(len(rows), np.int64)).step(rows)  # which checks all limits
    assert spec_of(CHAIN).total_cores == CHAIN.limits.machine_cores
