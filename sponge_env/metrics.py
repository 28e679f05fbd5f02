"""The one metrics schema.

Each quantity is declared here once, as a dataclass field with its group, unit, help and
direction. That declaration is the CSV column, the JSON key, the TensorBoard tag, the axis
label, and the row in ``docs/metrics.md`` (``python -m sponge_env.metrics`` prints it).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

Better = Literal["less", "more", ""]


def metric(group: str, unit: str, help: str, better: Better = "", default: Any = 0) -> Any:
    """Declare a metric.

    Args:
        group: TensorBoard group and heading in the docs.
        unit: Unit of the value; empty for a count or a share.
        help: One sentence for people.
        better: Which direction is good, if one is.
        default: Value where nothing was measured.
    """
    metadata = {"group": group, "unit": unit, "help": help, "better": better}
    return field(default=default, metadata=metadata)


NAN = float("nan")


@dataclass(frozen=True, slots=True)
class IntervalMetrics:
    """One adaptation interval."""

    time_s: float = metric("time", "s", "End of the interval since the start of the episode.")
    offered: int = metric("slo", "", "Requests that arrived.")
    on_time: int = metric("slo", "", "Requests answered by their deadline.", "more")
    late: int = metric("slo", "", "Requests answered after their deadline.", "less")
    dropped: int = metric("slo", "", "Requests given up before they ran.", "less")
    failed: int = metric(
        "slo", "", "Requests whose replica died and whose budget then ran out.", "less"
    )
    violations: int = metric("slo", "", "Late, dropped and failed requests.", "less")
    avoidable_violations: int = metric("slo", "", "Violations without hopeless requests.", "less")
    hopeless: int = metric("slo", "", "Arrivals whose budget was shorter than the fastest service.")
    violation_rate: float = metric(
        "slo", "", "Violations per request that ended in the interval.", "less"
    )
    queued: int = metric("queue", "", "Requests waiting at the end of the interval.", "less")
    running: int = metric("queue", "", "Requests in flight at the end of the interval.")
    batch_mean: float = metric("queue", "", "Mean size of the batches that ended.", default=NAN)
    service_mean_s: float = metric(
        "latency", "s", "Mean time that the batches that ended took to run.", "less", NAN
    )
    latency_mean_s: float = metric(
        "latency", "s", "Mean end-to-end latency of the requests answered.", "less", NAN
    )
    latency_p50_s: float = metric("latency", "s", "Median end-to-end latency.", "less", NAN)
    latency_p99_s: float = metric("latency", "s", "99th percentile of it.", "less", NAN)
    cores: float = metric("resources", "core units", "Mean core units held.", "less")
    core_seconds: float = metric("resources", "core unit s", "Core units held over time.", "less")
    physical_core_seconds: float = metric(
        "resources", "s", "The same in physical core-seconds.", "less"
    )
    requested_cores: int = metric("resources", "core units", "Cores asked for, per replica.")
    effective_cores: float = metric(
        "resources", "core units", "Cores the limiter grants each replica at the interval's end."
    )
    batch: int = metric("resources", "", "Largest batch allowed.")
    replicas: int = metric("resources", "", "Replicas asked for.")
    replicas_ready: int = metric("resources", "", "Replicas serving at the interval's end.")
    utilisation: float = metric(
        "resources", "", "Share of the held cores in use; a quota's overdraft does not count."
    )
    throttled_share: float = metric(
        "resources", "", "Share of the cores' time that they stood stopped by the limit.", "less"
    )
    cpu_s: float = metric("resources", "s", "CPU time of the batches, where it is measured.")
    actuation_s: float = metric("resources", "s", "Wall time of the resize call.", "less")
    restarts: int = metric("resources", "", "Replicas restarted after a crash.", "less")
    delay_mean_s: float = metric("network", "s", "Mean communication delay.", default=NAN)
    delay_max_s: float = metric("network", "s", "Largest communication delay.", default=NAN)
    bandwidth_bytes_per_s: float = metric(
        "network", "B/s", "Bandwidth that the arrivals saw.", default=NAN
    )
    feasible: int = metric("controller", "", "1 if the allocation met every budget on paper.")
    decision_s: float = metric("controller", "s", "Wall time of the decision.", "less")
    paused_s: float = metric("controller", "s", "Time the live system was held before it.")
    reward: float = metric("controller", "", "Reward of the interval.", "more")


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """One episode of one controller."""

    agent: str = metric("run", "", "Controller.", default="")
    scenario: str = metric("run", "", "Scenario.", default="")
    profile: str = metric("run", "", "Latency profile of the model served.", default="")
    backend: str = metric("run", "", "Simulated (sim) or real (live) worker.", default="")
    seed: int = metric("run", "", "Seed of arrivals, bandwidth and noise.")
    start: str = metric(
        "run",
        "",
        "Begins with the scenario's allocation (cold), or with the controller's own for a "
        "steady load and counts only after a warm-up (warm).",
        default="cold",
    )
    partial: bool = metric("run", "", "Whether the run was interrupted.", default=False)
    limiter: str = metric("run", "", "What limits the worker's CPU.", default="")
    duration_s: float = metric("run", "s", "Length of the part of the episode that counts.")
    offered: int = metric("slo", "", "Requests that arrived.")
    on_time: int = metric("slo", "", "Requests answered by their deadline.", "more")
    late: int = metric("slo", "", "Requests answered after their deadline.", "less")
    dropped: int = metric("slo", "", "Requests given up before they ran.", "less")
    failed: int = metric(
        "slo", "", "Requests whose replica died and whose budget then ran out.", "less"
    )
    queued: int = metric("queue", "", "Requests that still waited; 0 unless interrupted.", "less")
    running: int = metric("queue", "", "Requests that still ran; 0 unless interrupted.")
    hopeless: int = metric(
        "slo", "", "Requests whose budget on arrival was shorter than the fastest service."
    )
    violations: int = metric("slo", "", "Late, dropped and failed requests.", "less")
    violation_rate: float = metric("slo", "", "Violations per request offered.", "less")
    avoidable_violation_rate: float = metric(
        "slo",
        "",
        "Violations among the requests that are not hopeless, per request offered.",
        "less",
    )
    hopeless_rate: float = metric("slo", "", "Hopeless requests per request offered.")
    mean_cores: float = metric("resources", "core units", "Mean core units held.", "less")
    core_seconds: float = metric("resources", "core unit s", "Core units held over time.", "less")
    physical_core_seconds: float = metric(
        "resources", "s", "The same in physical core-seconds.", "less"
    )
    utilisation: float = metric(
        "resources", "", "Share of the held cores in use; a quota's overdraft does not count."
    )
    throttled_share: float = metric(
        "resources", "", "Share of the cores' time that they stood stopped by the limit.", "less"
    )
    restarts: int = metric("resources", "", "Replicas restarted after a crash.", "less")
    latency_mean_s: float = metric("latency", "s", "Mean end-to-end latency.", "less", NAN)
    latency_p50_s: float = metric("latency", "s", "Median end-to-end latency.", "less", NAN)
    latency_p99_s: float = metric("latency", "s", "99th percentile of it.", "less", NAN)
    infeasible_decisions: int = metric(
        "controller", "", "Decisions for which no allocation met every budget.", "less"
    )
    decision_p50_s: float = metric("controller", "s", "Median wall time of a decision.", "less")
    decision_p99_s: float = metric("controller", "s", "99th percentile of it.", "less")
    reward: float = metric("controller", "", "Sum of the rewards.", "more")


def names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of a schema's metrics, in order."""
    return tuple(f.name for f in dataclasses.fields(cls))


