"""The parts of a scenario: frozen dataclasses, one docstring per field, checked when made.

:mod:`sponge_env.scenario` puts them together and reads them from TOML.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from sponge_env.errors import ConfigError
from sponge_env.scenario.option import positive as positive
from sponge_env.scenario.option import require as require

Backend = Literal["sim", "live"]
"""Simulated worker in virtual time, or real worker in real time."""

ControlName = Literal["vertical", "joint", "variants", "pipeline"]
"""What an environment's action chooses: cores and batch size; replicas as well; the variant
instead; or all of it in every stage."""

Start = Literal["cold", "warm"]
"""Begin with the scenario's allocation, or with the one that the controller settles on."""

Limiter = Literal["auto", "cgroup", "duty-cycle", "none"]
"""How the real worker's CPU is limited; ``auto`` takes the best this machine allows."""


def name_it(key: str, name: str) -> None:
    """Require a name that files and folders can bear."""
    rule = "letters, digits, '.', '_' and '-', with no '.' in front (it names files)"
    named = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) is not None
    require(named, key, name, rule)


def as_name(text: str) -> str:
    """Return a text as a name that files and folders can bear, but for a '.' in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def not_negative(name: str, value: float) -> None:
    """Require a finite number of at least 0."""
    require(math.isfinite(value) and value >= 0, name, value, "a number of at least 0")


MOST = 4096
"""Largest limit of cores, batch and replicas, for which tables are made."""

MOST_CELLS = 1 << 20
"""Largest product of the limits of cores and batch: a table has a cell for each pair."""

MAX_STAGES = 8
"""Stages of a pipeline."""

MOST_TASKS = 256
"""Largest fan-out of an answer."""

MAX_STAGES = 8
"""Stages of a pipeline."""

MAX_VARIANTS = 16
"""Model variants of a stage."""

MOST_TOTAL_CORES = 1 << 30
"""Largest machine, in core units."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest allocation a controller may ask for."""

    cores: int = 16
    """Core units of one replica."""
    batch: int = 16
    """Requests in one batch."""
    replicas: int = 16
    """Replicas at one time."""
    total_cores: int | None = None
    """Core units of the machine, which all replicas share, those that start or drain included;
    as many as one replica may have if left out."""

    def __post_init__(self) -> None:
        for name in ("cores", "batch", "replicas"):
            value = getattr(self, name)
            require(1 <= value <= MOST, f"limits.{name}", value, f"at least 1 and at most {MOST}")
        most = MOST_CELLS // self.cores
        rule = f"at most {most} with limits.cores = {self.cores}"
        require(self.batch <= most, "limits.batch", self.batch, rule)
        rule = f"at least limits.cores = {self.cores} and at most {MOST_TOTAL_CORES}"
        fits = self.cores <= self.machine_cores <= MOST_TOTAL_CORES
        require(fits, "limits.total_cores", self.total_cores, rule)

    @property
    def machine_cores(self) -> int:
        """Core units of the machine."""
        return self.cores if self.total_cores is None else self.total_cores


