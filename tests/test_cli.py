"""The scripts as a user calls them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
from stable_baselines3 import DQN, PPO
from tiny_policies import PLAIN, drawn_policy

import baselines
import evaluate
import train
from agents.policy import load_policy, save_policy
from sponge_env.__main__ import main as sponge
from sponge_env.app import calibrate
from sponge_env.app import evaluate as evaluation
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names
from sponge_env.run.store import RunStore
from sponge_env.run.suite import changed
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.simulation.traffic import rate_rps
from sponge_env.utils.console import Progress

SMALL_TRAINING = """\
hidden = [8, 8]
imitations = 1
demonstrations = 1
evaluation_episodes = 1
choice_episodes = 1
"""

REQUIRED_KEYS = {
    "agent",
    "scenario",
    "backend",
    "seed",
    "start",
    "offered",
    "on_time",
    "late",
    "dropped",
    "failed",
    "hopeless",
    "violation_rate",
    "avoidable_violation_rate",
    "mean_cores",
    "core_seconds",
    "latency_p50_s",
    "latency_p99_s",
    "infeasible_decisions",
    "decision_p50_s",
    "decision_p99_s",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Elsewhere, for libraries keep their own things in it.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def failure(argv: list[str], capsys: pytest.CaptureFixture[str], script: object = evaluate) -> str:
    """Run a script that must fail; return its one sentence."""
    before = set(Path().iterdir())
    assert script.main(argv) == 2  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert set(Path().iterdir()) == before, "something was written"
    return error


def test_an_evaluation_records_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code = evaluate.main(
        [
            "--agent",
            "static-8",
            "fa2",
            "--duration",
            "20",
            "--seeds",
            "2",
            "--run-dir",
            "run",
            "--json",
            "out.json",
        ]
    )
    assert code == 0
    summaries = json.loads(Path("out.json").read_text())
    assert [(s["agent"], s["seed"]) for s in summaries] == [
        ("static-8", 0), ("static-8", 1), ("fa2", 0), ("fa2", 1)
    ]  # fmt: skip
    for summary in summaries:
        assert REQUIRED_KEYS <= set(summary) == set(names(EpisodeMetrics))
        ended = ("on_time", "late", "dropped", "failed")
        assert summary["offered"] == sum(summary[key] for key in ended) > 0
        agent, cell = summary["agent"], f"paper+yolov5s+cold-seed{summary['seed']}"
        kept = json.loads(Path(f"run/results/{agent}/paper+yolov5s+cold.json").read_text())
        assert kept["episodes"][summary["seed"]] == summary
        intervals = pd.read_parquet(f"run/intervals/{agent}/{cell}.parquet")
        assert len(intervals) == 20
        assert set(names(IntervalMetrics)) < set(intervals.columns)
        requests = pd.read_parquet(f"run/requests/{agent}/{cell}.parquet")
        assert len(requests) == summary["offered"]
        events = Path(f"run/tensorboard/{agent}-seed{summary['seed']}")
        assert list(events.glob("events.out.tfevents.*"))
    names_of_files = ("run.json", "command.txt", "versions.json", "host.json", "comparison.png")
    for name in (*names_of_files, "profiles/yolov5s.json"):
        assert (Path("run") / name).stat().st_size > 0
    printed = capsys.readouterr().out
    assert "static-8" in printed
    assert "tensorboard --logdir run" in printed


def test_the_list_shows_what_there_is_to_choose_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert sponge(["list"]) == 0
    assert capsys.readouterr().out == listed
    for name in ("sponge-paper", "oracle", "flash-crowd", "quick", "yolov5s", "ppo-yolov5s"):
        assert f"\n  {name}" in listed
    assert not any(Path().iterdir())


def test_names_of_the_tables_stand_beside_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--agent sponge-paper static-tuned oracle --scenario paper-300kb --duration 20"
    assert evaluate.main([*argv.split(), "--run-dir", "run"]) == 0
    printed = capsys.readouterr().out
    assert "agent sponge-paper stands for sponge-ip, formulation=paper\n" in printed
    assert "agent static-tuned stands for batch=8, cores=7, tuned for this scenario\n" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("static", "oracle"))]
    (_, *tuned), (_, *bound) = rows
    assert tuned[2] == "7.00"
    assert 0.0 < float(bound[2]) < 16.0
    assert float(bound[0]) <= float(tuned[0])
    assert bound[3] == "-", "a bound has no latency"
    runs = sorted(path.name for path in Path("run/tensorboard").iterdir())
    assert runs == ["sponge-paper", "static-tuned"], "there is one seed"


def test_what_is_printed_can_be_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(Path.cwd() / "env/bin/python"))
    argv = ["--agent", "static-8", "--duration", "5"]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr().out
    assert "\nlive, too    env/bin/python evaluate.py --agent static-8 --backend both" in printed
    assert "\nreport       env/bin/python -m sponge_env report runs/" in printed
    assert evaluate.main([*argv, "--scenario", "paper-300kb", "--agent", "static-tuned"]) == 0
    assert "live, too" not in capsys.readouterr().out
    Path("own.csv").write_text("time_s,bandwidth_bytes_per_s\n0,3000000\n1,3000000\n")
    assert evaluate.main([*argv, "--trace", "own.csv"]) == 0
    assert "live, too" not in capsys.readouterr().out
    (command,) = {path.read_text().split(" --")[0] for path in Path("runs").glob("*/command.txt")}
    assert command == "python evaluate.py"


def test_a_model_of_stable_baselines_takes_part(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for algorithm, env in ((PPO, "Sponge-v0"), (DQN, "SpongeDiscrete-v0")):
        model = algorithm("MlpPolicy", gymnasium.make(env), seed=0, device="cpu")
        model.save(algorithm.__name__)
    argv = ["--agent", "sb3:PPO.zip", "sb3:DQN.zip", "--duration", "5", "--run-dir", "run"]
    assert evaluate.main(argv) == 0
    assert "\nsb3:DQN " in capsys.readouterr().out
    assert "loading PPO.zip executes code in it" in caplog.text
    intervals = pd.read_parquet("run/intervals/sb3:PPO")
    model, env = PPO.load("PPO.zip", device="cpu"), gymnasium.make("Sponge-v0")
    observation, _ = env.reset(options={"episode_seed": 0})
    for row in intervals.itertuples():
        action, _ = model.predict(observation, deterministic=True)
        assert (row.requested_cores, row.batch) == tuple(action + 1)
        observation = env.step(action)[0]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what happens when a scenario is played on both backends, without playing it."""
    seen: list[str] = []

    @contextlib.contextmanager
    def machine(*_: object) -> Iterator[None]:
        seen.append("the CPUs are taken")
        yield
        seen.append("they are free")

    def run(store: RunStore, *_: object) -> None:
        seen.append(f"run {store.path.name}")

    def notices(*_: object) -> list[str]:
        seen.append("checked")
        return []

    monkeypatch.setattr("sponge_env.env.factory.live_machine", machine)
    monkeypatch.setattr(evaluation, "_run", run)
    monkeypatch.setattr(evaluation, "_notices", notices)
    monkeypatch.setattr(evaluation, "_report_cell", lambda *_: None)
    return seen