def tag(cls: type[Any], name: str) -> str:
    """Return the TensorBoard tag ``group/name`` of a metric.

    Raises:
        KeyError: The schema has no such metric.
    """
    return f"{_field(cls, name).metadata['group']}/{name}"


def axis_label(cls: type[Any], name: str, unit: str | None = None) -> str:
    """Return a label such as ``latency p99 [s]``.

    Args:
        cls: The schema.
        name: The metric.
        unit: What values are shown in, if not in the metric's own unit.
    """
    unit = _field(cls, name).metadata["unit"] if unit is None else unit
    words = name.removesuffix("_bytes_per_s").removesuffix("_s").replace("_", " ")
    return f"{words} [{unit}]" if unit else words


def scalars(metrics: Any) -> Iterator[tuple[str, float]]:
    """Yield (tag, value) of every number in a metrics object."""
    for name, tag_of_name in _tags(metrics.__class__):
        value = getattr(metrics, name)
        if isinstance(value, int | float):
            yield tag_of_name, float(value)


@cache  # every interval of every episode asks
def _tags(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, tag(cls, name)) for name in names(cls))


def summary(metrics: EpisodeMetrics) -> dict[str, Any]:
    """Return an episode's metrics under their names; a number that is not finite is None."""
    values = {name: getattr(metrics, name) for name in names(EpisodeMetrics)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def from_summary(values: Mapping[str, Any]) -> EpisodeMetrics:
    """Return the metrics of which :func:`summary` made plain data; None is NaN again."""
    measured: dict[str, Any] = {name: NAN if v is None else v for name, v in values.items()}
    return EpisodeMetrics(**measured)


def _field(cls: type[Any], name: str) -> dataclasses.Field[Any]:
    return {f.name: f for f in dataclasses.fields(cls)}[name]


def document() -> str:
    """Return ``docs/metrics.md``."""
    parts = [
        "# Metrics\n\n"
        "Generated from `sponge_env/metrics.py` by `python -m sponge_env.metrics`; do not edit.\n"
        "The name is the CSV column and the JSON key. The TensorBoard tag is `group/name` per\n"
        "interval, `total/group/name` for the running sums of violations and core-seconds, and\n"
        "`episode/group/name` per episode.\n"
        "\nAt any time `offered = on_time + late + dropped + failed + queued + running`.\n"
    ]
    for cls, title in ((IntervalMetrics, "Per interval"), (EpisodeMetrics, "Per episode")):
        parts.append(f"\n## {title}: `{cls.__name__}`\n\n")
        parts.append(
            "| group | name | unit | better | meaning |\n| --- | --- | --- | --- | --- |\n"
        )
        for f in dataclasses.fields(cls):
            m = f.metadata
            row = (m["group"], f"`{f.name}`", m["unit"], m["better"], m["help"])
            parts.append("| " + " | ".join(row) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document())
