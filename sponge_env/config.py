"""Scenarios: frozen dataclasses, one docstring per field, checked when they are made.

A scenario is everything that defines an experiment except the controller and the seed.
It is written as TOML; ``traces/scenarios`` holds those that ship.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sponge_env.errors import ConfigError, unknown
from sponge_env.mapping import from_mapping

Backend = Literal["sim", "live"]
"""Simulated worker in virtual time, or real worker in real time."""

Limiter = Literal["auto", "cgroup", "duty-cycle", "none"]
"""How the real worker's CPU is limited; ``auto`` takes the best this machine allows."""

SCENARIO_DIR = Path(__file__).resolve().parent.parent / "traces" / "scenarios"
"""Scenarios that ship with the project."""


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} must be {rule}, not {value!r}")


def _positive(name: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, name, value, "a number above 0")


def _not_negative(name: str, value: float) -> None:
    _require(math.isfinite(value) and value >= 0, name, value, "a number of at least 0")


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest allocation a controller may ask for."""

    cores: int = 16
    """Core units of one replica."""
    batch: int = 16
    """Requests in one batch."""
    replicas: int = 16
    """Replicas at one time."""

    def __post_init__(self) -> None:
        for name in ("cores", "batch", "replicas"):
            value = getattr(self, name)
            _require(value >= 1, f"limits.{name}", value, "at least 1")


@dataclass(frozen=True, slots=True)
class Initial:
    """Allocation in force when the episode starts."""

    cores: int = 1
    """Core units of each replica."""
    batch: int = 1
    """Largest batch."""
    replicas: int = 1
    """Replicas, all warm."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests are sent."""

    kind: Literal["poisson", "constant", "bursty", "trace"] = "poisson"
    """Poisson process, equal gaps, Markov-modulated Poisson process, or a file."""
    rate_rps: float | None = None
    """Mean rate of the requests sent."""
    load: float | None = None
    """Mean rate as a fraction of the profile's largest throughput, instead of
    ``rate_rps``."""
    file: str | None = None
    """Arrival trace (kind ``trace``); relative to the scenario's file."""
    burst_factors: tuple[float, ...] = (0.4, 1.0, 2.4)
    """Rate of each state of the ``bursty`` process, relative to each other."""
    burst_dwell_s: float = 10.0
    """Mean time that the ``bursty`` process stays in a state."""

    def __post_init__(self) -> None:
        if self.kind == "trace":
            _require(self.file is not None, "arrivals.file", self.file, "the path of a trace")
            _require(self.load is None, "arrivals.load", self.load, "left out for a trace")
        else:
            if (self.rate_rps is None) == (self.load is None):
                raise ConfigError("arrivals needs either rate_rps or load")
            _require(self.file is None, "arrivals.file", self.file, "left out unless kind='trace'")
        if self.rate_rps is not None:
            _positive("arrivals.rate_rps", self.rate_rps)
        if self.load is not None:
            _positive("arrivals.load", self.load)
        _positive("arrivals.burst_dwell_s", self.burst_dwell_s)
        _require(len(self.burst_factors) > 0, "arrivals.burst_factors", (), "not empty")
        for factor in self.burst_factors:
            _not_negative("arrivals.burst_factors", factor)
        _require(
            sum(self.burst_factors) > 0,
            "arrivals.burst_factors",
            self.burst_factors,
            "above 0 in one state at least",
        )


@dataclass(frozen=True, slots=True)
class Network:
    """How requests reach the server: each transfer has the whole bandwidth to itself."""

    trace: str = "4g"
    """``4g`` (generated anew for each seed), ``none`` (no transfer time), or the path of
    a bandwidth trace, relative to the scenario's file or in ``traces/``."""
    start: Literal["beginning", "random"] = "beginning"
    """Where in a trace file an episode starts; traces wrap around."""
    payload_bytes: float = 300_000.0
    """Size of one request."""
    base_delay_s: float = 0.01
    """Delay that does not depend on the bandwidth."""

    def __post_init__(self) -> None:
        if self.trace in ("4g", "none"):
            rule = f"'beginning' for the trace {self.trace!r}, which is no file"
            _require(self.start == "beginning", "network.start", self.start, rule)
        _not_negative("network.payload_bytes", self.payload_bytes)
        _not_negative("network.base_delay_s", self.base_delay_s)


@dataclass(frozen=True, slots=True)
class Serving:
    """What the server does with requests that are late already."""

    drop: Literal["none", "expired", "late"] = "none"
    """Keep every request; drop it once its deadline has passed; or only
    ``drop_late_by_s`` after that."""
    drop_late_by_s: float = 0.0
    """Grace of the policy ``late``, and of no other."""

    def __post_init__(self) -> None:
        if self.drop == "late":
            _positive("serving.drop_late_by_s", self.drop_late_by_s)
        else:
            rule = f"left out unless drop='late' (it is {self.drop!r})"
            _require(self.drop_late_by_s == 0, "serving.drop_late_by_s", self.drop_late_by_s, rule)

    @property
    def drop_grace_s(self) -> float:
        """Lateness at which a waiting request is dropped; infinite for ``none``."""
        return {"none": math.inf, "expired": 0.0, "late": self.drop_late_by_s}[self.drop]


