"""Parts of the live worker: what it keeps of requests between stages, and an episode's clock."""

import numpy as np
import pytest
from fake_replicas import Monotonic
from hypothesis import example, given
from hypothesis import strategies as st

from sponge_env.errors import ModelError, WorkerError
from sponge_env.interfaces import Batch
from sponge_env.live import worker as worker_module
from sponge_env.live.worker import EpisodeClock, Handover

LINE = np.zeros(2)


class Samples:
    """A launcher whose samples are numbers."""

    def sample(self, request, stage):
        return np.array(request)


@pytest.fixture
def handover():
    return Handover(Samples(), 2)


def find(handover, request, lines):
    """Let the first stage answer a request with so many tasks."""
    batch = Batch(10 * request, (request,), 0)
    handover.take(batch)
    assert handover.answered(batch, [np.stack([LINE] * lines) if lines else LINE[:0]]) == (lines,)


def read(handover, request, number):
    """Let the second stage answer the next task of a request with a number."""
    batch = Batch(10 * request + 1 + number, (request,), 1)
    handover.take(batch)
    handover.answered(batch, [np.array(number)])


def test_a_request_is_whole_with_its_last_task(handover):
    assert handover.take_whole(1) is None
    find(handover, 1, lines=2)
    for number in (5, 6):
        assert handover.take_whole(1) is None
        read(handover, 1, number)
    assert handover.take_whole(1) == [5, 6]
    find(handover, 2, lines=0)
    assert handover.take_whole(2) == []


def test_a_task_that_lost_its_replica_is_answered_by_another(handover):
    find(handover, 1, lines=2)
    lost = Batch(50, (1,), 1)
    (brought,) = handover.take(lost)
    read(handover, 1, 7)
    handover.give_back(lost)
    assert handover.take_whole(1) is None
    again = Batch(51, (1,), 1)
    assert handover.take(again)[0] is brought
    handover.answered(again, [np.array(8)])
    assert handover.take_whole(1) == [8, 7], "in the order of the tasks"


def test_nothing_is_kept_of_a_request_that_has_ended(handover):
    find(handover, 1, lines=2)
    late = Batch(50, (1,), 1)
    handover.take(late)
    handover.forget([1])  # dropped, while one of its tasks runs and the other waits
    assert handover.take_whole(1) is None
    handover.answered(late, [np.array(8)])
    assert handover.take_whole(1) is None
    assert not handover._requests
    assert not handover._running


def test_a_model_that_fails_says_so_of_what_was_brought_and_must_not_on_samples():
    handover = Handover(Samples(), 1)
    handover.bring(1, LINE)
    handover.bring(2, LINE)
    batch = Batch(1, (1, 2), 0)
    handover.take(batch)
    handover.answered(batch, [LINE, LINE], {1: "too large"})
    assert handover.take_answers(1) == [LINE]
    with pytest.raises(ModelError, match="too large"):
        handover.take_answers(2)
    handover.take(Batch(2, (3,), 0))
    with pytest.raises(WorkerError, match="fails on its samples: too large"):
        handover.answered(Batch(2, (3,), 0), [LINE], {0: "too large"})


@example([(True, 3), (True, 2), (False, 1), (False, 1)])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=40))
def test_time_stands_still_while_held_and_stamps_agree(steps):
    with pytest.MonkeyPatch.context() as patch:
        machine = Monotonic()
        patch.setattr(worker_module, "time", machine)
        clock, readings = EpisodeClock(), []
        held, expected_s, paused_s = False, 0, 0.0
        for hold, seconds in steps:
            if hold:
                clock.hold()
            else:
                paused_s += clock.release()
            held = hold
            machine.now_s += seconds
            expected_s += 0 if held else seconds
            readings.append((machine.now_s, clock.at(machine.now_s)))
            assert clock.at(machine.now_s) == expected_s
        assert [clock.at(stamp_s) for stamp_s, _ in readings] == [now_s for _, now_s in readings]
        paused_s += clock.release()
        assert expected_s + paused_s == machine.now_s - 1000