BOTH = "--agent static-8 --backend both --wait --run-dir run".split()


def test_cpus_are_taken_for_the_live_half_only(both: list[str]) -> None:
    assert evaluate.main(BOTH) == 0
    halves = ["run sim", "the CPUs are taken", "run live", "they are free"]
    assert both == ["checked", *halves]


def test_a_folder_that_cannot_be_used_is_refused_before_cpus_are_waited_for(
    both: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([*BOTH, "--option", "static-8.batch=4"]) == 0
    del both[:]
    assert evaluate.main([*BOTH, "--seeds", "3"]) == 2
    assert "choose another --run-dir" in capsys.readouterr().err
    assert both == []
    Path("notes").mkdir()
    Path("notes/mine.txt").touch()
    assert evaluate.main([*BOTH[:-1], "notes"]) == 2
    assert both == []


def test_an_evaluation_that_was_interrupted_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    argv = ["--agent", "static-8", "static-16", "--run-dir=run", "--duration", "5", "--seeds", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "_run", interrupted)
        assert evaluate.main(argv) == 130
    more = "--agent static-8 static-16 --duration 5 --seeds 2 --run-dir run"
    assert "interrupted; go on with\n  " in (printed := capsys.readouterr().out)
    assert f"evaluate.py {more}\n" in printed
    assert evaluate.main(more.split()) == 0


def test_training_that_was_interrupted_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Progress, done: int, status: str = "") -> None:
        if done >= 600:
            raise KeyboardInterrupt

    Path("own.toml").write_text(SMALL_TRAINING)
    argv = "--agent ppo --envs 2 --config own.toml --steps 1000 --run-dir runs/one".split()
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "show", interrupt)
        assert train.main(argv) == 130
    printed = capsys.readouterr().out
    assert "policy       runs/one/policy.safetensors\n" in printed
    assert re.search(r"best +after \d+ of 1000 steps, by validation", printed)
    assert "evaluate.py --agent ppo --policy runs/one/policy.safetensors\n" in printed
    more = " --agent ppo --envs 2 --config own.toml --resume runs/one\n"
    assert f"train.py{more}" in printed
    assert json.loads(Path("runs/one/learn.json").read_text())["hidden"] == [8, 8]
    assert train.main([*more.split(), "--run-dir", "runs/two"]) == 0
    info = load_policy(Path("runs/two/policy.safetensors")).info
    assert (info.planned, info.partial) == (1000, False)


