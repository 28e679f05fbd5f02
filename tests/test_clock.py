"""The clock of a live episode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.live import worker as worker_module
from sponge_env.live.worker import EpisodeClock


class Monotonic:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    machine = Monotonic()
    monkeypatch.setattr(worker_module, "time", machine)
    return machine


def test_time_stands_still_while_held(machine: Monotonic) -> None:
    clock = EpisodeClock()
    machine.now_s += 5
    clock.hold()
    machine.now_s += 3
    assert clock.now_s() == 5
    assert clock.release() == 3
    machine.now_s += 1
    assert clock.now_s() == 6


def test_what_happens_in_a_hold_happens_at_its_instant(machine: Monotonic) -> None:
    clock = EpisodeClock()
    machine.now_s = 1010
    clock.hold()
    machine.now_s = 1020
    clock.release()
    machine.now_s = 1030
    assert [clock.at(s) for s in (1009, 1010, 1015, 1020, 1021, 1030)] == [9, 10, 10, 10, 11, 20]


def test_holding_twice_is_holding_once(machine: Monotonic) -> None:
    clock = EpisodeClock()
    clock.hold()
    machine.now_s += 1
    clock.hold()
    machine.now_s += 1
    assert clock.release() == 2
    assert clock.release() == 0
    assert clock.now_s() == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=40))
def test_stamps_agree_with_what_the_clock_said(steps: list[tuple[bool, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = Monotonic()
        patch.setattr(worker_module, "time", machine)
        clock = EpisodeClock()
        said: list[tuple[float, float]] = []
        paused_s = 0.0
        for hold, seconds in steps:
            if hold:
                clock.hold()
            else:
                paused_s += clock.release()
            machine.now_s += seconds
            said.append((machine.now_s, clock.now_s()))
        assert [clock.at(stamp_s) for stamp_s, _ in said] == [now_s for _, now_s in said]
        times_s = [now_s for _, now_s in said]
        assert times_s == sorted(times_s)
        paused_s += clock.release()
        assert said[-1][1] + paused_s == machine.now_s - 1000
