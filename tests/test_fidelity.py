"""The fidelity comparison, on a made-up live worker and, once, on the real one."""

import dataclasses
import json
import math
from collections import deque
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
from core_doors import measured_works
from fake_worker import FakeStages
from reference.quota import QuotaBucket
from reference.worker import SimulatedWorker
from scenarios import QUOTA_PROFILE, short

import sponge_env.fidelity.__main__ as command
from baselines.rules import Static
from sponge_env import Allocation, cli
from sponge_env.errors import ConfigError, WorkerError
from sponge_env.fidelity import report
from sponge_env.fidelity.trial import MeasuredWork, Subject, Trial
from sponge_env.interfaces import Batch, Completion
from sponge_env.metrics import EpisodeMetrics, column
from sponge_env.results.tables import terminal
from sponge_env.scenario.config import Arrivals, Initial, Limits, Stage, Variant
from sponge_env.scenario.profile import LOCAL_MODEL, local_profile_path, save_profile
from sponge_env.scenario.seeds import stream

QUOTA = dataclasses.replace(QUOTA_PROFILE.quota, wake_s=0.0, resume_s=0.0)
NOW = datetime.now(UTC).isoformat(timespec="seconds")
PROFILE = dataclasses.replace(QUOTA_PROFILE, model=LOCAL_MODEL, quota=QUOTA, date=NOW)
WORK_S = np.array(QUOTA.work_s)

SCENARIO = short(profile="local", arrivals=Arrivals(kind="poisson", load=0.35))


class MadeUpLive(SimulatedWorker):
    """A simulated worker that passes for the real one, some 15 % slower than its profile."""

    def __init__(self, spec, repetition, phases=None):
        self._scatter, self._factors = stream(repetition, "arrivals"), deque()
        phases = phases or stream(repetition, "noise")
        super().__init__(
            lambda cores: QuotaBucket(QUOTA, WORK_S, spec.first.core_unit, cores, phases.random()),
            spec.initial, cold_start_s=spec.first.cold_start_s, noise=self._slower,
        )  # fmt: skip

    def _slower(self):
        self._factors.append(1.1 + 0.1 * self._scatter.random())
        return self._factors[-1]

    def wait(self, until_s):
        """Let time pass, and measure the batches as the real worker does."""
        ended = super().wait(until_s)
        works_s = (float(WORK_S[c.batch.size - 1]) * self._factors.popleft() for c in ended)
        return [dataclasses.replace(c, cpu_s=s) for c, s in zip(ended, works_s, strict=True)]


def subject(scenario=SCENARIO):
    return Subject.of("static-8", Static(cores=8), scenario, PROFILE, seed=0)


def test_a_replay_takes_the_machine_s_speed_out_of_the_comparison():
    live, simulated, replayed = subject().repeat(0, partial(MadeUpLive, repetition=0))
    assert len({trial.summary.offered for trial in (live, simulated, replayed)}) == 1
    assert (live.kind, simulated.kind, replayed.kind) == ("live", "simulated", "replayed")
    assert live.cpu_ratio == pytest.approx(1.15, abs=0.02)
    assert simulated.summary.latency_mean_s < live.summary.latency_mean_s * 0.97
    for quantity in report.QUANTITIES:
        wanted = getattr(live.summary, quantity.metric)
        assert getattr(replayed.summary, quantity.metric) == pytest.approx(wanted)


def test_a_warm_start_is_the_same_in_all_three():
    done = subject(scenario=dataclasses.replace(SCENARIO, start="warm", warmup_s=5.0))
    assert done.scenario.initial.cores == 8
    trials = done.repeat(0, partial(MadeUpLive, repetition=0))
    assert {trial.summary.start for trial in trials} == {"warm"}
    assert {trial.summary.duration_s for trial in trials} == {15.0}


def completion(cpu_s, size, variant=0, ok=True):
    return Completion(Batch(0, tuple(range(size)), variant=variant), 0, 0.0, 1.0, ok, cpu_s)


def test_measured_work_comes_back_by_size_in_its_order():
    ended = [completion(0.011, 1), completion(0.03, 2), completion(0.012, 1)]
    work = MeasuredWork([*ended, completion(0.0, 1, ok=False)], WORK_S)
    assert work.ratio == pytest.approx(0.053 / 0.04)
    taken = measured_works(work.table(), [1, 2, 1, 1, 4])
    assert taken == pytest.approx([1.1, 1.5, 1.2, work.ratio, work.ratio])
    assert measured_works(MeasuredWork([], WORK_S).table(), [3]) == [1.0]
    variants = [(0.011, 1, 0), (0.06, 2, 1), (0.05, 1, 1), (0.012, 1, 0)]
    usual_s = np.array([[0.01, 0.02], [0.04, 0.05]])
    table = MeasuredWork([completion(*each) for each in variants], usual_s).table()
    taken = measured_works(table, (1, 1, 2, 1), (1, 0, 1, 0), batch_max=2)
    assert taken == pytest.approx([1.25, 1.1, 1.2, 1.2]), "each variant has its own"


