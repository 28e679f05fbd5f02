"""Inputs of tasks: what the answers of one stage leave for the next, or a model's own samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from numpy.typing import NDArray

from sponge_env.interfaces import Batch
from sponge_env.live.replica import Launcher

Tensors = list[NDArray[Any]]


class Handover:
    """Keeps them until their tasks are answered.

    A request that brings no input, and a task of a stage for which the one before it left none,
    gets a sample. Tasks of a request are alike: whichever is served takes any of its inputs.
    """

    def __init__(self, launchers: Sequence[Launcher]) -> None:
        self._launchers = launchers
        self._left: list[dict[int, Tensors]] = [{} for _ in launchers]
        self._running: dict[int, Tensors] = {}
        self._forgotten: set[int] = set()

    def take(self, batch: Batch) -> Tensors:
        """Return the inputs of a batch that begins."""
        left, launcher = self._left[batch.stage], self._launchers[batch.stage]
        tensors = [
            own.pop() if (own := left.get(request)) else launcher.sample(request)
            for request in batch.requests
        ]
        self._running[batch.id] = tensors
        return tensors

    def give_back(self, batch: Batch) -> None:
        """Keep the inputs of a batch whose replica died for another."""
        tensors, left = self._running.pop(batch.id), self._left[batch.stage]
        for request, tensor in zip(batch.requests, tensors, strict=True):
            if batch.stage and request not in self._forgotten:
                left.setdefault(request, []).append(tensor)

    def answered(self, batch: Batch, answers: Sequence[NDArray[Any]]) -> tuple[int, ...]:
        """Leave a batch's answers for the next stage; return how many tasks each leads to.

        They are stacks of inputs; there are none where answers lead to nothing that is known.
        """
        del self._running[batch.id]
        if batch.stage + 1 == len(self._left):
            return ()
        for request, stack in zip(batch.requests, answers, strict=False):
            if request not in self._forgotten:
                self._left[batch.stage + 1][request] = list(stack)
        return tuple(map(len, answers))

    def forget(self, requests: Collection[int]) -> None:
        """Let go of what was left for requests that have ended."""
        self._forgotten.update(requests)
        for left in self._left:
            for request in requests:
                left.pop(request, None)
