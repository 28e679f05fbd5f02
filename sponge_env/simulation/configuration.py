"""From scenarios to the settings and tables that the core reads."""

import math
from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.settings import INSTANT, LISTED, write_spec, write_table, write_tables
from sponge_env.errors import ConfigError
from sponge_env.interfaces import StageSpec, SystemSpec
from sponge_env.packing import placed
from sponge_env.scenario.config import Initial, Serving, Stage
from sponge_env.scenario.graph import always_passed, ancestors, longest_path, predecessors
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile, stage_profiles
from sponge_env.simulation.memory import MemoryPlan
from sponge_env.simulation.traffic import add_traffic, rate_rps
from sponge_env.simulation.workload import Workload, draw_workload

FEWEST_QUEUED, MOST_QUEUED = 1 << 10, 1 << 16  # Of the default room for waiting requests


class Configuration(MemoryPlan):
    """Scenarios side by side: one row of settings each, tables and traces shared."""

    def __init__(
        self, scenarios: Sequence[Scenario], replicas_max: int | None = None, *,
        profile: Profile | None = None, listed: bool = False,
        measured_work: Sequence[FloatArray] = (),
    ) -> None:  # fmt: skip
        """Read the scenarios' profiles and traces; interval and limits must be the same in all.

        Args:
            scenarios: A SpongeError says which cannot be used, or not beside the others.
            replicas_max: Most replicas that an allocation asks for; the limit if left out.
            profile: Instead of those that the scenarios name.
            listed: All requests come from :meth:`workload`, not only those of several
                classes, which the core cannot draw one at a time.
            measured_work: Table of the work of each stage's batches under a quota, for a single
                environment, which uses it up; see :mod:`sponge_env.core.service`.
        """
        _check_alike(scenarios)
        super().__init__(len(scenarios), len(scenarios[0].pipeline))
        self.room.at_least(queue=FEWEST_QUEUED)
        self.specs: list[SystemSpec] = []  # (scenarios,) what controllers may know
        self.scenarios: list[Scenario] = []  # (scenarios,) as long as their traces
        self._profiles: list[Profile] = []
        self._replicas_max, self._listed = replicas_max, listed
        self._measured_work = measured_work
        by_profile = {scenario.profile: scenario for scenario in scenarios}
        found = cache(lambda name: profile or scenario_profile(by_profile[name]))
        for row, scenario in enumerate(scenarios):
            self._add(row, scenario, found(scenario.profile))

    def workload(self, row: int, seed: int) -> Workload:
        """Return the requests of an episode of one of the scenarios."""
        return draw_workload(self.scenarios[row], self._profiles[row], seed)

    def _add(self, at: int, scenario: Scenario, profile: Profile) -> None:
        spec, row, profiles = make_spec(scenario, profile), self.settings[at], self._profiles
        self.specs.append(spec)
        self.scenarios.append(scenario)
        profiles.append(profile)
        write_tables(row, scenario)
        write_spec(row, self.models[at], spec)
        row["intervals"] = scenario.intervals
        several, has_classes = len(spec.stages) > 1, len(scenario.classes) > 0
        # Requests of one class arrive in the order of their deadlines, but those that are given.
        row["fifo"] = scenario.serving.order == "fifo" and (several or self._listed or has_classes)
        row["sheds"] = scenario.serving == Serving("unmeetable", "edf")
        models = stage_profiles(scenario, profile)
        sizes = [(each.initial.cores, each.initial.replicas) for each in scenario.pipeline]
        self.models[at]["placed_at"] = [*map(self.numbers.add, placed(spec.nodes, sizes)[0])]
        expected = rate_rps(scenario, profile) * scenario.duration_s
        for k, stage in enumerate(scenario.pipeline):
            tasks, model = spec.stages[k].mean_tasks, self.models[at, k]
            self.room.at_least(queue=min(MOST_QUEUED, math.ceil(1.25 * expected * tasks)))
            self._add_flow(model, stage, scenario, k)
            self._add_service(model, stage, spec.stages[k], scenario, models[k])
            model["slo_s"] = spec.models[k].slo_s if spec.models else spec.slo_s
            model["hopeless_below_s"] = shortest_s(scenario, models, k)
            model["one_core_below_s"] = shortest_s(scenario, models, k, one_core=True)
            after_s = shortest_s(scenario, models, k, after=True)
            least_left_s = fastest_s(scenario, models)[k] + after_s
            model["after_s"] = after_s
            model["drop_below_s"] = scenario.serving.drop_below_s(least_left_s)
            if self._measured_work:
                model["replay_at"] = self.numbers.add(self._measured_work[k])
        if self._listed or scenario.classes:
            row["arrival_kind"], row["network_kind"] = LISTED, INSTANT
        else:
            add_traffic(self, row, scenario, profile)

    def _add_flow(self, row: Any, stage: Stage, scenario: Scenario, at: int) -> None:
        """Write where a stage's tasks come from and lead to."""
        write_table(row["limits"], stage.limits)
        write_table(row["initial"], stage.initial)
        row["after"] = sum(1 << k for k in predecessors(scenario.pipeline)[at])
        row["before"] = sum(1 << k for k in ancestors(scenario.pipeline)[at])
        row["fan_outs"] = len(stage.tasks)
        row["fan_out_at"] = self.numbers.add(np.cumsum(stage.tasks))
        row["variants"] = len(stage.variants)
        row["accuracy_at"] = self.numbers.add([variant.accuracy for variant in stage.variants])

    def _add_service(
        self, row: Any, stage: Stage, spec: StageSpec, scenario: Scenario, models: Sequence[Profile]
    ) -> None:
        """Write how long the variants of a stage take."""
        limits, simulation = stage.limits, scenario.simulation
        shape, replicas = (limits.batch, limits.cores), self._replicas_max or limits.replicas
        row["planned_at"] = self.numbers.add([each.table_s(*shape) for each in spec.latencies])
        profiles = [model.scaled(simulation.service_scale) for model in models]
        profile, quota = profiles[0], profiles[0].quota
        row["core_unit"] = profile.core_unit
        quantiles, evenly = [each.noise_quantiles for each in profiles], partial(np.linspace, 0, 1)
        row["noise_points"] = points = max(map(len, quantiles))
        scatter = np.mean([np.mean(np.abs(each)) for each in quantiles])
        row["pace"] = 1.0 + simulation.noise * scatter
        known = [np.interp(evenly(points), evenly(len(each)), each) for each in quantiles]
        row["noise_at"] = self.numbers.add(known)
        if profile.resolve_service(simulation.service) == "quota" and quota is not None:
            row["limited"], row["cpu_cores"] = True, spec.cpu_cores
            write_table(row["quota"], quota)
            work_s = np.array([each.work_table_s(limits.batch) for each in profiles])
            core_s = work_s
            row["work_at"] = self.numbers.add(work_s)
            quotas = [each.quota for each in profiles if each.quota]
            names = ("dispatch_s", "dispatch_request_s", "idle_s", "wake_cost_s", "resume_s")
            overheads_s = np.array([[getattr(each, name) for name in names] for each in quotas])
            if self._measured_work:  # it includes what rests and pauses cost
                overheads_s[:, 3:] = 0.0
            row["overheads_at"] = self.numbers.add(overheads_s)
            most_s, unit = float(work_s.max()), profile.core_unit
            slowest_s = max(each.slowest_s(most_s, unit) for each in quotas)
            if 2 * replicas > spec.cpu_cores:
                slowest_s = scenario.duration_s  # those that drain slow each other down
        else:
            served_s = np.array([each.service_table_s(*shape) for each in profiles])
            row["served_at"] = self.numbers.add(served_s)
            core_s = (served_s * np.arange(1, limits.cores + 1)).min(axis=2)
            slowest_s = served_s.max()
        row["cheapest_core_s"] = (core_s / np.arange(1, limits.batch + 1)).min()
        most_noise = max(1.0, 1.0 + simulation.noise * max(map(max, quantiles)))
        # Room for all that can be under way at once: a draining replica lives on for one batch at
        # most, and replicas must be added before a second resize can drain as many again.
        most = max(replicas, stage.initial.replicas)
        drains = 1 + math.ceil(float(slowest_s) * most_noise / scenario.interval_s) // 2
        longest_s = simulation.actuation_delay_s * math.exp(3 * simulation.actuation_scatter)
        resizes = math.ceil(longest_s / scenario.interval_s) + 2
        self.room.at_least(replicas=most + drains * (most - 1) + 1, pending=resizes)


