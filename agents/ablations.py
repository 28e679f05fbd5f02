"""Sponge without one of its means, to see what each is worth.

Its program sees a smaller system: one without batches, or one whose only allocation is the
fixed one. (The third, order, is the system's: ``serving.order = "fifo"`` in the scenario.)
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from agents.sponge_ip import SpongeIP
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView


class Ablated:
    """The per-request or published program with less to choose from."""

    def __init__(
        self, *, cores_fixed: int | None = None, batch_limit: int | None = None, **options: Any
    ) -> None:
        """Check the options.

        Args:
            cores_fixed: Cores to hold always, never more than the scenario's limit; chosen
                by the program if left out.
            batch_limit: Largest batch to plan with; the scenario's limit if left out.
            options: Fields of :class:`~agents.sponge_ip.SpongeIPConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        for name, value in (("cores_fixed", cores_fixed), ("batch_limit", batch_limit)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        self._cores_fixed = cores_fixed
        self._batch_limit = batch_limit
        self._program = SpongeIP(**options)
        self._spec: SystemSpec | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn."""
        if self._batch_limit is not None:
            batch_max = min(self._batch_limit, spec.batch_max)
            spec = dataclasses.replace(spec, batch_max=batch_max)
        self._spec = spec
        if self._cores_fixed is not None:
            spec = bundled(spec, min(self._cores_fixed, spec.cores_max))
        self._program.reset(spec, seed)

    def decide(self, view: SystemView) -> Allocation:
        """Solve the smaller program.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._spec is None:
            raise RuntimeError("call reset() before decide()")
        held = view.allocation
        held = held.changed(batch=min(held.batch, self._spec.batch_max))
        if self._cores_fixed is None:
            return self._program.decide(dataclasses.replace(view, allocation=held))
        one = held.changed(cores=1)
        answer = self._program.decide(dataclasses.replace(view, allocation=one))
        return answer.changed(cores=min(self._cores_fixed, self._spec.cores_max))


def bundled(spec: SystemSpec, cores: int) -> SystemSpec:
    """Return a system of a single core unit that is as fast as ``cores`` of this one."""
    fit = spec.latency
    latency = dataclasses.replace(fit, gamma_s=fit.gamma_s / cores, epsilon_s=fit.epsilon_s / cores)
    core_unit = spec.core_unit * cores
    return dataclasses.replace(spec, cores_max=1, latency=latency, core_unit=core_unit)


no_batching = partial(Ablated, batch_limit=1)
no_scaling = partial(Ablated, cores_fixed=16)
