"""What is played: scenarios with their changes, and agents with their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRACE = str(HERE / "short-bandwidth.csv")  # 47 s long, with a second in which nothing gets through


@dataclass(frozen=True)
class Cell:
    """A scenario, shortened, in the terms of its TOML file."""

    scenario: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[str, ...] = ("cold",)
    shipped_policies: bool = True
    """False where interval or limits are not those that the shipped policies are for."""
    variants: bool = False  # whether agents with other options are played, too
    stages: bool = False  # whether agents for several stages or model variants are played, too


def cell(scenario, profile, *starts, **changes):
    options = {k: changes.pop(k) for k in ("shipped_policies", "variants") if k in changes}
    changes = {"profile": profile, "duration_s": 120.0, **changes}
    return Cell(scenario, changes, starts or ("cold",), **options)


BOTH = ("cold", "warm")


def staged(scenario):
    """Return a cell of two minutes whose stages have profiles of their own."""
    return Cell(scenario, {"duration_s": 120.0}, BOTH, shipped_policies=False, stages=True)


CELLS = {
    # Every shipped scenario. ``lite0`` stands for this machine, whose profile is no fixed one.
    "paper": cell("paper", "yolov5s", *BOTH, variants=True),
    "paper-100kb": cell("paper-100kb", "resnet18", *BOTH),
    "paper-200kb": cell("paper-200kb", "lite0", *BOTH),
    "paper-300kb": cell("paper-300kb", "yolov5s", *BOTH),
    "paper-500kb": cell("paper-500kb", "lite0", *BOTH),
    "bursty": cell("bursty", "resnet18", *BOTH, variants=True),
    "flash-crowd": cell("flash-crowd", "resnet18", *BOTH, duration_s=150.0),
    "deep-fade": cell("deep-fade", "yolov5s", *BOTH), "diurnal": cell("diurnal", "lite0", *BOTH),
    "mixed": cell("mixed", "yolov5s", *BOTH), "local": cell("local", "lite0", *BOTH),
    "flash-crowd-local": cell("flash-crowd-local", "lite0", *BOTH, variants=True),
    # Options that reach other code.
    "expired-classes": cell("mixed", "resnet18", serving={"drop": "expired"}),
    "late-fifo": cell("mixed", "yolov5s", serving={"drop": "expired", "order": "fifo"}),
    "fifo-quota": cell("mixed", "lite0", serving={"drop": "expired", "order": "fifo"}),
    "slow-actuation": cell(
        "bursty", "resnet18", simulation={"actuation_delay_s": 0.5, "cold_start_s": 3.0}
    ),
    "slow-actuation-quota": cell(
        "flash-crowd-local", "lite0", simulation={"actuation_delay_s": 0.5},
        serving={"drop": "expired"},
        network={"fade_every_s": 30.0, "fade_s": 4.0, "fade_depth": 0.05},
    ),
    "half-interval": cell(
        "paper", "yolov5s", *BOTH, interval_s=0.5, duration_s=60.0, shipped_policies=False
    ),
    "recorded": cell(
        "paper", "resnet18", network={"trace": "4g-600s", "start": "random"},
        arrivals={
            "kind": "trace", "file": "arrivals-bursty-600s", "rate_rps": 90.0, "load": None
        },
    ),
    "recorded-counts": cell(
        "paper", "yolov5s", *BOTH, network={"trace": TRACE, "start": "random"},
        arrivals={"kind": "trace", "file": "arrivals-day-600s", "rate_rps": None, "load": None},
        serving={"drop": "none"},
    ),
    "short-trace-ends": cell(
        "diurnal", "resnet18", duration_s=52.5, network={"trace": TRACE}, variants=True
    ),
    "many-replicas": cell(
        "local", "lite0", simulation={"cold_start_s": 0.5}, limits={"total_cores": 256},
        initial={"cores": 3, "batch": 4, "replicas": 6}, arrivals={"load": 0.9},
        shipped_policies=False,
    ),
    "narrow": cell(
        "flash-crowd", "yolov5s", *BOTH, limits={"cores": 6, "batch": 5, "replicas": 3},
        arrivals={"load": 0.3}, reward={"violation_weight": 5.0}, shipped_policies=False,
    ),
    "no-network": cell(
        "local", "lite0", network={"trace": "none"}, arrivals={"load": 0.7},
        simulation={"service": "profile", "noise": 0.0},
    ),
    "pipeline-video": staged("pipeline-video"), "pipeline-fanout": staged("pipeline-fanout"),
    "variants-fade": staged("variants-fade"),
}  # fmt: skip
"""By name."""

SEEDS = {"cold": (0,), "warm": (1,)}  # episodes of each cell by its start

VARIANTS = {  # agents with options that are not the default: what they are of, and the options
    "sponge-paper": ("sponge-ip", {"formulation": "paper", "slo_fraction": 0.9}),
    "sponge-hold": ("sponge-ip", {"on_infeasible": "hold"}),
    "sponge-mpc-far": ("sponge-mpc", {"look_ahead": 2}),
    "fa2-keep": ("fa2", {"when_infeasible": "keep"}),
    "hpa-half": ("hpa", {"target": 0.5}),
    "static-6x4": ("static", {"cores": 6, "batch": 4}),
}

FOR_STAGES = {"equal-split", "grandslam", "ipa", "ipa-scale", "ipa-switch", "proportional-split"}
FOR_STAGES |= {"slackfit", "sponge-largest", "sponge-smallest"}
"""Agents that are played where there are stages or variants."""

LEARNED = {"ppo": "vertical", "ppo-joint": "joint"}
"""Agents that follow a shipped policy, and what they see."""


@dataclass(frozen=True)
class Episode:
    cell: str
    start: str
    agent: str
    seed: int

    @classmethod
    def of(cls, key):
        cell, start, agent, seed = key.split("/")
        return cls(cell, start, agent, int(seed))

    @property
    def key(self):
        return f"{self.cell}/{self.start}/{self.agent}/{self.seed}"

    @property
    def controller(self):
        shipped = {"policy": "shipped"} if self.agent in LEARNED else {}
        return VARIANTS.get(self.agent, (self.agent, shipped))


def agents_of(cell, known):
    able = [agent for agent in known if cell.shipped_policies or agent not in LEARNED]
    able = [agent for agent in able if cell.stages or agent not in FOR_STAGES]
    return sorted([*able, *(VARIANTS if cell.variants else ())])


def episodes(known):
    for name, where in CELLS.items():
        for start in where.starts:
            for seed in SEEDS[start]:
                for agent in agents_of(where, known):
                    yield Episode(name, start, agent, seed)


SEQUENCES = 50  # random action sequences
STEPS = 40
SEQUENCE_S = 30.0  # Length of their episodes: less than a sequence, so that the next begins in it
VECTOR_ENVS = 8


@dataclass(frozen=True)
class Sequence:
    """Random actions for one environment, or for some that are stepped at once."""

    number: int

    @property
    def control(self):
        return "joint" if self.number % 2 else "vertical"

    @property
    def vector(self):
        return self.number % 10 >= 6

    @property
    def cells(self):
        """The cell, or one for each environment; their limits are the same."""
        plain = [name for name, where in CELLS.items() if not where.stages]
        able = [n for n in plain if n not in ("narrow", "half-interval", "many-replicas")]
        if self.vector and self.number % 3 == 0:
            return [able[(self.number + i) % len(able)] for i in range(VECTOR_ENVS)]
        names = plain if not self.vector else able
        return [names[(5 * self.number) // 2 % len(names)]]

    @property
    def autoreset(self):
        """When the next episode of a vector environment begins."""
        return "SameStep" if self.number % 20 >= 10 else "NextStep"

    @property
    def key(self):
        kind = f"vector-{self.autoreset}" if self.vector else "single"
        return f"{self.number:02d}/{kind}/{self.control}/{'+'.join(self.cells)}"


FIDELITY = {  # fidelity runs: cell, start, agent, and the repetition, which seeds the noise
    f"{cell}/{start}/{agent}/{repetition}": (cell, start, agent, repetition)
    for cell, start, agent in (
        ("local", "cold", "static-8"),
        ("local", "warm", "sponge-ip"),
        ("flash-crowd-local", "cold", "fa2"),
    )
    for repetition in (0, 1)
}

BOUNDS = {  # clairvoyant bounds of short episodes
    f"{cell}/{control}": (cell, control)
    for cell in ("paper", "expired-classes", "flash-crowd-local")
    for control in ("vertical", "joint")
}
BOUND_S = 20.0
