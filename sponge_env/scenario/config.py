"""The parts of a scenario: frozen dataclasses, each field explained, checked when made.

:mod:`sponge_env.scenario.scenario` puts them together and reads them from TOML.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from sponge_env.errors import ConfigError
from sponge_env.latency import LONGEST_S
from sponge_env.scenario.option import check_options, option, require

Backend = Literal["sim", "live"]  # Simulated worker in virtual time, or real worker in real time

Drop = Literal["none", "expired", "unmeetable"]  # What becomes of requests that are or will be late
ControlName = Literal["vertical", "joint", "variants", "pipeline"]
"""What an environment's action chooses: cores and batch size; replicas as well; the variant
instead; or all of it in every stage."""

Start = Literal["cold", "warm"]  # As the scenario says, or as the controller settles

Limiter = Literal["auto", "cgroup", "duty-cycle", "none", "outside"]
"""How the real worker's CPU is limited; ``auto`` takes the best this machine allows, ``outside``
leaves it to whoever limits this process's own control group."""

RESERVED = ("4g", "none")  # No files: generated for each seed; no transfer time

FILE_NAME_RULE = "letters, digits, '.', '_' and '-', with no '.' in front (it names files)"


def is_file_name(name: str) -> bool:
    """Return whether files and folders can bear a name."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) is not None


def as_name(text: str) -> str:
    """Return a text as a name that files and folders can bear, but for a '.' in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MAX_NAME]


MAX_NAME = 150  # of a file's 255 characters, beside those of a cell and its seed
MAX_LIMIT = 4096  # of cores, batch and replicas each, for which tables are made
MAX_CELLS = 1 << 20  # of such a table: a cell for each pair of cores and batch
MAX_STAGES = 8
MAX_TASKS = 256  # that an answer leads to
MAX_VARIANTS = 16  # of a stage
MAX_TOTAL_CORES = 1 << 30
MAX_NODES = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest allocation a controller may ask for."""

    cores: int = option(16, at_least=1, at_most=MAX_LIMIT)  # Core units of one replica
    batch: int = option(16, at_least=1, at_most=MAX_LIMIT)  # Requests in one batch
    replicas: int = option(16, at_least=1, at_most=MAX_LIMIT)  # Replicas at one time
    total_cores: int | None = None
    """Core units of the machine, which all replicas share, those that start or drain included;
    as many as one replica may have if left out."""
    nodes: tuple[int, ...] = option((), at_least=1, at_most=MAX_TOTAL_CORES)
    """Core units of each node of the machine, such as ``[8, 8]``, where there are several; all
    together are ``total_cores``. A replica lies on one node and stays there."""

    def __post_init__(self) -> None:
        check_options(self, "limits.")
        batch_max = MAX_CELLS // self.cores
        rule = f"at most {batch_max} with limits.cores = {self.cores}"
        require(self.batch <= batch_max, "limits.batch", self.batch, rule)
        count, total, most = len(self.nodes), self.machine_cores, max(self.machine)
        require(count <= MAX_NODES, "the number of limits.nodes", count, f"at most {MAX_NODES}")
        rule = f"{total}, the sum of limits.nodes, or left out"
        require(self.total_cores in (None, total), "limits.total_cores", self.total_cores, rule)
        rule = f"at most {most}, the largest of limits.nodes"
        require(not count or self.cores <= most, "limits.cores", self.cores, rule)
        rule = f"at least limits.cores = {self.cores} and at most {MAX_TOTAL_CORES}"
        require(self.cores <= total <= MAX_TOTAL_CORES, "limits.total_cores", total, rule)

    @property
    def machine(self) -> tuple[int, ...]:
        """Core units of each node of the machine."""
        return self.nodes or (self.cores if self.total_cores is None else self.total_cores,)

    @property
    def machine_cores(self) -> int:
        """Core units of the machine."""
        return sum(self.machine)


@dataclass(frozen=True, slots=True)
class Initial:
    """Allocation in force when the episode starts."""

    cores: int = 1  # Core units of each replica
    batch: int = 1  # Largest batch
    replicas: int = 1  # Replicas, all warm
    variant: int = 0
    """Model variant, 0 for the first. With -1 each batch takes the most accurate one that the slack
    of its most urgent request allows, unless the controller asks for one."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of several models that answer the same question."""

    profile: str  # Latency profile, as that of a scenario
    accuracy: float = option(1.0, at_least=0, at_most=1)
    """Share of its answers that are right, or another number between 0 and 1."""
    name: str = ""  # For tables; the profile's if left out

    def __post_init__(self) -> None:
        check_options(self, "stages.variants.")

    @property
    def called(self) -> str:
        """Name for tables."""
        return self.name or PurePath(self.profile.rpartition(":")[2]).stem


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a pipeline, with its queue and replicas."""

    name: str  # Short name, used for tables and files
    variants: tuple[Variant, ...]  # Models to choose from, the least accurate first
    after: tuple[str, ...] | None = None
    """Stages whose answers lead here; the one before in the list if left out. A stage that
    follows several gets one task of each request, when all that lead to it are done. Where it is
    ``[]`` in all after the first, the stages are a set of models, each with its own requests."""
    fan_out: int = option(1, at_least=0, rule="a whole number of at least 0")
    """Tasks in each stage that follows that an answer leads to; 0 is none."""
    fan_out_shares: tuple[float, ...] = option((), at_least=0)
    """Instead of ``fan_out``: shares of the answers that lead to 0, 1, 2, ... tasks."""
    limits: Limits = field(default_factory=Limits)
    """Largest allocation of this stage. ``total_cores`` is the scenario's to say."""
    initial: Initial = field(default_factory=Initial)

    def __post_init__(self) -> None:
        require(is_file_name(self.name), "stages.name", self.name, FILE_NAME_RULE)
        where = f"stages.{self.name}"
        check_options(self, f"{where}.")
        require(len(self.variants) > 0, f"{where}.variants", [], "not empty")
        names = [variant.called for variant in self.variants]
        require(len(set(names)) == len(names), f"{where}.variants", names, "of different names")
        require(len(names) <= MAX_VARIANTS, f"{where}.variants", names, f"at most {MAX_VARIANTS}")
        accuracies = [variant.accuracy for variant in self.variants]
        rule = "in ascending order of their accuracies"
        require(accuracies == sorted(accuracies), f"{where}.variants", accuracies, rule)
        key, shares = f"{where}.fan_out_shares", self.fan_out_shares
        rule = "above 0 for one number of tasks at least"
        require(not shares or sum(shares) > 0, key, shares, rule)
        rule = f"of at most {MAX_TASKS} tasks"
        require(self.fan_out <= MAX_TASKS, f"{where}.fan_out", self.fan_out, rule)
        require(len(shares) <= MAX_TASKS + 1, key, shares, rule)
        if self.fan_out != 1 and shares:
            raise ConfigError(f"{where} takes either fan_out or fan_out_shares")
        check_initial(self.initial, self.limits, f"{where}.")
        variant, last = self.initial.variant, len(names) - 1
        first = -1 if last else 0
        rule = f"between {first} and {last}"
        require(first <= variant <= last, f"{where}.initial.variant", variant, rule)

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


