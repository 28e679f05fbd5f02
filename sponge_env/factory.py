"""The only place that knows the concrete systems and workers and puts them together."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import get_args

from sponge_env.config import Backend, Limiter
from sponge_env.errors import ConfigError, unknown
from sponge_env.installation import describe_host
from sponge_env.interfaces import SystemSpec, Worker
from sponge_env.live.replica import LiveConfig
from sponge_env.profile import Profile, local_profile_path
from sponge_env.scenario import Scenario, one_stage
from sponge_env.simulation.workload import Workload
from sponge_env.spec import make_spec, scenario_profile
from sponge_env.system import LiveSystem, SimulatedSystem, System

LOG = logging.getLogger("sponge_env")


def ensure_profile(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Load the scenario's profile; measure this machine first if a live run needs it."""
    if backend == "live" and scenario.profile == "local" and not local_profile_path().exists():
        from sponge_env.calibrate import calibrate_to

        calibrate_to(local_profile_path(), LiveConfig(limiter=limiter))
    return scenario_profile(scenario)


def make_system(
    scenario: Scenario,
    seed: int,
    *,
    backend: Backend = "sim",
    profile: Profile | None = None,
    workload: Workload | None = None,
    limiter: Limiter = "auto",
    hold_between_steps: bool = False,
) -> System:
    """Build a system at the start of an episode; its class says what the arguments are.

    ``limiter`` and ``hold_between_steps`` are for the real worker only.

    Raises:
        SpongeError: The scenario, profile or machine does not allow it.
    """
    if backend not in get_args(Backend):
        raise ConfigError(unknown("backend", backend, get_args(Backend)))
    profile = profile or scenario_profile(scenario)
    if backend == "sim":
        return SimulatedSystem(scenario, seed, profile, workload)

    # What starts processes is imported only where they are wanted.
    from sponge_env.live.worker import LiveWorker

    def start(spec: SystemSpec) -> Worker:
        return LiveWorker(real_config(spec, profile, limiter))

    return LiveSystem(
        scenario, seed, start, profile, workload, hold_between_steps=hold_between_steps
    )


def check_live(scenario: Scenario, profile: Profile, limiter: Limiter) -> None:
    """Raise now what would keep the scenario from running on the real worker."""
    from sponge_env.live.local import check_machine

    one_stage(scenario, "the real worker")
    if not profile.samples:
        raise ConfigError(
            f"scenario {scenario.name!r} uses the reference profile {profile.name!r}, whose "
            "model does not come with it; run this machine's worker with --scenario local"
        )
    measured_on, this = profile.host.get("cpu_model"), describe_host()["cpu_model"]
    if measured_on not in (None, this):
        LOG.warning("profile %r was measured on %s, this is %s", profile.name, measured_on, this)
    check_machine(real_config(make_spec(scenario, profile), profile, limiter))


def live_machine(scenario: Scenario, limiter: Limiter) -> AbstractContextManager[None]:
    """Keep the CPUs of a scenario's real worker to this process until the end of the block."""
    from sponge_env.live.local import reserve

    one_stage(scenario, "the real worker")
    profile = scenario_profile(scenario)
    return reserve(real_config(make_spec(scenario, profile), profile, limiter))


def wait_for_machine() -> None:
    """From now on, wait for CPUs that the live run of another process has, do not refuse."""
    from sponge_env.live.local import RESERVATIONS

    RESERVATIONS.patient = True


def real_config(spec: SystemSpec, profile: Profile, limiter: Limiter) -> LiveConfig:
    """Say how the real worker of a system is set up."""
    return LiveConfig(
        model=profile.model,
        batch_max=spec.batch_max,
        cores_max=spec.cores_max,
        core_unit=profile.core_unit,
        replicas_max=spec.replicas_max,
        total_cores=spec.total_cores,
        initial=spec.initial,
        limiter=limiter,
    )
