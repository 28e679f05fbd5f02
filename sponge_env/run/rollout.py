"""One controller in its episodes: the loops that every experiment runs, and where they begin.

A *cold* start has the scenario's allocation. A *warm* one has the allocation that the
controller settles on under a steady mean load, found with :func:`warm`.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray, total
from sponge_env.core.fields import JOINT_OBS_DIM
from sponge_env.core.records import METRICS
from sponge_env.errors import SpongeError
from sponge_env.interfaces import Allocation, Controller, Sink, SystemSpec, SystemView
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, names, over_episode, to_columns
from sponge_env.run.decision import decision, start
from sponge_env.scenario.config import Arrivals, Initial
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator, BatchView
from sponge_env.simulation.memory import ledger_columns
from sponge_env.simulation.summary import interval_latencies, summarise_accuracy, summarise_requests
from sponge_env.simulation.system import SimulatedSystem, System
from sponge_env.simulation.traffic import mixed_rps, rate_rps, streams
from sponge_env.simulation.workload import Workload, draw_workload

SETTLING = 700  # Intervals that a controller is given to settle: no tuned one looks back longer
COUNTED = 30  # Last intervals, whose most frequent allocation is taken
_REHEARSAL_SEED = EVALUATION_SEEDS  # A training seed: it reveals nothing of the evaluation

DECISION_LIMIT_S = 60.0  # A live decision that takes longer, also to compile, has failed

_MOST_TOGETHER = 1 << 20  # Requests or intervals, of all seeds, that are kept in memory at once
_OF_MODEL = ("offered", "on_time", "late", "failed", "violations", "violation_rate",
             "avoidable_violation_rate")  # fmt: skip  # Of requests of each of a set of models
REHEARSED = 5  # Intervals of a rehearsal: enough for requests to wait, and to be forecast


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies an episode in the results."""

    agent: str
    scenario: str
    backend: str
    seed: int
    profile: str = ""
    start: str = "cold"

    @classmethod
    def of(cls, agent: str, scenario: Scenario, backend: str, seed: int) -> "Run":
        """Name an episode of a scenario."""
        name, profile, start = scenario.cell
        return cls(agent, name, backend, seed, profile, start)


@dataclass(frozen=True, slots=True)
class Episode:
    """What an episode leaves behind."""

    summary: EpisodeMetrics  # ``summary.partial`` tells whether it ended early
    columns: Mapping[str, NDArray[Any]]  # (intervals,) each, see ``metrics.to_columns``
    requests: Mapping[str, NDArray[Any]]  # (offered,) each, see ``memory.ledger_columns``
    failure: SpongeError | None = None  # Why worker, controller or a sink could not go on

    @property
    def intervals(self) -> list[IntervalMetrics]:
        """The metrics of each interval, without what was measured of stages."""
        own = [self.columns[name].tolist() for name in names(IntervalMetrics)]
        return [IntervalMetrics(*values) for values in zip(*own, strict=True)]


