"""Models of several kinds in replicas that are processes; text read in two stages that die."""

import dataclasses
import importlib
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from control_groups import groups_of
from fake_replicas import crash
from machine import PATIENCE_S, needs_two_cpus
from test_models import served
from test_replica_contract import next_event

from sponge_env import Allocation, Scenario, StageAllocation, make_system
from sponge_env.env.factory import check_live
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Batch
from sponge_env.live.local import STDERR_BYTES, LocalLauncher
from sponge_env.live.protocol import Answered, Death, LiveConfig, Ready
from sponge_env.live.worker import LiveWorker
from sponge_env.models.images import draw
from sponge_env.models.registry import resolve_model
from sponge_env.scenario.config import Arrivals, Initial, Limits, Network, Serving, Stage, Variant
from sponge_env.scenario.profile import Sample, load_profile, save_profile

pytestmark = pytest.mark.live
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_a_replica_holds_variants_whose_answers_lead_to_tasks():
    launcher = LocalLauncher([LiveConfig(batch_max=2, variants=("ocr-det-v5", "ocr-det-v6"))])
    with closing(launcher), closing(launcher.launch(0, 1.0, full_speed=True)) as replica:
        assert isinstance(next_event(replica), Ready)
        images, crops = {len(image.lines): image.pixels for image in map(draw, range(40))}, []
        for variant in (0, 1):
            replica.start(variant, [images[3], images[0]], variant)
            assert next_event(replica).batch_id == variant
            found, nothing = replica.answers(2)
            assert (found["crop"].shape, len(nothing)) == ((3, 3, 48, 320), 0)
            crops.append(found)
        assert not np.array_equal(*crops), "another model cuts another way"
        with served([resolve_model("ocr-det-v6")], 2) as (server, tensors):
            tensors.inputs[:] = images[3], images[0]
            server.run(2, threads=1)
            assert np.array_equal(tensors.answers[0, :3], crops[1])


def test_what_a_replica_says_takes_little_memory_and_its_last_line_counts():
    launcher = LocalLauncher([LiveConfig(model="busy_model:Chatty")])
    with closing(launcher), closing(launcher.launch(0, 1.0, full_speed=True)) as replica:
        assert isinstance(next_event(replica), Ready)
        for batch_id in range(4):  # each says 200 KB
            replica.start(batch_id, [np.zeros(2)])
            assert isinstance(next_event(replica), Answered)
            assert os.fstat(replica._stderr.fileno()).st_size <= STDERR_BYTES + 200_000
        replica.start(4, [np.ones(2)])
        assert next_event(replica) == Death("the last word")


def test_the_example_runs_on_the_real_worker(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    own = importlib.import_module("own_model").Sharpness()
    with LiveWorker(LiveConfig(model="own_model:Sharpness", batch_max=4)) as worker:
        worker.start(Batch(1, requests=(0, 1, 2)))
        assert worker.wait(worker.now() + PATIENCE_S)
        answers = worker.replicas[0].answers(3)
    assert np.array_equal(answers, own.finish(own.samples()[:3], own.run(None, own.samples()[:3])))


MODELS = ("ocr-det-v5", "ocr-rec-v5")
HELD = Allocation(stages=(StageAllocation(8, 1), StageAllocation(8, 2)))


def ocr(folder):
    """Return a few images a second, with profiles that say nothing true of the models."""
    stages = []
    for model, batch in zip(MODELS, (1, 4), strict=True):
        path = folder / f"{model}.json"
        save_profile(dataclasses.replace(load_profile("lite0"), name=model, model=model), path)
        limits = Limits(cores=16, batch=batch, replicas=2)
        stages.append(Stage(model, (Variant(str(path)),), limits=limits, initial=Initial(8)))
    return Scenario(
        name="ocr", slo_s=20.0, duration_s=5.0, stages=tuple(stages),
        limits=Limits(cores=16, total_cores=16), serving=Serving(drop="expired"),
        arrivals=Arrivals(rate_rps=2.0),  # what a slow machine works off in time, too
        network=Network(base_delay_s=0.01),
    )  # fmt: skip


@needs_two_cpus
def test_every_image_is_answered_once_though_replicas_of_both_stages_die(tmp_path):
    with closing(make_system(ocr(tmp_path), 0, backend="live")) as system:
        worker, restarts, stages = system.worker, 0, {}
        for interval in range(system.plan.intervals):
            metrics = system.step(HELD)
            restarts += metrics.restarts
            for name, measured in metrics.stages.items():
                stages[name] = stages.get(name, 0) + measured["answered"]
            if interval in (1, 3):
                crash(worker, interval // 2)
        system.drain()
        outcomes = system.columns()["outcome"].tolist()
        assert len(outcomes) == int(system._env["sent"]) - 1 > 8, "all that were offered"
        assert (set(outcomes), restarts) == ({"on_time"}, 2)
        # One detection for each image and one recognition for each line that it found.
        tasks = system._arrays.requests["tasks"][0, : len(system._workload.id.tolist())]
        offered = len(outcomes)
        assert np.all(tasks[:offered] >= 0), "detection said so of each image"
        assert tasks[:offered].sum() > offered, "several lines in most images"
        assert 0.8 < system.measured_accuracy <= 1.0, "of what was read"
        assert stages["ocr-det-v5"] <= offered
        assert 0 < stages["ocr-rec-v5"] <= tasks[:offered].sum()
        pids = [replica.pid for replica in worker.replicas]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not groups_of(os.getpid())


@needs_two_cpus
@pytest.mark.parametrize(
    ("models", "message"),
    [(("ocr-det-v5", "efficientnet-lite0"), "3 x 48 x 320 uint8 and 4 int32, but"),
     (("ocr-rec-v5", "ocr-det-v5", "ocr-rec-v5"), "which only the first stage may")],
)  # fmt: skip
def test_models_that_do_not_follow_each_other_are_refused(models, message):
    with pytest.raises(ConfigError, match=message):
        LiveWorker(*(LiveConfig(model=model, batch_max=2) for model in models))
    assert not groups_of(os.getpid())


@needs_two_cpus
def test_stages_that_may_hold_more_than_their_cpu_has_are_refused(tmp_path):
    fits = ocr(tmp_path)
    larger = dataclasses.replace(fits, limits=Limits(cores=16, total_cores=20))
    profile = dataclasses.replace(load_profile("lite0"), samples=(Sample(1, 1, (1.0,), (1.0,)),))
    for model in MODELS:
        own = dataclasses.replace(profile, name=model, model=model)
        save_profile(own, tmp_path / f"{model}.json")
    check_live(fits, profile, "auto")
    with pytest.raises(ConfigError, match="may hold 20 core units together, but share 1 CPU of 16"):
        check_live(larger, profile, "auto")
