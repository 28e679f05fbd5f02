"""The scripts as a user calls them."""

import contextlib
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from tiny_policies import drawn_policy

import evaluate
import train
from agents.policy import save_policy
from baselines import tune
from sponge_env.__main__ import main as sponge
from sponge_env.app import compare
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names
from sponge_env.run.suite import changed
from sponge_env.scenario.profile import PROFILE_DIR, load_profile, save_profile
from sponge_env.scenario.scenario import load_scenario

pytestmark = pytest.mark.usefixtures("unpainted")

REQUIRED_KEYS = set(
    """agent scenario backend seed start offered on_time late dropped failed hopeless violation_rate
    avoidable_violation_rate mean_cores core_seconds latency_p50_s latency_p99_s
    infeasible_decisions decision_p50_s decision_p99_s""".split()
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(own_folder, tmp_path_factory, monkeypatch):
    # Elsewhere, for libraries keep their own things in it.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_an_evaluation_records_everything(capsys):
    line = "--agent static-8 fa2 --duration 20 --seeds 2 --run-dir run --json out.json"
    assert evaluate.main(line.split()) == 0
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
        assert len(pd.read_parquet(f"run/requests/{agent}/{cell}.parquet")) == summary["offered"]
        events = Path(f"run/tensorboard/{agent}-seed{summary['seed']}")
        assert list(events.glob("events.out.tfevents.*"))
    names_of_files = ("run.json", "command.txt", "versions.json", "host.json", "comparison.png")
    for name in (*names_of_files, "profiles/yolov5s.json"):
        assert (Path("run") / name).stat().st_size > 0
    printed = capsys.readouterr().out
    assert "static-8" in printed
    assert "tensorboard --logdir run" in printed


def test_the_list_shows_what_there_is_to_choose_from(capsys):
    assert evaluate.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert (sponge(["list"]), capsys.readouterr().out) == (0, listed)
    assert len(listed.splitlines()) < 90
    for name in ("sponge-paper", "oracle", "flash-crowd", "quick", "yolov5s"):
        assert re.search(rf"\s{name}[\s,.]", listed)
    assert not any(Path().iterdir())


def test_names_of_the_tables_stand_beside_a_bound(capsys):
    argv = "--agent sponge-paper fixed-fleet oracle --scenario paper-300kb --duration 20"
    assert evaluate.main([*argv.split(), "--run-dir", "run"]) == 0
    printed = capsys.readouterr().out
    assert "agent sponge-paper stands for sponge-ip, formulation=paper\n" in printed
    assert "agent fixed-fleet stands for static, best constant on training seeds\n" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("fixed", "oracle"))]
    (_, *fixed), (_, *bound) = rows
    assert float(fixed[2]) < 16.0
    assert 0.0 < float(bound[2]) < 16.0
    assert float(bound[0]) <= float(fixed[0])
    runs = sorted(path.name for path in Path("run/tensorboard").iterdir())
    assert runs == ["fixed-fleet", "sponge-paper"], "there is one seed"
    Path("times").write_text("arrival_s\n0.5\n0.75\n3.5\n")
    evaluate.main([*argv.split()[:3], "--arrivals", "times", "--trace", "none", "--duration", "4"])
    assert ", best constant on training seeds, which have the very requ" in capsys.readouterr().out


