"""An engine that answers at once, and stories of one that serves for minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sponge_env.errors import ConfigError
from sponge_env.metrics import IntervalMetrics, StageMetrics, blank
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Batches, Call, Reply, ServedModel, Snapshot, Status
from sponge_env.serve.monitor.history import History
from sponge_env.serve.monitor.metrics import ServerMetrics

SERVED = ServedModel(
    name="lite0",
    inputs=TensorSpec((3, 4, 4), "uint8"),
    outputs=TensorSpec((10,)),
    batch_max=16,
    default_slo_s=1.0,
    variants=("lite0",),
    stages=("model",),
)

ANSWER = Reply(
    Status.ANSWERED, np.zeros(10, np.float32), 0.4, 0.1, 0.2, 2, 8, "lite0", in_time=True
)


def call(sent_s: float = 0.0, slo_s: float = 1.0) -> Call:
    return Call(np.zeros((3, 4, 4), np.uint8), sent_s, sent_s + slo_s, 48)


def snapshot(now_s: float = 1.0, served: ServedModel = SERVED, **changes: object) -> Snapshot:
    count = len(served.stages)
    told: dict[str, object] = {
        "now_s": now_s,
        "agent": "sponge-ip",
        "last": IntervalMetrics(time_s=now_s, cores=8.0, core_seconds=8.0),
        "cores": (8,) * count,
        "replicas": (1,) * count,
        "batch": (4,) * count,
        "variant": (served.variants[0],) * count,
        "queued": (3,) * count,
        "budgets_s": (-0.1, 0.2, 0.6),
        "ready": True,
    }
    return Snapshot(**told | changes)  # type: ignore[arg-type]


@dataclass
class FakeEngine:
    """Ends every call before ``submit`` returns, as ``ends`` says."""

    served: ServedModel = SERVED
    ends: Callable[[Call], Reply] = lambda _: ANSWER
    now: Snapshot = field(default_factory=snapshot)
    ready: bool = True
    alive: bool = True
    ended: tuple[tuple[Batches, ...], ...] = ()
    taken: list[Call] = field(default_factory=list)
    followers: list[Callable[[Snapshot], None]] = field(default_factory=list)

    def submit(self, call: Call, done: Callable[[Reply], None]) -> int:
        self.taken.append(call)
        done(self.ends(call))
        return len(self.taken)

    def cancel(self, ticket: int) -> None:
        """Nothing waits."""

    def snapshot(self) -> Snapshot:
        return self.now

    def batches(self) -> tuple[tuple[Batches, ...], ...]:
        return self.ended

    def follow(self, follower: Callable[[Snapshot], None]) -> None:
        self.followers.append(follower)

    def tell(self, now: Snapshot) -> None:
        """Say what there is to say after an interval."""
        self.now = now
        for follower in self.followers:
            follower(now)

    def use(self, agent: str) -> None:
        if agent not in ("sponge-ip", "fa2"):
            raise ConfigError(f"unknown agent {agent!r}")
        self.now = snapshot(self.now.now_s, self.served, agent=agent)

    def drain(self, timeout_s: float) -> None:
        self.ready = False


class Story:
    """Minutes of a server: a load that swings, a fade in the network, a crash, a switch."""

    def __init__(self, served: ServedModel, seed: int = 0, rate_rps: float = 24.0) -> None:
        self.engine = FakeEngine(served)
        self.metrics = ServerMetrics(served, wall=lambda: 0.0, batches=self.engine.batches)
        self.history = History(self.metrics)
        self._rng = np.random.default_rng(seed)
        self._rate_rps, self._at = rate_rps, 0

    def play(self, seconds: int) -> None:
        """Let so many seconds pass."""
        for _ in range(seconds):
            self._at += 1
            self._second(self._at)

    def _second(self, t: int) -> None:
        served, rng = self.engine.served, self._rng
        rate = self._rate_rps * (1 + 0.5 * math.sin(t / 40) + 0.8 * (t % 240 > 200))
        fade = 1.0 if 300 <= t % 360 < 312 else 0.0
        arrived, need = int(rng.poisson(rate)), rate / self._rate_rps
        stages = len(served.stages)
        cores = [
            int(np.clip(round(5 * need / (n + 1) + 5 * fade + rng.normal(0, 0.4)), 1, 16))
            for n in range(stages)
        ]
        replicas = [1 + (t % 240 > 205) for _ in range(stages)]
        middle_s = served.default_slo_s * (0.28 + 0.12 * need + 0.4 * fade)
        latencies_s = np.minimum(rng.lognormal(math.log(middle_s), 0.2, arrived), 3.9)
        variant = served.variants[-1 if need < 1.2 and not fade else 0]
        for at, latency_s in enumerate(latencies_s):
            lost = fade and rng.random() < 0.25
            status = Status.REFUSED if lost and at % 2 else Status.EXPIRED if lost else None
            self._end(t, float(latency_s), status, variant)
        crashed = t % 170 == 0
        if crashed:
            self._end(t, 0.5, Status.FAILED, variant)
            self.metrics.rejected(400)
        self.engine.ended = ((Batches(4, 6 * t, 0.3 * t),),) * stages
        waiting = int(rng.poisson(2 * need + 30 * fade))
        spread = served.default_slo_s * rng.uniform(-0.05 - 0.3 * fade, 0.95, waiting)
        held = float(sum(c * r for c, r in zip(cores, replicas, strict=True)))
        queued = (waiting, *(int(rng.poisson(need * 3)) for _ in range(stages - 1)))
        self.engine.now = snapshot(
            float(t),
            served,
            agent="sponge-ip" if t < 480 else "sponge-mpc",
            last=IntervalMetrics(
                time_s=float(t),
                offered=arrived,
                latency_p50_s=float(np.median(latencies_s)) if arrived else math.nan,
                latency_p99_s=math.inf if fade and t % 3 == 0 else _most(latencies_s),
                cores=held,
                core_seconds=held,
                utilisation=float(np.clip(0.55 + 0.2 * rng.normal(), 0.1, 1)),
                throttled_share=0.04,
                restarts=int(crashed),
                decision_s=0.0008,
                running=2,
                feasible=1,
                stages=_stage_metrics(served.stages, cores, replicas),
            ),
            cores=tuple(cores),
            replicas=tuple(replicas),
            batch=(4,) * stages,
            variant=(variant, *["v6"] * (stages - 1)),
            queued=queued,
            budgets_s=tuple(np.sort(spread).tolist()),
        )
        if self.metrics.take(self.engine.now):
            self.history.take(self.engine.now)

    def _end(self, t: int, latency_s: float, status: Status | None, variant: str) -> None:
        asked = call(float(t), self.engine.served.default_slo_s)
        if status is not None:
            self.metrics.observe(asked, Reply(status, finished_s=t + latency_s))
            return
        reply = Reply(
            Status.ANSWERED,
            finished_s=t + latency_s,
            queue_s=latency_s / 3,
            service_s=latency_s / 2,
            batch=4,
            cores=8,
            variant=variant,
            in_time=t + latency_s <= asked.deadline_s,
        )
        self.metrics.observe(asked, reply)


def _most(latencies_s: np.ndarray) -> float:
    return float(latencies_s.max()) if latencies_s.size else math.nan


def _stage_metrics(
    names: Sequence[str], cores: Sequence[int], replicas: Sequence[int]
) -> dict[str, dict[str, float]]:
    if len(names) == 1:
        return {}
    return {
        name: blank(StageMetrics) | {"cores": float(c * r)}
        for name, c, r in zip(names, cores, replicas, strict=True)
    }
