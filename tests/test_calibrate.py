"""Calibration and its bench: right on made-up runs, calm on disturbed ones, whole on real ones."""

import dataclasses
import math
import os
from statistics import median
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from control_groups import groups_of
from test_models import write_model

from sponge_env.app.calibrate import main, summary
from sponge_env.env.factory import calibrations, check_live
from sponge_env.errors import ConfigError
from sponge_env.latency import LatencyModel, quantile
from sponge_env.live import bench, calibration
from sponge_env.live.bench import DISTURBED_CELL_S, DISTURBED_S, BatchRun, Bench, ColdStart
from sponge_env.live.calibration import build_profile, build_quota
from sponge_env.live.local import PLACE
from sponge_env.live.protocol import LiveConfig
from sponge_env.scenario.config import Stage, Variant
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import Scenario

SMALL = LiveConfig(batch_max=4, cores_max=4, core_unit=0.25)


def made_up_grid(model, scatter):
    """Make runs that lie about a known model; small cells have many of them."""
    return {
        (b, c): [
            BatchRun(float(model.predict_s(b, c)) * (1 + s), 0.01 * b * (1 + s / 10), 0.0002)
            for s in scatter * (20 if b == 1 else 1)
        ]
        for b in (1, 2, 4)
        for c in (1, 2, 4)
    }


def test_the_fit_finds_the_model_behind_the_runs():
    truth = LatencyModel(gamma_s=0.09, delta_s=0.002, epsilon_s=0.004, eta_s=0.001)
    grid = made_up_grid(truth, scatter=(-0.1, 0.0, 0.1))
    profile = build_profile(SMALL, grid, cold_start_s=3.0, limiter="cgroup-v1")
    found = profile.latency
    assert dataclasses.astuple(found)[:4] == pytest.approx(dataclasses.astuple(truth)[:4])
    assert profile.fit_error.mape == pytest.approx(0, abs=1e-9)
    assert (profile.batches, profile.cores) == ((1, 2, 4), (1, 2, 4))
    assert (profile.cold_start_s, profile.limiter) == (3.0, "cgroup-v1")
    # the errors of single runs, not of the cells' means, which have none here
    assert quantile(found.residual_quantiles, 0.0) == pytest.approx(-0.1)
    assert quantile(found.residual_quantiles, 0.5) == pytest.approx(0, abs=1e-9)
    assert quantile(found.residual_quantiles, 1.0) == pytest.approx(0.1)
    # of three runs the mean is their own, so that they are nearer to it than to the true one
    assert profile.noise_quantiles[-1] == pytest.approx(0.01 * math.sqrt(3 / 2))
    once = {cell: runs[:1] for cell, runs in grid.items()}
    once[4, 1] = [once[4, 1][0]._replace(latency_s=2000.0)]  # held up
    assert set(build_profile(SMALL, once, 3.0, "cgroup-v1").noise_quantiles) == {0.0}


def test_a_cell_with_many_runs_counts_no_more_than_another():
    truth = LatencyModel(gamma_s=0.09, delta_s=0.0, epsilon_s=0.0, eta_s=0.0)
    grid = made_up_grid(truth, scatter=(0.0, 0.0))
    grid[4, 4] = [run._replace(cpu_s=run.cpu_s * f) for run in grid[4, 4] for f in (0.5, 1.5)]
    noise = build_profile(SMALL, grid, 3.0, "cgroup-v1").noise_quantiles
    # one cell in nine scatters, though it has 4 of the 136 runs
    assert noise[1] < -0.05, "the 5 % quantile"
    assert noise[2] == 0


def measured(work, idle_penalty_s=(0.0,), pauses_s=(0.0,)):
    made = SimpleNamespace(config=SMALL, work=work, pauses_s=pauses_s)
    made.idle_penalty_s, made.limits = idle_penalty_s, SimpleNamespace(period_s=0.01, tick_s=0.004)
    made.alone, made.contending = ColdStart(1.0, 0.5, 0), ColdStart(1.0, 0.7, 0)
    made.work_s = lambda: Bench.work_s(made)
    return made