class Replay:
    """A controller that repeats allocations, one after the other."""

    def __init__(self, allocations: Iterable[Allocation]) -> None:
        self._allocations = allocations

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Begin with the first."""
        self._next = iter(self._allocations)

    def decide(self, view: SystemView) -> Allocation:
        """Return the next one."""
        return next(self._next)


def run_episode(
    system: System, controller: Controller, run: Run, sinks: Sequence[Sink] = ()
) -> Episode:
    """Let a controller drive a system as :func:`play` does, and raise its failure."""
    episode = play(system, controller, run, sinks)
    if episode.failure is not None:
        raise episode.failure
    return episode


def play(system: System, controller: Controller, run: Run, sinks: Sequence[Sink] = ()) -> Episode:
    """Let a controller drive a system from time 0 to the end of its episode.

    An interrupt (Ctrl-C) ends the episode early, as does a worker, a controller or a sink that
    fails: the partial summary still reaches the sinks. The caller closes system and sinks.
    """
    intervals: list[IntervalMetrics] = []
    partial, failure = False, None
    limit_s = None if system.limiter == SimulatedSystem.limiter else DECISION_LIMIT_S
    try:
        with system.paused():  # a controller may load or compile something now
            controller = start_rehearsed(controller, system, run.seed)
        while not system.done:
            view, began_s = system.view(), time.perf_counter()
            allocation = decision(controller, view, system.spec, limit_s)
            intervals.append(system.step(allocation, decision_s=time.perf_counter() - began_s))
            for sink in sinks:
                sink.interval(intervals[-1])
        system.drain()
    except KeyboardInterrupt:
        partial = True
    except SpongeError as error:
        partial, failure = True, error
    columns, requests = to_columns(intervals), system.columns()
    counted = _summarise(requests, columns, run, system.plan, system.spec)
    summary = dataclasses.replace(
        counted, partial=partial, limiter=system.limiter, measured_accuracy=system.measured_accuracy
    )
    for sink in sinks:
        try:
            sink.episode(summary)
        except SpongeError as error:
            failure = failure or error
    return Episode(summary, columns, requests, failure)


def play_together(
    scenario: Scenario, profile: Profile, controller: Any, runs: Sequence[Run]
) -> dict[int, Episode]:
    """Let a controller drive the simulated episodes of several seeds at once; return them by seed.

    They equal those of :func:`play`, but for decision times. Episodes that the controller must play
    alone are missing; all are, if it cannot decide for several at once or memory is short.
    """
    spec = make_spec(scenario, profile)
    size = scenario.intervals + rate_rps(scenario, profile) * scenario.duration_s
    runs, begins = runs[: int(_MOST_TOGETHER / size)], False
    if len(runs) > 1 and hasattr(controller, "reset_many"):
        with suppress(SpongeError):  # it will show again when the controller plays alone
            begins = controller.reset_many(spec, len(runs))
    if not begins:
        return {}
    workloads = [draw_workload(scenario, profile, run.seed) for run in runs]
    same, grows = np.zeros(len(runs), np.int64), bool(getattr(controller, "grows_ready", False))
    options: Any = {"obs_dim": JOINT_OBS_DIM, "grows_ready": grows}
    simulator = BatchSimulator([scenario], same, workloads=workloads, **options)
    rows, took_s = np.empty((scenario.intervals, len(runs)), METRICS), list[float]()

    def decide(view: BatchView) -> IntArray:
        began_s = time.perf_counter()
        asked: IntArray = controller.decide_many(view)
        took_s.append((time.perf_counter() - began_s) / len(runs))
        return asked

    for k, metrics in enumerate(simulator.play(np.array([run.seed for run in runs]), decide)):
        rows[k] = metrics
    simulator.drain()
    ends, episodes = np.cumsum(rows["on_time"] + rows["violations"], axis=0), {}
    for i in np.flatnonzero(~controller.alone).tolist():
        arrays = simulator.only(i)
        latencies = interval_latencies(arrays.ledger[0], ends[:, i])
        own = {name: rows[name][:, i].copy() for name in METRICS.names or ()}
        own |= {**latencies, "decision_s": np.array(took_s)}
        columns = {name: own[name] for name in names(IntervalMetrics)}
        requests = ledger_columns(arrays, workloads[i].first(int(arrays.envs["sent"][0]) - 1))
        summary = _summarise(requests, columns, runs[i], scenario, spec)
        summary = dataclasses.replace(summary, limiter=SimulatedSystem.limiter)
        episodes[runs[i].seed] = Episode(summary, columns, requests)
    return episodes


def start_rehearsed(controller: Controller, system: System, seed: int) -> Controller:
    """Start a controller; on a live system, let it first drive the simulated counterpart."""
    # So it compiles and loads before the clock runs: that takes seconds, and would lose requests.
    if (simulated := system.counterpart(_REHEARSAL_SEED)) is not None:
        with suppress(SpongeError):  # it will show again when the controller is in charge
            controller = start(controller, system.spec, seed)
            for _ in range(min(REHEARSED, simulated.plan.intervals)):
                view = simulated.view()
                simulated.step(decision(controller, view, simulated.spec, DECISION_LIMIT_S))
    return start(controller, system.spec, seed)


def _summarise(
    requests: Mapping[str, NDArray[Any]], columns: Mapping[str, NDArray[Any]], run: Run,
    plan: Scenario, spec: SystemSpec,
) -> EpisodeMetrics:  # fmt: skip
    """Sum up the part of an episode that counts, from its ledger and its intervals."""
    # Cores are those held during the intervals; the requests that were still in the system after
    # the last one count with the outcome that :meth:`System.drain` gave them.
    from_s = plan.count_from_s
    counts = requests["arrival_s"] >= from_s
    ended = {name: column[counts] for name, column in requests.items()}
    outcome, latency_s = ended["outcome"], ended["finished_s"] - ended["sent_s"]
    counted: dict[str, Any] = {
        **summarise_requests(outcome, latency_s, ended["hopeless"]),
        **summarise_accuracy(outcome, ended["accuracy"], ended["needs_cores"]),
    }
    later = columns["time_s"] > from_s + 1e-9
    intervals = {name: column[later] for name, column in columns.items()}
    duration_s = int(later.sum()) * spec.interval_s
    core_seconds = total(intervals["core_seconds"].tolist())
    decisions_s = intervals["decision_s"] if duration_s else [0.0]

    stages: Any = over_episode(intervals)
    for k, measured in enumerate(stages.values() if spec.models else ()):
        own = ended["stage"] == k
        of_model = summarise_requests(outcome[own], latency_s[own], ended["hopeless"][own])
        measured |= {name: of_model[name] for name in _OF_MODEL}

    def mean_by_cores(name: str) -> float:
        used = total((intervals[name] * intervals["core_seconds"]).tolist())
        return used / core_seconds if core_seconds > 0 else 0.0

    return EpisodeMetrics(
        **dataclasses.asdict(run), duration_s=duration_s, **counted,
        mean_cores=core_seconds / duration_s if duration_s else 0.0, core_seconds=core_seconds,
        physical_core_seconds=core_seconds * spec.first.core_unit,
        utilisation=mean_by_cores("utilisation"), throttled_share=mean_by_cores("throttled_share"),
        restarts=int(intervals["restarts"].sum()),
        infeasible_decisions=int((intervals["feasible"] == 0).sum()),
        guarded=int(intervals["guarded"].sum()),
        decision_p50_s=float(np.quantile(decisions_s, 0.5)),
        decision_p99_s=float(np.quantile(decisions_s, 0.99)),
        reward=total(intervals["reward"].tolist()), stages=stages,
    )  # fmt: skip


def warm(scenario: Scenario, controller: Controller, profile: Profile | None = None) -> Scenario:
    """Return a scenario that begins with the controller's own allocation for its mean load.

    A scenario with a cold start is returned as it is. The controller must be reset afterwards.
    """
    if scenario.start == "cold":
        return scenario
    chosen = settled(scenario, controller, profile or scenario_profile(scenario))
    return scenario.starting_with([Initial(*each) for each in chosen.stages])


def settled(scenario: Scenario, controller: Controller, profile: Profile) -> Allocation:
    """Return the most frequent allocation of a controller at the end of a steady scenario."""
    steady = steady_scenario(scenario, profile)
    workload = draw_workload(steady, profile, _REHEARSAL_SEED)
    workload = equally_fast(workload, steady.network.base_delay_s)
    system = SimulatedSystem(steady, _REHEARSAL_SEED, profile, workload)
    controller, chosen = start(controller, system.spec, _REHEARSAL_SEED), []
    while not system.done:
        system.step(decision(controller, system.view(), system.spec))
        chosen.append(system.allocation)
    frequent = Counter(reversed(chosen[-COUNTED:])).most_common(1)[0][0]
    return system.spec.fitting(frequent)  # all of them are ready at the start


def steady_scenario(scenario: Scenario, profile: Profile) -> Scenario:
    """Return a scenario without bursts, fades and noise: equal gaps at the mean rate."""
    classes = list(scenario.classes)
    for k, own in enumerate(streams(scenario, profile)):  # all in one now, by their rates
        classes[k] = dataclasses.replace(classes[k], share=mixed_rps(*own), arrivals=None)
    return dataclasses.replace(
        scenario, start="cold", duration_s=SETTLING * scenario.interval_s,
        arrivals=Arrivals(kind="constant", rate_rps=rate_rps(scenario, profile)),
        classes=tuple(classes), network=dataclasses.replace(scenario.network, fade_every_s=None),
        simulation=dataclasses.replace(scenario.simulation, noise=0.0),
    )  # fmt: skip


def equally_fast(workload: Workload, base_delay_s: float) -> Workload:
    """Give all transfers one bandwidth, at which a byte takes as long as before on average."""
    # The harmonic mean of what they saw: a slow second delays more than a fast one speeds up.
    sent_s, payload_bytes = workload.sent_s, workload.payload_bytes
    s_per_byte = (workload.arrival_s - sent_s - base_delay_s).sum() / max(1.0, payload_bytes.sum())
    arrival_s = sent_s + base_delay_s + payload_bytes * s_per_byte
    order = np.lexsort((workload.id, arrival_s))
    moved = dataclasses.replace(workload, arrival_s=arrival_s)
    return Workload(**{f.name: getattr(moved, f.name)[order] for f in dataclasses.fields(moved)})
