"""The one schema of metrics, and the one list of columns.

Each quantity is declared here once, as a dataclass field with its group, help and direction. That
is the CSV column, the JSON key, the TensorBoard tag, the axis label, the row in ``docs/metrics.md``
and the field of the compiled code's records. How tables show it is one :class:`Column` beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Better = Literal["less", "more", ""]


UNITS = {
    "_bytes_per_s": "B/s", "_s": "s", "physical_core_seconds": "s", "core_seconds": "core unit s",
    "cores": "core units",
}  # fmt: skip
"""By how a metric's name ends; counts and shares have none."""


def unit_of(name: str) -> str:
    """Return the unit of a metric, which its name says."""
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def metric(group: str, help: str, better: Better = "", default: Any = 0) -> Any:
    """Declare a metric; ``default`` is its value where nothing was measured."""
    # The group is TensorBoard's and the docs', the help a sentence, ``better`` the good direction.
    return field(default=default, metadata={"group": group, "help": help, "better": better})


NAN = float("nan")

FIRST = ("resources", "slo")  # Groups that TensorBoard shows before the others
CELL = ("scenario", "profile", "start")  # Metrics that name a cell: agents are compared within one

ByStage = Mapping[str, Mapping[str, float]]
"""By the names of the stages, what :class:`StageMetrics` measures of each and, below
:data:`SHARE`, the share of its tasks that each of several variants did; empty for one model."""

SHARE = "share/"  # Begins the names of the shares; a variant's name follows


def of_stage(stage: str, name: str) -> str:
    """Return what a stage's metric is called beside those of the others."""
    return f"{stage}/{name}"