def test_a_model_of_stable_baselines_takes_part(capsys, caplog):
    for algorithm, env, file, options in (
        (PPO, "Sponge-v0", "PPO", {}), (DQN, "SpongeDiscrete-v0", "DQN", {}),
        (MaskablePPO, "SpongeDiscrete-v0", "masked", {}),
        (PPO, "SpongeContinuous-v0", "gSDE", {"use_sde": True}),
    ):  # fmt: skip
        model = algorithm("MlpPolicy", gymnasium.make(env), seed=0, device="cpu", **options)
        model.save(file)
    files = [f"sb3:{name}.zip" for name in ("PPO", "DQN", "masked", "gSDE")]
    assert evaluate.main(["--agent", *files, "--duration", "5", "--run-dir", "run"]) == 0
    assert "\nsb3:DQN " in capsys.readouterr().out
    assert "loading PPO.zip executes code in it" in caplog.text
    intervals = pd.read_parquet("run/intervals/sb3:PPO")
    model, env = PPO.load("PPO.zip", device="cpu"), gymnasium.make("Sponge-v0")
    observation, _ = env.reset(options={"episode_seed": 0})
    for row in intervals.itertuples():
        action, _ = model.predict(observation, deterministic=True)
        assert (row.requested_cores, row.batch) == tuple(action + 1)
        observation = env.step(action)[0]


EVIL = """
from pathlib import Path
Path("ran").touch()
class Thing:
    def reset(self, spec, seed): ...
    def decide(self, view): ...
"""
EVIL_SUITE = """
seeds = 1
starts = ["cold"]
cells = [{{ scenarios = ["paper"], changes = {{ duration_s = 5.0 }} }}]
[agents.a]
controller = '{}'
options = {{ {} }}
"""
EVIL_FILES = {
    "thing_evil.py": EVIL, "class.toml": EVIL_SUITE.format("thing_evil:Thing", ""),
    "shell.toml": EVIL_SUITE.format("subprocess:check_output", "args = 'touch ran', shell = true"),
    "zip.toml": EVIL_SUITE.format("agents.stable_baselines:SB3Policy", "file = 'thing_evil.py'"),
    "local.toml": "profile = 'local:thing_evil:Thing'\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("evaluate --suite class.toml", "agent 'thing_evil:Thing' runs code, .*; add --trust"),
     ("evaluate --suite shell.toml --agent a", "agent 'subprocess:check_output' runs code"),
     ("evaluate --suite zip.toml", "model 'thing_evil.py' runs code"),
     ("evaluate --agent static-8 --scenario local.toml --backend live", "model 'thing_evil:Thi"),
     ("evaluate --agent static-8 --profile own.json --backend live", "model 'thing_evil:Thing'"),
     ("serve --agent static-8 --scenario local.toml", "model 'thing_evil:Thing' runs code"),
     ("calibrate --scenario local.toml", "model 'thing_evil:Thing' runs code"),
     ("evaluate --agent sys:exit", "'sys:exit' is no controller, no class with reset"),
     ("evaluate --agent subprocess:check_output --option subprocess:check_output.args=ls", "no")],
)  # fmt: skip
def test_code_that_only_a_file_names_is_not_run(line, sentence, refused):
    for name, text in EVIL_FILES.items():
        Path(name).write_text(text)
    profile = json.loads(Path(PROFILE_DIR / "lite0.json").read_text())
    Path("own.json").write_text(json.dumps(profile | {"model": "thing_evil:Thing"}))
    assert re.search(sentence, refused(sponge, line))
    simulated = "evaluate --agent static-8 --profile own.json --duration 5 --run-dir run"
    assert "live" not in line or sponge(simulated.split()) == 0
    assert not Path("ran").exists()


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("more", ["--trust", "--agent own_thing:Mine"])
def test_code_that_is_typed_or_trusted_is_run(more, monkeypatch):
    monkeypatch.syspath_prepend(Path())
    Path("own_thing.py").write_text(BROKEN.replace("Broken", "Mine").replace(">= 3", ">= 9"))
    Path("own.toml").write_text(EVIL_SUITE.format("own_thing:Mine", ""))
    assert evaluate.main(f"--suite own.toml --jobs 1 --run-dir run {more}".split()) == 0


