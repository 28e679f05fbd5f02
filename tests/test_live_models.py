"""Models of several kinds in replicas that are processes."""

import importlib
import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from test_models import served
from test_replica_contract import next_event

from sponge_env.live.local import STDERR_BYTES, LocalLauncher
from sponge_env.live.replica import Answer, Death, LiveConfig, Ready
from sponge_env.models.images import draw
from sponge_env.models.registry import resolve_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.live
def test_a_replica_holds_variants_whose_answers_lead_to_tasks():
    variants = ("ocr-det-v5", "ocr-det-v6")
    launcher = LocalLauncher([LiveConfig(batch_max=2, variants=variants)])
    replica = launcher.launch(0, 1.0, full_speed=True)
    try:
        assert isinstance(next_event(replica), Ready)
        images = {len(image.lines): image.pixels for image in map(draw, range(40))}
        crops = []
        for variant in (0, 1):
            replica.start(variant, [images[3], images[0]], variant)
            answer = next_event(replica)
            assert isinstance(answer, Answer)
            assert answer.batch_id == variant
            found, nothing = replica.answers(2)
            assert found["crop"].shape == (3, 3, 48, 320)
            assert len(nothing) == 0
            crops.append(found)
        assert not np.array_equal(*crops), "another model cuts another way"
        expected = resolve_model("ocr-det-v6")
        with served([expected], 2) as (server, tensors):
            tensors.inputs[:] = images[3], images[0]
            server.run(2, threads=1)
            assert np.array_equal(tensors.answers[0, :3], crops[1])
    finally:
        replica.close()
        launcher.close()


@pytest.mark.live
def test_what_a_replica_says_takes_little_memory_and_its_last_line_counts():
    launcher = LocalLauncher([LiveConfig(model="busy_model:Chatty")])
    with closing(launcher), closing(launcher.launch(0, 1.0, full_speed=True)) as replica:
        assert isinstance(next_event(replica), Ready)
        for batch_id in (1, 2):
            assert os.fstat(replica._stderr.fileno()).st_size <= STDERR_BYTES
            replica.start(batch_id, [np.zeros(2)])
            assert isinstance(next_event(replica), Answer)
        replica.start(3, [np.ones(2)])
        assert next_event(replica) == Death("the last word")


@pytest.fixture
def in_examples(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("own_model", None)


@pytest.mark.live
@pytest.mark.usefixtures("in_examples")
def test_the_example_runs_on_the_real_worker(capsys):
    own_model = importlib.import_module("own_model")
    own_model.main()
    shown = capsys.readouterr().out
    assert "ms of CPU for [" in shown
    samples = own_model.Sharpness().samples()[:3]
    expected = own_model.Sharpness().finish(samples, own_model.Sharpness().run(None, samples))
    assert shown.endswith(f"{np.ravel(expected)}\n")