def test_work_between_measured_sizes_is_interpolated_without_disturbed_runs():
    sizes = {1: 0.01, 2: 0.02, 4: 0.06}
    work = {b: [BatchRun(0.0, s * f, 0.0) for f in (1.0, 1.6, 1.0)] for b, s in sizes.items()}
    assert measured(work).work_s().tolist() == pytest.approx([0.01, 0.02, 0.04, 0.06])


def test_overheads_are_told_apart_by_size_and_by_pause():
    work = {b: [BatchRun(1.0, 0.01 * b, 0.0003 + 0.0001 * b)] * 3 for b in (1, 2, 4)}
    # 40 ms of work and 1.2 of a rest in quotas of 2.5 ms (a quarter of a core for 10 ms), of which
    # the limiter sees only that they are used up at a tick of 4 ms
    quota = build_quota(measured(work, (0.0011, 0.0013, 0.0012), (0.0007, 0.0009)))
    assert quota.work_s == pytest.approx((0.01, 0.02, 0.03, 0.04))
    assert quota.dispatch_s == pytest.approx(0.0003)
    assert quota.dispatch_request_s == pytest.approx(0.0001)
    assert quota.wake_s == pytest.approx(0.0012)
    assert quota.resume_s == pytest.approx(0.0008 * 4 / 41.2)
    assert (quota.period_s, quota.tick_s) == (0.01, 0.004)
    assert quota.loading_contention == pytest.approx(1.4)


@pytest.mark.parametrize(("pause_s", "resume_s"), [(-0.001, 0.0), (1.0, 0.00125)])
def test_pauses_cost_something_but_never_all(pause_s, resume_s):
    work = {b: [BatchRun(1.0, 0.01 * b, 0.0)] for b in (1, 4)}
    quota = build_quota(measured(work, (-0.001,), (pause_s,)))
    assert (quota.wake_s, quota.resume_s) == (0.0, pytest.approx(resume_s))


@pytest.mark.live
def test_a_calibration_is_whole(machine_profile, tmp_path):
    profile = machine_profile
    grid = np.array(profile.latency_s)
    assert grid.shape == (len(profile.batches), len(profile.cores))
    assert (profile.batches[-1], profile.cores[-1]) == (8, 8)
    assert np.all(np.diff(grid, axis=0) > 0), "larger batches take longer"
    assert np.all(grid[:, 0] > grid[:, -1]), "more cores are faster"
    assert (profile.quota.period_s, len(profile.quota.work_s)) == (pytest.approx(0.01), 8)
    assert list(profile.quota.work_s) == sorted(profile.quota.work_s)
    assert 0 <= profile.quota.dispatch_s < profile.quota.work_s[0]
    assert profile.quota.tick_s > 0
    assert profile.quota.loading_contention > 0
    assert profile.quota.wake_s is not None
    assert profile.cold_start_s > 0
    assert profile.host["onnxruntime"]
    for sample in profile.samples:
        work_s = profile.quota.work_s[sample.batch - 1]
        assert np.mean(sample.cpu_s) == pytest.approx(work_s, rel=0.5), "the same on any cores"
    assert "period 10 ms" in summary(profile)
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile


@pytest.mark.live
def test_the_command_measures_a_model_and_saves_it_where_it_is_told(tmp_path, capsys, quick_bench):
    out, model = tmp_path / "mine.json", write_model(tmp_path / "own.onnx")
    arguments = ["--model", str(model), "--cores", "2", "--batch", "2", "--seconds", "0.5"]
    assert main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert str(out) in shown.out
    stages = ("cold start", "pauses", "work", "latency grid")
    said = [line for line in shown.err.splitlines() if line.startswith("calibrating")]
    assert said == [f"calibrating: {stage}" for stage in stages]
    profile = load_profile(out)
    assert (profile.model, profile.cores) == (str(model), (1, 2))
    assert profile.quota is not None
    assert profile.facts.load_cpu_s > 0
    assert profile.facts.memory_bytes > 1e6
    assert not groups_of(os.getpid())


