"""What a scenario and a profile say about the system, and checks against that."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple
from functools import cache
from typing import Any

import numpy as np

from sponge_env import interfaces
from sponge_env.errors import ConfigError, ProfileError
from sponge_env.interfaces import Allocation, StageAllocation, StageSpec, SystemSpec
from sponge_env.scenario.config import OLD_STAGE_KEYS, Limits, Serving
from sponge_env.scenario.graph import mean_tasks, predecessors
from sponge_env.scenario.profile import POOR_FIT, REMEDY, Profile, load_profile
from sponge_env.scenario.scenario import Scenario

LOG = logging.getLogger("sponge_env")


def scenario_profile(scenario: Scenario) -> Profile:
    """Load the latency profile that a scenario names, or that of its first stage."""
    return load_profile(scenario.pipeline[0].variants[0].profile)


def stage_profiles(scenario: Scenario, profile: Profile) -> tuple[tuple[Profile, ...], ...]:
    """Load the profiles of all stages and variants; ``profile`` is that of the first."""
    first, *others = (
        tuple(load_profile(variant.profile) for variant in stage.variants[at == 0 :])
        for at, stage in enumerate(scenario.pipeline)
    )
    return ((profile, *first), *others)


def make_spec(scenario: Scenario, profile: Profile) -> SystemSpec:
    """Describe the system that a scenario and a profile, that of its first stage, define."""
    profiles = stage_profiles(scenario, profile)
    _check_units(scenario, profiles)
    allocations = (stage.initial for stage in scenario.pipeline)
    return SystemSpec(
        slo_s=scenario.slo_s, interval_s=scenario.interval_s,
        initial=Allocation(stages=tuple(StageAllocation(*astuple(each)) for each in allocations)),
        nodes=scenario.limits.machine, resize_delay_s=scenario.simulation.actuation_delay_s,
        drops_early=scenario.serving == Serving("unmeetable", "edf"),
        fingerprint=_fingerprint(scenario, profiles), scenario=scenario.name,
        stages=tuple(_stage_spec(scenario, k, models) for k, models in enumerate(profiles)),
        models=tuple(map(make_spec, scenario.models, (own[0] for own in profiles))),
    )  # fmt: skip


def _stage_spec(scenario: Scenario, k: int, models: Sequence[Profile]) -> StageSpec:
    stage, one, cold_start_s = scenario.pipeline[k], models[0], scenario.simulation.cold_start_s
    limits = stage.limits
    for model in models:
        _check_profile(model, limits)
    if cold_start_s is None:
        # Somewhat too much: the start of the process is in each, but happens once.
        cold_start_s = sum(model.cold_start_s for model in models)
    return StageSpec(
        name=stage.name, cores_max=limits.cores, batch_max=limits.batch,
        replicas_max=limits.replicas, latencies=tuple(model.planned for model in models),
        measured=tuple(model.measured(limits.batch, limits.cores) for model in models),
        accuracies=tuple(variant.accuracy for variant in stage.variants), cold_start_s=cold_start_s,
        core_unit=one.core_unit,
        cpu_cores=math.inf if one.quota is None else max(limits.cores, 1 / one.core_unit),
        after=predecessors(scenario.pipeline)[k], tasks=stage.tasks,
        mean_tasks=mean_tasks(scenario.pipeline)[k],
    )  # fmt: skip


def _check_units(scenario: Scenario, profiles: Sequence[Sequence[Profile]]) -> None:
    units = {model.name: model.core_unit for models in profiles for model in models}
    if len({*units.values()}) > 1:
        message = ", ".join(f"{name} {unit:g}" for name, unit in units.items())
        raise ProfileError(
            f"the profiles of scenario {scenario.name!r} must have one core unit, for all replicas "
            f"share the machine's cores, not several ({message})"
        )
    for stage, models in zip(scenario.pipeline, profiles, strict=True):
        if len({model.quota is None for model in models}) > 1:
            raise ProfileError(
                f"stages.{stage.name}.variants must all be measured under a CPU quota or none, not "
                f"some ({', '.join(model.name for model in models if model.quota)})"
            )


def _check_profile(profile: Profile, limits: Limits) -> None:
    profile.planned.table_s(limits.batch, limits.cores)  # refuses a fit that is not positive
    if profile.poor_fit:
        far_off = profile.fit_error.mape > POOR_FIT
        off = f"{profile.fit_error.mape:.0%} off" if far_off else "not positive everywhere"
        _warn_of_fit(profile.name, off)
    if profile.quota is not None and limits.cores * profile.core_unit > 1 + 1e-9:
        raise ProfileError(
            f"profile {profile.name!r} was measured on one CPU in units of "
            f"{profile.core_unit:g} cores, but limits.cores = {limits.cores} units are more; "
            "lower the limit or calibrate with that many --cores"
        )


@cache
def _warn_of_fit(name: str, off: str) -> None:
    LOG.warning("the fit of l(b, c) is %s in profile %r: %s", off, name, REMEDY)


def _fingerprint(scenario: Scenario, profiles: Sequence[Sequence[Profile]]) -> str:
    """Hash what gives observations and actions their meaning."""
    # It covers the model, the core unit, the interval and the limits, and how stages follow each
    # other: not the workload, the network, the SLO and the drop policy, which a policy sees in its
    # observation, and not the profile's numbers, so that a policy outlives a new calibration.
    stages = []
    for stage, models in zip(scenario.pipeline, profiles, strict=True):
        known = asdict(stage) | OLD_STAGE_KEYS
        known["limits"] = {name: known["limits"][name] for name in _LIMITS}
        known["variants"] = [
            {"model": model.model, "core_unit": model.core_unit, "accuracy": variant.accuracy}
            for variant, model in zip(stage.variants, models, strict=True)
        ]
        del known["initial"]
        stages.append(known)
    meaning: dict[str, Any] = {"interval_s": scenario.interval_s}
    if scenario.stages:
        meaning |= {"total_cores": scenario.limits.machine_cores, "stages": stages}
    else:  # as of old, when there was one model only
        first = profiles[0][0]
        meaning |= {"model": first.model, "core_unit": first.core_unit}
        meaning["limits"] = stages[0]["limits"]
    if len(scenario.limits.nodes) > 1:
        meaning["nodes"] = scenario.limits.nodes
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


_LIMITS = ("cores", "batch", "replicas")


def check_allocation(allocation: Allocation, spec: SystemSpec, ready: Sequence[int] = ()) -> None:
    """Raise a :class:`ConfigError` where an allocation is not within a system's limits."""
    # Replicas beyond the ``ready`` ones, if given, hold one core. Each of a set may ask for all.
    own, stages = allocation.stages, spec.stages
    if len(own) != len(stages):
        raise ConfigError(f"an allocation must be one of {len(stages)} stages, not {len(own)}")
    for each, stage in zip(own, stages, strict=True):
        where = f"allocation of {stage.name}" if len(stages) > 1 else "allocation"
        check_stage_allocation(each, stage, where, variants=len(stage.latencies))
    if not spec.models:
        check_fits(own, spec.nodes, ready)


