"""The serving system once more, plain and slow: an independent specification of the core.

It shares with the product what describes a system (interfaces, configuration, scenario, profile,
file formats, names of observation fields), and none of the rules: queue, batches, drops, ledger,
replicas, CPU quota, arrivals, network, metrics, reward and observation are written here in their
simplest form, as objects. ``tests/differential.py`` holds the core to it. Only here can a
simulated replica crash.
"""

from __future__ import annotations

from reference.quota import QuotaBucket
from reference.serving import EdfQueue, FifoQueue, ServingCore
from reference.system import System
from reference.worker import ProfileService, Service, SimulatedWorker, noise_source
from reference.workload import make_requests
from sponge_env.interfaces import SystemSpec, Worker
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream
from sponge_env.scenario.spec import make_spec, scenario_profile


def make_system(
    scenario: Scenario, seed: int, profile: Profile | None = None, worker: Worker | None = None
) -> System:
    """Build a system at the start of an episode, on a simulated worker if none is given."""
    profile = profile or scenario_profile(scenario)
    spec = make_spec(scenario, profile)
    core = ServingCore(
        scenario.serving.drop_grace_s,
        profile.scaled(scenario.simulation.service_scale).fastest_s(scenario.limits.cores),
        FifoQueue() if scenario.serving.order == "fifo" else EdfQueue(),
    )
    if profile.resolve_service(scenario.simulation.service) == "profile":
        served = profile.scaled(scenario.simulation.service_scale)
        core.ledger.one_core_s = float(served.service_table_s(1, 1)[0, 0])
    worker = worker or make_worker(scenario, profile, spec, seed)
    return System(scenario, spec, make_requests(scenario, profile, seed), core, worker)


def make_worker(
    scenario: Scenario, profile: Profile, spec: SystemSpec, seed: int
) -> SimulatedWorker:
    """Build the simulated worker of an episode."""
    return SimulatedWorker(**worker_settings(scenario, profile, spec, seed))


def worker_settings(
    scenario: Scenario, profile: Profile, spec: SystemSpec, seed: int
) -> dict[str, object]:
    """Return the arguments of an episode's simulated worker.

    Under a quota one uniform of the stream is drawn for each replica, the phase of its refills.
    """
    limits, rng = scenario.limits, stream(seed, "noise")
    profile = profile.scaled(scenario.simulation.service_scale)
    quota = profile.quota
    if profile.resolve_service(scenario.simulation.service) == "quota" and quota is not None:
        work_s = profile.work_table_s(limits.batch)

        def make_service(cores: int) -> Service:
            return QuotaBucket(quota, work_s, profile.core_unit, cores, rng.random())
    else:
        latency_s = profile.service_table_s(limits.batch, limits.cores)

        def make_service(cores: int) -> Service:
            return ProfileService(latency_s, cores)

    return {
        "make_service": make_service,
        "initial": spec.initial,
        "cold_start_s": spec.first.cold_start_s,
        "actuation_delay_s": scenario.simulation.actuation_delay_s,
        "total_cores": spec.total_cores,
        "cpu_cores": spec.first.cpu_cores,
        "noise": noise_source(profile.noise_quantiles, scenario.simulation.noise, rng),
    }