@pytest.mark.parametrize(
    ("arguments", "reason"), [("--model efficientnet-lite9", "unknown model 'efficientnet-lite9'"),
     ("--batch many", "--batch: must be a whole number of at least 2, not 'many'"),
     ("--seconds nan", "seconds to measure must be a number above 0"),
     ("--core-unit 0", "core_unit must be a number above 0"),
     ("--limiter none", "unknown limiter 'none'"),
     ("--scenario ocr --batch 8", "leave out --batch"),
     ("--out gone/p.json", "--out 'gone/p.json' is in no folder that exists"),
     ("--cpus 0,3-1", "--cpus: must be CPUs such as 0,1 or 0-3, not '0,3-1'"),
     ("--cpus 99999", "--cpus names CPU 99999, but this process may use ")],
)  # fmt: skip
def test_bad_options_end_in_one_sentence(arguments, reason, refused):
    assert reason in refused(main, arguments)


def test_an_output_that_cannot_be_written_lets_nothing_be_measured(monkeypatch, refused):
    monkeypatch.setattr(calibration, "calibrate_all", lambda *_: pytest.fail("measured"))
    assert refused(main, "--out .").startswith("error: cannot write '.': ")


WAITED = "a batch of 1 on all cores took 15.0 ms for 9.9 ms of CPU time, and 4 more"


@pytest.mark.parametrize(
    ("cell", "latency_s", "wall", "reason"),
    [((0, 0), 0.175, 1.0, None), ((0, 0), 0.175, 1.5, WAITED),
     ((0, 4), 0.030, 1.0, "a batch of 1 took 30.0 ms on 16 units, one of 2 only 19.6 on 16"),
     ((4, 3), 0.9, 1.0, "a batch of 16 took 900.0 ms on 8 units, one of 16 only 700.9 on 4")],
)  # fmt: skip
def test_a_loaded_machine_is_warned_of(
    cell, latency_s, wall, reason, tmp_path, monkeypatch, caplog, capsys
):
    profile = load_profile("lite0")
    grid = [list(row) for row in profile.latency_s]
    grid[cell[0]][cell[1]] = latency_s
    runs = [
        dataclasses.replace(each, latency_s=tuple(wall * run_s for run_s in each.latency_s))
        for each in profile.samples
    ]
    made = dataclasses.replace(profile, latency_s=tuple(map(tuple, grid)), samples=tuple(runs))
    monkeypatch.setattr(calibration, "calibrate_all", lambda *_, **__: [made])
    model = write_model(tmp_path / "own.onnx")
    assert main(["--model", str(model), "--out", str(tmp_path / "mine.json")]) == 0
    assert (reason or "") in caplog.text
    assert bool(reason) == ("other work disturbed the calibration" in caplog.text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["--model", str(model)]) == 0
    assert f"use it      --profile local:{model};" in capsys.readouterr().out
    saved = load_profile("local-own")
    monkeypatch.setattr(PLACE, "open", lambda _: MagicMock(limiter=saved.limiter))
    check_live(Scenario("any", profile="local-own"), saved, "auto")
    assert caplog.text.count("other work disturbed") == 3 * bool(reason), "when it is used, too"


def test_models_take_turns_between_their_grids(monkeypatch):
    made = MagicMock()
    for name in "ab":
        getattr(made, name).__enter__.return_value = getattr(made, name)
        getattr(made, name).worker.limiter = "cgroup-v1"
    monkeypatch.setattr(calibration, "Bench", lambda config, shown: getattr(made, config.model))
    monkeypatch.setattr(calibration, "_profile_of", lambda bench: bench)
    configs = [LiveConfig(model=name) for name in "ab"]
    assert calibration.calibrate_all(configs, seconds=1.0) == [made.a, made.b]
    done = [name for name, *_ in made.mock_calls if "measure_" in name]
    begin = [f"{name}.measure_{what}" for name in "ab" for what in ("cold_starts", "pauses")]
    work = ["a.measure_work", "b.measure_work"]
    assert done == [*begin, *work, "a.measure_grid", *work, "b.measure_grid", *work]
    runs = [arguments[0] for name, arguments, _ in made.mock_calls if name == "a.measure_work"]
    assert sum(runs) >= bench.WORK_RUNS
    made.b.worker.limiter = "remote-outside"
    with pytest.raises(ConfigError, match="limits from outside act late or never"):
        calibration.calibrate_all(configs, seconds=1.0)