def check_stage_allocation(
    allocation: StageAllocation, limits: Any, where: str = "allocation", variants: int = 1
) -> None:
    """Raise a :class:`ConfigError` where a stage's allocation is not within its limits."""
    most = limits.cores_max, limits.batch_max, limits.replicas_max
    for name, value, limit in zip(_LIMITS, allocation, most, strict=False):
        if not isinstance(value, (int, np.integer)) or not 1 <= value <= limit:
            raise ConfigError(
                f"{where}.{name} must be a whole number between 1 and {limit}, not {value!r}"
            )
    lowest, rule = 0, "0: there is only one"
    if variants > 1:
        lowest = interfaces.BY_SLACK
        rule = f"a whole number between {lowest} (each batch by its slack) and {variants - 1}"
    variant = allocation.variant
    if not isinstance(variant, (int, np.integer)) or not lowest <= variant < variants:
        raise ConfigError(f"{where}.variant must be {rule}, not {variant!r}")


def check_fits(
    stages: Sequence[StageAllocation], nodes: Sequence[int], ready: Sequence[int] = ()
) -> None:
    """Raise a :class:`ConfigError` where stages hold more cores than the machine's nodes have."""
    if not interfaces.fits(nodes, stages, ready):
        replicas = ", ".join(f"{each.replicas} replicas of {each.cores} cores" for each in stages)
        room = " + ".join(map(str, nodes))
        raise ConfigError(f"{replicas} are more than the {room} cores of the machine have room for")
