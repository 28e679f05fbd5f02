"""How long serving waits for a controller, and what comes of a decision that is late."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from views import make_spec, make_view

from sponge_env.errors import ControllerError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.serve.engine import Decider, Decision

SOON_S = 10.0
QUICK = make_spec(interval_s=60.0)


class Asked:
    """Wants as many cores as the view's time says, when a test lets it."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """There is nothing to forget."""

    def decide(self, view: SystemView) -> Allocation:
        assert self.may.acquire(timeout=SOON_S)
        return Allocation(int(view.now_s), 1)


class Patient(Decider):
    """Waits for as long as it takes, unless it is not to wait at all."""

    def __init__(self, controller: Asked) -> None:
        super().__init__("asked", controller, QUICK)
        self._max_wait_s = SOON_S


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def decider(asked: Asked) -> Iterator[Decider]:
    decider = Patient(asked)
    yield decider
    decider.close()
    asked.may.release(2)


def cores(decided: Decision | None) -> int:
    assert decided is not None
    return decided.allocation().cores


def at(now_s: float) -> SystemView:
    return make_view(now_s=now_s)


def is_late(decider: Decider, asked: Asked, now_s: float) -> None:
    """Ask it while nobody has patience, and let it decide then."""
    decider._max_wait_s = 0.0
    assert decider.decide(at(now_s)) is None
    assert decider.waited_s > 0
    assert decider.decide(at(now_s + 1)) is None, "it is asked one thing at a time"
    asked.may.release()
    while decider._answers.empty():
        assert decider.waited_s < SOON_S


def test_one_that_is_quick_decides_on_what_is_there_now(decider: Decider, asked: Asked) -> None:
    asked.may.release(3)
    assert [cores(decider.decide(at(k))) for k in (1, 2, 3)] == [1, 2, 3]
    assert decider.waited_s == 0


def test_one_that_takes_long_is_an_interval_late(decider: Decider, asked: Asked) -> None:
    is_late(decider, asked, 1)
    for k in (3, 4, 5):
        assert cores(decider.decide(at(k))) == {3: 1, 4: 3, 5: 4}[k]
        asked.may.release()
        while decider._answers.empty():
            assert decider.waited_s < SOON_S


def test_what_it_said_late_stands_if_the_next_is_late_as_well(
    decider: Decider, asked: Asked
) -> None:
    is_late(decider, asked, 1)
    decided = decider._answers.get()
    decider._answers.put(decided._replace(took_s=-1.0))  # quick, for all that
    assert cores(decider.decide(at(3))) == 1


def test_what_it_raises_is_raised_where_it_is_asked_for() -> None:
    class Broken(Asked):
        def decide(self, view: SystemView) -> Allocation:
            raise ValueError("no idea")

    decider = Patient(Broken())
    decided = decider.decide(at(1))
    assert decided is not None
    with pytest.raises(ControllerError, match="no idea"):
        decided.allocation()
    decider.close()
    decider._thread.join(SOON_S)
