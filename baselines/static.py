"""A fixed allocation, as a server without a controller has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig:
    """Options of :class:`Static`."""

    cores: int | None = None
    """Core units; all of them if left out, and never more than there are."""
    batch: int | None = None
    """Largest batch; the scenario's limit if left out, and never above it."""

    def __post_init__(self) -> None:
        for name in ("cores", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value!r}")


class Static:
    """Asks for the same cores and batch size always.

    With the default batch every waiting request joins the next batch.
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`StaticConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(StaticConfig, options)
        self._allocation: Allocation | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn."""
        self._allocation = Allocation(
            cores=min(self.config.cores or spec.cores_max, spec.cores_max),
            batch=min(self.config.batch or spec.batch_max, spec.batch_max),
        )

    def decide(self, view: SystemView) -> Allocation:
        """Return the allocation.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._allocation is None:
            raise RuntimeError("call reset() before decide()")
        return self._allocation


static_8 = partial(Static, cores=8)
static_16 = partial(Static, cores=16)
