"""The only place that knows the concrete systems and workers and puts them together."""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import Allocation, SystemSpec, Worker
from sponge_env.scenario.config import Backend, Limiter
from sponge_env.scenario.profile import LOCAL_MODEL, Profile, local_model, local_profile_path
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile, stage_profiles
from sponge_env.utils.installation import describe_host

if TYPE_CHECKING:
    from sponge_env.live.protocol import LiveConfig
    from sponge_env.simulation.system import System
    from sponge_env.simulation.workload import Workload

LOG = logging.getLogger("sponge_env")


def ensure_profile(scenario: Scenario, backend: Backend, limiter: Limiter) -> Profile:
    """Load the scenario's profile; measure this machine first if a live run needs it."""
    if backend == "live":
        from sponge_env.live.calibration import calibrate_files

        files = calibrations([scenario], limiter)
        if not all(path.exists() for path in files):
            calibrate_files(files)  # all: what is compared is measured at the same time
    return scenario_profile(scenario)


def calibrations(scenarios: Iterable[Scenario], limiter: Limiter) -> dict[Path, "LiveConfig"]:
    """Return how to measure the scenarios' models of this machine, by the file of each profile.

    Batches go up to the scenarios' largest; those of :data:`LOCAL_MODEL`, which many scenarios
    share, at least to the default. Cores are the default of all local profiles.
    """
    from sponge_env.live.protocol import LiveConfig

    batches, files = dict[str, int](), dict[Path, LiveConfig]()
    usual = defaultdict(lambda: 2, {LOCAL_MODEL: LiveConfig().batch_max})
    for stage in (stage for scenario in scenarios for stage in scenario.pipeline):
        for variant in stage.variants:
            if (model := local_model(variant.profile)) is not None:
                batches[model] = max(batches.get(model, usual[model]), stage.limits.batch)
    for model, most in batches.items():
        if other := files.get(path := local_profile_path(model)):
            text = f"{other.model} and {model} would share a profile; rename one of the files"
            raise ConfigError(text)
        files[path] = LiveConfig(model=model, batch_max=most, limiter=limiter)
    return files


def make_system(
    scenario: Scenario, seed: int, backend: Backend = "sim", limiter: Limiter = "auto", *,
    profile: Profile | None = None, workload: "Workload | None" = None,
    hold_between_steps: bool = False,
) -> "System":  # fmt: skip
    """Build a system at the start of an episode; see its class for the arguments.

    ``limiter`` and ``hold_between_steps`` are for the real worker only. Raises a SpongeError if
    scenario, profile or machine does not allow it.
    """
    if backend not in get_args(Backend):
        raise ConfigError(unknown("backend", backend, get_args(Backend)))
    profile = profile or scenario_profile(scenario)
    if backend == "sim":
        # imported here, since a process that only hosts replicas does without numba
        from sponge_env.simulation.system import SimulatedSystem

        return SimulatedSystem(scenario, seed, profile, workload)

    # A simulated episode does without the modules of the real worker.
    from sponge_env.live.system import LiveSystem
    from sponge_env.live.worker import LiveWorker
    from sponge_env.models.ocr import lines_read

    stages = stage_profiles(scenario, profile)
    read = lines_read([[variant.model for variant in variants] for variants in stages])

    def start(spec: SystemSpec) -> Worker:
        configs = real_configs(spec, stages, limiter)
        return LiveWorker(*configs, checks=None if read is None else read.add)

    episode = scenario, seed, start, profile, workload
    measures = None if read is None else lambda: read.share
    return LiveSystem(*episode, hold_between_steps=hold_between_steps, measures=measures)


