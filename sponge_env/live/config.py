"""Settings of the real worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from sponge_env.config import Limiter, positive, require
from sponge_env.interfaces import Allocation
from sponge_env.spec import check_allocation


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """How the real worker is set up."""

    model: str = "efficientnet-lite0"
    """Known model or path of an ONNX file."""
    batch_max: int = 16
    """Largest batch."""
    cores_max: int = 16
    """Largest number of core units of one replica."""
    core_unit: float = 1 / 16
    """Physical cores in one core unit."""
    replicas_max: int = 16
    """Largest number of replicas."""
    total_cores: int = 1 << 30
    """Core units that all replicas together may hold."""
    initial: Allocation = field(default_factory=lambda: Allocation(cores=1, batch=1))
    """Allocation in force when the clock starts, with all its replicas warm."""
    limiter: Limiter = "auto"
    """How CPU is limited; ``auto`` takes control groups where this process may make them."""
    batch_timeout_s: float = 60.0
    """A batch that runs longer is taken for hung, and its replica is restarted."""
    start_timeout_s: float = 120.0
    """A replica that is not ready by then is taken for hung, and restarted."""
    cold_start_s: float = 8.0
    """Expected cold start, until the first one was measured."""
    cpus: tuple[int, ...] = ()
    """CPUs the replicas are pinned to; left empty, as many as one replica can use, the last
    ones this process may use. The harness keeps to the others, if there are any."""

    def __post_init__(self) -> None:
        for name in ("batch_max", "cores_max", "replicas_max"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("core_unit", "batch_timeout_s", "start_timeout_s", "cold_start_s"):
            positive(name, getattr(self, name))
        check_allocation(self.initial, self)

    def physical_cores(self, cores: int) -> float:
        """Return the physical cores of core units."""
        # rounded, so that n units of 1/n are a whole core for every n
        return round(cores * self.core_unit, 9)
