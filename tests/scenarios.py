"""Small scenarios and controllers for tests."""

import dataclasses

import numpy as np

from sponge_env import Profile, Scenario, make_system
from sponge_env.latency import FitError, LatencyModel, QuotaService
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario import config
from sponge_env.simulation.workload import Workload

SHORT = Scenario(  # twenty intervals of the paper's system under Poisson arrivals
    name="short",
    profile="yolov5s",
    duration_s=20.0,
    arrivals=config.Arrivals(kind="poisson", rate_rps=15.0),
    network=config.Network(trace="4g", payload_bytes=300_000.0),
)

_MODELS = (
    config.Variant("nlp-sentiment", 0.6, "small"),
    config.Variant("video-classifier", 0.7, "medium"),
    config.Variant("video-detector", 0.9, "large"),
)
_SMALL = config.Limits(cores=4, batch=4, replicas=3)
VARIANTS = Scenario(  # one stage of three variants, in its time and beyond it
    name="variants-of-one", slo_s=0.4, duration_s=6.0,
    limits=dataclasses.replace(_SMALL, total_cores=12), arrivals=config.Arrivals(rate_rps=30.0),
    serving=config.Serving("expired"), stages=(config.Stage("model", _MODELS, limits=_SMALL),),
    reward=config.Reward(accuracy_weight=0.5),
)  # fmt: skip
_FINDS = {"initial": config.Initial(cores=4), "fan_out_shares": (0.2, 0.4, 0.4)}
_JUDGES = {"initial": config.Initial(variant=-1), "limits": config.Limits(2, 2, replicas=3)}
CHAIN = dataclasses.replace(
    VARIANTS, name="chain", limits=dataclasses.replace(_SMALL, total_cores=14),
    simulation=config.Simulation(cold_start_s=1.5),
    stages=(
        config.Stage("find", (config.Variant("video-detector"),), limits=_SMALL, **_FINDS),
        config.Stage("name", _MODELS[:2], limits=config.Limits(cores=4, batch=4, replicas=1)),
        config.Stage("judge", _MODELS, **_JUDGES),
    ),
)  # fmt: skip
"""Three stages: of one variant, of one replica, and one whose batches choose their variant."""


JOINTLY = dataclasses.replace(  # several replicas of the paper's system
    SHORT,
    name="jointly",
    duration_s=8.0,
    limits=config.Limits(cores=8, batch=8, replicas=12, total_cores=96),
    simulation=config.Simulation(cold_start_s=2.5),
)

CONTROLLED = {  # by registered environment: a scenario, its control, and how many choices there are
    "Sponge-v0": (SHORT, "vertical", [16, 16]),
    "SpongeJoint-v0": (JOINTLY, "joint", [8, 8, 12]),
    "SpongeVariants-v0": (VARIANTS, "variants", [4, 4, 3]),
    "SpongePipeline-v0": (CHAIN, "pipeline", [4, 4, 3, 4, 4, 2, 2, 2, 3, 3]),
}

QUOTA_PROFILE = Profile(  # a worker under a CPU quota
    name="tiny-quota", model="none",
    source="made up for tests: 10 ms of CPU per request, 16 units of 1/16 core", statistic="mean",
    batches=(1, 16), cores=(1, 16), latency_s=((0.16, 0.01), (2.56, 0.16)),
    latency=LatencyModel(gamma_s=0.16, delta_s=0.0, epsilon_s=0.0, eta_s=0.0),
    fit_error=FitError(1.0, 0.0, 1, 1, 0.0), noise_quantiles=(-0.1, 0.0, 0.1), cold_start_s=4.0,
    core_unit=1 / 16,
    quota=QuotaService(
        period_s=0.02, work_s=tuple(0.01 * b for b in range(1, 17)), dispatch_s=0.0005,
        dispatch_request_s=0.0001, wake_s=0.0011, resume_s=0.0003, loading_contention=1.5,
    ),
)  # fmt: skip


STEADY_PROFILE = dataclasses.replace(  # a worker whose every batch takes 1.6 s over its cores
    QUOTA_PROFILE, name="steady",
    source="made up for tests: 1.6 s of work per batch, whatever its size, on whole cores",
    latency_s=((1.6, 0.1), (1.6, 0.1)),
    latency=LatencyModel(gamma_s=0.0, delta_s=0.0, epsilon_s=1.6, eta_s=0.0),
    noise_quantiles=(0.0,), cold_start_s=2.0, core_unit=1.0, quota=None,
)  # fmt: skip


def requests_at(*times_s):
    """Return a workload of requests with the given arrivals and deadlines, in seconds."""
    arrival_s, deadline_s = np.array(times_s, dtype=np.float64).reshape(-1, 2).T
    order = np.argsort(arrival_s, kind="stable")
    arrival_s, deadline_s = arrival_s[order], deadline_s[order]
    return Workload(order, arrival_s, arrival_s, deadline_s, np.zeros(order.size), 0 * order)


def short(**changes):
    return dataclasses.replace(SHORT, **changes)


def episode_of(scenario, controller, seed=0):
    run = Run.of("played", scenario, "sim", seed)
    return run_episode(make_system(scenario, seed), controller, run)


def decisions(system, controller):
    controller.reset(system.spec, seed=0)
    while not system.done:
        view = system.view()
        answer = controller.decide(view)
        yield view, answer
        system.step(answer)


class Scripted:
    """A controller that cycles through given allocations."""

    def __init__(self, *allocations):
        self._allocations, self.views = allocations, []

    def reset(self, spec, seed):
        self.views = []

    def decide(self, view):
        self.views.append(view)
        return self._allocations[(len(self.views) - 1) % len(self._allocations)]
