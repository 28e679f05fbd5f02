"""Minutes of a server, as its metrics and its page see them."""

import dataclasses
import math

import numpy as np
from fake_engine import FakeEngine

from sponge_env.metrics import IntervalMetrics, StageMetrics
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Batches, Call, Reply, ServedModel, Snapshot, Status
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.monitor.page import History

SERVED = ServedModel(
    name="lite0", inputs=TensorSpec((3, 4, 4), "uint8"), outputs=TensorSpec((10,)), batch_max=16,
    default_slo_s=1.0, variants=("lite0",), stages=("model",),
)  # fmt: skip

ANSWER = Reply(Status.ANSWERED, np.zeros((1, 10), "f4"), 0.4, 0.1, 0.2, 2, 8, "lite0", in_time=True)


def call(sent_s=0.0, slo_s=1.0):
    return Call(np.zeros((3, 4, 4), np.uint8), sent_s, sent_s + slo_s, 48)


def snapshot(now_s=1.0, served=SERVED, **changes):
    count, last = len(served.stages), IntervalMetrics(time_s=now_s, cores=8.0, core_seconds=8.0)
    usual = Snapshot(
        now_s, "sponge-ip", last, (8,) * count, (1,) * count, (4,) * count,
        (served.variants[0],) * count, (3,) * count, (-0.1, 0.2, 0.6), True,
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


class Story:
    """A load that swings, a crash, and changing variants."""

    def __init__(self, served, seed=0, rate_rps=24.0, **options):
        self.engine = engine = FakeEngine(served)
        engine.now = snapshot(served=served)
        self.metrics = ServerMetrics(served, lambda: 0.0, engine.batches, **options)
        self.history = History(self.metrics)
        self._rng, self._rate_rps, self._at = np.random.default_rng(seed), rate_rps, 0

    def play(self, seconds):
        for t in range(self._at + 1, self._at + seconds + 1):
            self._play_second(t)
        self._at += seconds

    def _play_second(self, t):
        served, rng = self.engine.served, self._rng
        rate, crashed = self._rate_rps * (1 + 0.5 * math.sin(t / 40)), t % 170 == 0
        variant = served.variants[-1 if rate < self._rate_rps else 0]
        latencies_s = served.default_slo_s * rng.lognormal(-1, 0.5, int(rng.poisson(rate)))
        for latency_s in latencies_s.tolist():
            self._end(t, latency_s, Status.ANSWERED, variant)
        if crashed:
            self._end(t, 0.5, Status.FAILED, variant)
            self.metrics.rejected(400)
        count = len(served.stages)
        cores = rng.integers(1, 9, count).tolist()
        self.engine.ended = ((Batches(4, 6 * t, 0.3 * t),),) * count
        waiting, own = int(rng.poisson(2)), zip(served.stages, map(float, cores), strict=True)
        stages = {name: dataclasses.asdict(StageMetrics()) | {"cores": held} for name, held in own}
        last = IntervalMetrics(
            time_s=float(t),
            latency_p50_s=float(np.quantile(latencies_s, 0.5)) if latencies_s.size else math.nan,
            latency_p99_s=math.inf if t % 50 == 0 else float(latencies_s.max(initial=0.0)),
            cores=float(sum(cores)), core_seconds=float(sum(cores)), utilisation=0.5,
            restarts=int(crashed), running=2, feasible=1, stages=stages if count > 1 else {},
        )  # fmt: skip
        self.engine.now = snapshot(
            float(t), served, last=last, cores=tuple(cores),
            variant=(variant, *["v6"] * (count - 1)), queued=(waiting, *[0] * (count - 1)),
            budgets_s=tuple(np.sort(rng.uniform(-0.05, 0.95, waiting)).tolist()),
        )  # fmt: skip
        self.history.take(self.engine.now)

    def _end(self, t, latency_s, status, variant):
        slo_s = self.engine.served.default_slo_s
        in_time = status is Status.ANSWERED and latency_s <= slo_s
        times_s = t + latency_s, latency_s / 3, latency_s / 2
        reply = Reply(status, None, *times_s, 4, 8, variant, in_time=in_time)
        self.metrics.observe(call(float(t), slo_s), reply)
