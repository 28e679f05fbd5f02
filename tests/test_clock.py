"""The clock of a live episode."""

import pytest
from fake_replicas import Monotonic
from hypothesis import example, given
from hypothesis import strategies as st

from sponge_env.live import worker as worker_module
from sponge_env.live.worker import EpisodeClock


@example([(True, 3), (True, 2), (False, 1), (False, 1)])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=40))
def test_time_stands_still_while_held_and_stamps_agree(steps):
    with pytest.MonkeyPatch.context() as patch:
        machine = Monotonic()
        patch.setattr(worker_module, "time", machine)
        clock = EpisodeClock()
        readings = []
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