OLD_STAGE_KEYS = {"chooses": "controller", "switch_s": 0.0}
"""Keys of stages until version 0.3: in fingerprints, so that those of shipped files stay valid."""


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
    rate_rps: float | None = option(None, above=0)
    """Mean rate of the requests sent. A trace has its own without this and ``load``."""
    load: float | None = option(None, above=0)
    """Mean rate as a share of what one replica serves with all cores, instead of ``rate_rps``."""
    peak: float | None = option(None, above=0)
    """Highest rate as a share of what the best fleet serves on the whole machine, instead of
    either; of a trace the highest of five seconds."""
    file: str | None = None  # Arrival trace (kind ``trace``); relative to the scenario's file
    burst_factors: tuple[float, ...] = option((0.4, 1.0, 2.4), at_least=0)
    """Rate of each state of the ``bursty`` process, relative to each other."""
    burst_dwell_s: float = option(10.0, above=0)
    """Mean time that the ``bursty`` process stays in a state."""
    flash_factor: float = option(5.0, above=0)
    """Rate within a flash crowd, relative to the rate outside."""
    flash_s: float = option(30.0, above=0)  # Length of a flash crowd
    flash_every_s: float = option(150.0, above=0)
    """There is one flash crowd in each such stretch of time, at a random moment of it."""
    diurnal_amplitude: float = option(0.6, at_least=0, at_most=1)
    """Swing of the ``diurnal`` rate around its mean, relative to the mean."""
    diurnal_period_s: float = option(300.0, above=0)
    """Length of a ``diurnal`` day; it begins at a random hour."""

    def __post_init__(self) -> None:
        scales = 3 - [self.rate_rps, self.load, self.peak].count(None)
        if self.kind == "trace":
            require(self.file is not None, "arrivals.file", self.file, "the path of a trace")
            if scales > 1:
                raise ConfigError("arrivals of a trace take one of rate_rps, load, peak, or none")
        else:
            if scales != 1:
                raise ConfigError("arrivals needs one of rate_rps, load and peak")
            require(self.file is None, "arrivals.file", self.file, "left out unless kind='trace'")
        check_options(self, "arrivals.")
        rule = f"a number of at least flash_s = {self.flash_s:g}"
        fits = self.flash_every_s >= self.flash_s
        require(fits, "arrivals.flash_every_s", self.flash_every_s, rule)
        factors, name = self.burst_factors, "arrivals.burst_factors"
        require(len(factors) > 0, name, (), "not empty")
        require(sum(factors) > 0, name, factors, "above 0 in one state at least")