class MadeUpStages(FakeStages):
    """Two made-up replicas in line; answers of the first lead to 0 to 3 tasks."""

    def __init__(self, spec, repetition):
        workers, phases = [], stream(repetition, "noise")
        for k, initial in enumerate(spec.initial.stages):
            own = {"initial": Allocation(stages=(initial,)), "stages": spec.stages[k : k + 1]}
            workers.append(MadeUpLive(dataclasses.replace(spec, **own), repetition + k, phases))
        super().__init__(workers, tasks=lambda request: request % 4)


def test_a_replay_of_stages_has_their_work_and_their_tasks(tmp_path):
    save_profile(PROFILE, tmp_path / "here.json")
    model = (Variant(str(tmp_path / "here.json"), accuracy=0.9),)
    held = {"limits": Limits(cores=8, batch=4), "initial": Initial(cores=8, batch=2)}
    stages = tuple(Stage(name, model, **held) for name in ("first", "second"))
    whole = {"limits": Limits(cores=16, batch=4, total_cores=16), "stages": stages}
    chain = dataclasses.replace(SCENARIO, **whole, arrivals=Arrivals("poisson", rate_rps=8.0))
    one = Subject.of("static", Static(cores=8, batch=2), chain, PROFILE, seed=0)
    live, simulated, replayed = one.repeat(0, partial(MadeUpStages, repetition=0))
    assert live.cpu_ratio == pytest.approx(1.15, abs=0.02)
    assert simulated.summary.latency_mean_s < live.summary.latency_mean_s * 0.97
    for quantity in (*report.QUANTITIES, report.ACCURACY):
        wanted = getattr(live.summary, quantity.metric)
        assert getattr(replayed.summary, quantity.metric) == pytest.approx(wanted)
    compared = {row.quantity for row in report.compare([live, simulated, replayed])}
    assert compared == {*report.QUANTITIES, report.ACCURACY}


def made_up(kind, repetition, **values):
    return Trial(kind, repetition, EpisodeMetrics("a", "s", offered=1, **values), 1.0)


@pytest.mark.parametrize(
    ("metric", "live_s", "simulated_s", "verdict"), [("latency_mean_s", (0.09, 0.11), 0.104, "met"),
     ("latency_mean_s", (0.09, 0.11), 0.109, "within spread"),
     ("latency_mean_s", (0.09, 0.11), 0.12, "missed"),
     ("latency_p99_s", (0.9, math.inf), 0.9, "within spread"),
     ("latency_p99_s", (math.inf, math.inf), math.inf, "met"),
     ("latency_p99_s", (math.inf, math.inf), 0.9, "missed"),
     ("latency_p99_s", (0.9, 0.9), math.inf, "missed")],
)  # fmt: skip
def test_a_target_is_met_or_live_runs_are_no_closer(tmp_path, metric, live_s, simulated_s, verdict):
    runs = [made_up("live", r, **{metric: live_s[r]}) for r in range(2)]
    for kind in ("simulated", "replayed"):
        runs += [made_up(kind, r, **{metric: simulated_s}) for r in range(2)]
    report.write_results(tmp_path, runs, PROFILE, ["python"])
    for rows in (report.compare(runs), report.load_fidelity(tmp_path / "fidelity.json")):
        (row,) = [row for row in rows if row.quantity.metric == metric]
        assert row.verdict == verdict
        if metric == "latency_mean_s":
            assert row.difference == pytest.approx(simulated_s / 0.1 - 1)


def test_violations_are_compared_in_points_and_nothing_with_nothing(tmp_path):
    runs = [made_up(kind, 0) for kind in ("live", "replayed")]
    runs.insert(1, made_up("simulated", 0, violation_rate=0.004))
    report.write_results(tmp_path, runs, PROFILE, ["python"])
    loaded = report.load_fidelity(tmp_path / "fidelity.json")
    for each in (report.compare(runs), loaded):
        rows = {row.quantity.metric: row for row in each}
        assert rows["violation_rate"].difference == pytest.approx(0.004)
        assert rows["violation_rate"].verdict == "met"
        assert math.isnan(rows["latency_mean_s"].difference)
        assert rows["latency_mean_s"].verdict == ""
    assert len(report.tables(loaded)["s"].rows) == len(report.QUANTITIES)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make this machine one that was measured just now, with the made-up worker."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_profile(PROFILE, local_profile_path())
    monkeypatch.setattr(command.factory, "check_live", lambda *_: None)
    monkeypatch.setattr(command, "real_worker", lambda *_: lambda spec: MadeUpLive(spec, 0))
    return tmp_path