def fastest_s(
    scenario: Scenario, profiles: Sequence[Sequence[Profile]], one_core: bool = False
) -> list[float]:
    """Return the shortest time of a task in each stage, by any variant, on all cores or on one."""
    service, scale = scenario.simulation.service, scenario.simulation.service_scale
    found_s = []
    for stage, variants in zip(scenario.pipeline, profiles, strict=True):
        models = [each.scaled(scale) for each in variants]
        # Under a quota a single request runs at full speed on one core as well.
        if one_core and models[0].resolve_service(service) == "profile":
            times_s = [float(model.service_table_s(1, 1)[0, 0]) for model in models]
        else:
            times_s = [model.fastest_s(stage.limits.cores) for model in models]
        found_s.append(min(times_s))
    return found_s


def shortest_s(
    scenario: Scenario, profiles: Sequence[Sequence[Profile]], at: int = 0, one_core: bool = False,
    after: bool = False,
) -> float:  # fmt: skip
    """Return the shortest time from a stage to the answer, on all cores or on one."""
    # It is that of all stages that none can miss, without the one ``at`` which it begins if
    # ``after`` that, one after the other where they follow each other.
    stages, passed = scenario.pipeline, always_passed(scenario.pipeline)
    own_s = fastest_s(scenario, profiles, one_core)
    for k, before in enumerate(ancestors(stages)):
        own_s[k] *= passed[k] and (at in before or (k == at and not after))
    return longest_path(stages, own_s)


def _check_alike(scenarios: Sequence[Scenario]) -> None:
    """Refuse scenarios of several systems; with which allocation each begins is its own."""
    first, *others = (each.starting_with([Initial()] * len(each.pipeline)) for each in scenarios)
    for other, name in product(others, ("interval_s", "limits", "stages")):
        wanted, value = getattr(first, name), getattr(other, name)
        if value != wanted:
            raise ConfigError(
                f"all scenarios of one batch need the same {name}, for it defines the steps and "
                f"actions, but {first.name!r} has {wanted} and {other.name!r} has {value}"
            )