def test_a_command_that_hints_at_trust_takes_it(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    assert "--trust" in capsys.readouterr().out


@pytest.fixture
def both(monkeypatch):
    """Return what happens when a scenario is played on both backends, without playing it."""
    seen = []

    @contextlib.contextmanager
    def machine(*_):
        seen.append("the CPUs are taken")
        yield
        seen.append("they are free")

    def run(_, store, *__, **___):
        seen.append(f"run {store.path.name}")

    monkeypatch.setattr(compare, "live_machine", machine)
    monkeypatch.setattr(compare, "run_unit", run)
    monkeypatch.setattr(compare, "_notices", lambda *_: seen.append("checked") or [])
    monkeypatch.setattr(compare, "_report_cell", lambda *_: None)
    return seen


BOTH = "--agent static-8 --backend both --wait --run-dir run".split()


def test_cpus_are_taken_for_the_live_half_only(both):
    assert evaluate.main(BOTH) == 0
    assert both == ["checked", "run sim", "the CPUs are taken", "run live", "they are free"]


def test_a_second_live_run_can_have_cpus_of_its_own(both):
    allowed = os.sched_getaffinity(0)
    try:
        assert evaluate.main([*BOTH, "--cpus", str(min(allowed))]) == 0
        assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)


BROKEN = """
from sponge_env.errors import WorkerError
from sponge_env.interfaces import Allocation
class Broken:
    def reset(self, spec, seed): pass
    def decide(self, view):
        if view.now_s >= 3: raise WorkerError('it broke')
        return Allocation(4, 4)
"""


