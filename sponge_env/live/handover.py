"""Inputs of tasks: what requests bring, or the answers of one stage leave for the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sponge_env.interfaces import Batch
from sponge_env.live.replica import Launcher

Tensor = NDArray[Any]


class Task(NamedTuple):
    """The input of a task."""

    place: int
    """Among those of its request in this stage."""
    tensor: Tensor


class Handover:
    """Keeps them until their tasks are answered, and the last stage's answers if there are any.

    A request that brings no input, and a task of a stage for which the one before it left none,
    gets a sample. Tasks of a request are alike to who forms batches: the first of its inputs that
    waits is served first, and answers are known by their place.
    """

    def __init__(self, launchers: Sequence[Launcher]) -> None:
        self._launchers = launchers
        self._left: list[dict[int, list[Task]]] = [{} for _ in launchers]
        self._running: dict[int, tuple[Batch, list[Task]]] = {}
        self._forgotten: set[int] = set()
        """Requests that have ended, of which tasks still run."""
        self._answers: dict[int, list[Task]] = {}
        self._told: dict[int, int] = {}
        """Tasks of the last stage that each request leads to, as far as a stage before said so."""

    def bring(self, request: int, tensor: Tensor) -> None:
        """Keep the input that a request brings until it ends."""
        self._left[0][request] = [Task(0, tensor)]

    def take(self, batch: Batch) -> list[Tensor]:
        """Return the inputs of a batch that begins."""
        left, launcher = self._left[batch.stage], self._launchers[batch.stage]
        tasks = [
            own.pop(0) if (own := left.get(request)) else Task(0, launcher.sample(request))
            for request in batch.requests
        ]
        self._running[batch.id] = batch, tasks
        return [task.tensor for task in tasks]

    def give_back(self, batch: Batch) -> None:
        """Keep the inputs of a batch whose replica died for another."""
        _, tasks = self._running.pop(batch.id)
        left = self._left[batch.stage]
        for request, task in zip(batch.requests, tasks, strict=True):
            if request not in self._forgotten:
                left.setdefault(request, []).append(task)
        self._remember()

    def answered(self, batch: Batch, answers: Sequence[Tensor]) -> tuple[int, ...]:
        """Leave a batch's answers for the next stage; return how many tasks each leads to.

        They are stacks of inputs; there are none where answers lead to nothing that is known. The
        last stage's are kept, if they are wanted.
        """
        _, tasks = self._running.pop(batch.id)
        last = batch.stage + 1 == len(self._left)
        for request, task, answer in zip(batch.requests, tasks, answers, strict=False):
            if request in self._forgotten:
                continue
            if last:
                self._answers.setdefault(request, []).append(Task(task.place, answer))
            else:
                left = [Task(place, tensor) for place, tensor in enumerate(answer)]
                self._left[batch.stage + 1][request] = left
                self._told[request] = len(left)
        self._remember()
        return () if last else tuple(map(len, answers))

    def take_answers(self, request: int) -> list[Tensor]:
        """Return what the last stage answered to the tasks of a request, in their order."""
        answers = self._answers.pop(request, [])
        return [task.tensor for task in sorted(answers, key=lambda task: task.place)]

    def take_whole(self, request: int) -> list[Tensor] | None:
        """Return the same if all tasks of the request are answered, else None."""
        told = self._told.get(request)
        whole = told is not None and len(self._answers.get(request, ())) == told
        return self.take_answers(request) if whole else None

    def forget(self, requests: Collection[int]) -> None:
        """Let go of what is kept for requests that have ended."""
        self._forgotten |= self._still_running().intersection(requests)
        for request in requests:
            self._told.pop(request, None)
            for kept in (*self._left, self._answers):
                kept.pop(request, None)

    def _remember(self) -> None:
        """Keep of those forgotten only the ones of which tasks still run."""
        if self._forgotten:
            self._forgotten &= self._still_running()

    def _still_running(self) -> set[int]:
        return {request for batch, _ in self._running.values() for request in batch.requests}
