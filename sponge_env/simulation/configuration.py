"""From scenarios to the settings and tables that the core reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from sponge_env.arrays import FloatArray
from sponge_env.core.records import SAMPLE, Arrays
from sponge_env.core.settings import INSTANT, LISTED, write_spec, write_table, write_tables
from sponge_env.errors import ConfigError
from sponge_env.interfaces import SystemSpec
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.simulation.memory import MemoryPlan
from sponge_env.simulation.traffic import add_traffic, rate_rps
from sponge_env.simulation.workload import Workload, as_long_as_its_traces, draw_workload
from sponge_env.spec import make_spec, scenario_profile

FEWEST_QUEUED, MOST_QUEUED = 1 << 10, 1 << 16
"""Limits of the room for waiting requests that is made unasked."""


class Configuration(MemoryPlan):
    """Scenarios side by side: one row of settings each, tables and traces shared."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        replicas_max: int | None = None,
        *,
        profile: Profile | None = None,
        listed: bool = False,
        measured_work: FloatArray | None = None,
    ) -> None:
        """Read the scenarios' profiles and traces.

        Args:
            scenarios: Interval and limits must be the same in all.
            replicas_max: Most replicas that an allocation asks for; the limit if left out.
            profile: Instead of those that the scenarios name.
            listed: All requests come from :meth:`workload`, not only those of several
                classes, which the core cannot draw one at a time.
            measured_work: Table of the work of batches under a quota, for a single environment,
                which uses it up; see :mod:`sponge_env.core.service`.

        Raises:
            SpongeError: A scenario cannot be used, or not beside the others.
        """
        _check_alike(scenarios)
        super().__init__(len(scenarios))
        self.room.at_least(queue=FEWEST_QUEUED)
        self.specs: list[SystemSpec] = []
        """(scenarios,) what controllers may know."""
        self.scenarios: list[Scenario] = []
        """(scenarios,) as long as their traces."""
        self._profiles: list[Profile] = []
        self._replicas_max = replicas_max or scenarios[0].limits.replicas
        self._listed = listed
        self._measured_work = measured_work
        by_profile = {scenario.profile: scenario for scenario in scenarios}
        found = cache(lambda name: profile or scenario_profile(by_profile[name]))
        for row, stage, scenario in zip(self.settings, self.models[:, 0], scenarios, strict=True):
            self._add(row, stage, as_long_as_its_traces(scenario), found(scenario.profile))

    def workload(self, row: int, seed: int) -> Workload:
        """Return the requests of an episode of one of the scenarios."""
        return draw_workload(self.scenarios[row], self._profiles[row], seed)

    def bytes_per_env(self, arrays: Arrays) -> int:
        """Return the memory that one environment takes of :meth:`allocate`."""
        own = (a for name, a in arrays._asdict().items() if name not in _SHARED)
        trace: int = self.room.private * SAMPLE.itemsize
        return trace + sum(int(array.nbytes) // len(arrays.envs) for array in own)

    def _add(self, row: Any, stage: Any, scenario: Scenario, profile: Profile) -> None:
        spec = make_spec(scenario, profile)
        self.specs.append(spec)
        self.scenarios.append(scenario)
        self._profiles.append(profile)
        expected = rate_rps(scenario, profile) * scenario.duration_s
        self.room.at_least(queue=min(MOST_QUEUED, math.ceil(1.25 * expected)))
        write_tables(row, scenario)
        write_tables(stage, scenario)
        write_spec(row, stage, spec)
        row["intervals"] = scenario.intervals
        # Requests of one class arrive in the order of their deadlines.
        row["fifo"] = scenario.serving.order == "fifo" and len(scenario.classes) > 0
        row["drop_grace_s"] = scenario.serving.drop_grace_s
        row["hopeless_below_s"] = profile.scaled(scenario.simulation.service_scale).fastest_s(
            scenario.limits.cores
        )
        self._add_service(stage, scenario, profile, spec)
        if self._listed or scenario.classes:
            row["arrival_kind"], row["network_kind"] = LISTED, INSTANT
        else:
            add_traffic(self, row, scenario, profile)

    def _add_service(
        self, stage: Any, scenario: Scenario, profile: Profile, spec: SystemSpec
    ) -> None:
        limits, simulation = scenario.limits, scenario.simulation
        stage["variants"], stage["accuracy_at"] = 1, self.numbers.add([1.0])
        stage["fan_outs"], stage["fan_out_at"] = 1, self.numbers.add([1.0])
        stage["planned_at"] = self.numbers.add(profile.latency.table_s(limits.batch, limits.cores))
        profile = profile.scaled(simulation.service_scale)
        quota = profile.quota
        stage["core_unit"] = profile.core_unit
        stage["noise_points"] = len(profile.noise_quantiles)
        stage["noise_at"] = self.numbers.add(profile.noise_quantiles)
        if profile.resolve_service(simulation.service) == "quota" and quota is not None:
            stage["limited"], stage["cpu_cores"] = True, spec.cpu_cores
            write_table(stage["quota"], quota)
            work_s = profile.work_table_s(limits.batch)
            stage["work_at"] = self.numbers.add(work_s)
            if self._measured_work is not None:
                stage["replay_at"] = self.numbers.add(self._measured_work)
                stage["quota"]["resume_s"] = 0.0  # the measured times include it
            slowest_s = quota.slowest_s(float(work_s.max()), profile.core_unit)
            if 2 * self._replicas_max > spec.cpu_cores:
                slowest_s = scenario.duration_s  # those that drain slow each other down
        else:
            served_s = profile.service_table_s(limits.batch, limits.cores)
            stage["served_at"] = self.numbers.add(served_s)
            slowest_s = served_s.max()
        most_noise = max(1.0, 1.0 + simulation.noise * max(profile.noise_quantiles))
        # Room for all that can be under way at once: a draining replica lives on for one batch at
        # most, and replicas must be added before a second resize can drain as many again.
        most = max(self._replicas_max, scenario.initial.replicas)
        drains = 1 + math.ceil(float(slowest_s) * most_noise / scenario.interval_s) // 2
        longest_s = simulation.actuation_delay_s * math.exp(3 * simulation.actuation_scatter)
        resizes = math.ceil(longest_s / scenario.interval_s) + 2
        self.room.at_least(replicas=most + drains * (most - 1) + 1, pending=resizes)


_SHARED = ("settings", "models", "traces", "numbers", "blank")


def _check_alike(scenarios: Sequence[Scenario]) -> None:
    for scenario in scenarios:
        for name in ("interval_s", "limits"):
            value, wanted = getattr(scenario, name), getattr(scenarios[0], name)
            if value != wanted:
                raise ConfigError(
                    f"all scenarios of one batch need the same {name}, for it defines the "
                    f"steps and actions, but {scenarios[0].name!r} has {wanted} and "
                    f"{scenario.name!r} has {value}"
                )
