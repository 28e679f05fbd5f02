"""The counters of a server, each kept once: calls as they end, intervals as they pass."""

import math
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from threading import Lock
from typing import Any

from sponge_env.k8s.launcher import Resizes
from sponge_env.serve.interface import VERSION, Batches, Call, Reply, ServedModel, Snapshot, Status

VIOLATIONS = ("late", "refused", "expired", "failed")
"""Outcomes that violate the SLO; those that a client or the server's end brings about do not."""
OUTCOMES = ("on_time", *VIOLATIONS, "cancelled", "stopped", "invalid")
"""How calls end; an answer is the first or the second."""

SLO_SHARES = (1 / 16, 1 / 8, 0.25, 3 / 8, 0.5, 5 / 8, 0.75, 7 / 8, 1.0, 1.125, 1.25, 1.5, 2.0, 4.0)
"""Edges of latencies relative to the SLO, closer to each other where they decide."""
DECISION_S = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Edges of a decision's wall time, from compiled programs to PuLP."""


class Histogram:
    """Counts values up to each edge, as Prometheus does."""

    def __init__(self, edges: Sequence[float]) -> None:
        """Take (n,) ascending edges; the last bucket has none."""
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)  # (n + 1,) values up to each edge, and above all
        self.total = 0.0  # Sum of the values
        self.exemplars: list[tuple[str, float, float] | None] = [None] * len(self.counts)
        """For each count the last trace in it, its value and its time."""

    def add(self, value: float, times: int = 1, trace: str = "", unix_s: float = 0.0) -> None:
        """Count a value, or several equal ones, of a trace if it has one."""
        at = bisect_left(self.edges, value)
        self.counts[at] += times
        self.total += times * value
        if trace:
            self.exemplars[at] = trace, value, unix_s


@dataclass(slots=True)
class Duration:
    """How often something took time, and how much in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count ``times`` more, which took ``seconds`` in all; below 0, by clocks, is 0."""
        self.count += times
        self.ns += max(0, round(seconds * 1e9))