def check_live(scenario: Scenario, profile: Profile, limiter: Limiter) -> None:
    """Raise a SpongeError now if the scenario cannot run on the real worker."""
    from sponge_env.live.calibration import warn_if_disturbed
    from sponge_env.live.local import PLACE

    stages = stage_profiles(scenario, profile)
    profiles = [model for models in stages for model in models]
    for each in profiles:
        if not each.samples:
            first, *others = scenario.pipeline
            own = "ocr" if others else "variants-local" if len(first.variants) > 1 else "local"
            raise ConfigError(
                f"scenario {scenario.name!r} uses the reference profile {each.name!r}, whose "
                f"model does not come with it; run this machine's worker with --scenario {own}"
            )
        measured_on, this = each.host.get("cpu_model"), describe_host()["cpu_model"]
        if measured_on not in (None, this):
            LOG.warning("profile %r was measured on %s, this is %s", each.name, measured_on, this)
        warn_if_disturbed(each)
    spec = make_spec(scenario, profile)
    if not (spec.is_chain or spec.models):
        raise ConfigError(
            f"scenario {scenario.name!r} has stages that fork or join, which the real worker "
            "cannot serve; evaluate it simulated (docs/pipelines.md)"
        )
    configs = real_configs(spec, stages, limiter)
    with closing(PLACE.open(configs)) as launcher:  # as a worker would
        for each in profiles:
            if each.limiter != launcher.limiter:
                text = "profile %r was measured under %s, this run is under %s: %s"
                differ = "simulated and live differ by that, too"
                LOG.warning(text, each.name, each.limiter, launcher.limiter, differ)
    cpus = math.ceil(max(config.physical_cores(config.cores_max) for config in configs))
    most = max(int(cpus / config.core_unit + 1e-9) for config in configs)
    if PLACE.is_here and len(configs) > 1 and spec.total_cores > most:
        raise ConfigError(
            f"the stages may hold {spec.total_cores} core units together, but share "
            f"{cpus} CPU{'s' * (cpus > 1)} of {most}; lower limits.total_cores"
        )


def live_machine(
    scenario: Scenario, limiter: Limiter, profile: Profile | None = None
) -> AbstractContextManager[None]:
    """Keep the CPUs of a scenario's real worker to this process until the end of the block."""
    from sponge_env.live.local import PLACE, reserve

    if not PLACE.is_here:
        return nullcontext()
    profile = profile or scenario_profile(scenario)
    spec, stages = make_spec(scenario, profile), stage_profiles(scenario, profile)
    return reserve(real_configs(spec, stages, limiter))


def prepare_machine(
    wait: bool, cpus: frozenset[int] | None, replicas: str = "local", limiter: Limiter = "auto"
) -> None:
    """Say on which CPUs to run, whether to wait for those in use, and where replicas run.

    Raises ``ConfigError`` if ``replicas`` names neither nodes nor a Deployment, or if a ``limiter``
    is given for replicas elsewhere.
    """
    if replicas != "local":
        if limiter != "auto":
            raise ConfigError("--limiter is an option of 'sponge replica' where there are nodes")
        from sponge_env.k8s.launcher import PREFIX, KubernetesLauncher
        from sponge_env.live.local import PLACE
        from sponge_env.live.remote import RemoteLauncher, parse_addresses
        from sponge_env.live.wire import TOKEN

        token = os.environ.get(TOKEN, "")
        if replicas.startswith(PREFIX):
            deployment = replicas.removeprefix(PREFIX)
            PLACE.open = partial(KubernetesLauncher, where=deployment, token=token)
        else:
            PLACE.open = partial(RemoteLauncher, nodes=parse_addresses(replicas), token=token)
    if wait or cpus:
        from sponge_env.live.cpus import prepare_cpus

        prepare_cpus(wait, cpus)


def real_configs(
    spec: SystemSpec, profiles: Sequence[Sequence[Profile]], limiter: Limiter
) -> list["LiveConfig"]:
    """Return the settings of a system's real worker, by the profiles of its stages' variants."""
    from sponge_env.live.protocol import LiveConfig

    return [
        LiveConfig(
            model=models[0].model, variants=tuple(model.model for model in models),
            of_a_set=bool(spec.models), batch_max=stage.batch_max, cores_max=stage.cores_max,
            core_unit=stage.core_unit, replicas_max=stage.replicas_max, nodes=spec.nodes,
            cold_start_s=stage.cold_start_s or LiveConfig().cold_start_s,
            initial=Allocation(stages=(initial._replace(variant=0),)), limiter=limiter,
        )
        for stage, models, initial in zip(spec.stages, profiles, spec.initial.stages, strict=True)
    ]  # fmt: skip
