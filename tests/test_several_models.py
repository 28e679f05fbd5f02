"""Several models in one system: whose requests are whose, and how the machine is shared."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

import evaluate
from sponge_env.errors import ConfigError, ControllerError
from sponge_env.interfaces import Allocation, StageAllocation, cores_held, fits
from sponge_env.run.decision import start
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode, steady_scenario
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import Workload, draw_workload

TWO = replace(load_scenario("two-models"), duration_s=60.0)
(DETECTOR, CLASSIFIER), (FIRST, SECOND) = TWO.classes, TWO.stages
PROFILE = scenario_profile(TWO)


def played(system, controller):
    return run_episode(system, controller, Run.of("any", system.plan, "sim", 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"stages": (FIRST, replace(SECOND, after=None))}, "each in one class"),
     ({"stages": (replace(FIRST, fan_out=2), SECOND)}, "without fan_out"),
     ({"classes": (DETECTOR,), "slo_s": 1.0}, r"'classifier', 'detector'\].*\['detector'\]"),
     ({"stages": (FIRST, SECOND, replace(SECOND, name="c", after=("detector",)))}, "or in none"),
     ({"classes": (DETECTOR, replace(CLASSIFIER, arrivals=None))}, "in each class or in none"),
     ({"arrivals": replace(TWO.arrivals, rate_rps=40.0)}, "have arrivals of their own")],
)  # fmt: skip
def test_what_is_neither_a_pipeline_nor_a_set_of_models_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(TWO, **changes)


def test_each_model_has_its_own_stream_of_requests():
    long = replace(TWO, duration_s=600.0)
    workload = draw_workload(long, PROFILE, 3)
    np.testing.assert_array_equal(np.sort(workload.id), np.arange(workload.id.size))
    for place, kind in enumerate(long.classes):
        own = workload.enters == place
        assert own.sum() == pytest.approx(600.0 * kind.arrivals.rate_rps, rel=0.1)
        np.testing.assert_allclose((workload.deadline_s - workload.sent_s)[own], kind.slo_s)
        assert set(workload.payload_bytes[own]) == {kind.payload_bytes}
    assert rate_rps(long, PROFILE) == 40.0
    steady = draw_workload(steady_scenario(long, PROFILE), PROFILE, 0)
    assert np.mean(steady.enters) == pytest.approx(0.5, abs=0.02)


def shared(asked, view, spec):
    """Say in plain Python what of it is given: the model under the least pressure gives up."""
    asked, rates = list(asked), []
    for stage, own in zip(view.stages, spec.models, strict=True):
        rates.append(len(stage.queued_deadlines_s) / own.slo_s)
        rates[-1] += sum(stage.arrivals[-1:]) / own.interval_s

    def less(k):
        part = "replicas" if asked[k].cores <= asked[k].replicas or not view.ready[k] else "cores"
        return asked[k]._replace(**{part: getattr(asked[k], part) - 1})

    def held(k):
        return cores_held([asked[k]], [view.ready[k]])

    def pressure(k):
        (cores, batch, replicas, _), own = less(k), spec.models[k].first
        takes_s = own.latency.table_s(own.batch_max, own.cores_max)[batch - 1, cores - 1]
        return rates[k] * takes_s / (batch * replicas), -held(k)

    while not fits(spec.nodes, asked, view.ready):
        k = min((k for k in range(len(asked)) if held(k) > 1), key=pressure)
        asked[k] = less(k)
    return tuple(asked)


@pytest.mark.parametrize("nodes", [(), (9, 7)])
def test_the_machine_is_shared_by_pressure_alone_and_in_a_batch(nodes):
    scenario = replace(TWO, limits=replace(TWO.limits, total_cores=16, nodes=nodes))
    system, rng, given_up = SimulatedSystem(scenario, 2), np.random.default_rng(5), 0
    batch = BatchSimulator([scenario], np.zeros(1, np.int64))
    batch.reset(np.ones(1, np.bool_), np.array([2]), np.zeros((1, batch._obs_dim), np.float32))
    while not system.done:
        asked = [StageAllocation(*each) for each in rng.integers(1, (9, 17, 9), (2, 3)).tolist()]
        expected = shared(asked, system.view(), system.spec)
        metrics = system.step(Allocation(stages=tuple(asked)))
        _, rows = batch.step(np.array([asked]))
        assert system.allocation.stages == expected
        assert metrics.cores <= 16 + 1e-9
        assert (rows["on_time"][0], rows["cores"][0]) == (metrics.on_time, metrics.cores)
        given_up += expected != tuple(asked)
    assert given_up > 20


def test_a_model_s_controller_sees_its_own_requests():
    large = tuple(replace(kind, payload_bytes=1e6) for kind in TWO.classes)
    seen, system = [], SimulatedSystem(replace(TWO, classes=large), 1)

    class Watching:
        def reset(self, spec, seed):
            self.slo_s = spec.slo_s

        def decide(self, view):
            seen.append((self.slo_s, view))
            return Allocation(4, 4, 1)

    episode, workload = played(system, Watching()), system._workload
    for place, (stage, kind) in enumerate(zip(TWO.stages, TWO.classes, strict=True)):
        views = [view for slo_s, view in seen if slo_s == kind.slo_s]
        assert len(views) == TWO.intervals
        below_s = system._arrays.models[0]["hopeless_below_s"][place]
        for interval, view in enumerate(views[1:], start=1):
            now = (workload.enters == place) & (np.ceil(workload.arrival_s) == interval)
            delays_s = (workload.arrival_s - workload.sent_s)[now]
            np.testing.assert_array_equal(view.delays_s, delays_s)
            assert view.last.offered == now.sum() == view.first.arrivals[-1]
            assert view.last.violations == episode.columns[f"{stage.name}/violations"][interval - 1]
            assert view.last.hopeless == np.count_nonzero(view.budgets_s < below_s)
            assert view.mean_delays_s.size == view.first.arrivals.size
            assert not delays_s.size or view.mean_delays_s[-1] == delays_s.mean()


def test_a_controller_that_fails_for_one_model_decides_for_the_other():
    class Failing:
        def reset(self, spec, seed):
            self.slo_s, self.cores = spec.slo_s, 0

        def decide(self, view):
            self.cores += 1
            assert self.cores == 1 or self.slo_s != DETECTOR.slo_s, "no idea"
            return Allocation(self.cores, 1)

    system = SimulatedSystem(TWO, 1)
    controller = start(Failing(), system.spec, 0)
    system.step(controller.decide(system.view()))
    with pytest.raises(ControllerError, match="no idea") as raised:
        controller.decide(system.view())
    assert raised.value.stages == (StageAllocation(1, 1), StageAllocation(2, 1))


def test_a_controller_that_cannot_be_copied_is_refused_for_a_set():
    class Locked:
        def __init__(self):
            self.lock = Lock()

    with pytest.raises(ControllerError, match=r"must be copyable: cannot pickle '_thread\.lock'"):
        start(Locked(), SimulatedSystem(TWO, 1).spec, 0)


@pytest.mark.usefixtures("unpainted", "own_folder")
def test_what_models_measure_adds_up_and_tables_show_it(capsys, refused):
    sentence = "arrivals.rate_rps must be left out"
    assert sentence in refused(evaluate.main, "--scenario two-models --agent hpa --rate 5")
    line = "--scenario two-models --agent hpa sponge-joint --duration 40 --start warm --json all"
    assert evaluate.main([*line.split(), "--run-dir", "run"]) == 0
    printed = capsys.readouterr().out
    for episode in json.loads(Path("all").read_text()):
        pairs = ("offered", "offered"), ("violations", "violations"), ("cores", "mean_cores")
        for name, whole in pairs:
            total = sum(own[name] for own in episode["stages"].values())
            assert total == pytest.approx(episode[whole])
        for model in ("detector", "classifier"):
            row = rf"^{episode['agent']} +{model} +\d+\.\d+ +\d+\.\d+ "
            assert re.search(row, printed, re.MULTILINE)


def test_one_machine_for_both_misses_less_than_a_half_for_each():
    warm = tuple(replace(s, initial=replace(s.initial, replicas=2)) for s in TWO.stages)
    scenario, own = replace(TWO, duration_s=100.0, stages=warm), {"replicas": 2, "batch": 4}
    all_cores, half_of_them = (
        make_controller("static", known_controllers(), own | {"cores": cores}) for cores in (8, 4)
    )
    both, halves = np.zeros((2, 2))  # violations and cores
    for seed in range(5):
        summary = played(SimulatedSystem(scenario, seed), all_cores).summary
        both += summary.violations, summary.mean_cores
        workload = draw_workload(scenario, PROFILE, seed)
        for place, model in enumerate(scenario.models):
            columns = (getattr(workload, f.name) for f in fields(workload))
            *own, enters = (column[workload.enters == place] for column in columns)
            half = replace(model, limits=replace(model.limits, total_cores=8))
            system = SimulatedSystem(half, seed, workload=Workload(*own, 0 * enters))
            summary = played(system, half_of_them).summary
            halves += summary.violations, summary.mean_cores
    assert both[0] < 0.6 * halves[0]
    assert both[1] <= halves[1] == 5 * 16  # the halves are held from the start