def test_a_failure_keeps_the_episodes_before_it(monkeypatch, capsys):
    Path("broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(".")
    argv = "--agent static-8 broken:Broken --duration 5 --run-dir run --json out.json".split()
    assert evaluate.main(argv) == 2
    assert capsys.readouterr().err.endswith("error: it broke\n")
    summaries = json.loads(Path("out.json").read_text())
    assert [s["agent"] for s in summaries] == ["static-8", "broken:Broken"]
    kept = json.loads(Path("run/results/broken:Broken/paper+yolov5s+cold.json").read_text())
    assert kept["error"] == {"type": "WorkerError", "message": "it broke"}
    (summary,) = kept["episodes"]
    assert summary["partial"]
    ended = ("on_time", "late", "dropped", "failed", "queued", "running")
    assert summary["offered"] == sum(summary[key] for key in ended)
    requests = pd.read_parquet("run/requests/broken:Broken/paper+yolov5s+cold-seed0.parquet")
    assert len(requests) == summary["offered"]


def test_a_controller_names_its_options_and_may_fail_at_once(refused, monkeypatch, capsys):
    monkeypatch.syspath_prepend(".")
    Path("odd.py").write_text(
        "class Odd:\n    def __init__(self, share=1): ...\n    def reset(self, spec, seed): ...\n"
        "    def decide(self, view): raise ValueError('no')\n"
    )
    line = "--agent odd:Odd --duration 5 --run-dir run"
    said = refused(evaluate.main, f"{line} --option odd:Odd.shar=2")
    assert "unknown option of agent odd:Odd 'shar' (did you mean 'share'?)" in said
    assert "share must be finite" in refused(evaluate.main, f"{line} --option odd:Odd.share=inf")
    assert evaluate.main(line.split()) == 2
    said = "".join(capsys.readouterr())
    assert re.fullmatch(r"5 s are little .*\nerror: odd:Odd\.decide\(\) failed in .*\n", said)
    assert evaluate.main([*line[:-3].split(), "more", "--agent", "static-8"]) == 2
    out = capsys.readouterr().out
    assert re.search(r"^odd:Odd\*( +-)+$", out, re.MULTILINE)
    assert "* interrupted or failed" in out


def test_a_profile_whose_fit_is_bad_is_planned_with_as_measured(caplog):
    profile = load_profile("yolov5s")
    bad = dataclasses.replace(profile.latency, eta_s=-1.0)  # below 0 for small batches
    save_profile(dataclasses.replace(profile, latency=bad), Path("bad.json"))
    argv = "--agent sponge-ip sponge-mpc fa2 --profile bad.json --duration 5".split()
    assert evaluate.main(argv) == 0
    said = "the fit of l(b, c) is not positive everywhere in profile 'yolov5s': plans use the meas"
    assert caplog.text.count(said) == 1
    table_s = load_profile("bad.json").planned.table_s(20, 20)
    measured = table_s[np.ix_(np.array(profile.batches) - 1, np.array(profile.cores) - 1)]
    np.testing.assert_allclose(measured, profile.latency_s)
    assert np.all(np.diff(table_s, axis=0) >= 0)
    assert np.all(np.diff(table_s, axis=1) <= 0)


def test_evaluations_started_together_do_not_meet():
    assert [evaluate.main("--agent static-8 --duration 2".split()) for _ in range(2)] == [0, 0]
    assert len(list(Path("runs").iterdir())) == 2


def test_agents_take_options(capsys):
    line = "--agent static --duration 5 --option static.cores=3 --option static.batch=99"
    assert evaluate.main([*line.split(), "--run-dir", "run"]) == 0
    assert "agent static keeps to the limits: batch=16 instead of 99" in capsys.readouterr().out
    intervals = pd.read_parquet("run/intervals/static")
    assert (set(intervals["requested_cores"]), set(intervals["batch"])) == ({3}, {16})
    line = "--agent static --scenario pipeline-nlp --duration 5 --option static.replicas=99"
    assert evaluate.main([*line.split(), "--run-dir", "nlp"]) == 0
    assert "agent static keeps to the limits: replicas=" in capsys.readouterr().out


def test_own_traces_replace_the_scenario_s():
    Path("slow.csv").write_text("time_s,bandwidth_bytes_per_s\n0,300000\n1,300000\n")
    Path("arrivals.csv").write_text("arrival_s\n" + "\n".join(f"{0.1 * i:.1f}" for i in range(99)))
    argv = "--agent static-8 --duration 5 --trace slow.csv --arrivals arrivals.csv --run-dir run"
    assert evaluate.main(argv.split()) == 0
    requests = pd.read_parquet("run/requests/static-8")
    assert np.allclose(requests["arrival_s"] - requests["sent_s"], 1.01)
    assert np.allclose(np.diff(requests["sent_s"]), 0.1)
    (named,) = {path.stem for path in Path("run/results").glob("*/*.json")}
    assert named == "paper-with-slow.csv-and-arrivals.csv+yolov5s+cold"


@pytest.mark.parametrize("start", ["", "--random-start"])
def test_seeds_that_replay_the_same_requests_are_one_sample_in_the_page(start):
    rows = "".join(f"{second},{2e5 * (second + 5)}\n" for second in range(9))
    Path("rising.csv").write_text(f"time_s,bandwidth_bytes_per_s\n{rows}")
    argv = "--agent static-8 static-16 --duration 9 --seeds 8 --trace rising.csv --run-dir run"
    assert (evaluate.main([*argv.split(), *start.split()]), sponge(["report", "run"])) == (0, 0)
    page, cells = Path("run/report/report.html").read_text(), pd.read_csv("run/report/cells.csv")
    replayed = not start
    assert ("one seed says as much; --random-start" in page) == replayed
    assert bool(re.search(r"<td[^<]*\[", page)) != replayed, "no intervals"
    assert set(cells["n"]) == {1 if replayed else 8}


@pytest.mark.parametrize(
    ("line", "drop"),
    [("", "none"), ("--scenario deep-fade", "unmeetable"), ("--trace none", "none"),
     ("--trace steady.csv", "unmeetable"), ("--arrivals arrivals-day-600s", "unmeetable"),
     ("--trace steady.csv --scenario keeps.toml", "none"),
     ("--trace steady.csv --drop none", "none"), ("--drop expired", "expired")],
)  # fmt: skip
def test_what_is_late_on_a_recorded_trace_is_dropped_by_default(line, drop, capsys, monkeypatch):
    for name in ("run_unit", "_report_cell"):  # it need not be played
        monkeypatch.setattr(compare, name, lambda *_, **__: None)
    Path("steady.csv").write_text("time_s,bandwidth_bytes_per_s\n0,2e6\n1,2e6\n")
    Path("keeps.toml").write_text("[serving]\ndrop = 'none'\n")
    assert evaluate.main(f"--agent static-8 --run-dir run {line}".split()) == 0
    (group,) = json.loads(Path("run/run.json").read_text())["definition"]["cells"]
    (name,) = group["scenarios"]
    assert changed(load_scenario(name), group["changes"]).serving.drop == drop
    by_default = drop == "unmeetable" and "--scenario" not in line
    assert ("as by default with recorded traces" in capsys.readouterr().out) == by_default


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [("--agent spong-ip", "unknown agent 'spong-ip'.*did you mean 'sponge-ip'"),
     ("--agent nowhere:Mine", "agent 'nowhere:Mine' cannot be imported"),
     ("--scenario papre", "unknown scenario 'papre'.*mean 'paper'"),
     ("--agent static-8 --backend simm", "unknown backend 'simm'.*mean 'sim'"),
     ("--agent fa2 --seeds 7-3", "must be how many seeds.* or 0-0, not '7-3'"),
     ("--agent fa2 --seeds 8-1000", "the last seed must be below 1000"),
     ("--agent fa2 --cells paper*", "--cells needs --suite"),
     ("--suite standard-v1 --cells swing", "no cell of suite 'standard-v1' is called 'swing'"),
     ("--agent fa2 --compare run other", r"command of its own: .* report RUN RUN; see"),
     ("--agent Sponge-IP", r"'Sponge-IP' \(did you mean 'sponge-ip'\?\)"),
     ("--agent keep_up.KeepUp", r"\(did you mean 'keep_up:KeepUp'\?\)"),
     ("--agent ./my/keep_up.py", r"\(did you mean 'my.keep_up:Class'\?\)"),
     ("--agent static-8 --option static-8=1", "must have the form AGENT.KEY=VALUE"),
     ("--agent static-8 --option cores=5", "did you mean static-8.cores=5?"),
     ("--agent static-8 --option fa2.n=1", "'fa2.n=1': unknown agent .* from static-8$"),
     ("--agent static --option static.cors=1", "unknown key 'cors'.*did you mean 'cores'"),
     ("--agent ppo-joint --scenario pipeline-video", "no policy of ppo-joint for this profile"),
     ("--agent ppo --option ppo.x=1", "unknown option of agent ppo 'x'; choose from guard"),
     ("--agent fa2 --policy x", "--policy is for one agent that takes .*; none of fa2 does"),
     ("--agent static-8 --backend live", "run this machine's worker with --scenario local"),
     ("--agent ppo --option ppo.guard=-inf", "guard must be true or false, not -inf"),
     ("--agent fa2 --trace none --trace none", "argument --trace: may be given only once"),
     ("--agent fa2 --trace=", "argument --trace: must not be empty"),
     ("--agent static-8 --agent hpa static-8", "agents must be all different, not .'static-8', "),
     (f"--agent fa2 --run-dir {300 * 'x'}", "File name too long; choose a path that can be"),
     ("--agent fa2 --scenario local --backend live --run-dir files", "'files' is no run"),
     ("--agent fa2 --trace files/short.csv --run-dir files", "'files' is no run"),
     ("--agent oracle --backend live --scenario local", "a bound knows the simulator's future"),
     ("--agent sb3:nowhere.zip", "there is no model 'nowhere.zip'"),
     ("--agent static-8 --drop lat", "unknown drop rule 'lat'"),
     ("--agent static-8 --load 1 --rate 2", "--rate: not allowed with argument --load"),
     ("--agent static-8 --traces .", "--traces needs --suite"),
     ("--agent static-8 --ray", "--ray needs --suite"),
     ("--suite quick --jobs 2 --ray", "--jobs does not go with --ray"),
     ("--suite quick --rate 2", "--rate does not go with --suite"),
     ("--suite real", "suite 'real' needs --traces, a folder of trace files"),
     ("--suite real --traces .", "there is no trace for suite 'real' in '.'"),
     ("--agent static-8 --scenario local", "; run: .*python.* -m sponge_env calibrate"),
     ("--suite live", "-m sponge_env calibrate"),
     ("", "the following arguments are required: --agent, or --suite"),
     ("--suite quick --scenario paper", "--scenario does not go with --suite"),
     ("--agent fa2 --json gone/x.json", "--json 'gone/x.json' is in no folder that exists"),
     ("--agent fa2 --seeds 1001", "the last seed must be below 1000"),
     ("--agent static-8 --trace files/empty.csv", "is not a trace: it is empty"),
     ("--agent static-8 --trace files/short.csv", r"\) brings its 300000 .* check the units"),
     ("--agent static-8 --profile files/short.csv", "is not a latency profile, whose name ends"),
     ("--agent static-8 fa2 static-8", "agents must be all different, not .'static-8', 'fa2'"),
     ("--agent static-8 --limiter outside", "unknown limiter 'outside'"),
     ("--agent static-8 --trace files/huge", "huge is not a trace: it holds more than 500"),
     ("--agent static-8 --arrivals files/pipe", "cannot read.* files/pipe: it is no regular"),
     ("--agent static-8 --trace /proc/kmsg", "/proc/kmsg is not a trace: it is empty"),
     ("--agent static-8 --profile files/p.json", "needs noise_quantiles of at most 1000"),
     ("--agent static-8 --scenario files/noisy.toml", "simulation.noise must be between 0 and"),
     ("--agent static-8 --rate 1000 --duration 86400",
      r"8\.64e\+07 requests in 86400 s, whose record would take 39\.1 GB .*make_vec")],
)  # fmt: skip
def test_bad_arguments_end_with_one_sentence(arguments, sentence, refused):
    Path("files").mkdir()
    Path("files/empty.csv").write_text("")
    Path("files/short.csv").write_text("time_s,bandwidth_bytes_per_s\n0,4.28\n")
    Path("files/noisy.toml").write_text("simulation.noise = 1e308")
    profile = json.loads((PROFILE_DIR / "yolov5s.json").read_text())
    Path("files/p.json").write_text(json.dumps({**profile, "noise_quantiles": [0, 1e308]}))
    Path("files/huge").touch()
    os.truncate("files/huge", 10_000_000_000)
    os.mkfifo("files/pipe")
    assert re.search(sentence, refused(evaluate.main, arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"), [("--agent pppo", "unknown agent to train 'pppo'.*mean 'ppo'"),
     ("--envs 0", "must be a whole number of at least 1"),
     ("--scenario nowhere.toml", "there is no scenario file 'nowhere.toml'"),
     ("--resume nowhere", "there is no policy file 'nowhere/policy.safetensors'"),
     ("--rate -1", r"arrivals.rate_rps must be a number above 0, not -1\.0"),
     ("--trace nowhere.csv", "unknown.*'nowhere.csv'|no .*'nowhere.csv'"),
     ("--suite standard-v1 --profile lite0 --envs 8", "24 scenarios need at least as many"),
     ("--option learning_rat=1", "did you mean 'learning_rate'"),
     ("--option ppo.hidden=8", "must have the form KEY=VALUE, not 'ppo.hidden=8'"),
     ("--run-dir /proc/none", "cannot write '/proc/none'"),
     ("--also variants", "'paper' and 'variants' cannot be trained on together"),
     ("--backend live", "unrecognized arguments: --backend live")],
)  # fmt: skip
def test_bad_training_arguments_import_no_learner(arguments, sentence, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "agents.learn.phased", None)  # cannot be imported
    assert re.search(sentence, refused(train.main, arguments))


def test_a_policy_of_another_system_is_refused(refused):
    save_policy(drawn_policy(), Path("policy.safetensors"))
    line = "--agent ppo-joint --policy policy.safetensors --scenario bursty"
    assert "was trained on short" in refused(evaluate.main, line)
