"""What is measured of stages and variants, and where it arrives; what cannot be is refused."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import COLD, agent_result, keep, write_suite
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.scalar import metadata as scalar_metadata

import evaluate
from sponge_env import Allocation, load_scenario, metrics
from sponge_env.app.report import main as report
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, StageMetrics, names, summary
from sponge_env.run.read import load_results
from sponge_env.simulation.system import SimulatedSystem

pytestmark = pytest.mark.usefixtures("unpainted", "own_folder")


def test_means_over_an_episode_have_weights_of_their_own():
    blank = dict.fromkeys(names(StageMetrics), 0.0)
    busy = blank | {"taken": 6, "waited_s": 3.0, "answered": 6, "batches": 3, "batch_mean": 2.0}
    busy |= {"queued": 4, "core_seconds": 3.0, "utilisation": 0.9, "share/a": 1.0, "share/b": 0.0}
    calm = blank | {"taken": 2, "waited_s": 1.0, "answered": 2, "batches": 1, "batch_mean": 4.0}
    calm |= {"queued": 0, "core_seconds": 1.0, "utilisation": 0.1, "share/a": 0.0, "share/b": 1.0}
    idle = blank | {"waiting_mean_s": math.nan, "batch_mean": math.nan, "waited_s": 2.0}
    idle |= {"queued": 2, "share/a": math.nan, "share/b": math.nan}
    columns = {f"all/{name}": np.array([busy[name], calm[name], idle[name]]) for name in busy}
    columns |= {f"last/{name}": np.array([idle[name]]) for name in busy}
    whole, last = metrics.over_episode(columns).values()
    assert (whole["waiting_mean_s"], whole["batch_mean"]) == (6.0 / 8, 10.0 / 4)
    assert (whole["queued"], whole["answered"]) == (2.0, 8)
    assert whole["utilisation"] == pytest.approx(0.7)
    assert (whole["share/a"], whole["share/b"]) == (0.75, 0.25)
    assert math.isnan(last["waiting_mean_s"])
    assert math.isnan(last["share/a"])
    assert set(metrics.AVERAGED) < set(names(StageMetrics))
    assert set(metrics.AVERAGED.values()) - {""} < set(names(StageMetrics))


def test_a_summary_of_stages_reads_back_and_one_model_has_none():
    system = SimulatedSystem(replace(load_scenario("paper"), duration_s=2.0), seed=0)
    assert system.step(Allocation(8, 4)).stages == {}
    assert "stages" not in summary(EpisodeMetrics())
    episode = EpisodeMetrics(stages={"a": {"queued": 1.5, "waiting_mean_s": math.nan}})
    kept = json.loads(json.dumps(summary(episode)))
    assert kept["stages"] == {"a": {"queued": 1.5, "waiting_mean_s": None}}
    assert metrics.from_summary(kept).stages["a"] == pytest.approx(episode.stages["a"], nan_ok=True)


def test_the_pipeline_of_the_docs_runs_and_its_stages_arrive_wherever_metrics_are(capsys):
    page = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text()
    text, command = re.findall(r"```(?:toml|bash)\n(.*?)```", page, re.DOTALL)[:2]
    assert text.count("\n") <= 30
    Path("mine.toml").write_text(text)
    program, *argv = command.split()[1:]
    assert program == "evaluate.py"
    assert evaluate.main([*argv, "--run-dir", "run", "--json", "out.json"]) == 0
    own = [f"detector/{name}" for name in (*names(StageMetrics), "share/yolov5n", "share/yolov5s")]
    own += [f"classifier/{name}" for name in names(StageMetrics)]
    frame = pd.read_parquet("run/intervals/static-8/mine+detector-classifier+cold-seed0.parquet")
    assert list(frame)[5:] == [*names(IntervalMetrics), *own]
    episodes = {each["agent"]: each for each in json.loads(Path("out.json").read_text())}
    stages = episodes["static-8"]["stages"]
    assert [f"{stage}/{n}" for stage, row in stages.items() for n in row] == own
    for stage, row in stages.items():
        assert row["answered"] == frame[f"{stage}/answered"].sum() > 0
        assert row["cores"] == pytest.approx(frame[f"{stage}/cores"].mean())
    results = load_results(Path("run"))
    (found,) = results[results["agent"] == "static-8"]["stages"]
    assert summary(EpisodeMetrics(stages=found))["stages"] == stages

    events = EventAccumulator("run/tensorboard/static-8").Reload()
    tags = events.PluginTagToContent(scalar_metadata.PLUGIN_NAME)
    measured = [name for name in own if frame[name].notna().any()]
    assert {f"stages/{name}" for name in measured} <= set(tags)
    printed = capsys.readouterr().out
    assert "effective" in printed
    for agent in episodes:
        for stage in stages:
            assert re.search(rf"^{agent} +{stage} ", printed, re.MULTILINE)


def test_stages_and_accuracy_are_reported_where_there_are_some():
    path = Path("staged")
    write_suite(path, {"sponge-ip": ([0] * 3, 8.0), "fa2": ([0] * 3, 6.0)}, [COLD])
    for agent, accuracy in (("sponge-ip", 0.75), ("fa2", 0.78)):
        result = agent_result(agent, COLD, [0] * 3, 8.0)
        row = dict.fromkeys(names(StageMetrics), 2.0) | {"share/small": 0.25, "share/large": 0.75}
        for episode in result["episodes"]:
            episode |= {"accuracy": accuracy, "effective_accuracy": accuracy - 0.01}
            episode |= {"stages": {"first": row}}
        keep(path, agent, COLD, result)
    assert report(["staged"]) == 0
    page = (path / "report/report.html").read_text()
    for text in ("<h4>Stage by stage</h4>", "small 25 %, large 75 %", "effective accuracy [%]"):
        assert text in page


def test_damaged_stages_of_a_result_are_noticed(capsys):
    good = dict.fromkeys(names(StageMetrics), 1.0)
    lacking, wrong = good | {}, good | {"queued": "many"}
    del lacking["answered"]
    for stages in ([], {"first": 3}, {"first": lacking}, {"first": wrong}):
        result = agent_result("fa2", COLD, [0], 8.0)
        result["episodes"][0]["stages"] = stages
        write_suite(Path("run"), {"fa2": ([0], 8.0)}, [COLD])
        keep(Path("run"), "fa2", COLD, result)
        assert report(["run"]) == 2
        assert "stages of an episode lack numbers" in capsys.readouterr().err


STAGES = """
slo_s = 0.5
duration_s = 5.0
limits = { cores = 4, total_cores = 8 }
arrivals = { rate_rps = 5.0 }
[[stages]]
name = "first"
variants = [{ profile = "video-detector" }]
limits = { cores = 4, batch = 4, replicas = 2 }
[[stages]]
name = "second"
variants = [{ profile = "video-classifier" }]
limits = { cores = 4, batch = 4, replicas = 2 }
"""
ONE = '{ profile = "video-detector" }'
FIRST_CORES = f"variants = [{ONE}]\nlimits = {{ cores = "


def variants_of(*pairs):
    return ", ".join(f'{{ profile = "{name}", accuracy = {value} }}' for name, value in pairs)


SEVENTEEN = variants_of(*((f"{k}.json", k / 20) for k in range(17)))
BEYOND = ONE + "]\ninitial = { cores = 4, replicas = 2 }"


@pytest.mark.parametrize(
    ("old", "new", "sentence"), [(ONE, variants_of(("yolov5q", 0.5)), "unknown profile 'yolov5q'"),
     (ONE, variants_of(("yolov5s", 0.3), ("lite0", 0.7)), "must have one core unit"),
     (ONE, SEVENTEEN, "stages.first.variants must be at most 16"),
     (FIRST_CORES + "4", FIRST_CORES + "9", "limits.cores must be at most 8, the machine's"),
     (FIRST_CORES + "4", FIRST_CORES + "0", "limits.cores must be between 1"),
     ("replicas = 2 }", "replicas = 2, total_cores = 8 }", "total_cores must be left out"),
     ("replicas = 2 }", "replicas = 2, nodes = [8] }", "nodes must be left out"),
     (ONE + "]", BEYOND, "of at most 8 cores together"),
     (ONE + "]", ONE + "]\nfan_out = nan", "fan_out must be a whole number"),
     (
         STAGES, re.sub("video-[a-z]*", "lite0", STAGES)
         .replace("total_cores = 8", "total_cores = 32")
         .replace("cores = 4, batch", "cores = 17, batch"),
         "profile 'lite0' was measured on one CPU .* limits.cores = 17 units are more",
     )],
)  # fmt: skip
def test_what_is_no_pipeline_is_refused_in_one_sentence(old, new, sentence, refused):
    assert old in STAGES
    Path("mine.toml").write_text(STAGES.replace(old, new))
    assert re.search(sentence, refused(evaluate.main, "--scenario mine.toml --agent static-8"))


def test_options_that_do_not_fit_a_pipeline_are_refused(refused):
    for line, sentence in (
        ("--scenario pipeline-video --profile lite0", "lists stages.*leave out the profile"),
        ("--scenario variants --backend live", "whose model does not come with it"),
    ):
        assert re.search(sentence, refused(evaluate.main, f"{line} --agent static-8"))