def declared(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a schema that are metrics, in order."""
    return tuple(f for f in dataclasses.fields(cls) if f.metadata)


def _field(cls: type[Any], name: str) -> dataclasses.Field[Any]:
    return {f.name: f for f in declared(cls)}[name]


@dataclass(slots=True)  # not frozen: to make one would take three times as long
class IntervalMetrics:
    """One adaptation interval; nobody changes it."""

    time_s: float = metric("time", "End of the interval since the start of the episode.")
    offered: int = metric("slo", "Requests that arrived.")
    on_time: int = metric("slo", "Requests answered by their deadline.", "more")
    late: int = metric("slo", "Requests answered after their deadline.", "less")
    dropped: int = metric("slo", "Requests given up before they ran.", "less")
    failed: int = metric("slo", "Requests lost with a replica and not in time to retry.", "less")
    cancelled: int = metric("slo", "Requests that their clients cancelled.")
    violations: int = metric("slo", "Late, dropped and failed requests.", "less")
    avoidable_violations: int = metric("slo", "Violations without hopeless requests.", "less")
    hopeless: int = metric("slo", "Arrivals whose budget was shorter than the fastest service.")
    violation_rate: float = metric("slo", "Violations per request that has ended.", "less")
    queued: int = metric("queue", "Requests waiting at the end of the interval.", "less")
    running: int = metric("queue", "Requests in flight at the end of the interval.")
    batch_mean: float = metric("queue", "Mean size of the batches that ended.", default=NAN)
    service_mean_s: float = metric("latency", "Mean time that batches took to run.", "less", NAN)
    latency_mean_s: float = metric("latency", "Mean end-to-end latency of answers.", "less", NAN)
    latency_p50_s: float = metric("latency", "Median latency; infinite if given up.", "less", NAN)
    latency_p99_s: float = metric("latency", "99th percentile of it.", "less", NAN)
    cores: float = metric("resources", "Mean core units held.", "less")
    core_seconds: float = metric("resources", "Core units held over time.", "less")
    physical_core_seconds: float = metric("resources", "The same in physical core-seconds.", "less")
    requested_cores: int = metric("resources", "Cores requested per replica; of the first stage.")
    effective_cores: float = metric("resources", "Cores the limiter grants a replica at the end.")
    batch: int = metric("resources", "Largest batch allowed; of a pipeline's first stage.")
    replicas: int = metric("resources", "Replicas requested; of a pipeline's first stage.")
    replicas_ready: int = metric("resources", "Replicas serving at the interval's end.")
    utilisation: float = metric("resources", "Share of the held cores in use, without overdraft.")
    throttled_share: float = metric("resources", "Share of core time stopped by the limit.", "less")
    cpu_s: float = metric("worker", "CPU time of the batches, where it is measured.")
    actuation_s: float = metric("worker", "Wall time of the resize call.", "less")
    restarts: int = metric("worker", "Replicas restarted after a crash.", "less")
    delay_mean_s: float = metric("network", "Mean communication delay.", default=NAN)
    delay_max_s: float = metric("network", "Largest communication delay.", default=NAN)
    bandwidth_bytes_per_s: float = metric("network", "Bandwidth that arrivals saw.", default=NAN)
    accuracy: float = metric("accuracy", "Mean of answers; product over stages.", "more", NAN)
    effective_accuracy: float = metric("accuracy", "The same; violations count 0.", "more", NAN)
    feasible: int = metric("controller", "1 if the allocation met every budget on paper.")
    guarded: int = metric("controller", "Decisions a guard took over from a policy.", "less")
    decision_s: float = metric("controller", "Wall time of the decision.", "less")
    paused_s: float = metric("controller", "Time the live system stood still before it.")
    reward: float = metric("controller", "Reward of the interval.", "more")
    stages: ByStage = field(default_factory=dict)


@dataclass(slots=True)
class StageMetrics:
    """One stage in an interval, in tasks: one or several of a request. See :data:`AVERAGED`."""

    queued: int = metric("stage", "Tasks waiting at the end of the interval.", "less")
    running: int = metric("stage", "Tasks in batches then.")
    joined: int = metric("stage", "Tasks that joined the queue.")
    answered: int = metric("stage", "Tasks done.")
    dropped: int = metric("stage", "Requests given up here.", "less")
    taken: int = metric("stage", "Tasks taken from the queue into batches.")
    waited_s: float = metric("stage", "Time that tasks waited, summed over them.", "less")
    waiting_mean_s: float = metric("stage", "The same per task taken.", "less", NAN)
    batches: int = metric("stage", "Batches that ended.")
    batch_mean: float = metric("stage", "Mean size of the batches that ended.", default=NAN)
    service_mean_s: float = metric("stage", "Mean time that they took.", "less", NAN)
    cores: float = metric("stage", "Mean core units held.", "less")
    core_seconds: float = metric("stage", "Core units held over time.", "less")
    requested_cores: int = metric("stage", "Cores requested, per replica.")
    batch: int = metric("stage", "Largest batch allowed.")
    replicas: int = metric("stage", "Replicas requested.")
    replicas_ready: int = metric("stage", "Replicas serving at the interval's end.")
    variant: int = metric("stage", "Model variant requested, 0 for the first.")
    switches: int = metric("stage", "Batches of another variant than the one before.")
    utilisation: float = metric("stage", "Share of the held cores in use.")
    throttled_share: float = metric("stage", "Share of core time stopped by the limit.", "less")


AVERAGED = {
    **dict.fromkeys(("queued", "running", "cores", "requested_cores", "batch"), ""),
    **dict.fromkeys(("replicas", "replicas_ready", "variant"), ""),
    **dict.fromkeys(("batch_mean", "service_mean_s"), "batches"),
    **dict.fromkeys(("utilisation", "throttled_share"), "core_seconds"),
}
"""Metrics of a stage that are no sums over an episode but means, and what weighs an interval.
``waiting_mean_s`` is a ratio of sums."""


def _same(name: str) -> Any:
    """Declare a metric that means the same over an episode as in an interval."""
    declared = _field(IntervalMetrics, name)
    return field(default=declared.default, metadata=declared.metadata)


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """One episode of one controller."""

    agent: str = metric("run", "Controller.", default="")
    scenario: str = metric("run", "Scenario.", default="")
    profile: str = metric("run", "Latency profile of the model served.", default="")
    backend: str = metric("run", "Simulated (sim) or real (live) worker.", default="")
    seed: int = metric("run", "Seed of arrivals, bandwidth and noise.")
    start: str = metric(
        "run", "Begins with the scenario's allocation (cold), or with the controller's own for a "
        "steady load and counts only after a warm-up (warm).", default="cold",
    )  # fmt: skip
    partial: bool = metric("run", "Whether the run was interrupted.", default=False)
    limiter: str = metric("run", "What limits the worker's CPU.", default="")
    duration_s: float = metric("run", "Length of the part of the episode that counts.")
    offered: int = _same("offered")
    on_time: int = _same("on_time")
    late: int = _same("late")
    dropped: int = _same("dropped")
    failed: int = _same("failed")
    queued: int = metric("queue", "Requests that still waited; 0 unless interrupted.", "less")
    running: int = metric("queue", "Requests that still ran; 0 unless interrupted.")
    hopeless: int = _same("hopeless")
    violations: int = _same("violations")
    violation_rate: float = _same("violation_rate")
    avoidable_violation_rate: float = metric("slo", "Avoidable ones per request ended.", "less")
    more_cores_rate: float = metric("slo", "Those that only larger replicas can prevent.", "less")
    hopeless_rate: float = metric("slo", "Hopeless requests per request that has ended.")
    mean_cores: float = metric("resources", "Mean core units held.", "less")
    core_seconds: float = _same("core_seconds")
    physical_core_seconds: float = _same("physical_core_seconds")
    utilisation: float = _same("utilisation")
    throttled_share: float = _same("throttled_share")
    restarts: int = _same("restarts")
    latency_mean_s: float = _same("latency_mean_s")
    latency_p50_s: float = _same("latency_p50_s")
    latency_p99_s: float = _same("latency_p99_s")
    infeasible_decisions: int = metric("controller", "Decisions that left a budget unmet.", "less")
    guarded: int = _same("guarded")
    accuracy: float = _same("accuracy")
    effective_accuracy: float = _same("effective_accuracy")
    measured_accuracy: float = metric("accuracy", "Share of lines read correctly.", "more", NAN)
    decision_p50_s: float = metric("controller", "Median wall time of a decision.", "less")
    decision_p99_s: float = metric("controller", "99th percentile of it.", "less")
    reward: float = metric("controller", "Sum of the rewards.", "more")
    stages: ByStage = field(default_factory=dict)


MET = 0.001  # Share of avoidable violations up to which an objective counts as met

Place = Literal["evaluation", "cell", "page", "tensorboard"]
"""Terminal table of one evaluation; table of a suite's cell; only the report's table of it;
comparison of episodes in TensorBoard."""

SCALES = {"%": 100.0, "ms": 1000.0, "MB/s": 1e-6}  # From a metric's own unit to that shown


@dataclass(frozen=True, slots=True)
class Column:
    """How people read a metric of an episode, in every table and format."""

    metric: str
    heading: str
    unit: str  # Unit shown, a key of :data:`SCALES` if it is not the metric's own
    digits: int  # Decimal places
    places: tuple[Place, ...] = ()
    interval: bool = False  # Whether the range of the seeds stands beside the mean
    of_accuracy: bool = False  # Left out where all answers are right

    @property
    def scale(self) -> float:
        """From the metric's unit to the one shown."""
        return SCALES.get(self.unit, 1.0)

    @property
    def label(self) -> str:
        """Heading with its unit, such as ``p99 [ms]``."""
        return f"{self.heading} [{self.unit}]" if self.unit else self.heading

    def text(self, value: float) -> str:
        """Write a value in the unit shown."""
        return f"{value * self.scale:z.{self.digits}f}"


_of_all = partial(Column, places=("evaluation", "cell", "tensorboard"), interval=True)

COLUMNS = (
    _of_all("violation_rate", "violated", "%", 3),
    _of_all("avoidable_violation_rate", "avoidable", "%", 3),
    _of_all("mean_cores", "mean cores", "", 2),
    _of_all("effective_accuracy", "effective accuracy", "%", 2, of_accuracy=True),
    Column("core_seconds", "core-seconds", "", 0, ("tensorboard",)),
    Column("utilisation", "utilisation", "%", 1),
    Column("latency_mean_s", "mean", "ms", 0),
    Column("latency_p50_s", "p50", "ms", 0),
    _of_all("latency_p99_s", "p99", "ms", 0),
    Column("infeasible_decisions", "infeasible decisions", "", 0, ("page",)),
    Column("guarded", "guarded decisions", "", 0, ("page", "tensorboard")),
    Column("decision_p50_s", "decision p50", "ms", 3, ("page",)),
    Column("decision_p99_s", "decision p99", "ms", 3, ("page",)),
)  # fmt: skip
"""In the order in which they stand."""

STAGE_COLUMNS = (
    Column("queued", "queue", "", 1), Column("waiting_mean_s", "waiting", "ms", 1),
    Column("service_mean_s", "service", "ms", 1), Column("batch_mean", "batch", "", 2),
    Column("cores", "cores", "", 2), Column("utilisation", "utilisation", "%", 0),
    Column("dropped", "dropped", "", 0),
)  # fmt: skip
"""The same of a stage's metrics over an episode."""


def column(metric: str) -> Column:
    """Return the column of a metric; KeyError if it has none."""
    return {c.metric: c for c in COLUMNS}[metric]


def columns(*places: Place, accuracies: Iterable[float] = ()) -> tuple[Column, ...]:
    """Return the columns of some places, those of accuracy only where some answers are wrong."""
    wrong = any(accuracy < 1.0 for accuracy in accuracies)
    shown = [c for c in COLUMNS if {*places} & {*c.places}]
    return tuple(c for c in shown if wrong or not c.of_accuracy)


def names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of a schema's metrics, in order."""
    return tuple(f.name for f in declared(cls))


Columns = Mapping[str, NDArray[Any]]
"""(intervals,) by the name of a metric; of a stage's (:func:`of_stage`) where there are several."""


def to_columns(intervals: Sequence[IntervalMetrics]) -> Columns:
    """Return the metrics of an episode's intervals as columns."""
    columns = dict[str, NDArray[Any]]()
    for each in declared(IntervalMetrics):
        values = [getattr(metrics, each.name) for metrics in intervals]
        columns[each.name] = np.array(values, np.int64 if each.type == "int" else np.float64)
    for stage, measured in (intervals[0].stages if intervals else {}).items():
        for name in measured:
            columns[of_stage(stage, name)] = np.array([m.stages[stage][name] for m in intervals])
    return columns


def by_stage(columns: Columns) -> dict[str, Columns]:
    """Return the columns of each stage, under the names of its metrics."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, column in columns.items():
        stage, separator, own = name.partition(of_stage("", ""))
        if separator:
            found.setdefault(stage, {})[own] = column
    return dict(found)


def over_episode(columns: Columns) -> ByStage:
    """Return what was measured of each stage, in all intervals together."""
    found = dict[str, dict[str, float]]()
    for stage, own in by_stage(columns).items():
        sums = {name: float(column.sum()) for name, column in own.items()}
        ones = np.ones(len(own["taken"]))
        weights = {name: own.get(weight, ones) for name, weight in AVERAGED.items()}
        weights |= {name: own["answered"] for name in own if name.startswith(SHARE)}
        for name, weight in weights.items():
            counts = weight > 0  # what was not measured has no weight
            weighted = float((own[name] * weight)[counts].sum())
            sums[name] = weighted / float(weight.sum()) if counts.any() else math.nan
        waited_s, taken = sums["waited_s"], sums["taken"]
        found[stage] = sums | {"waiting_mean_s": waited_s / taken if taken else math.nan}
    return found


_OF_INFO = [f for f in declared(IntervalMetrics) if f.name != "reward"]
INFO = {f.name: float if f.type == "float" else int for f in _OF_INFO}
"""Metrics of an interval in an environment's infos, and their type; the reward is beside them."""
_of_info = attrgetter(*INFO)
_NOTHING: dict[str, Any] = {n: kind(getattr(IntervalMetrics(), n)) for n, kind in INFO.items()}
NOTHING = IntervalMetrics(**_NOTHING)  # Nothing measured, in the types of the others
_MAY_BE_UNMEASURED = [name for name, value in _NOTHING.items() if math.isnan(value)]


def info(metrics: IntervalMetrics, waited_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return :data:`INFO` of an interval, and ``more``, in finite numbers: learners add it up."""
    # It is 0 where nothing was measured; an infinite latency, of a request that was given up, is
    # the longest time ``waited_s`` that one had waited until then.
    found = dict(zip(INFO, _of_info(metrics), strict=True), **more)
    for name in _MAY_BE_UNMEASURED:
        if not math.isfinite(found[name]):
            found[name] = 0.0 if math.isnan(found[name]) else waited_s
    return found


def tag(cls: type[Any], name: str) -> str:
    """Return the TensorBoard tag ``group/name`` of a metric; KeyError if there is none."""
    # TensorBoard sorts by tag. So that :data:`FIRST` come first, the other groups are below one.
    group = _field(cls, name).metadata["group"]
    return f"{group}/{name}" if group in FIRST else f"system/{group}/{name}"


def axis_label(cls: type[Any], name: str, unit: str | None = None) -> str:
    """Return a label such as ``latency p99 [s]``, in another unit than its own if one is named."""
    unit = unit_of(_field(cls, name).name) if unit is None else unit
    words = name.removesuffix("_bytes_per_s").removesuffix("_s").replace("_", " ")
    return f"{words} [{unit}]" if unit else words


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with None for numbers that are not finite: JSON has none."""
    infinite = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
    return {**values, **dict.fromkeys(infinite)}


def summary(metrics: EpisodeMetrics) -> dict[str, Any]:
    """Return an episode's metrics under their names, see :func:`finite`."""
    values = finite({name: getattr(metrics, name) for name in names(EpisodeMetrics)})
    stages = {stage: finite(own) for stage, own in metrics.stages.items()}
    return values | ({"stages": stages} if stages else {})


def from_summary(values: Mapping[str, Any]) -> EpisodeMetrics:
    """Return the metrics from the data of :func:`summary`."""
    # None is infinity again where requests were never answered, and NaN elsewhere.
    ended = values["offered"] > values["queued"] + values["running"]
    infinite = ("latency_p50_s", "latency_p99_s") if ended else ()
    blanks = {name: math.inf if name in infinite else NAN for name in names(EpisodeMetrics)}
    measured: dict[str, Any] = {k: blanks[k] if v is None else v for k, v in values.items()}
    of_stages = values.get("stages", {}).items()
    stages = {s: {k: NAN if v is None else v for k, v in own.items()} for s, own in of_stages}
    return EpisodeMetrics(**measured | {"stages": stages})
