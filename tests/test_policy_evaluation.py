"""How policies, programs and fixed allocations are evaluated, and what accuracy costs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from project import ROOT, python
from scenarios import VARIANTS, episode_of, short
from tiny_policies import SCENARIO, drawn_policy, plan

from agents.history import INPUTS
from agents.learn import programs
from agents.learn.episodes import AccuracyCost, evaluated
from agents.learn.programs import run_programs
from agents.learned import PolicyController
from agents.policy import POLICY_FILE, save_policy
from sponge_env import load_scenario, make_system
from sponge_env.errors import ConfigError
from sponge_env.interfaces import ACCURACY_PRICE
from sponge_env.metrics import summary
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, play_together, run_episode
from sponge_env.scenario.config import Arrivals, Network, Serving
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.scenario.spec import scenario_profile

pytestmark = pytest.mark.usefixtures("quick_rules")


@pytest.mark.parametrize("beyond", [False, True])
def test_a_controller_decides_like_the_evaluator(tmp_path, beyond):
    policy = drawn_policy(seed=0)
    save_policy(policy, tmp_path / POLICY_FILE)
    # Some requests are hopeless, and many are still in the queue at the end.
    full = short(arrivals=Arrivals(rate_rps=60.0), network=Network(trace="4g", payload_bytes=1.5e6))
    scenario = full if beyond else SCENARIO
    result = evaluated(policy, [scenario], 1)
    controller = PolicyController("ppo-joint", str(tmp_path), guard=False)
    played = episode_of(scenario, controller, SEED_LIMIT)
    assert len({interval.replicas for interval in played.intervals}) > 1, "the policy steps"
    assert result.cores[0] == pytest.approx(played.summary.mean_cores, abs=1e-9)
    expected = played.summary.avoidable_violation_rate
    assert not beyond or expected < played.summary.violation_rate
    assert result.violation_rate[0] == pytest.approx(expected, abs=1e-12)
    slo = result.input_range[:, INPUTS.index("slo")]
    assert (slo[0], slo[1]) == (0.0, 0.0), "the logarithm of a second"


RULES = [(rule, tuple(range(7))) for rule in ("static-8", "queue-rule", "hpa")]


@pytest.mark.parametrize(("agent", "seeds"), [*RULES, ("ppo", (3, 5, 6))])
def test_seeds_played_together_end_as_alone(agent, seeds):
    kept = Serving(drop="expired")  # so that the guard has something to do
    scenario = dataclasses.replace(load_scenario("deep-fade"), duration_s=60.0, serving=kept)
    options = {"policy": "shipped"} if agent == "ppo" else {}
    controller = make_controller(agent, known_controllers(), options)
    runs = [Run.of(agent, scenario, "sim", seed) for seed in range(7)]
    together = play_together(scenario, scenario_profile(scenario), controller, runs)
    assert tuple(together) == seeds, "but where the guard takes over"
    for seed, episode in together.items():
        alone = run_episode(make_system(scenario, seed), controller, runs[seed])
        kept = [{**summary(e.summary), **e.requests, **e.columns} for e in (episode, alone)]
        for name in ("decision_s", "decision_p50_s", "decision_p99_s"):
            assert all(np.all(each.pop(name) > 0) for each in kept)
        np.testing.assert_equal(*kept)


def test_a_percent_of_accuracy_costs_what_it_does_to_the_programs():
    cost = AccuracyCost([VARIANTS, SCENARIO])
    # An interval of 30 requests at 30 per second, all answered by the model of 0.7, not 0.9.
    counts = {"on_time": (20, 0, 15), "late": (10, 0, 0), "accuracy": (0.7, 0.0, 1.0)}
    metrics = {name: np.array(values) for name, values in counts.items()}
    costs = cost.of(metrics, np.array([0, 0, 1]))
    assert costs == pytest.approx([ACCURACY_PRICE * 100 * (1 - 0.7 / 0.9), 0.0, 0.0])


def test_programs_are_played_once(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr("agents.learn.programs.cache_dir", lambda: tmp_path)
    monkeypatch.setattr(
        "agents.learn.programs.run_programs",
        lambda work, tasks: played.append(len(tasks)) or run_programs(work, tasks),
    )
    question = "sponge-mpc", (SCENARIO,), 1
    first, again = programs.play_program(*question), programs.play_program(*question)
    np.testing.assert_array_equal(first, again)
    assert played == [1]
    (kept,) = (tmp_path / "rules").iterdir()
    kept.write_text("damaged")
    np.testing.assert_array_equal(programs.play_program(*question), first)
    programs.play_program("sponge-joint", *question[1:])
    programs.play_program(question[0], (short(duration_s=31.0),), 1)
    programs.play_program(*question[:2], 2)
    assert played == [1, 1, 1, 1, 2]
    monkeypatch.setattr("agents.learn.programs.cache_dir", lambda: Path("/proc/nowhere"))
    np.testing.assert_array_equal(programs.play_program(*question), first)


UNGUARDED = """
from agents.learn.programs import run_programs
from sponge_env.scenario.scenario import Scenario, load_scenario
run_programs(len, [("sponge-mpc", 0, Scenario(name="mine"))])
"""


def test_a_script_that_trains_has_to_be_guarded(tmp_path):
    (tmp_path / "mine.py").write_text(UNGUARDED)
    run = python(tmp_path / "mine.py", PYTHONPATH=str(ROOT))
    assert 'a script that trains needs if __name__ == "__main__":' in run.stderr


def test_an_unknown_learner_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="unknown agent to train 'ppo-jiont'"):
        plan(tmp_path, agent="ppo-jiont")
