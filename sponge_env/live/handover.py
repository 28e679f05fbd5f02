"""Inputs of tasks: what requests bring, or the answers of one stage leave for the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from numpy.typing import NDArray

from sponge_env.interfaces import Batch
from sponge_env.live.replica import Launcher

Tensor = NDArray[Any]


Task = tuple[int, Tensor]
"""A place among the tasks of a request in a stage, and the task's input or the answer to it."""


@dataclass(slots=True)
class Kept:
    """What is kept of a request until it ends."""

    waiting: list[list[Task]]
    """Inputs of tasks that wait, for each stage."""
    answers: list[Task] = field(default_factory=list)
    """Those of the last stage."""
    last_tasks: int | None = None
    """Number of tasks in the last stage, as far as the stage before it said so."""


class Handover:
    """Keeps inputs until their tasks are answered, and the last stage's answers if there are any.

    A request that brings no input, and a task of a stage for which the one before it left none,
    gets a sample. Batches name requests, not tasks: the first of its inputs that waits is served
    first, and answers are known by their place.
    """

    def __init__(self, launcher: Launcher, stages: int) -> None:
        self._launcher, self._last = launcher, stages - 1
        self._requests = defaultdict[int, Kept](lambda: Kept([[] for _ in range(stages)]))
        self._running: dict[int, list[tuple[Kept, Task]]] = {}
        """The tasks of each batch; of requests that were forgotten since, nothing else is left."""

    def bring(self, request: int, tensor: Tensor) -> None:
        """Keep the input that a request brings until it ends."""
        self._requests[request].waiting[0] = [(0, tensor)]

    def take(self, batch: Batch) -> list[Tensor]:
        """Return the inputs of a batch that begins."""
        running = self._running[batch.id] = []
        for request in batch.requests:
            kept = self._requests[request]
            waiting = kept.waiting[batch.stage]
            if not waiting:
                waiting.append((0, self._launcher.sample(request, batch.stage)))
            running.append((kept, waiting.pop(0)))
        return [tensor for _, (_, tensor) in running]

    def give_back(self, batch: Batch) -> None:
        """Keep the inputs of a batch whose replica died for another."""
        for kept, task in self._running.pop(batch.id):
            kept.waiting[batch.stage].append(task)

    def answered(self, batch: Batch, answers: Sequence[Tensor]) -> tuple[int, ...]:
        """Leave a batch's answers for the next stage; return how many tasks each leads to.

        They are stacks of inputs; there are none where answers lead to nothing that is known. The
        last stage's are kept until they are taken.
        """
        last = batch.stage == self._last
        # without answers there is nothing to keep
        for (kept, (place, _)), answer in zip(self._running.pop(batch.id), answers, strict=False):
            if last:
                kept.answers.append((place, answer))
            else:
                kept.waiting[batch.stage + 1] = list(enumerate(answer))
                kept.last_tasks = len(answer)
        return () if last else tuple(map(len, answers))

    def take_answers(self, request: int) -> list[Tensor]:
        """Return what the last stage answered to the tasks of a request, in their order."""
        kept = self._requests.get(request)
        if kept is None:
            return []
        answers, kept.answers = kept.answers, []
        return [tensor for _, tensor in sorted(answers, key=itemgetter(0))]

    def take_whole(self, request: int) -> list[Tensor] | None:
        """Return the same if all tasks of the request are answered, else None."""
        kept = self._requests.get(request)
        whole = kept is not None and kept.last_tasks == len(kept.answers)
        return self.take_answers(request) if whole else None

    def forget(self, requests: Iterable[int]) -> None:
        """Let go of what is kept for requests that have ended."""
        for request in requests:
            self._requests.pop(request, None)