@dataclass(frozen=True, slots=True)
class Network:
    """How requests reach the server: each transfer has the whole bandwidth to itself."""

    trace: str = "4g"
    """``4g`` (generated anew for each seed), ``none`` (no transfer time), or the path of
    a bandwidth trace, relative to the scenario's file or in ``traces/``."""
    start: Literal["beginning", "random"] = "beginning"
    """Where in a trace file an episode starts; traces wrap around."""
    payload_bytes: float = option(300_000.0, at_least=0)  # Size of one request
    base_delay_s: float = option(0.01, at_least=0)  # Delay that does not depend on the bandwidth
    fade_every_s: float | None = option(None, above=0)
    """There is one deep fade in each such stretch, at a random moment of it; none if left out."""
    fade_s: float = option(4.0, above=0)  # Length of a fade
    fade_depth: float = option(0.02, above=0, at_most=1)
    """Share of the trace's bandwidth that is left during a fade."""

    def __post_init__(self) -> None:
        if self.trace in RESERVED:
            rule = f"'beginning' for the trace {self.trace!r}, which is no file"
            require(self.start == "beginning", "network.start", self.start, rule)
        check_options(self, "network.")
        if self.fade_every_s is not None:
            rule = f"a number of at least fade_s = {self.fade_s:g}"
            fits = self.fade_every_s >= self.fade_s
            require(fits, "network.fade_every_s", self.fade_every_s, rule)
            rule = "left out where there is no transfer time (trace = 'none')"
            require(self.trace != "none", "network.fade_every_s", self.fade_every_s, rule)


@dataclass(frozen=True, slots=True)
class RequestClass:
    """One of several kinds of requests in a stream, or a stream of its own."""

    share: float = option(1.0, above=0)  # Share of the requests, relative to the others' shares
    slo_s: float = option(0.0, above=0)  # End-to-end latency objective; has to be given
    payload_bytes: float = option(-1.0, at_least=0)  # Size of one of them; has to be given
    stage: str = ""  # Stage of a set of models that they are for; the first if left out
    arrivals: Arrivals | None = None  # When they are sent, where each class is a stream of its own

    def __post_init__(self) -> None:
        check_options(self, "classes.")
        rule = "left out where classes have arrivals of their own"
        require(self.arrivals is None or self.share == 1.0, "classes.share", self.share, rule)


@dataclass(frozen=True, slots=True)
class Serving:
    """How the queue is served, and what becomes of requests that are late already."""

    drop: Drop = "unmeetable"
    """Keep every request; drop it once its deadline has passed; or once not even the fastest
    service meets it, with batches no larger than their most urgent request allows."""
    order: Literal["edf", "fifo"] = "edf"
    """Earliest deadline first, or first in, first out (to see what the order is worth)."""

    def drop_below_s(self, least_left_s: float) -> float:
        """Return the time left below which a request is dropped that needs ``least_left_s``."""
        return {"none": -math.inf, "expired": 0.0, "unmeetable": least_left_s}[self.drop]


@dataclass(frozen=True, slots=True)
class Simulation:
    """How the simulated worker behaves beyond its profile."""

    service: Literal["auto", "profile", "quota"] = "auto"
    """``profile``: every batch takes l(b, c); ``quota``: CPU tokens per period, as the
    kernel enforces a quota; ``auto``: quota if the profile was measured under one."""
    noise: float = option(1.0, at_least=0, at_most=100)
    """Scale of the profile's run-to-run scatter; 0 makes service deterministic."""
    cold_start_s: float | None = option(None, at_least=0, at_most=LONGEST_S)
    """Cold start of a replica; the profile's if left out."""
    actuation_delay_s: float = option(0.0, at_least=0, at_most=LONGEST_S)
    """Time until a resize takes effect; the median, if it scatters. Controllers know it."""
    actuation_scatter: float = option(0.0, at_least=0, at_most=5)
    """Standard deviation of the logarithm of that time; 0 makes it the same always."""
    service_scale: float = option(1.0, above=0, at_most=1000)
    """Time that service really takes over the profile's, whose fit controllers plan with."""

    def __post_init__(self) -> None:
        check_options(self, "simulation.")


@dataclass(frozen=True, slots=True)
class Reward:
    """Weights of the reward; see :mod:`sponge_env.core.measure`."""

    violation_weight: float = option(20.0, at_least=0)
    """Cost of an interval whose requests are all missed, against 1 for one on all cores."""
    accuracy_weight: float = option(0.0, at_least=0)
    """Gain of an interval whose requests are all answered right and in time."""

    def __post_init__(self) -> None:
        check_options(self, "reward.")