def test_two_files_of_one_name_do_not_share_a_profile():
    stages = tuple(Stage(n, (Variant(f"local:{n}/net.onnx"),)) for n in ("first", "second"))
    with pytest.raises(ConfigError, match=r"first/net\.onnx and second/net\.onnx would share"):
        calibrations([Scenario("two", stages=stages)], "auto")


WORK_S, IDLE_S = (0.01, 0.02), 0.001


class Machine(Bench):
    """Batches take their work on the cores that were asked for, times how slow the machine is."""

    def __init__(self, slow_s):
        """Be twice as slow for the first so many seconds of the time that batches take."""
        super().__init__(LiveConfig(cores_max=2, batch_max=2))
        self._slow_s, self.runs, self.took_s, self._share = slow_s, 0, 0.0, 1.0
        self.images = []

    def work_s(self):
        return WORK_S

    def _resize(self, cores, replicas=1):
        self._share = cores / 2

    def _run(self, size, rested=False, same=False):
        self.runs += 1
        self._requests += 0 if same else size
        self.images.append(range(self._requests - size, self._requests))
        slow = self._slow_s > 0
        cpu_s = WORK_S[size - 1] * (2.0 if slow else 1.0)
        self._slow_s -= slow * cpu_s / self._share
        self.took_s += cpu_s / self._share
        return BatchRun(cpu_s / self._share, cpu_s + rested * IDLE_S / self._share, 0.0)

    def slow_cells(self):
        """Measure the grid; return how many runs of each cell were slow."""
        self.grid.clear()
        self.measure_grid(0.0)  # long ago: it is measured once
        cells = self.grid.items()
        return {k: sum(run.cpu_s > 1.5 * WORK_S[k[0] - 1] for run in runs) for k, runs in cells}


@pytest.fixture
def machine(monkeypatch):
    """Return what makes a machine, which starts no worker."""
    monkeypatch.setattr(bench, "LiveWorker", lambda config: SimpleNamespace(launcher=None))
    return Machine


@pytest.mark.parametrize("slow_s", [0.0, 0.1, DISTURBED_CELL_S - 0.1])
def test_batches_run_again_until_the_machine_is_calm(slow_s, machine):
    measured, calm = machine(slow_s), machine(0.0)
    assert not any(measured.slow_cells().values())
    assert not any(calm.slow_cells().values())
    assert [*measured.grid] == [*calm.grid]
    assert [*map(len, measured.grid.values())] == [*map(len, calm.grid.values())]
    assert (measured.runs > calm.runs) == (slow_s > 0)


def test_a_machine_that_stays_slow_is_measured_as_it_is(machine):
    slow, calm = machine(float("inf")), machine(0.0)
    assert slow.slow_cells() == {cell: len(runs) for cell, runs in slow.grid.items()}
    assert not any(calm.slow_cells().values())
    assert DISTURBED_S <= slow.took_s - 2 * calm.took_s < DISTURBED_S + 0.2
    slow.slow_cells()
    assert slow.took_s - 4 * calm.took_s == pytest.approx(DISTURBED_S, abs=0.2)


def test_one_cell_does_not_use_up_the_time_of_all(machine):
    first, *others = machine(DISTURBED_CELL_S + 0.5).slow_cells().values()
    assert first > 0
    assert not any(others)


def test_what_is_compared_is_measured_on_the_same_images(machine):
    calm = machine(0.0)
    calm.measure_work(3, again=True)
    measured = {size: {run.cpu_s for run in runs} for size, runs in calm.work.items()}
    assert measured == {1: {WORK_S[0]}, 2: {WORK_S[1]}}
    assert calm.idle_penalty_s == pytest.approx([IDLE_S] * 6)
    calm.measure_pauses()
    assert median(calm.pauses_s) == pytest.approx(IDLE_S), "at half the speed"
    assert (calm.images[::2], len({*calm.images})) == (calm.images[1::2], len(calm.images) // 2)
