"""The server's engine on real replicas: right answers, one for each call, and nothing left."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_groups import groups_of
from machine import needs_two_cpus
from numpy.typing import NDArray
from test_live_ocr import MODELS, ocr

from sponge_env.models.images import draw
from sponge_env.models.model import onnx_session, run_onnx
from sponge_env.models.ocr import Detection, Recognition
from sponge_env.models.registry import resolve_model
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.serve.engine import ServingEngine
from sponge_env.serve.interface import Call, Reply, Status
from sponge_env.serve.make import make_engine
from sponge_env.serve.system import ServedSystem

pytestmark = [pytest.mark.live, needs_two_cpus]

SOON_S = 60.0


def one_stage(folder: Path, model: str) -> Scenario:
    """Return a model's scenario, with a profile that says nothing true of it."""
    path = folder / f"{model}.json"
    save_profile(dataclasses.replace(load_profile("lite0"), name=model, model=model), path)
    return dataclasses.replace(load_scenario("local"), profile=str(path))


@contextmanager
def engine_of(scenario: Scenario, agent: str, **more: Any) -> Iterator[ServingEngine]:
    engine = make_engine(scenario, agent, **more)
    worker = engine._system.worker
    with closing(engine):
        yield engine
    pids = [replica.pid for replica in worker.replicas]  # type: ignore[attr-defined]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not groups_of(os.getpid())


class Sent:
    """Calls and what came of them."""

    def __init__(self, engine: ServingEngine) -> None:
        self.engine, self.told = engine, []
        self._ended = threading.Semaphore(0)

    told: list[list[Reply]]

    def submit(self, tensor: NDArray[Any], budget_s: float = SOON_S) -> None:
        now_s = time.monotonic()
        told: list[Reply] = []
        self.told.append(told)

        def done(reply: Reply) -> None:
            told.append(reply)
            self._ended.release()

        self.engine.submit(Call(tensor, now_s, now_s + budget_s, tensor.nbytes), done)

    def replies(self) -> Sequence[Reply]:
        """Wait for all, each of which comes once."""
        for _ in self.told:
            assert self._ended.acquire(timeout=SOON_S)
        assert [len(told) for told in self.told] == [1] * len(self.told)
        return [reply for (reply,) in self.told]


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-uint8"])
def test_answers_are_those_of_the_bare_runtime(tmp_path: Path, name: str) -> None:
    model = resolve_model(name)
    session = onnx_session(model.path, threads=1)  # type: ignore[attr-defined]
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


def edits(one: str, other: str) -> int:
    """Return how many characters lie between the same beginning and the same end."""
    longer, shorter = max(len(one), len(other)), min(len(one), len(other))
    same = next(k for k in range(shorter, -1, -1) if one[:k] == other[:k])
    rest = shorter - same
    return (
        longer
        - same
        - next(k for k in range(rest, -1, -1) if one[len(one) - k :] == other[len(other) - k :])
    )


def test_text_is_read_in_the_order_of_the_lines_that_detection_found(tmp_path: Path) -> None:
    detection, reader = map(resolve_model, MODELS)
    assert isinstance(detection, Detection)
    assert isinstance(reader, Recognition)
    images = [draw(seed) for seed in range(8)]
    finding, reading = detection.load(threads=1), reader.load(threads=1)
    found = []
    for image in images:
        (crops,) = detection.finish(image.pixels[None], detection.run(finding, image.pixels[None]))
        rows = reader.finish(crops, reader.run(reading, crops)) if len(crops) else ()
        found.append([reader.text(row) for row in rows])
    with engine_of(ocr(tmp_path), "static-8") as engine:
        assert engine.served.stages == MODELS
        sent = Sent(engine)
        for image in images:
            sent.submit(image.pixels)
        sent.submit(np.full_like(images[0].pixels, 255))
        *replies, blank = sent.replies()
    assert {reply.status for reply in replies} == {Status.ANSWERED}
    assert blank.output is not None
    assert blank.output.shape == (0, *reader.outputs.shape)
    drawn = {line.text for image in images for line in image.lines}
    right = 0
    for lines, reply in zip(found, replies, strict=True):
        assert reply.output is not None
        texts = [reader.text(row) for row in reply.output]
        assert len(texts) == len(lines)
        # batches of another size round differently
        assert sum(map(edits, texts, lines)) <= 1
        right += len(drawn.intersection(texts))
    assert right > 0.7 * len(drawn)


def test_a_hung_replica_is_replaced(tmp_path: Path) -> None:
    image = resolve_model("efficientnet-lite0").samples()[0]
    scenario = one_stage(tmp_path, "efficientnet-lite0")
    with engine_of(scenario, "static-16") as engine:
        worker = engine._system.worker
        (fleet,) = worker._fleets  # type: ignore[attr-defined]
        fleet.config = dataclasses.replace(fleet.config, batch_timeout_s=1.0)
        (replica,) = worker.replicas  # type: ignore[attr-defined]
        os.kill(replica.pid, signal.SIGSTOP)
        sent = Sent(engine)
        sent.submit(image)
        (reply,) = sent.replies()
        assert reply.status is Status.ANSWERED
        assert worker.status().restarts == 1
        assert isinstance(engine._system, ServedSystem)
