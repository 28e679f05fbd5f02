"""A model of the tests: it loads at once, and each task is some milliseconds of one CPU's work."""

import sys

import numpy as np

from sponge_env.models.model import Model, TensorSpec

BUSY = "busy_model:Busy"
LOOPS = 400_000


def config(**settings):
    from sponge_env.live.protocol import LiveConfig  # not in a replica's process

    return LiveConfig(model=BUSY, **settings)


class Busy(Model):
    """Answers with what it is sent."""

    inputs = outputs = TensorSpec((2,))

    def run(self, session, batch):
        sum(range(LOOPS * len(batch)))
        return batch


class Chatty(Busy):
    """Warns twenty thousand times in each batch, and fails at anything but zeros."""

    def run(self, session, batch):
        sys.stderr.write("a warning\n" * 20_000)
        if batch.any():
            raise SystemExit("the last word")
        return batch


class Quick(Busy):
    """Answers at once, but fails on negative numbers."""

    def run(self, session, batch):
        if (batch < 0).any():
            raise ValueError("a negative number")
        return batch


class Cutter(Quick):
    """Leads to as many tasks as its input begins with, each with that input times its place."""

    max_tasks = 3

    def finish(self, batch, result):
        return [np.outer(np.arange(int(row[0])), row).astype(np.float32) for row in result]
