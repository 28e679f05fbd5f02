"""A controller that decides in a thread of its own, so that serving never waits for it for long."""

from __future__ import annotations

import queue
import threading
import time
from typing import NamedTuple

from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.run.registry import decision

PATIENCE_S = 0.1
"""Longest that serving waits for a decision; half of an interval that is shorter than two."""


class Decided(NamedTuple):
    """What a controller said."""

    answer: Allocation | Exception
    took_s: float

    def allocation(self) -> Allocation:
        """Return what it wants, or raise what kept it from saying so."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Decider:
    """Asks one controller, which has been started, about one view after another.

    All methods belong to one thread. A controller that hangs costs its thread and nothing else.
    """

    def __init__(self, agent: str, controller: Controller, spec: SystemSpec) -> None:
        self.agent = agent
        self._controller, self._spec = controller, spec
        self._patience_s = min(PATIENCE_S, spec.interval_s / 2)
        self._views: queue.SimpleQueue[SystemView | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Decided] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="sponge-deciding", daemon=True)
        self._asked_s: float | None = None
        """When it was asked what it has not answered yet."""

    @property
    def waited_s(self) -> float:
        """How long it has been deciding by now."""
        return 0.0 if self._asked_s is None else time.perf_counter() - self._asked_s

    def decide(self, view: SystemView) -> Decided | None:
        """Return what it says to a view, if it says so soon, or what it said to one before.

        None while it is still busy. One that took long the last time is not waited for: each of
        its decisions comes into force an interval later.
        """
        if self._thread.ident is None:
            self._thread.start()
        late = self._take(0.0)
        if self._asked_s is not None:
            return None
        self._asked_s = time.perf_counter()
        self._views.put(view)
        if late is not None and late.took_s > self._patience_s:
            return late
        return self._take(self._patience_s) or late

    def close(self) -> None:
        """Let its thread end once it has decided; it is not asked any more."""
        self._views.put(None)

    def _take(self, timeout_s: float) -> Decided | None:
        try:
            decided = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._asked_s = None
        return decided

    def _serve(self) -> None:
        while (view := self._views.get()) is not None:
            began_s = time.perf_counter()
            answer: Allocation | Exception
            try:
                answer = decision(self._controller, view, self._spec)
            except Exception as error:
                answer = error
            self._answers.put(Decided(answer, time.perf_counter() - began_s))
