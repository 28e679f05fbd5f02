"""Puts a server's engine together: scenario, profile, worker, controller."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sponge_env.env.factory import check_live, ensure_profile, real_configs
from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import Controller, SystemSpec
from sponge_env.live.worker import LiveWorker
from sponge_env.models.model import TensorSpec
from sponge_env.models.registry import resolve_variants
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.suite import chosen
from sponge_env.scenario.config import Limiter
from sponge_env.scenario.graph import is_set
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario, with_own_slo
from sponge_env.scenario.spec import stage_profiles
from sponge_env.serve.engine import ServingEngine
from sponge_env.serve.interface import ServedModel
from sponge_env.serve.system import ServedSystem

INPUT, OUTPUT = "input", "output"  # Names of the tensors of a model that gives them none
MIN_TIMEOUT_S, TIMEOUT_BATCHES = 2.0, 10.0
"""A batch counts as hung after this time or this many slowest batches, whichever is longer. Where
it may run on more threads, which load the model again, a cold start is added."""


def make_engine(
    scenario: Scenario, agent: str, *, name: str = "", slo_s: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None, queue_max: int = 1024,
    limiter: Limiter = "auto",
) -> ServingEngine:  # fmt: skip
    """Start to serve a scenario on the real worker; measure its models first if need be.

    The scenario's models, limits and intervals count, not its traffic. ``name`` (for clients) and
    ``slo_s`` (of calls that state none) are the scenario's unless given. ``options`` are those of
    controllers, by name. Raises ``SpongeError`` if it cannot be served.
    """
    profile, scenario = ensure_profile(scenario, "live", limiter), with_own_slo(scenario)
    if slo_s is not None:
        classes = (replace(kind, slo_s=slo_s) for kind in scenario.classes)
        own = tuple(classes) if is_set(scenario.stages) else ()
        scenario = replace(scenario, slo_s=slo_s, classes=own)
    check_live(scenario, profile, limiter)
    profiles = stage_profiles(scenario, profile)
    models = [resolve_variants([each.model for each in variants]) for variants in profiles]
    if not is_set(scenario.stages):
        check_stage_inputs(scenario, [stage[0].max_tasks for stage in models])
    make_agent = controllers(agent, options or {})
    make_agent(agent)  # an error is raised before anything starts
    outputs, start = models[-1][0].outputs, partial(_start, profiles, limiter)
    system = ServedSystem(scenario, start, profile, outputs=outputs, queue_max=queue_max)
    spec, names = system.spec, [stage.name for stage in scenario.pipeline]
    served = [
        ServedModel(
            name=names[first] if spec.models else name or scenario.name,
            inputs=_named(models[first][0].inputs, INPUT),
            outputs=_named(models[last][0].outputs, OUTPUT),
            batch_max=spec.stages[first].batch_max,
            default_slo_s=(spec.models or [spec])[first].slo_s, variants=system.variants[last],
            stages=(names[first],) if spec.models else tuple(names), queue_max=queue_max,
            stage=first,
        )
        for first, last in ([(k, k) for k in range(len(names))] if spec.models else [(0, -1)])
    ]  # fmt: skip
    try:
        return ServingEngine(system, served, agent, make_agent)
    except BaseException:
        system.close()
        raise


def _named(tensor: TensorSpec, name: str) -> TensorSpec:
    return tensor if tensor.fields or tensor.name else replace(tensor, name=name)


def controllers(agent: str, given: Mapping[str, Mapping[str, Any]]) -> Callable[[str], Controller]:
    """Return a function that makes controllers by their names; ``given`` are their options."""
    # The first may be anything; later ones must be registered, so that no client imports code.
    registry, (entries, _) = known_controllers(), chosen([agent])
    first = next(iter(entries.values()), None)
    if first is None or first.constant:
        raise ConfigError(f"{agent} is made for requests that are known, so it cannot serve")

    def make(name: str) -> Controller:
        if name == agent:
            own = {**first.options, **given.get(name, {})}
            return make_controller(first.controller or name, registry, own)
        if name not in registry:
            raise ConfigError(unknown("agent", name, registry))
        return make_controller(name, registry, given.get(name))

    return make


def check_stage_inputs(scenario: Scenario, max_tasks: Sequence[int]) -> None:
    """Raise ConfigError if a stage's answers are no inputs of the next, which would get samples."""
    for stage, tasks in zip(scenario.pipeline[:-1], max_tasks, strict=False):
        if not tasks:
            raise ConfigError(
                f"scenario {scenario.name!r} cannot be served: the answers of its stage "
                f"{stage.name!r} are not the inputs of the next"
            )


def _start(profiles: Sequence[Sequence[Profile]], limiter: Limiter, spec: SystemSpec) -> LiveWorker:
    timed = []
    for config, own in zip(real_configs(spec, profiles, limiter), profiles, strict=True):
        shape = config.batch_max, config.cores_max
        slowest_s = max(float(profile.service_table_s(*shape).max()) for profile in own)
        timeout_s = max(MIN_TIMEOUT_S, TIMEOUT_BATCHES * slowest_s)
        if config.physical_cores(config.cores_max) > 1:
            timeout_s += max(profile.cold_start_s for profile in own)
        timed.append(replace(config, batch_timeout_s=timeout_s))
    return LiveWorker(*timed)