class ServerMetrics:
    """Counts calls and intervals since the server began; safe from any thread."""

    def __init__(
        self, served: ServedModel, wall: Callable[[], float] = time.time, batches: Callable[[],
        Sequence[Sequence[Batches]]] = tuple, resizes: Callable[[], Resizes | None] = lambda: None,
    ) -> None:  # fmt: skip
        """Count for a model, by the clock ``wall``; ``batches``, ``resizes`` are the engine's."""
        self.others: Sequence[ServerMetrics] = ()
        """Those of further models; this one also counts what is not of one model."""
        self.served, self._batches, self._wall, self.lock = served, batches, wall, Lock()
        self.resizes = resizes
        self.outcomes = dict.fromkeys(OUTCOMES, 0)  # Of calls, which are rows of clients' batches
        self.latency = Histogram([served.default_slo_s * part for part in SLO_SHARES])
        """End-to-end, of answers."""
        self.slo_used = Histogram(SLO_SHARES)  # The same relative to each call's own SLO
        self.success, self.fail, self.queue, self.infer = (Duration() for _ in range(4))
        self.input, self.output = Duration(), Duration()
        self.answers: Counter[str] = Counter()  # By variant
        self.last_inference_ms = 0
        self.rejections: Counter[int] = Counter()  # By HTTP status, requests that came to no engine
        self.clamped_clocks = self.not_finite = 0
        self.decisions = Histogram(DECISION_S)
        self.restarts = self.infeasible = 0
        self.cpu_s = self.core_s = self.used_core_s = self.throttled_core_s = 0.0
        """Over the intervals; the last three in core units."""
        self.snapshot: Snapshot | None = None  # The latest

    def batches(self) -> Sequence[Sequence[Batches]]:
        """Return the batches that have ended of each of the model's stages, by size."""
        return self._batches()[self.served.stage :][: len(self.served.stages)]

    def observe(self, call: Call, reply: Reply, counted: bool = False, trace: str = "") -> None:
        """Count a call that has ended; ``counted`` if another row counts for its request."""
        answered, unix_s = reply.status is Status.ANSWERED, self._wall()
        with self.lock:
            self.outcomes[reply.outcome] += 1
            if not counted:
                (self.success if answered else self.fail).add(reply.queue_s + reply.service_s)
            if answered:
                latency_s, slo_s = reply.finished_s - call.sent_s, call.deadline_s - call.sent_s
                share = latency_s / slo_s if slo_s > 0 else math.inf
                self.latency.add(latency_s, 1, trace, unix_s)
                self.slo_used.add(share, 1, trace, unix_s)
                self.queue.add(reply.queue_s)
                self.infer.add(reply.service_s)
                self.answers[reply.variant] += 1
                self.last_inference_ms = int(unix_s * 1000)

    def rejected(self, status: int) -> None:
        """Count a request that never came to the engine."""
        with self.lock:
            self.rejections[status] += 1

    def converted(self, input_s: float, output_s: float) -> None:
        """Count the time in which a front end has read a request and written its answer."""
        with self.lock:
            self.input.add(input_s)
            self.output.add(output_s)

    def count_odd(self, clocks: int = 0, not_finite: int = 0) -> None:
        """Count clients' clocks that cannot be right, and requests that hold NaN or infinity."""
        with self.lock:
            self.clamped_clocks += clocks
            self.not_finite += not_finite

    def take(self, snapshot: Snapshot) -> bool:
        """Count the interval of a snapshot; return False where it has been counted already."""
        with self.lock:
            known, self.snapshot = self.snapshot, snapshot
            last = snapshot.last
            if last is None or (known and known.last and known.last.time_s >= last.time_s):
                return False
            self.decisions.add(last.decision_s)
            self.restarts += last.restarts
            self.infeasible += not last.feasible
            self.cpu_s += last.cpu_s
            self.core_s += last.core_seconds
            self.used_core_s += last.utilisation * last.core_seconds
            self.throttled_core_s += last.throttled_share * last.core_seconds
            return True

    def counts(self) -> dict[str, int]:
        """Return how many calls have ended in each way, of all models."""
        with self.lock:
            counts = dict(self.outcomes)
        for other in self.others:
            counts = {name: count + other.outcomes[name] for name, count in counts.items()}
        return counts

    def statistics(self) -> dict[str, Any]:
        """Return an element of ``model_stats`` of Triton's extension of statistics."""
        # Counts and nanoseconds since the server began. ``success`` and ``fail`` count requests;
        # what stands beside them, calls; ``execution_count`` and ``batch_stats``, all batches.
        none = asdict(Duration())
        not_measured = {"compute_input": none, "compute_output": none}
        measured = {"fail": self.fail, "queue": self.queue, "compute_input": self.input}
        measured |= {"compute_infer": self.infer, "compute_output": self.output}
        by_size: defaultdict[int, Duration] = defaultdict(Duration)
        for each in chain.from_iterable(self.batches()):
            by_size[each.size].add(each.service_s, each.ended)
        with self.lock:
            # Without what it took to receive requests and to send their answers.
            handled_ns = self.success.ns + self.input.ns + self.output.ns
            return {
                "name": self.served.name,
                "version": VERSION,
                "last_inference": self.last_inference_ms,
                "inference_count": self.queue.count,
                "execution_count": sum(each.count for each in by_size.values()),
                "inference_stats": {
                    "success": {"count": self.success.count, "ns": handled_ns},
                    **{name: asdict(each) for name, each in measured.items()},
                    "cache_hit": none,
                    "cache_miss": none,
                },
                "batch_stats": [
                    {"batch_size": size, "compute_infer": asdict(infer), **not_measured}
                    for size, infer in sorted(by_size.items())
                ],
            }