@dataclass(frozen=True, slots=True)
class Initial:
    """Allocation in force when the episode starts."""

    cores: int = 1
    """Core units of each replica."""
    batch: int = 1
    """Largest batch."""
    replicas: int = 1
    """Replicas, all warm."""
    variant: int = 0
    """Model variant, 0 for the first; -1 lets each batch choose, as ``stages.chooses`` does."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of several models that answer the same question."""

    profile: str
    """Latency profile, as that of a scenario."""
    accuracy: float = 1.0
    """Share of its answers that are right, or another number between 0 and 1."""
    name: str = ""
    """For tables; the profile's if left out."""

    def __post_init__(self) -> None:
        fits = 0 <= self.accuracy <= 1
        require(fits, "stages.variants.accuracy", self.accuracy, "a number between 0 and 1")

    @property
    def called(self) -> str:
        """Name for tables."""
        return self.name or PurePath(self.profile.rpartition(":")[2]).stem


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a pipeline, with its queue and replicas."""

    name: str
    """Short name, used for tables and files."""
    variants: tuple[Variant, ...]
    """Models to choose from, the least accurate first."""
    after: tuple[str, ...] | None = None
    """Stages whose answers lead here; the one before in the list if left out. A stage that
    follows several gets one task of each request, when all that lead to it are done."""
    fan_out: int = 1
    """Tasks in each stage that follows that an answer leads to; 0 is none."""
    fan_out_shares: tuple[float, ...] = ()
    """Instead of ``fan_out``: shares of the answers that lead to 0, 1, 2, ... tasks."""
    chooses: Literal["controller", "batch"] = "controller"
    """Who chooses the variant: the controller once per interval, or each batch as it is formed,
    which takes the most accurate one that the slack of its most urgent request allows."""
    switch_s: float = 0.0
    """Time from choosing another variant until batches are formed for it: 0 where all are in
    memory."""
    limits: Limits = field(default_factory=Limits)
    """Largest allocation of this stage. ``total_cores`` is the scenario's to say."""
    initial: Initial = field(default_factory=Initial)

    def __post_init__(self) -> None:
        name_it("stages.name", self.name)
        where = f"stages.{self.name}"
        require(len(self.variants) > 0, f"{where}.variants", [], "not empty")
        names = [variant.called for variant in self.variants]
        require(len(set(names)) == len(names), f"{where}.variants", names, "of different names")
        accuracies = [variant.accuracy for variant in self.variants]
        rule = "in ascending order of their accuracies"
        require(accuracies == sorted(accuracies), f"{where}.variants", accuracies, rule)
        require(self.fan_out >= 0, f"{where}.fan_out", self.fan_out, "a whole number of at least 0")
        for share in self.fan_out_shares:
            not_negative(f"{where}.fan_out_shares", share)
        rule = "above 0 for one number of tasks at least"
        fits = not self.fan_out_shares or sum(self.fan_out_shares) > 0
        require(fits, f"{where}.fan_out_shares", self.fan_out_shares, rule)
        for key in ("fan_out", "fan_out_shares"):
            value = getattr(self, key)
            tasks = value if key == "fan_out" else len(value) - 1
            require(tasks <= MOST_TASKS, f"{where}.{key}", value, f"of at most {MOST_TASKS} tasks")
        if self.fan_out != 1 and self.fan_out_shares:
            raise ConfigError(f"{where} takes either fan_out or fan_out_shares")
        not_negative(f"{where}.switch_s", self.switch_s)
        check_initial(self.initial, self.limits, f"{where}.")
        most = len(self.variants) - 1
        least = -1 if most else 0
        fits = least <= self.initial.variant <= most
        rule = f"between {least} and {most}"
        require(fits, f"{where}.initial.variant", self.initial.variant, rule)

    @property
    def tasks(self) -> tuple[float, ...]:
        """Probabilities of 0, 1, 2, ... tasks that an answer leads to."""
        if not self.fan_out_shares:
            return (*[0.0] * self.fan_out, 1.0)
        whole = sum(self.fan_out_shares)
        return tuple(share / whole for share in self.fan_out_shares)

    @property
    def mean_tasks(self) -> float:
        """Expected number of them."""
        return sum(count * share for count, share in enumerate(self.tasks))


def check_initial(initial: Initial, limits: Limits, prefix: str = "") -> None:
    """Require an initial allocation within limits."""
    for name in ("cores", "batch", "replicas"):
        value, limit = getattr(initial, name), getattr(limits, name)
        require(1 <= value <= limit, f"{prefix}initial.{name}", value, f"between 1 and {limit}")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests are sent."""

    kind: Literal["poisson", "constant", "bursty", "flash-crowd", "diurnal", "trace"] = "poisson"
    """Poisson process, equal gaps, Poisson process whose rate jumps among a few states, has
    short peaks, or swings like a day, or a file."""
    rate_rps: float | None = None
    """Mean rate of the requests sent. A trace has its own without this and ``load``."""
    load: float | None = None
    """Mean rate as a fraction of the profile's largest throughput, instead of
    ``rate_rps``."""
    file: str | None = None
    """Arrival trace (kind ``trace``); relative to the scenario's file."""
    burst_factors: tuple[float, ...] = (0.4, 1.0, 2.4)
    """Rate of each state of the ``bursty`` process, relative to each other."""
    burst_dwell_s: float = 10.0
    """Mean time that the ``bursty`` process stays in a state."""
    flash_factor: float = 5.0
    """Rate within a flash crowd, relative to the rate outside."""
    flash_s: float = 30.0
    """Length of a flash crowd."""
    flash_every_s: float = 150.0
    """There is one flash crowd in each such stretch of time, at a random moment of it."""
    diurnal_amplitude: float = 0.6
    """Swing of the ``diurnal`` rate around its mean, relative to the mean."""
    diurnal_period_s: float = 300.0
    """Length of a ``diurnal`` day; it begins at a random hour."""

    def __post_init__(self) -> None:
        if self.kind == "trace":
            require(self.file is not None, "arrivals.file", self.file, "the path of a trace")
            if None not in (self.rate_rps, self.load):
                raise ConfigError("arrivals of a trace take either rate_rps or load, or neither")
        else:
            if (self.rate_rps is None) == (self.load is None):
                raise ConfigError("arrivals needs either rate_rps or load")
            require(self.file is None, "arrivals.file", self.file, "left out unless kind='trace'")
        if self.rate_rps is not None:
            positive("arrivals.rate_rps", self.rate_rps)
        if self.load is not None:
            positive("arrivals.load", self.load)
        for name in ("burst_dwell_s", "flash_factor", "flash_s", "diurnal_period_s"):
            positive(f"arrivals.{name}", getattr(self, name))
        rule = f"a number of at least flash_s = {self.flash_s:g}"
        fits = math.isfinite(self.flash_every_s) and self.flash_every_s >= self.flash_s
        require(fits, "arrivals.flash_every_s", self.flash_every_s, rule)
        amplitude = self.diurnal_amplitude
        require(0 <= amplitude <= 1, "arrivals.diurnal_amplitude", amplitude, "between 0 and 1")
        factors, name = self.burst_factors, "arrivals.burst_factors"
        require(len(factors) > 0, name, (), "not empty")
        for factor in factors:
            not_negative(name, factor)
        require(sum(factors) > 0, name, factors, "above 0 in one state at least")


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
    fade_every_s: float | None = None
    """There is one deep fade in each such stretch of time, at a random moment of it; none if
    left out."""
    fade_s: float = 4.0
    """Length of a fade."""
    fade_depth: float = 0.02
    """Share of the trace's bandwidth that is left during a fade."""

    def __post_init__(self) -> None:
        if self.trace in ("4g", "none"):
            rule = f"'beginning' for the trace {self.trace!r}, which is no file"
            require(self.start == "beginning", "network.start", self.start, rule)
        not_negative("network.payload_bytes", self.payload_bytes)
        not_negative("network.base_delay_s", self.base_delay_s)
        positive("network.fade_s", self.fade_s)
        require(0 < self.fade_depth <= 1, "network.fade_depth", self.fade_depth, "in (0, 1]")
        if self.fade_every_s is not None:
            fits = math.isfinite(self.fade_every_s) and self.fade_every_s >= self.fade_s
            rule = f"a number of at least fade_s = {self.fade_s:g}"
            require(fits, "network.fade_every_s", self.fade_every_s, rule)
            rule = "left out where there is no transfer time (trace = 'none')"
            require(self.trace != "none", "network.fade_every_s", self.fade_every_s, rule)


