"""Scenarios: everything that defines an experiment except the controller and the seed.

A scenario is written as TOML; ``traces/scenarios`` holds those that ship. Its parts are in
:mod:`sponge_env.scenario.config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from sponge_env.errors import ConfigError, ProfileError
from sponge_env.packing import placed
from sponge_env.scenario import config
from sponge_env.scenario.graph import check_stages, is_set, longest_path, mean_tasks
from sponge_env.scenario.option import check_options, option, require
from sponge_env.scenario.profile import LOCAL_MODEL, load_profile
from sponge_env.scenario.toml import from_mapping, load_toml, relative_to
from sponge_env.utils.installation import data_folder

OCR = "ocr"  # Model that is a pipeline: the scenario of that name
SCENARIO_DIR = data_folder("traces") / "scenarios"  # Scenarios that ship with the project
MAX_INTERVALS = 1_000_000
"""In an episode: each is kept until it ends. Generated bandwidth has a sample for each second."""
MIN_INTERVAL_S = 1e-3


ARRIVALS = config.Arrivals(rate_rps=20.0)  # Where a scenario says nothing of them


@dataclass(frozen=True, slots=True)
class Scenario:
    """One experiment, without controller and seed."""

    name: str = option(check=config.is_file_name, rule=config.FILE_NAME_RULE)
    """Short name, used for run directories and tables; the file's if left out."""
    description: str = ""  # What the scenario is for
    profile: str = "yolov5s"  # Shipped latency profile, ``local`` (this machine's), or a path
    slo_s: float = option(1.0, above=0)
    """End-to-end latency objective: deadline minus send time; of classes that of the strictest."""
    slo_services: float | None = option(None, above=0)
    """The same relative to the models: times what an average request takes alone, with the most
    accurate ones at full speed. ``slo_s`` holds until they were measured on this machine."""
    interval_s: float = option(1.0, at_least=MIN_INTERVAL_S)  # Time between two decisions
    duration_s: float = option(600.0, above=0)  # Length of an episode
    start: config.Start = "cold"
    """``cold`` begins with the initial allocation and counts from the first moment. ``warm``
    begins with what the controller settles on under a steady load, and counts from ``warmup_s``."""
    warmup_s: float = option(30.0, at_least=0)  # Time that does not count, of a warm start
    classes: tuple[config.RequestClass, ...] = ()
    """Kinds of requests mixed at random in one stream; empty if all are alike."""
    stages: tuple[config.Stage, ...] = ()
    """Models that a request goes through, which then say profiles, limits and initial allocations
    themselves; empty for one stage of ``profile``, ``limits`` and ``initial``."""
    limits: config.Limits = field(default_factory=config.Limits)
    initial: config.Initial = field(default_factory=config.Initial)
    arrivals: config.Arrivals = ARRIVALS
    network: config.Network = field(default_factory=config.Network)
    serving: config.Serving = field(default_factory=config.Serving)
    simulation: config.Simulation = field(default_factory=config.Simulation)
    reward: config.Reward = field(default_factory=config.Reward)

    def __post_init__(self) -> None:
        check_options(self)
        longest_s = MAX_INTERVALS * min(1.0, self.interval_s)
        rule = f"at least one interval ({self.interval_s:g} s) and at most {longest_s:g} s"
        fits = self.interval_s <= self.duration_s <= longest_s
        require(fits, "duration_s", self.duration_s, rule)
        shortest_s = self.duration_s / MAX_INTERVALS
        for name in ("arrivals.burst_dwell_s", "arrivals.flash_every_s", "network.fade_every_s"):
            value = attrgetter(name)(self)
            fits = value is None or value >= shortest_s
            require(fits, name, value, f"at least {shortest_s:g} s in {self.duration_s:g} s")
        if self.start == "warm":
            rule = f"shorter than the episode ({self.duration_s:g} s)"
            require(self.warmup_s < self.duration_s, "warmup_s", self.warmup_s, rule)
        if self.slo_services is not None:
            rule = "left out where classes have objectives of their own"
            require(not self.classes, "slo_services", self.slo_services, rule)
        if self.classes:
            strictest_s = min(kind.slo_s for kind in self.classes)
            rule = f"that of the strictest class ({strictest_s:g} s)"
            require(self.slo_s == strictest_s, "slo_s", self.slo_s, rule)
        config.check_initial(self.initial, self.limits)
        check_stages(self.stages)
        first = self.pipeline[0].name
        entered = {kind.stage or first for kind in self.classes} or {first}
        entries = {stage.name for stage in self.stages} if is_set(self.stages) else {first}
        rule = f"of {sorted(entries)}, where requests enter, each in one class at least"
        require(entered == entries, "classes.stage", sorted(entered), rule)
        apart = [kind.arrivals is not None for kind in self.classes]
        require(len({*apart}) < 2, "classes.arrivals", apart, "in each class or in none")
        rule = "left out where classes have arrivals of their own"
        require(not any(apart) or self.arrivals == ARRIVALS, "arrivals", self.arrivals, rule)
        machine = self.limits.machine
        for stage in self.stages:
            key, limits = f"stages.{stage.name}.limits", stage.limits
            for name, unset in (("total_cores", None), ("nodes", ())):
                value, rule = getattr(limits, name), f"left out: the machine is limits.{name}"
                require(value == unset, f"{key}.{name}", value, rule)
            rule = f"at most {max(machine)}, the machine's (limits.total_cores, or limits.nodes)"
            require(limits.cores <= max(machine), f"{key}.cores", limits.cores, rule)
        sizes = [(stage.initial.cores, stage.initial.replicas) for stage in self.pipeline]
        held = sum(cores * replicas for cores, replicas in sizes)
        rule = f"of at most {' + '.join(map(str, machine))} cores together, each on one node"
        require(placed(machine, sizes)[1], "the initial replicas", held, rule)

    @property
    def pipeline(self) -> tuple[config.Stage, ...]:
        """The stages, one where none are listed."""
        if self.stages:
            return self.stages
        one = (config.Variant(self.profile),)
        return (config.Stage("model", one, limits=self.limits, initial=self.initial),)

    def starting_with(self, initial: Sequence[config.Initial]) -> "Scenario":
        """Return the scenario with other initial allocations, one for each stage."""
        if not self.stages:
            return replace(self, initial=initial[0])
        pairs = zip(self.stages, initial, strict=True)
        return replace(self, stages=tuple(replace(stage, initial=own) for stage, own in pairs))

    @property
    def places(self) -> list[int]:
        """Place of the stage that the requests of each class enter."""
        names = [stage.name for stage in self.pipeline]
        return [names.index(kind.stage) if kind.stage else 0 for kind in self.classes]

    @property
    def models(self) -> list["Scenario"]:
        """Each of a set of models as a scenario of its own, on the whole machine; else none."""
        if not is_set(self.stages):
            return []
        return [self._model(k) for k in range(len(self.stages))]

    def _model(self, k: int) -> "Scenario":
        stage, cores, nodes = self.stages[k], self.limits.machine_cores, self.limits.nodes
        own = [kind for kind, place in zip(self.classes, self.places, strict=True) if place == k]
        profile, several = stage.variants[0].profile, len(stage.variants) > 1
        limits = self.limits if several else replace(stage.limits, total_cores=cores, nodes=nodes)
        slo_s, stages = min(kind.slo_s for kind in own), (replace(stage, after=None),) * several
        kinds, initial = tuple(replace(kind, stage="") for kind in own), stage.initial
        more: dict[str, Any] = {"limits": limits, "classes": kinds, "initial": initial}
        return replace(self, profile=profile, slo_s=slo_s, stages=stages, **more)

    @property
    def cell(self) -> tuple[str, str, str]:
        """Names of scenario and profile, or stages, and the start: what tells results apart."""
        served = "-".join(stage.name for stage in self.stages) or Path(self.profile).stem
        return self.name, served, self.start

    @property
    def intervals(self) -> int:
        """Number of adaptation intervals in an episode."""
        return int(self.duration_s / self.interval_s + 1e-9)

    @property
    def count_from_s(self) -> float:
        """Time from which requests and cores count."""
        return self.warmup_s if self.start == "warm" else 0.0

    @property
    def mean_payload_bytes(self) -> float:
        """Mean size of a request."""
        if not self.classes:
            return self.network.payload_bytes
        shares = sum(kind.share for kind in self.classes)
        return sum(kind.share * kind.payload_bytes for kind in self.classes) / shares


