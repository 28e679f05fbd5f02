"""Rules that spend the slack of the most urgent request, on resources that stay the same.

SlackFit chooses the model of each batch by it (SuperServe: Khare et al., NSDI 2025), GrandSLAm the
size of the batches of each stage (Kannan et al., EuroSys 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

from sponge_env.control.base import BaseController, Options, option
from sponge_env.control.split import shares
from sponge_env.interfaces import (
    BY_SLACK,
    Allocation,
    StageAllocation,
    SystemSpec,
    SystemView,
    fit_to_machine,
)

from .rules import largest_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConfig(Options):
    """What a stage holds always."""

    cores: int | None = option(None, at_least=1)
    """Core units of each replica; all of them if left out, and never more than there are."""
    replicas: int | None = option(None, at_least=1)
    """Replicas; as many as at first if left out, and never more than there can be."""

    def of(self, spec: SystemSpec) -> list[StageAllocation]:
        """Return what each stage holds, as far as it fits on the machine."""
        stages = [
            StageAllocation(
                min(self.cores or stage.cores_max, stage.cores_max),
                stage.batch_max,
                min(self.replicas or first.replicas, stage.replicas_max),
                first.variant,
            )
            for stage, first in zip(spec.stages, spec.initial.stages, strict=True)
        ]
        return list(fit_to_machine(stages, spec.total_cores))


class _Held(BaseController):
    """Holds the same always, whatever the stages."""

    config: HeldConfig

    def plans(self, spec: SystemSpec) -> bool:
        return True


class SlackFit(_Held):
    """Lets each batch have the most accurate model that its most urgent request has time for."""

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the same always."""
        held = self.config.of(spec)
        chosen = [BY_SLACK if len(stage.accuracies) > 1 else 0 for stage in spec.stages]
        stages = [each._replace(variant=v) for each, v in zip(held, chosen, strict=True)]
        return Allocation(stages=tuple(stages))


class GrandSLAm(_Held):
    """Makes batches as large as the slack of a stage allows, by its share of the SLO.

    A stage's share is in proportion to its latency, and what the stages before left of theirs is
    its own to spend.
    """

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the batch sizes for what waits now."""
        parts = shares(spec, "proportional")
        stages = []
        for k, held in enumerate(self.config.of(spec)):
            share, after = parts[k]
            due_s, slack_s = view.stages[k].queued_deadlines_s, share * spec.slo_s
            if due_s.size:
                slack_s = float(due_s[0]) - view.now_s - after * spec.slo_s
            stage = spec.stages[k]
            table_s = stage.latencies[held.variant].table_s(stage.batch_max, stage.cores_max)
            batch = largest_batch(table_s[:, held.cores - 1], slack_s)
            stages.append(held._replace(batch=batch))
        return Allocation(stages=tuple(stages))
