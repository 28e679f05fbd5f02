"""Where calls wait for the serving thread, and threads that come in between each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from fake_calls import Client, served_system
from scenarios import short

from sponge_env.serve.calls import Inbox
from sponge_env.serve.interface import Call

CALL = Call(np.zeros(1), 0.0, 1.0, 8)


def nobody(_: object) -> None:
    """Do nothing: nobody waits for it."""


class Interrupted(deque[Any]):
    """After something is put in, another thread does this before the first one goes on."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def append(self, item: Any) -> None:
        super().append(item)
        self.meanwhile()


def test_no_call_is_left_without_waking_the_engine() -> None:
    """Not even after one that the engine took while it was awake for another reason."""
    system = served_system(short())
    wakes: list[int] = []
    inbox = system.inbox = Inbox(lambda: wakes.append(1))
    client = Client(system)
    inbox._waiting = Interrupted(lambda: system._take_in(0.0, 0.0))
    client.submit(30.0)
    assert (len(inbox), len(wakes)) == (0, 1)
    system._take_in(0.0, 0.0)  # woken, it finds nothing
    inbox._waiting = deque()
    client.submit(30.0)
    assert (len(inbox), len(wakes)) == (1, 2)


def test_the_engine_is_woken_once_for_many() -> None:
    wakes: list[int] = []
    inbox = Inbox(lambda: wakes.append(1))
    tickets = [inbox.submit(CALL, nobody) for _ in range(5)]
    assert len(wakes) == 1
    assert [submitted.ticket for submitted in inbox.take(3)] == tickets[:3]
    inbox.cancel(tickets[4])
    assert len(wakes) == 2
    left = [(submitted.ticket, submitted.call) for submitted in inbox.take(9)]
    assert left == [(tickets[3], CALL), (tickets[4], CALL), (tickets[4], None)]


def test_two_may_take_at_the_same_time() -> None:
    inbox = Inbox(lambda: None)
    tickets = [inbox.submit(CALL, nobody) for _ in range(3)]
    first = inbox.take(3)
    taken = [next(first).ticket, *(each.ticket for each in inbox.take(3))]
    assert taken == tickets
    assert list(first) == []