@dataclass(frozen=True, slots=True)
class Simulation:
    """How the simulated worker behaves beyond its profile."""

    service: Literal["auto", "profile", "quota"] = "auto"
    """``profile``: every batch takes l(b, c); ``quota``: CPU tokens per period, as the
    kernel enforces a quota; ``auto``: quota if the profile was measured under one."""
    noise: float = 1.0
    """Scale of the profile's run-to-run scatter; 0 makes service deterministic."""
    cold_start_s: float | None = None
    """Cold start of a replica; the profile's if left out."""
    actuation_delay_s: float = 0.0
    """Time from a resize call until it takes effect."""

    def __post_init__(self) -> None:
        _not_negative("simulation.noise", self.noise)
        _not_negative("simulation.actuation_delay_s", self.actuation_delay_s)
        if self.cold_start_s is not None:
            _not_negative("simulation.cold_start_s", self.cold_start_s)


@dataclass(frozen=True, slots=True)
class Reward:
    """Weights of the reward; see :func:`sponge_env.reward.reward`."""

    violation_weight: float = 20.0
    """Cost of a window whose requests all miss their deadline, against 1 for a window
    in which all cores are held."""

    def __post_init__(self) -> None:
        _not_negative("reward.violation_weight", self.violation_weight)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One experiment, without controller and seed."""

    name: str
    """Short name, used for run directories and tables; the file's if left out."""
    description: str = ""
    """What the scenario is for."""
    profile: str = "yolov5s"
    """Shipped latency profile, ``local`` (this machine's), or a path."""
    slo_s: float = 1.0
    """End-to-end latency objective: deadline minus send time."""
    interval_s: float = 1.0
    """Time between two decisions."""
    duration_s: float = 600.0
    """Length of an episode."""
    short_trace: Literal["wrap", "end"] = "wrap"
    """What a trace file shorter than the episode does: it starts again, or the episode ends
    with it."""
    limits: Limits = field(default_factory=Limits)
    initial: Initial = field(default_factory=Initial)
    arrivals: Arrivals = field(default_factory=lambda: Arrivals(rate_rps=20.0))
    network: Network = field(default_factory=Network)
    serving: Serving = field(default_factory=Serving)
    simulation: Simulation = field(default_factory=Simulation)
    reward: Reward = field(default_factory=Reward)

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", self.name) is not None,
            "name",
            self.name,
            "letters, digits, '.', '_' and '-', with no '.' in front (it names run directories)",
        )
        _positive("slo_s", self.slo_s)
        _positive("interval_s", self.interval_s)
        _positive("duration_s", self.duration_s)
        _require(
            self.duration_s >= self.interval_s,
            "duration_s",
            self.duration_s,
            f"at least one interval ({self.interval_s:g} s)",
        )
        for name in ("cores", "batch", "replicas"):
            value, limit = getattr(self.initial, name), getattr(self.limits, name)
            _require(1 <= value <= limit, f"initial.{name}", value, f"between 1 and {limit}")

    @property
    def windows(self) -> int:
        """Number of adaptation intervals in an episode."""
        return int(self.duration_s / self.interval_s + 1e-9)

    @property
    def system_hash(self) -> str:
        """Fingerprint of what gives observations and actions their meaning.

        It covers profile, SLO, interval, limits and serving, not the workload and the
        network, which a policy sees through its observation.
        """
        keys = ("profile", "slo_s", "interval_s", "limits", "serving")
        values = dataclasses.asdict(self) | {"profile": Path(self.profile).stem}
        text = json.dumps({key: values[key] for key in keys}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_scenario(name_or_path: str | Path) -> Scenario:
    """Load a shipped scenario by name, or any scenario from a TOML file.

    File names inside a scenario are taken relative to its file and returned absolute.

    Raises:
        ConfigError: No such scenario, or a key or value in it that cannot be used.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        shipped = {file.stem: file for file in SCENARIO_DIR.glob("*.toml")}
        if str(name_or_path) not in shipped:
            raise ConfigError(unknown("scenario", str(name_or_path), shipped))
        path = shipped[str(name_or_path)]
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no scenario file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML scenario: {error}") from error
    data.setdefault("name", path.stem)
    try:
        scenario = from_mapping(Scenario, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return _resolve_files(scenario, path.parent)


def _resolve_files(scenario: Scenario, folder: Path) -> Scenario:
    """Make the scenario's file names absolute where such a file lies beside it."""

    def absolute(name: str) -> str:
        return str((folder / name).resolve()) if (folder / name).is_file() else name

    file = scenario.arrivals.file and absolute(scenario.arrivals.file)
    return dataclasses.replace(
        scenario,
        profile=absolute(scenario.profile),
        arrivals=dataclasses.replace(scenario.arrivals, file=file),
        network=dataclasses.replace(scenario.network, trace=absolute(scenario.network.trace)),
    )
