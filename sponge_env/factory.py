"""The only place that knows the concrete classes and puts them together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from sponge_env.cache import local_profile_path
from sponge_env.config import Backend, Limiter
from sponge_env.errors import ConfigError, ProfileError, unknown
from sponge_env.host import describe_host
from sponge_env.interfaces import Allocation, Request, SystemSpec, Worker
from sponge_env.live.config import LiveConfig
from sponge_env.profile import Profile, load_profile
from sponge_env.scenario import Scenario
from sponge_env.seeding import stream
from sponge_env.serving.core import RequestQueue, ServingCore
from sponge_env.serving.edf import EdfQueue
from sponge_env.serving.fifo import FifoQueue
from sponge_env.system import EpisodePlan, System
from sponge_env.workers.bucket import QuotaBucket
from sponge_env.workers.service import ProfileService, Service
from sponge_env.workers.simulated import SimulatedWorker, noise_source
from sponge_env.workload import as_long_as_its_traces, make_requests

_QUEUES: dict[str, Callable[[], RequestQueue]] = {"edf": EdfQueue, "fifo": FifoQueue}

LOG = logging.getLogger("sponge_env")


def scenario_profile(scenario: Scenario) -> Profile:
    """Load the latency profile that a scenario names.

    Raises:
        ProfileError: There is none, for ``local`` because nothing was calibrated yet.
    """
    if scenario.profile != "local":
        return load_profile(scenario.profile)
    path = local_profile_path()
    if not path.exists():
        raise ProfileError(
            f"scenario {scenario.name!r} needs this machine's latency profile; "
            "measure it with: python -m sponge_env.calibrate"
        )
    return load_profile(path)


def ensure_profile(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Load the scenario's profile; measure this machine first if a live run needs it.

    Raises:
        SpongeError: There is no such profile, or this machine cannot be measured.
    """
    if backend == "live" and scenario.profile == "local" and not local_profile_path().exists():
        from sponge_env.calibrate import calibrate_to

        calibrate_to(local_profile_path(), LiveConfig(limiter=limiter))
    return scenario_profile(scenario)


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
        "limits": dataclasses.asdict(scenario.limits),
    }
    text = json.dumps(meaning, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_plan(scenario: Scenario, requests: Sequence[Request]) -> EpisodePlan:
    """Describe the episode in which a scenario's requests, ascending by arrival, are served."""
    return EpisodePlan(
        requests=requests,
        intervals=scenario.intervals,
        base_delay_s=scenario.network.base_delay_s,
        violation_weight=scenario.reward.violation_weight,
        count_from_s=scenario.count_from_s,
    )


def make_system(
    scenario: Scenario,
    seed: int,
    *,
    backend: Backend = "sim",
    profile: Profile | None = None,
    limiter: Limiter = "auto",
    hold_between_steps: bool = False,
) -> System:
    """Build a system at the start of an episode.

    Args:
        scenario: The experiment.
        seed: Seed of arrivals, bandwidth and noise.
        backend: Simulated or real worker.
        profile: Latency profile; the scenario's if left out.
        limiter: CPU limiter of the real worker.
        hold_between_steps: See :class:`~sponge_env.system.System`.

    Raises:
        SpongeError: The scenario, profile or machine does not allow it.
    """
    if backend not in get_args(Backend):
        raise ConfigError(unknown("backend", backend, get_args(Backend)))
    profile = profile or scenario_profile(scenario)
    scenario = as_long_as_its_traces(scenario)

    def make_worker(spec: SystemSpec) -> Worker:
        if backend == "live":
            return _real_worker(spec, profile, limiter)
        return simulated_worker(scenario, profile, spec, seed)

    return assemble(scenario, profile, seed, make_worker, hold_between_steps=hold_between_steps)


def assemble(
    scenario: Scenario,
    profile: Profile,
    seed: int,
    make_worker: Callable[[SystemSpec], Worker],
    *,
    hold_between_steps: bool = False,
) -> System:
    """Build a system around any worker.

    Args:
        scenario: The experiment, as long as its traces.
        profile: Latency profile.
        seed: Seed of arrivals and bandwidth.
        make_worker: Makes the worker; called last, for a live one's clock runs from then on.
        hold_between_steps: See :class:`~sponge_env.system.System`.
    """
    spec = make_spec(scenario, profile)
    plan = make_plan(scenario, make_requests(scenario, profile, seed))
    core = ServingCore(
        scenario.serving.drop_grace_s,
        profile.fastest_s(scenario.limits.cores),
        _QUEUES[scenario.serving.order](),
    )
    return System(spec, plan, core, make_worker(spec), hold_between_steps=hold_between_steps)


def simulated_worker(
    scenario: Scenario, profile: Profile, spec: SystemSpec, seed: int
) -> SimulatedWorker:
    """Build the simulated worker of an episode."""
    scale, rng = scenario.simulation.noise, stream(seed, "noise")
    return SimulatedWorker(
        service_maker(scenario, profile, rng),
        spec.initial,
        cold_start_s=spec.cold_start_s,
        actuation_delay_s=scenario.simulation.actuation_delay_s,
        cpu_cores=spec.cpu_cores,
        noise=noise_source(profile.noise_quantiles, scale, rng),
    )


def service_maker(
    scenario: Scenario, profile: Profile, rng: np.random.Generator
) -> Callable[[int], Service]:
    """Choose the service model; the result makes the service of one replica.

    Under a quota one uniform is drawn from ``rng`` for each replica: the kernel refills
    each group at a moment of its own.
    """
    limits = scenario.limits
    quota = profile.quota
    if profile.resolve_service(scenario.simulation.service) == "quota" and quota is not None:
        work_s = profile.work_table_s(limits.batch)
        return lambda cores: QuotaBucket(quota, work_s, profile.core_unit, cores, rng.random())
    latency_s = profile.service_table_s(limits.batch, limits.cores)
    return lambda cores: ProfileService(latency_s, cores)


def check_live(scenario: Scenario, profile: Profile, limiter: Limiter) -> None:
    """Raise now what would keep the scenario from running on the real worker.

    Raises:
        SpongeError: Model, limits or machine do not allow it.
    """
    from sponge_env.live.local import check_machine

    if not profile.samples:
        raise ConfigError(
            f"scenario {scenario.name!r} uses the reference profile {profile.name!r}, whose "
            "model does not come with it; run this machine's worker with --scenario local"
        )
    measured_on, this = profile.host.get("cpu_model"), describe_host()["cpu_model"]
    if measured_on not in (None, this):
        LOG.warning("profile %r was measured on %s, this is %s", profile.name, measured_on, this)
    check_machine(real_config(make_spec(scenario, profile), profile, limiter))


def _real_worker(spec: SystemSpec, profile: Profile, limiter: Limiter) -> Worker:
    # What starts processes is imported only where they are wanted.
    from sponge_env.live.worker import LiveWorker

    return LiveWorker(real_config(spec, profile, limiter))


def real_config(spec: SystemSpec, profile: Profile, limiter: Limiter) -> LiveConfig:
    """Say how the real worker of a system is set up."""
    return LiveConfig(
        model=profile.model,
        batch_max=spec.batch_max,
        cores_max=spec.cores_max,
        core_unit=profile.core_unit,
        replicas_max=spec.replicas_max,
        initial=spec.initial,
        limiter=limiter,
    )
