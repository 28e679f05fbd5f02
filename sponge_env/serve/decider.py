"""A controller in a thread of its own, so that a slow decision does not hold up serving."""

from __future__ import annotations

import queue
import threading
import time
from typing import NamedTuple

from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.run.registry import decision

MAX_WAIT_S = 0.1
"""For a decision; at most half an interval."""


class Decision(NamedTuple):
    """A controller's allocation or error."""

    answer: Allocation | Exception
    took_s: float

    def allocation(self) -> Allocation:
        """Return the allocation, or raise the error."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Decider:
    """Has one controller, which has been started, decide about one view after another.

    All methods belong to one thread. A controller that hangs costs its thread and nothing else.
    """

    def __init__(self, agent: str, controller: Controller, spec: SystemSpec) -> None:
        self.agent = agent
        self._controller, self._spec = controller, spec
        self._max_wait_s = min(MAX_WAIT_S, spec.interval_s / 2)
        self._views: queue.SimpleQueue[SystemView | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Decision] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="sponge-deciding", daemon=True)
        self._sent_s: float | None = None
        """Time of the view that it has not decided about yet."""

    @property
    def waited_s(self) -> float:
        """How long it has been deciding by now."""
        return 0.0 if self._sent_s is None else time.perf_counter() - self._sent_s

    def decide(self, view: SystemView) -> Decision | None:
        """Return its decision about a view if it comes soon, else about an earlier view.

        None while it is still busy. A controller that took long the last time is not waited for:
        each of its decisions comes into force an interval later.
        """
        if self._thread.ident is None:
            self._thread.start()
        late = self._take(0.0)
        if self._sent_s is not None:
            return None
        self._sent_s = time.perf_counter()
        self._views.put(view)
        if late is not None and late.took_s > self._max_wait_s:
            return late
        return self._take(self._max_wait_s) or late

    def close(self) -> None:
        """Let its thread end once it has decided; it gets no more views."""
        self._views.put(None)

    def _take(self, timeout_s: float) -> Decision | None:
        try:
            decided = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._sent_s = None
        return decided

    def _serve(self) -> None:
        while (view := self._views.get()) is not None:
            began_s = time.perf_counter()
            answer: Allocation | Exception
            try:
                answer = decision(self._controller, view, self._spec)
            except Exception as error:
                answer = error
            self._answers.put(Decision(answer, time.perf_counter() - began_s))