def load_scenario(name_or_path: str | Path | Scenario | Mapping[str, Any]) -> Scenario:
    """Load a shipped scenario by name, or any scenario from a TOML file; one itself is returned.

    A mapping is what Gymnasium makes of one, where an environment's specification becomes JSON.
    """
    # File names inside a scenario are taken relative to its file and returned absolute.
    if isinstance(name_or_path, Mapping):
        return from_mapping(Scenario, name_or_path)
    if isinstance(name_or_path, Scenario):
        return name_or_path
    scenario, folder = load_toml(Scenario, "scenario", name_or_path, SCENARIO_DIR)
    network = scenario.network

    def found(own: config.Arrivals) -> config.Arrivals:
        return replace(own, file=own.file and relative_to(folder, own.file))

    def located(stage: config.Stage) -> config.Stage:
        own = (replace(v, profile=relative_to(folder, v.profile)) for v in stage.variants)
        return replace(stage, variants=tuple(own))

    pairs = ((kind, kind.arrivals and found(kind.arrivals)) for kind in scenario.classes)
    scenario = replace(
        scenario, profile=relative_to(folder, scenario.profile),
        stages=tuple(map(located, scenario.stages)),
        classes=tuple(replace(kind, arrivals=arrivals) for kind, arrivals in pairs),
        arrivals=found(scenario.arrivals),
        network=replace(network, trace=relative_to(folder, network.trace)),
    )  # fmt: skip
    return with_own_slo(scenario)


