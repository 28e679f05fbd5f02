"""The serving system once more, plain and slow: an independent specification of the core.

It takes requests as the product draws them and shares with it what describes a system (interfaces,
scenario, profile, names of observation fields), but none of the rules: queue, batches, drops,
replicas, CPU quota, metrics, reward and observation are written here in their simplest form.
``tests/differential.py`` compares the core with it. Only here can a simulated replica crash.
"""

import numpy as np

from reference.quota import QuotaBucket
from reference.system import System, requests_of
from reference.worker import ProfileService, SimulatedWorker, noise_source
from sponge_env.scenario.seeds import stream
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.workload import draw_workload


def make_system(scenario, seed, profile=None, worker=None):
    """Build a system at the start of an episode, on a simulated worker if none is given."""
    profile = profile or scenario_profile(scenario)
    spec, served = make_spec(scenario, profile), profile.scaled(scenario.simulation.service_scale)
    one_core_s = 0.0
    if profile.resolve_service(scenario.simulation.service) == "profile":
        one_core_s = float(served.service_table_s(1, 1)[0, 0])
    requests = requests_of(draw_workload(scenario, profile, seed))
    worker = worker or SimulatedWorker(**worker_settings(scenario, profile, spec, seed))
    fastest_s, takes_s = served.fastest_s(scenario.limits.cores), usual_times(scenario, served)
    return System(scenario, spec, requests, worker, fastest_s, one_core_s, takes_s)


def usual_times(scenario, served):
    """Return (batch_max, cores_max) how long batches take that are slower than most."""
    limits, quota = scenario.limits, served.quota
    scatter = scenario.simulation.noise * float(np.mean(np.abs(served.noise_quantiles)))
    if served.resolve_service(scenario.simulation.service) == "profile" or quota is None:
        return served.service_table_s(limits.batch, limits.cores) * (1 + scatter)
    dispatch_s = quota.dispatch_s + quota.dispatch_request_s * np.arange(1, limits.batch + 1)
    work_s = served.work_table_s(limits.batch) * (1 + scatter)  # on however few cores
    return np.repeat((dispatch_s + work_s)[:, None], limits.cores, axis=1)


def worker_settings(scenario, profile, spec, seed):
    """Return the arguments of an episode's simulated worker."""
    # Drawn are a factor for each batch and, under a quota, the phase of each replica's refills.
    limits, rng = scenario.limits, stream(seed, "noise")
    profile = profile.scaled(scenario.simulation.service_scale)
    quota, limited = profile.quota, profile.resolve_service(scenario.simulation.service) == "quota"
    latency_s = profile.service_table_s(limits.batch, limits.cores)

    def make_service(cores):
        if limited and quota is not None:
            work_s = profile.work_table_s(limits.batch)
            return QuotaBucket(quota, work_s, profile.core_unit, cores, rng.random())
        return ProfileService(latency_s, cores)

    return {
        "make_service": make_service, "initial": spec.initial,
        "cold_start_s": spec.first.cold_start_s,
        "actuation_delay_s": scenario.simulation.actuation_delay_s, "nodes": spec.nodes,
        "cpu_cores": spec.first.cpu_cores,
        "noise": noise_source(profile.noise_quantiles, scenario.simulation.noise, rng),
    }  # fmt: skip
