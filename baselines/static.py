"""A fixed allocation, as a server without a controller has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sponge_env.controllers import BaseController, Options, option
from sponge_env.interfaces import Allocation, SystemSpec, SystemView


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig(Options):
    """Options of :class:`Static`."""

    cores: int | None = option(None, at_least=1)
    """Core units; all of them if left out, and never more than there are."""
    batch: int | None = option(None, at_least=1)
    """Largest batch; the scenario's limit if left out, and never above it."""


class Static(BaseController):
    """Asks for the same cores and batch size always.

    With the default batch every waiting request joins the next batch.
    """

    config: StaticConfig

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the allocation, within the limits."""
        return Allocation(
            cores=min(self.config.cores or spec.cores_max, spec.cores_max),
            batch=min(self.config.batch or spec.batch_max, spec.batch_max),
        )


static_8 = partial(Static, cores=8)
static_16 = partial(Static, cores=16)