@dataclass(frozen=True, slots=True)
class RequestClass:
    """One of several kinds of requests in a stream."""

    share: float
    """Share of the requests, relative to the other classes' shares."""
    slo_s: float
    """End-to-end latency objective of these requests."""
    payload_bytes: float
    """Size of one of them."""

    def __post_init__(self) -> None:
        positive("classes.share", self.share)
        positive("classes.slo_s", self.slo_s)
        not_negative("classes.payload_bytes", self.payload_bytes)


DEFER_MARGIN_S = 0.02
"""Margin of a deferred batch, if nothing else is said."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the queue is served, and what becomes of requests that are late already."""

    drop: Literal["none", "expired", "late"] = "none"
    """Keep every request; drop it once its deadline has passed; or only
    ``drop_late_by_s`` after that."""
    drop_late_by_s: float = 0.0
    """Grace of the policy ``late``, and of no other."""
    order: Literal["edf", "fifo"] = "edf"
    """Earliest deadline first, or first in, first out (to see what the order is worth)."""
    defer: bool = False
    """Let an idle replica wait for a fuller batch, as long as one more request would still be
    answered in time; only where no other stage follows and a stage's batches do not choose their
    variant themselves, and not in the server."""
    defer_margin_s: float = DEFER_MARGIN_S
    """By how much earlier it starts nevertheless, for service takes longer at times."""

    def __post_init__(self) -> None:
        not_negative("serving.defer_margin_s", self.defer_margin_s)
        rule = "left out unless defer = true"
        fits = self.defer or self.defer_margin_s == DEFER_MARGIN_S
        require(fits, "serving.defer_margin_s", self.defer_margin_s, rule)
        if self.drop == "late":
            positive("serving.drop_late_by_s", self.drop_late_by_s)
        else:
            rule = f"left out unless drop='late' (it is {self.drop!r})"
            require(self.drop_late_by_s == 0, "serving.drop_late_by_s", self.drop_late_by_s, rule)

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
    """Time from a resize call until it takes effect, the median one if it scatters. Controllers
    are told."""
    actuation_scatter: float = 0.0
    """Standard deviation of the logarithm of that time; 0 makes it the same always."""
    service_scale: float = 1.0
    """Time that service really takes, relative to the profile's; controllers plan with the
    profile's fit."""

    def __post_init__(self) -> None:
        not_negative("simulation.noise", self.noise)
        not_negative("simulation.actuation_delay_s", self.actuation_delay_s)
        not_negative("simulation.actuation_scatter", self.actuation_scatter)
        positive("simulation.service_scale", self.service_scale)
        if self.cold_start_s is not None:
            not_negative("simulation.cold_start_s", self.cold_start_s)


@dataclass(frozen=True, slots=True)
class Reward:
    """Weights of the reward; see :mod:`sponge_env.core.measure`."""

    violation_weight: float = 20.0
    """Cost of an interval whose requests all miss their deadline, against 1 for an interval
    in which all cores are held."""
    accuracy_weight: float = 0.0
    """Gain of an interval whose requests are all answered right and in time."""

    def __post_init__(self) -> None:
        not_negative("reward.violation_weight", self.violation_weight)
        not_negative("reward.accuracy_weight", self.accuracy_weight)