def with_own_slo(scenario: Scenario) -> Scenario:
    """Return a scenario whose objective is what it says relative to its models, as measured now."""
    if scenario.slo_services is None:
        return scenario
    stages = scenario.pipeline
    try:
        own_s = [
            tasks * load_profile(stage.variants[-1].profile).fastest_s(stage.limits.cores)
            for stage, tasks in zip(stages, mean_tasks(stages), strict=True)
        ]
    except ProfileError:
        return scenario  # not measured here yet; whoever needs a profile says so
    slo_s = scenario.slo_services * longest_path(stages, own_s)
    return replace(scenario, slo_s=float(f"{slo_s:.2g}"))


def served_name(model: str, scenario: str | None = None) -> str:
    """Return a model's name for clients: a file's own name, without its folder."""
    name = model or Path(scenario or "").name
    return config.as_name(Path(name).stem if Path(name).suffix in (".onnx", ".toml") else name)


def scenario_of_all(models: Sequence[str], scenario: str | None = None) -> Scenario:
    """Return the scenario that models are served under, several as a set, each as if alone."""
    if len(models) < 2:
        return scenario_of("".join(models), scenario)
    alone = [with_own_slo(scenario_of(model, scenario)) for model in models]
    if pipelines := [each.name for each in alone if each.stages]:
        raise ConfigError(f"{pipelines[0]!r} has stages of its own; serve it alone")
    names, stages, classes = [*map(served_name, models)], [], []
    rule = "files of different names, by which clients call them"
    require(len({*names}) == len(names), "models", [*models], rule)
    for name, own in zip(names, alone, strict=True):
        limits = replace(own.limits, total_cores=None, nodes=())
        one = (config.Variant(own.profile),)
        stages.append(config.Stage(name, one, (), limits=limits, initial=own.initial))
        size = own.network.payload_bytes
        classes.append(config.RequestClass(slo_s=own.slo_s, payload_bytes=size, stage=name))
    arrivals, slo_s = config.Arrivals(rate_rps=1.0), min(own.slo_s for own in alone)
    made = replace(alone[0], slo_s=slo_s, slo_services=None, arrivals=arrivals)
    return replace(made, stages=tuple(stages), classes=tuple(classes))


def scenario_of(model: str, scenario: str | Path | Scenario | None = None) -> Scenario:
    """Return the scenario that a model is served under: the shipped one for it, or a given one."""
    # A model replaces that of a scenario of one stage without variants; else a ``ConfigError``.
    if scenario is None:
        scenario = OCR if model == OCR else "local"
    loaded = load_scenario(scenario)
    if model in ("", OCR, loaded.name):
        return loaded
    if loaded.stages:
        raise ConfigError(f"scenario {loaded.name!r} has its own models; leave out --model {model}")
    return replace(loaded, profile="local" if model == LOCAL_MODEL else f"local:{model}")
