"""The server's engine on real replicas: right answers, one for each call, and nothing left."""

import dataclasses
import os
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from control_groups import groups_of
from machine import PATIENCE_S, needs_two_cpus, wait_until

from sponge_env.models.model import onnx_session, run_onnx
from sponge_env.models.registry import resolve_model
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.serve.interface import Call, Status
from sponge_env.serve.make import make_engine

pytestmark = [pytest.mark.live, needs_two_cpus]


def one_stage(folder, model):
    """Return a model's scenario, with a profile that says nothing true of it."""
    path = folder / f"{model}.json"
    save_profile(dataclasses.replace(load_profile("lite0"), name=model, model=model), path)
    return dataclasses.replace(load_scenario("local"), profile=str(path))


@contextmanager
def engine_of(scenario, agent, **more):
    engine = make_engine(scenario, agent, **more)
    worker = engine._system.worker
    with closing(engine):
        yield engine
    pids = [replica.pid for replica in worker.replicas]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not groups_of(os.getpid())


def answers(engine, images):
    """Submit images at once, and wait for the replies: one to each."""
    told, now_s = [[] for _ in images], time.monotonic()
    for image, replies in zip(images, told, strict=True):
        engine.submit(Call(image, now_s, now_s + PATIENCE_S, image.nbytes), replies.append)
    wait_until(lambda: all(told))
    return [reply for (reply,) in told]


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-uint8"])
def test_answers_are_those_of_the_bare_runtime(tmp_path, name):
    model = resolve_model(name)
    session, images = onnx_session(model.path, threads=1), model.samples()
    expected = [run_onnx(session, image[None])[0] for image in images]
    with engine_of(one_stage(tmp_path, name), "static-16") as engine:
        assert engine.served.inputs == model.inputs
        for image, wanted in zip(images, expected, strict=True):
            (reply,) = answers(engine, [image])
            assert (reply.status, reply.batch, reply.cores) == (Status.ANSWERED, 1, 16)
            np.testing.assert_array_equal(reply.output, [wanted])
        replies = answers(engine, [*images] * 4)
        for reply, wanted in zip(replies, expected * 4, strict=True):
            np.testing.assert_allclose(reply.output, [wanted], atol=1e-3)
        assert max(reply.batch for reply in replies) > 1
