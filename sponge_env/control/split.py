"""A pipeline split into stages, each with a share of the SLO, for controllers of one stage.

The end-to-end budget is divided by fixed shares, in proportion to the stages' latencies (as in
GrandSLAm, Kannan et al., EuroSys 2019) or equally. What waits in a stage is due there by its
deadline less the shares of the longest path after it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from sponge_env.interfaces import HISTORY, Allocation, SystemSpec, SystemView
from sponge_env.metrics import IntervalMetrics, StageMetrics, names

Rule = Literal["proportional", "equal"]  # How an SLO is divided among the stages of a path

_OF_ARRIVALS = "arrived_s", "delays_s", "budgets_s"
_HANDED_ON_S = 1e-3  # Time that a task is taken to need on the way from the stage before

_SHARED = sorted(set(names(StageMetrics)) & set(names(IntervalMetrics)))


def shares(spec: SystemSpec, rule: Rule) -> list[tuple[float, float]]:
    """Return for each stage its share of the SLO, and the share of the stages after it."""
    stages, held = spec.stages, [each.variant for each in spec.initial.stages]
    # The latency of a single task on all cores, with the variant in force at first.
    weights = [
        float(stage.latencies[variant].table_s(1, stage.cores_max)[0, -1])
        for stage, variant in zip(stages, held, strict=True)
    ]
    if rule == "equal":
        weights = [1.0] * len(stages)
    after = [0.0] * len(stages)
    for k in reversed(range(len(stages))):
        for lead in stages[k].after:
            after[lead] = max(after[lead], after[k] + weights[k])
    whole = after[0] + weights[0]
    begins = [max((whole - after[lead] for lead in s.after), default=0.0) for s in stages]
    return [((whole - after[k] - at) / whole, after[k] / whole) for k, at in enumerate(begins)]


def stage_spec(spec: SystemSpec, k: int, share: float) -> SystemSpec:
    """Return a stage as a system of its own, with its share of the SLO and one variant."""
    stage, initial = spec.stages[k], spec.initial.stages[k]
    own = dataclasses.replace(
        stage, after=(), mean_tasks=1.0, latencies=(stage.latencies[initial.variant],),
        measured=stage.measured[initial.variant :][:1],
        accuracies=(stage.accuracies[initial.variant],),
    )  # fmt: skip
    alone = Allocation(stages=(initial._replace(variant=0),))
    return dataclasses.replace(spec, slo_s=spec.slo_s * share, initial=alone, stages=(own,))


def stage_view(view: SystemView, spec: SystemSpec, k: int, share: float, rest: float) -> SystemView:
    """Return what a stage's own controller sees, by its share of the SLO and that of the rest."""
    # Tasks of a later stage are taken to have spent exactly the earlier shares, and to come now.
    stage, later_s = view.stages[k], spec.slo_s * rest
    seen: dict[str, Any] = {"budgets_s": view.budgets_s - later_s}
    if k:
        joined = int(stage.arrivals[-1]) if stage.arrivals.size else 0
        seen["arrived_s"], seen["delays_s"] = np.full((2, joined), [[view.now_s], [_HANDED_ON_S]])
        seen["budgets_s"] = spec.slo_s * share - seen["delays_s"]
        seen["mean_delays_s"] = np.full_like(view.mean_delays_s, _HANDED_ON_S)
    if view.last is not None and stage.last is not None and len(view.stages) > 1:
        # All tasks that the stage has done count as on time.
        measured = {name: getattr(stage.last, name) for name in _SHARED}
        measured |= {"offered": stage.last.joined, "on_time": stage.last.answered, "late": 0}
        seen["last"] = dataclasses.replace(view.last, **measured)
    waiting_s, alone = stage.queued_deadlines_s - later_s, stage.allocation._replace(variant=0)
    own = dataclasses.replace(stage, queued_deadlines_s=waiting_s, allocation=alone)
    return dataclasses.replace(view, allocation=Allocation(stages=(alone,)), stages=(own,), **seen)


def model_view(view: SystemView, k: int, past_s: list[float]) -> SystemView:
    """Return what one of a set of models shows; ``past_s`` are the mean delays of its arrivals."""
    # The last interval's is added to these; earlier intervals have the means of all models.
    own, part = view.enters == k, slice(k, k + 1)
    seen: dict[str, Any] = {name: getattr(view, name)[own] for name in _OF_ARRIVALS}
    if view.last is not None:
        past_s.append(float(np.mean(seen["delays_s"])) if own.any() else (past_s or [math.nan])[-1])
        measured = [*view.last.stages.values()][k]
        shared: dict[str, Any] = {n: measured[n] for n in measured if n in names(IntervalMetrics)}
        seen["last"] = dataclasses.replace(view.last, **shared, stages={})
    del past_s[:-HISTORY]
    before_s = view.mean_delays_s[: view.mean_delays_s.size - len(past_s)]
    seen |= {"mean_delays_s": np.append(before_s, past_s), "enters": view.enters[:0]}
    alone = Allocation(stages=view.allocation.stages[part])
    return dataclasses.replace(view, stages=view.stages[part], allocation=alone, **seen)


def stage_views(
    view: SystemView, spec: SystemSpec, parts: Sequence[tuple[float, float]]
) -> list[SystemView]:
    """Return what each stage's own controller sees, by the stages' shares and those after them."""
    if len(view.stages) == 1:
        return [view]
    return [stage_view(view, spec, k, *part) for k, part in enumerate(parts)]