def test_what_is_said_after_training_follows_the_policy_in_what_it_learned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("own.toml").write_text(SMALL_TRAINING)
    learning = "--envs 2 --config own.toml --steps 64 --seed 1"
    conditions = "--scenario bursty --load 0.4 --drop=expired --profile yolov5s"
    assert train.main(f"{learning} {conditions} --run-dir elsewhere/one".split()) == 0
    said = f"evaluate.py --agent ppo {conditions} --policy elsewhere/one/policy.safetensors\n"
    assert said in (printed := capsys.readouterr().out)
    reached = r"\d+\.\d{3}% missed on \d+\.\d\d cores"
    assert re.search(f"^reached      {reached}; the best rules {reached}$", printed, re.MULTILINE)
    shipped = "ppo-yolov5s.safetensors; --option ppo.policy=shipped follows it"
    assert f"\nships        {shipped}\n" in printed
    assert train.main(f"{learning} {conditions}".split()) == 0
    printed = capsys.readouterr().out
    assert f"evaluate.py --agent ppo {conditions}\n" in printed, "the newest is found by itself"
    followed = printed.partition("evaluate.py")[2].splitlines()[0].split()
    assert evaluate.main([*followed, "--duration", "5"]) == 0


def test_nobody_is_called_tuned_who_has_defaults(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    baselines._say.cache_clear()
    line = "--agent hpa --scenario bursty --load 0.4 --duration 5"
    assert evaluate.main(line.split()) == 0
    assert "agent hpa stands" not in capsys.readouterr().out
    assert "of hpa for bursty/resnet18/cold as it is here: its defaults are used" in caplog.text
    assert evaluate.main([*line.split(), "--option", "hpa.target=0.5"]) == 0
    assert "agent hpa stands for target=0.5\n" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_requests() -> None:
    for name in ("one", "other"):
        evaluate.main(["--agent", "static-8", "--duration", "10", "--run-dir", name])
    one, other = (
        pd.read_parquet(Path(name) / "requests/static-8/paper+yolov5s+cold-seed0.parquet")
        for name in ("one", "other")
    )
    assert one.equals(other)


def test_a_failure_keeps_the_episodes_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text(
        "from sponge_env.errors import WorkerError\n"
        "from sponge_env.interfaces import Allocation\n"
        "class Broken:\n"
        "    def reset(self, spec, seed): pass\n"
        "    def decide(self, view):\n"
        "        if view.now_s >= 3: raise WorkerError('it broke')\n"
        "        return Allocation(4, 4)\n"
    )
    monkeypatch.syspath_prepend(".")
    argv = "--agent static-8 broken:Broken --duration 5 --run-dir run --json out.json".split()
    assert evaluate.main(argv) == 2
    assert capsys.readouterr().err.endswith("error: it broke\n")
    assert [s["agent"] for s in json.loads(Path("out.json").read_text())] == [
        "static-8",
        "broken:Broken",
    ]
    kept = json.loads(Path("run/results/broken:Broken/paper+yolov5s+cold.json").read_text())
    assert kept["error"] == {"type": "WorkerError", "message": "it broke"}
    (summary,) = kept["episodes"]
    assert summary["partial"]
    ended = ("on_time", "late", "dropped", "failed", "queued", "running")
    assert summary["offered"] == sum(summary[key] for key in ended)
    requests = pd.read_parquet("run/requests/broken:Broken/paper+yolov5s+cold-seed0.parquet")
    assert len(requests) == summary["offered"]


def test_evaluations_started_together_do_not_meet() -> None:
    argv = "--agent static-8 --duration 2".split()
    assert [evaluate.main(argv) for _ in range(2)] == [0, 0]
    assert len(list(Path("runs").iterdir())) == 2


def test_agents_take_options() -> None:
    argv = [
        "--agent",
        "static",
        "--duration",
        "5",
        "--option",
        "static.cores=3",
        "--option",
        "static.batch=2",
    ]
    assert evaluate.main([*argv, "--run-dir", "run"]) == 0
    intervals = pd.read_parquet("run/intervals/static")
    assert set(intervals["requested_cores"]) == {3}
    assert set(intervals["batch"]) == {2}


def test_a_controller_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(
        "from sponge_env.interfaces import Allocation\n"
        "class Mine:\n"
        "    def reset(self, spec, seed): pass\n"
        "    def decide(self, view): return Allocation(cores=5, batch=4)\n"
    )
    monkeypatch.syspath_prepend(".")
    assert evaluate.main(["--agent", "mine:Mine", "--duration", "5", "--run-dir", "run"]) == 0
    assert set(pd.read_parquet("run/intervals/mine:Mine")["requested_cores"]) == {5}


def test_own_traces_replace_the_scenario_s() -> None:
    Path("slow.csv").write_text("time_s,bandwidth_bytes_per_s\n0,300000\n1,300000\n")
    Path("arrivals.csv").write_text("arrival_s\n" + "\n".join(f"{0.1 * i:.1f}" for i in range(99)))
    argv = "--agent static-8 --duration 5 --trace slow.csv --arrivals arrivals.csv --run-dir run"
    assert evaluate.main(argv.split()) == 0
    requests = pd.read_parquet("run/requests/static-8")
    assert np.allclose(requests["arrival_s"] - requests["sent_s"], 1.01)
    assert np.allclose(np.diff(requests["sent_s"]), 0.1)
    (named,) = {path.stem for path in Path("run/results").glob("*/*.json")}
    assert named == "paper-with-slow.csv-and-arrivals.csv+yolov5s+cold"


def test_cores_that_are_no_whole_ones_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--agent static-8 --scenario bursty --duration 5".split()
    for profile, explained in (("lite0", True), ("yolov5s", False)):
        assert evaluate.main([*argv, "--profile", profile, "--run-dir", profile]) == 0
        said = "\ncores are units of 1/16 CPU here\n" in capsys.readouterr().out
        assert said == explained


STEADY = "time_s,bandwidth_bytes_per_s\n0,2e6\n1,2e6\n"


def evaluated(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[Scenario, str, str]:
    """Evaluate; return the scenario that was played, and what was printed and warned of."""
    argv = f"--agent static-8 --duration 5 --run-dir run {line}".split()
    assert evaluate.main(argv) == 0
    definition = json.loads(Path("run/run.json").read_text())["definition"]
    (group,) = definition["cells"]
    (name,) = group["scenarios"]
    shutil.rmtree("run")
    captured = capsys.readouterr()
    return changed(load_scenario(name), group["changes"]), captured.out, captured.err


@pytest.mark.parametrize(
    ("line", "drop"),
    [
        ("", "none"),
        ("--scenario deep-fade", "expired"),
        ("--trace none", "none"),
        ("--trace steady.csv", "expired"),
        ("--arrivals arrivals-day-600s", "expired"),
        ("--trace steady.csv --scenario keeps.toml", "none"),
        ("--trace steady.csv --drop none", "none"),
        ("--drop late:0.25", "late"),
    ],
)
def test_what_is_late_on_a_recorded_trace_is_dropped_unless_somebody_says_else(
    line: str, drop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("steady.csv").write_text(STEADY)
    Path("keeps.toml").write_text("[serving]\ndrop = 'none'\n")
    scenario, printed, _ = evaluated(line, capsys)
    assert scenario.serving.drop == drop
    assert scenario.serving.drop_late_by_s == (0.25 if drop == "late" else 0.0)
    by_default = drop == "expired" and "--scenario" not in line
    assert ("as by default with recorded traces" in printed) == by_default


@pytest.mark.parametrize("arrivals", ["", "--arrivals arrivals-day-600s"])
def test_the_rate_can_be_set(arrivals: str, capsys: pytest.CaptureFixture[str]) -> None:
    profile = load_profile("yolov5s")
    scenario, _, _ = evaluated(f"--rate 7 {arrivals}", capsys)
    assert rate_rps(scenario, profile) == 7.0
    scenario, _, _ = evaluated(f"--load 0.5 {arrivals}", capsys)
    assert rate_rps(scenario, profile) == 0.5 * profile.capacity_rps(16, 16)
    assert scenario.arrivals.kind == ("trace" if arrivals else "constant")


def test_files_are_described_and_a_load_that_nothing_can_serve_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("steady.csv").write_text(STEADY)
    Path("load").write_text("150\n176\n" * 5)
    _, printed, warned = evaluated("--trace steady.csv --arrivals load", capsys)
    assert printed.count("\nread ") == 2
    assert "2 samples over 2 s, mean 2 MB/s (2 to 2); played 2.5 times in 5 s\n" in printed
    assert "1630 requests over 10 s, mean 163 requests/s (150 to 176 in a second)\n" in printed
    sentence = "warning: load has 160.4 requests/s, more than the 30.4 that yolov5s can serve"
    assert warned.count(sentence) == 1
    assert "--load 0.6 or --rate 18.3 scales it" in warned
    _, _, warned = evaluated("--trace steady.csv --arrivals load --load 0.6", capsys)
    assert "warning" not in warned


def test_training_and_evaluating_the_newest_policy(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text(SMALL_TRAINING)
    argv = "--agent ppo --steps 256 --envs 2 --config own.toml --run-dir runs/mine".split()
    assert train.main(argv) == 0
    capsys.readouterr()
    assert evaluate.main(["--agent", "ppo", "--duration", "5", "--run-dir", "runs/eval"]) == 0
    assert "agent ppo follows runs/mine/policy.safetensors, trained for" in capsys.readouterr().out
    argv = "--steps 256 --envs 2 --config own.toml --run-dir runs/more --resume runs/mine".split()
    assert train.main(argv) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--agent spong-ip", "unknown agent 'spong-ip'.*did you mean 'sponge-ip'"),
        ("--agent nowhere:Mine", "agent 'nowhere:Mine' cannot be imported"),
        ("--agent static-8 --scenario papre", "unknown scenario 'papre'.*mean 'paper'"),
        ("--agent static-8 --backend simm", "unknown backend 'simm'.*mean 'sim'"),
        ("--agent static-8 --limiter cgrup", "unknown limiter 'cgrup'.*mean 'cgroup'"),
        ("--agent static-8 --trace 4gg", "unknown.*'4gg'.*did you mean '4g"),
        ("--agent static-8 --duration 0", r"duration_s must be a number above 0, not 0\.0"),
        ("--agent static-8 --duration nan", "duration_s must be a number above 0, not nan"),
        ("--agent static-8 --duration x", "invalid float value: 'x'"),
        ("--agent static-8 --seed 3", "unrecognized arguments: --seed 3"),
        ("--agent static-8 --seeds 0", "must be a whole number of at least 1, not '0'"),
        ("--agent static-8 --option static-8=1", "must have the form AGENT.KEY=VALUE"),
        ("--agent static-8 --option cores=5", "did you mean static-8.cores=5?"),
        ("--agent static-8 fa2 --option cores=5", "did you mean AGENT.cores=5?"),
        ("--agent static-8 --option fa2.n=1", "'fa2.n=1' is for an agent that does not run here"),
        ("--agent static --option static.cors=1", "unknown key 'cors'.*did you mean 'cores'"),
        ("--agent static --option static.cores=0", "cores must be at least 1"),
        ("--agent sponge-ip --option sponge-ip.formulation=papr", "mean 'paper'"),
        ("--agent sb3-ppo", "no policy of sb3-ppo for this profile"),
        ("--agent ppo --option ppo.x=1", "cannot be made: got an unexpected keyword argument 'x'"),
        (
            "--agent static-8 --policy x.safetensors",
            "--policy is for one agent that takes the option 'policy'; none of static-8 does",
        ),
        ("--agent ppo ppo-joint --policy x", "option 'policy'; ppo, ppo-joint do"),
        ("--agent :X", "unknown agent ':X'"),
        ("--agent os:getcwd", "is no controller: it needs reset"),
        ("--agent static-8 --backend live", "run this machine's worker with --scenario local"),
        ("--agent static-8 --json .", "cannot write"),
        ("--agent static-8 --backend both", "run this machine's worker with --scenario local"),
        ("--agent oracle --backend live --scenario local", "a bound knows the simulator's future"),
        ("--agent static-tuned", "static-tuned was not tuned for paper/yolov5s/cold; it was for"),
        (
            "--agent static-tuned --scenario paper-300kb --load 0.9",
            "not tuned for paper-300kb/yolov5s/cold as it is here; leave out the agent or what "
            "changes the scenario, or tune it",
        ),
        ("--agent sb3:nowhere.zip", "there is no model 'nowhere.zip'"),
        ("--agent ppo --policy none.safetensors", "there is no policy file 'none.safetensors'"),
        ("--agent static-8 --drop lat", "must be none, expired or late:SECONDS, not 'lat'"),
        ("--agent static-8 --drop late:-1", "late:SECONDS, not 'late:-1'"),
        ("--agent static-8 --rate 0", r"arrivals.rate_rps must be a number above 0, not 0\.0"),
        ("--agent static-8 --load nan", "arrivals.load must be a number above 0, not nan"),
        ("--agent static-8 --load 1 --rate 2", "--rate: not allowed with argument --load"),
        ("--agent static-8 --traces .", "--traces needs --suite"),
        ("--suite quick --rate 2", "--rate does not go with --suite"),
        ("--suite quick --traces .", "suite 'quick' takes no traces; choose --suite real"),
        ("--suite real", "suite 'real' needs --traces, a folder of trace files"),
        ("--suite real --traces nowhere", "must be a folder of trace files, not 'nowhere'"),
        ("--suite real --traces .", "there is no trace for suite 'real' in '.'"),
        ("--suite real --traces . --trace x", "--trace does not go with --suite"),
        ("--agent static-8 --scenario local", "python -m sponge_env calibrate"),
        ("", "the following arguments are required: --agent"),
    ],
)
def test_bad_arguments_end_with_one_sentence(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert re.search(sentence, failure(arguments.split(), capsys))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--agent pppo", "unknown agent to train 'pppo'.*mean 'ppo'"),
        ("--steps 0", "must be a whole number of at least 1"),
        ("--envs 0", "must be a whole number of at least 1"),
        ("--scenario nowhere.toml", "there is no scenario file 'nowhere.toml'"),
        ("--config nowhere.toml", "--config 'nowhere.toml' cannot be read"),
        ("--resume nowhere", "there is no checkpoint 'nowhere' to resume from"),
        ("--rate -1", r"arrivals.rate_rps must be a number above 0, not -1\.0"),
        ("--trace nowhere.csv", "unknown.*'nowhere.csv'|no .*'nowhere.csv'"),
        ("--backend live --envs 2 --scenario local", "the live system is one environment"),
    ],
)
def test_bad_training_arguments_end_with_one_sentence(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert re.search(sentence, failure(arguments.split(), capsys, train))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "empty"),
        ("time_s,bandwidth_bytes_per_s\n0,1e6\n1,nan\n", r"bandwidth\.csv.*3.*nan"),
        ("time_s,bandwidth_bytes_per_s\n0,1e6\n1,-5\n", r"bandwidth\.csv.*3.*-5"),
        ("time_s,bandwidth_bytes_per_s\n1,1e6\n0,1e6\n", r"bandwidth\.csv.*3"),
        (
            "time_s,bandwidth_bytes_per_s\n0,4.28\n",
            r"bandwidth\.csv\) brings its 300000 bytes by",
        ),
    ],
)
def test_bad_traces_end_with_one_sentence(
    lines: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    Path("bandwidth.csv").write_text(lines)
    error = failure(["--agent", "static-8", "--trace", "bandwidth.csv"], capsys)
    assert re.search(sentence, error)


def test_a_policy_of_another_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(drawn_policy(PLAIN), Path("policy.safetensors"))
    argv = ["--agent", "sb3-ppo", "--policy", "policy.safetensors", "--scenario", "bursty"]
    assert "was trained on short" in failure(argv, capsys)


def test_a_run_directory_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").touch()
    argv = ["--agent", "static-8", "--duration", "5", "--run-dir", "run"]
    assert "'run' is no run" in failure(argv, capsys)
    assert [path.name for path in Path("run").iterdir()] == ["thesis.tex"]
    assert evaluate.main([*argv[:-1], "other"]) == 0
    before = {path: path.read_bytes() for path in Path("other").rglob("*") if path.is_file()}
    argv = ["--agent", "static-8", "--duration", "6", "--run-dir", "other"]
    capsys.readouterr()
    assert "'other' holds results of another suite or version" in failure(argv, capsys)
    for path, content in before.items():
        assert path.read_bytes() == content


def test_the_same_command_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--duration", "5", "--run-dir", "run", "--agent", "static-8"]
    assert evaluate.main(argv) == 0
    file = Path("run/results/static-8/paper+yolov5s+cold.json")
    before = file.stat().st_mtime_ns
    capsys.readouterr()
    assert evaluate.main([*argv, "fa2"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 results are in run already" in printed
    assert "\nstatic-8 " in printed
    assert "\nfa2 " in printed
    assert file.stat().st_mtime_ns == before
    definition = json.loads(Path("run/run.json").read_text())["definition"]
    assert list(definition["agents"]) == ["static-8", "fa2"]


def test_a_run_directory_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    argv = ["--agent", "static-8", "--duration", "5", "--run-dir", "file/run"]
    assert "cannot write 'file/run'" in failure(argv, capsys)


def test_a_profile_that_predicts_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from sponge_env.scenario.profile import PROFILE_DIR

    data = json.loads((PROFILE_DIR / "yolov5s.json").read_text())
    data["latency"]["eta_s"] = -10.0
    Path("bad.json").write_text(json.dumps(data))
    Path("bad.toml").write_text("profile = 'bad.json'\n")
    argv = ["--agent", "static-8", "--scenario", "bad.toml"]
    assert "a latency must be positive" in failure(argv, capsys)


def test_calibration_refuses_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--model", "resnet-5000"]) == 2
    assert "unknown model 'resnet-5000'" in capsys.readouterr().err


def test_resuming_says_that_a_checkpoint_runs_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.learn.command.check_checkpoint", lambda path, plan: None)
    argv = "--agent sb3-ppo --resume checkpoint.zip --steps 5 --run-dir run"
    assert train.main(argv.split()) == 2
    said, error = capsys.readouterr().err.splitlines()
    assert said.startswith("checkpoint.zip: a checkpoint can run any code")
    assert error.startswith("error: the hyper-parameters in learn.json cannot be read")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "runs the code in it" in " ".join(capsys.readouterr().out.split())
