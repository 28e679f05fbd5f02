"""What a scenario and a profile say about the system, and checks against that."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np

from sponge_env.errors import ConfigError, ProfileError
from sponge_env.interfaces import Allocation, SystemSpec
from sponge_env.profile import Profile, load_profile, local_profile_path
from sponge_env.scenario import Scenario

if TYPE_CHECKING:
    from sponge_env.live.replica import LiveConfig


def scenario_profile(scenario: Scenario) -> Profile:
    """Load the latency profile that a scenario names."""
    if scenario.profile != "local":
        return load_profile(scenario.profile)
    path = local_profile_path()
    if not path.exists():
        raise ProfileError(
            f"scenario {scenario.name!r} needs this machine's latency profile; "
            "measure it with: python -m sponge_env.calibrate"
        )
    return load_profile(path)


def make_spec(scenario: Scenario, profile: Profile) -> SystemSpec:
    """Describe the system that a scenario and a profile define."""
    limits, initial = scenario.limits, scenario.initial
    cold_start_s = scenario.simulation.cold_start_s
    profile.latency.table_s(limits.batch, limits.cores)  # refuses a fit that is not positive
    if profile.quota is not None and limits.cores * profile.core_unit > 1 + 1e-9:
        raise ProfileError(
            f"profile {profile.name!r} was measured on one CPU in units of "
            f"{profile.core_unit:g} cores, but limits.cores = {limits.cores} units are more; "
            "lower the limit or calibrate with that many --cores"
        )
    return SystemSpec(
        slo_s=scenario.slo_s,
        interval_s=scenario.interval_s,
        cores_max=limits.cores,
        batch_max=limits.batch,
        replicas_max=limits.replicas,
        latency=profile.latency,
        cold_start_s=profile.cold_start_s if cold_start_s is None else cold_start_s,
        core_unit=profile.core_unit,
        initial=Allocation(initial.cores, initial.batch, initial.replicas),
        cpu_cores=math.inf if profile.quota is None else max(limits.cores, 1 / profile.core_unit),
        total_cores=limits.machine_cores,
        resize_delay_s=scenario.simulation.actuation_delay_s,
        fingerprint=_fingerprint(scenario, profile),
    )


def _fingerprint(scenario: Scenario, profile: Profile) -> str:
    """Hash what gives observations and actions their meaning.

    It covers the model, the core unit, the interval and the limits: not the workload, the
    network, the SLO and the drop policy, which a policy sees in its observation, and not the
    profile's numbers, so that a policy outlives a new calibration.
    """
    meaning = {
        "model": profile.model,
        "core_unit": profile.core_unit,
        "interval_s": scenario.interval_s,
        "limits": {name: getattr(scenario.limits, name) for name in _LIMITS},
    }
    text = json.dumps(meaning, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LIMITS = ("cores", "batch", "replicas")


def check_allocation(allocation: Allocation, limits: SystemSpec | LiveConfig) -> None:
    """Raise a :class:`ConfigError` where an allocation is not within the limits."""
    for name in _LIMITS:
        value, limit = getattr(allocation, name), getattr(limits, f"{name}_max")
        if not isinstance(value, int | np.integer) or not 1 <= value <= limit:
            raise ConfigError(
                f"allocation.{name} must be a whole number between 1 and {limit}, not {value!r}"
            )
    if allocation.variant != 0:
        raise ConfigError(f"there is only model variant 0, not {allocation.variant!r}")
    if allocation.total_cores > limits.total_cores:
        raise ConfigError(
            f"{allocation.replicas} replicas of {allocation.cores} cores are more than the "
            f"{limits.total_cores} cores of the machine"
        )
