"""From scenarios to the settings and tables that the core reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.compiled import rows
from sponge_env.core.records import SAMPLE, Arrays
from sponge_env.core.settings import INSTANT, LISTED, SETTINGS, write_table, write_tables
from sponge_env.errors import ConfigError
from sponge_env.interfaces import SystemSpec
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.simulation.memory import Pool, Room, allocate
from sponge_env.simulation.traffic import Traffic, rate_rps
from sponge_env.simulation.workload import Workload, as_long_as_its_traces, draw_workload
from sponge_env.spec import make_spec, scenario_profile

FEWEST_QUEUED, MOST_QUEUED = 1 << 10, 1 << 16
"""Limits of the room for waiting requests that is made unasked."""


class Configuration:
    """Scenarios side by side: one row of settings each, tables and traces shared."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        replicas_max: int,
        *,
        profile: Profile | None = None,
        listed: bool = False,
        measured_work: FloatArray | None = None,
    ) -> None:
        """Read the scenarios' profiles and traces.

        Args:
            scenarios: Interval and limits must be the same in all.
            replicas_max: Most replicas that an allocation asks for.
            profile: Instead of those that the scenarios name.
            listed: All requests come from :meth:`workload`, not only those of several
                classes, which the core cannot draw one at a time.
            measured_work: Table of the work of batches under a quota, for a single environment,
                which uses it up; see :mod:`sponge_env.core.service`.

        Raises:
            SpongeError: A scenario cannot be used, or not beside the others.
        """
        _check_alike(scenarios)
        self.settings = np.zeros(len(scenarios), SETTINGS)
        """(scenarios,) records of :class:`~sponge_env.core.settings.Settings`."""
        self.specs: list[SystemSpec] = []
        """(scenarios,) what controllers may know."""
        self.numbers = Pool(np.float64)
        """Tables."""
        self.traffic = Traffic(self.numbers)
        """Recorded bandwidth and room for traffic."""
        self.replica_slots = 1
        """Most replicas at one time, draining ones included."""
        self.pending_slots = 1
        """Most resizes that wait for their time at once, and one."""
        self.queue_capacity = FEWEST_QUEUED
        """Requests for which the queue of an environment should have room."""
        self._replicas_max = replicas_max
        self._listed = listed
        self._measured_work = measured_work
        self.scenarios: list[Scenario] = []
        """(scenarios,) as long as their traces."""
        self._profiles: list[Profile] = []
        by_profile = {scenario.profile: scenario for scenario in scenarios}
        self._profile = cache(lambda name: profile or scenario_profile(by_profile[name]))
        for row, scenario in zip(self.settings, scenarios, strict=True):
            self._add(row, scenario)

    def workload(self, row: int, seed: int) -> Workload:
        """Return the requests of an episode.

        Args:
            row: The scenario.
            seed: Seed of the episode.

        Raises:
            TraceError: A trace cannot be used.
        """
        return draw_workload(self.scenarios[row], self._profiles[row], seed)

    def allocate(self, count: int, queue: int, ledger: int) -> Arrays:
        """Allocate the memory of ``count`` environments.

        Args:
            count: How many.
            queue: Requests that can wait and run in one of them.
            ledger: Requests of an episode whose end is kept.
        """
        room = Room(
            queue=queue,
            ledger=ledger,
            replicas=self.replica_slots,
            pending=self.pending_slots,
            group=self.traffic.group_size,
            private=self.traffic.private_rows,
        )
        traces = self.traffic.traces.array
        return allocate(count, room, rows(self.settings), traces, self.numbers.array)

    def bytes_per_env(self, arrays: Arrays) -> int:
        """Return the memory that one environment takes of :meth:`allocate`."""
        own = (a for name, a in arrays._asdict().items() if name not in _SHARED)
        trace: int = self.traffic.private_rows * SAMPLE.itemsize
        return trace + sum(int(array.nbytes) // len(arrays.envs) for array in own)

    def _add(self, row: Any, scenario: Scenario) -> None:
        scenario = as_long_as_its_traces(scenario)
        profile = self._profile(scenario.profile)
        spec = make_spec(scenario, profile)
        self.specs.append(spec)
        self.scenarios.append(scenario)
        self._profiles.append(profile)
        expected = rate_rps(scenario, profile) * scenario.duration_s
        room = min(MOST_QUEUED, math.ceil(1.25 * expected))
        self.queue_capacity = max(self.queue_capacity, room)
        write_tables(row, scenario)
        self._add_system(row, scenario, spec)
        self._add_service(row, scenario, profile, spec)
        if self._listed or scenario.classes:
            row["arrival_kind"], row["network_kind"] = LISTED, INSTANT
        else:
            self.traffic.add(row, scenario, profile)

    def _add_system(self, row: Any, scenario: Scenario, spec: SystemSpec) -> None:
        row["intervals"] = scenario.intervals
        row["interval_s"], row["slo_s"] = scenario.interval_s, scenario.slo_s
        # Requests of one class arrive in the order of their deadlines.
        row["fifo"] = scenario.serving.order == "fifo" and len(scenario.classes) > 0
        row["drop_grace_s"] = scenario.serving.drop_grace_s
        row["rate_scale"] = spec.capacity_rps
        for span_s in (1, 5, 30):
            row[f"span_{span_s}s"] = max(1, round(span_s / scenario.interval_s))

    def _add_service(
        self, row: Any, scenario: Scenario, profile: Profile, spec: SystemSpec
    ) -> None:
        limits, simulation, quota = scenario.limits, scenario.simulation, profile.quota
        row["total_cores"] = spec.total_cores
        row["hopeless_below_s"] = profile.fastest_s(limits.cores)
        row["planned_at"] = self.numbers.add(profile.latency.table_s(limits.batch, limits.cores))
        row["core_unit"], row["cold_start_s"] = profile.core_unit, spec.cold_start_s
        row["noise_points"] = len(profile.noise_quantiles)
        row["noise_at"] = self.numbers.add(profile.noise_quantiles)
        if profile.resolve_service(simulation.service) == "quota" and quota is not None:
            row["limited"], row["cpu_cores"] = True, spec.cpu_cores
            write_table(row["quota"], quota)
            work_s = profile.work_table_s(limits.batch)
            row["work_at"] = self.numbers.add(work_s)
            if self._measured_work is not None:
                row["replay_at"] = self.numbers.add(self._measured_work)
                row["quota"]["resume_s"] = 0.0  # the measured times include it
            slowest_s = quota.slowest_s(float(work_s.max()), profile.core_unit)
            if 2 * self._replicas_max > spec.cpu_cores:
                slowest_s = scenario.duration_s  # those that drain slow each other down
        else:
            served_s = profile.service_table_s(limits.batch, limits.cores)
            row["served_at"] = self.numbers.add(served_s)
            slowest_s = served_s.max()
        most_noise = max(1.0, 1.0 + simulation.noise * max(profile.noise_quantiles))
        self._make_room(scenario, float(slowest_s) * most_noise)

    def _make_room(self, scenario: Scenario, longest_batch_s: float) -> None:
        """Make room for all replicas and resizes that can be under way at once.

        A draining replica lives on for one batch at most, and replicas must be added
        before a second resize can drain as many again. Memory that is never used costs
        nothing.
        """
        most = max(self._replicas_max, scenario.initial.replicas)
        drains = 1 + math.ceil(longest_batch_s / scenario.interval_s) // 2
        self.replica_slots = max(self.replica_slots, most + drains * (most - 1) + 1)
        resizes = math.ceil(scenario.simulation.actuation_delay_s / scenario.interval_s) + 2
        self.pending_slots = max(self.pending_slots, resizes)


_SHARED = ("settings", "traces", "numbers", "blank")


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
