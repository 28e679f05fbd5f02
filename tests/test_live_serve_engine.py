"""The server's engine on real replicas: right answers, one for each call, and nothing left."""

import dataclasses
import os
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from control_groups import groups_of
from machine import needs_two_cpus

from sponge_env.models.model import onnx_session, run_onnx
from sponge_env.models.registry import resolve_model
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.serve.interface import Call, Reply, Status
from sponge_env.serve.make import make_engine

pytestmark = [pytest.mark.live, needs_two_cpus]

SOON_S = 60.0


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


class Sent:
    """Calls and what came of them."""

    def __init__(self, engine):
        self.engine, self.told = engine, []
        self._ended = threading.Semaphore(0)

    told: list[list[Reply]]

    def submit(self, tensor, budget_s=SOON_S):
        now_s = time.monotonic()
        told = []
        self.told.append(told)

        def done(reply):
            told.append(reply)
            self._ended.release()

        self.engine.submit(Call(tensor, now_s, now_s + budget_s, tensor.nbytes), done)

    def replies(self):
        """Wait for all, each of which comes once."""
        for _ in self.told:
            assert self._ended.acquire(timeout=SOON_S)
        assert [len(told) for told in self.told] == [1] * len(self.told)
        return [reply for (reply,) in self.told]


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-uint8"])
def test_answers_are_those_of_the_bare_runtime(tmp_path, name):
    model = resolve_model(name)
    session = onnx_session(model.path, threads=1)
    images = model.samples()
    expected = [run_onnx(session, image[None])[0] for image in images]
    with engine_of(one_stage(tmp_path, name), "static-16") as engine:
        assert engine.served.inputs == model.inputs
        for image, wanted in zip(images, expected, strict=True):
            sent = Sent(engine)
            sent.submit(image)
            (reply,) = sent.replies()
            assert (reply.status, reply.batch, reply.cores) == (Status.ANSWERED, 1, 16)
            np.testing.assert_array_equal(reply.output, [wanted])
        sent = Sent(engine)
        for image in [*images] * 4:
            sent.submit(image)
        replies = sent.replies()
        for reply, wanted in zip(replies, expected * 4, strict=True):
            np.testing.assert_allclose(reply.output, [wanted], atol=1e-3)
        assert max(reply.batch for reply in replies) > 1
