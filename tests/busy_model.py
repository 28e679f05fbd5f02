"""A model of the tests: it loads at once, and each task is some milliseconds of one CPU's work."""

import sys
from typing import TYPE_CHECKING

from sponge_env.models.model import Array, Model, TensorSpec

if TYPE_CHECKING:
    from sponge_env.live.replica import LiveConfig

BUSY = "busy_model:Busy"
LOOPS = 400_000


def config(**settings: object) -> "LiveConfig":
    """Return the settings of a worker that serves it."""
    from sponge_env.live.replica import LiveConfig  # not in a replica's process

    return LiveConfig(model=BUSY, **settings)


class Busy(Model):
    """Answers with what it is sent."""

    inputs = outputs = TensorSpec((2,))

    def run(self, session: object, batch: Array) -> Array:
        sum(range(LOOPS * len(batch)))
        return batch


class Chatty(Busy):
    """Warns twenty thousand times in each batch, and fails at anything but zeros."""

    def run(self, session: object, batch: Array) -> Array:
        sys.stderr.write("a warning\n" * 20_000)
        if batch.any():
            raise SystemExit("the last word")
        return batch