def run_command(folder, *arguments):
    common = ["--scenario", "local", "--duration", "5", "--out", str(folder / "out")]
    return command.main(["--agent", "static-8", "--repetitions", "1", *common, *arguments])


def test_the_command_writes_what_it_prints(here, capsys):
    assert run_command(here) == 0
    shown = capsys.readouterr().out
    assert all(column(quantity.metric).label in shown for quantity in report.QUANTITIES)
    data = json.loads((here / "out" / "fidelity.json").read_text())
    assert [trial["kind"] for trial in data["trials"]] == ["live", "simulated", "replayed"]
    assert data["host"]["cpu_model"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), cli.INTERRUPTED), (WorkerError("replicas died"), cli.BAD_INPUT)],
)
def test_a_command_that_ends_early_keeps_what_it_has(here, monkeypatch, capsys, error, code):
    starts = []

    class Dying(MadeUpLive):
        def wait(self, until_s):
            if len(starts) == 2 and self.now() > 2.0:
                raise error
            return super().wait(until_s)

    def start(spec):
        starts.append(Dying(spec, 0))
        return starts[-1]

    monkeypatch.setattr(command, "real_worker", lambda *_: start)
    assert run_command(here, "--repetitions", "2") == code
    assert ("error: replicas died" in capsys.readouterr().err) == (code == cli.BAD_INPUT)
    assert len(json.loads((here / "out" / "fidelity.json").read_text())["trials"]) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["--agent", "sponge"], "did you mean 'sponge-ip'"),
     (["--scenario", "lokal"], "did you mean 'local'"),
     (["--repetitions", "0"], "at least 1, not '0'"), (["--duration", "0"], "duration_s must be"),
     (["--option", "fa2.x=1"], "unknown agent of this run 'fa2'")],
)  # fmt: skip
def test_bad_input_ends_with_a_sentence(here, capsys, arguments, sentence):
    assert run_command(here, *arguments) == cli.BAD_INPUT
    assert sentence in capsys.readouterr().err
    assert not (here / "out").exists()


def test_the_machine_is_measured_first_where_that_is_asked_for(here, monkeypatch):
    def calibrate_files(files):
        for path in files:
            save_profile(dataclasses.replace(PROFILE, date="2030-01-01"), path)

    monkeypatch.setattr(command, "calibrate_files", calibrate_files)
    for asked, date in (([], PROFILE.date), (["--calibrate"], "2030-01-01")):
        assert run_command(here, *asked) == 0
        assert json.loads((here / "out" / "fidelity.json").read_text())["profile_date"] == date


def test_simulated_and_live_stand_side_by_side_with_their_difference():
    def episode(backend, **measured):
        head = {"agent": "fa2", "scenario": "local", "backend": backend, "seed": 0, "offered": 40}
        return EpisodeMetrics(**head, **measured)

    simulated = episode("sim", violation_rate=0.02, mean_cores=8.0, latency_mean_s=0.18)
    live = episode("live", violation_rate=0.01, mean_cores=8.0, latency_mean_s=0.2)
    never = dataclasses.replace(simulated, latency_p99_s=math.inf)
    live = dataclasses.replace(live, latency_p99_s=0.5)
    made, notes = report.side_by_side([never], [live, dataclasses.replace(live, agent="ppo")])
    table = terminal(made, notes=notes)
    (row,) = [line.split() for line in table.splitlines() if line.startswith("fa2")]
    shown = "fa2 2.00 1.00 +1.00 pt 180.0 200.0 -10.0 % dropped 500.0 - 8.00 8.00 +0.0 %"
    assert row == shown.split()
    assert "ppo" not in table
    assert "accuracy" not in table
    assert "2.50 pt" in table  # one of 40 requests
    wrong = [dataclasses.replace(e, accuracy=0.8, effective_accuracy=0.7) for e in (never, live)]
    made, _ = report.side_by_side(wrong[:1], wrong[1:])
    assert "effective accuracy [%], simulated" in made.headings


def test_a_controller_that_does_not_fit_is_refused_before_anything_runs():
    class Fussy(Static):
        def reset(self, spec, seed):
            raise ConfigError("only for another scenario")

    with pytest.raises(ConfigError, match="another scenario"):
        Subject.of("fussy", Fussy(cores=8), SCENARIO, PROFILE, seed=0)
