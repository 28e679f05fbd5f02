"""Queue, batches, metrics and view of a system of one stage, request by request."""

import math
from bisect import insort
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from sponge_env.arrays import total
from sponge_env.interfaces import HISTORY, Batch, RunningBatch

ROUNDING_S = 1e-9  # a shorter transfer is none: delay and base delay differ by rounding only


@dataclass(eq=False)
class Request:
    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float
    outcome: str = "queued"
    started_s: float = math.nan  # start of its last batch
    finished_s: float = math.nan
    batch_size: int = 0
    replica: int = -1
    attempts: int = 0  # batches it was part of; above 1 after a crash

    @property
    def delay_s(self):
        return self.arrival_s - self.sent_s

    @property
    def budget_s(self):
        return self.deadline_s - self.arrival_s


GIVEN = ("id", "sent_s", "arrival_s", "deadline_s", "payload_bytes")
RESULTS = ("outcome", "started_s", "finished_s", "batch_size", "replica", "attempts")


def requests_of(workload):
    columns = (getattr(workload, name).tolist() for name in GIVEN)
    return [Request(*row) for row in zip(*columns, strict=True)]


def batch_in_time(takes_s, left_s, waiting):
    """Return how many requests a batch may have for its first to be in time, 0 if none may."""
    # Nor may a batch whose throughput is 5 % below that of a full one, if there are more requests.
    full = min(len(takes_s), waiting)
    size = max((n for n in range(1, full + 1) if takes_s[n - 1] <= left_s), default=0)
    slower = size and size / takes_s[size - 1] < 0.95 * full / takes_s[full - 1]
    return 0 if slower and waiting > full else size


class System:
    """Queue, batches, ledger and worker under control."""

    def __init__(self, scenario, spec, requests, worker, fastest_s, one_core_s, takes_s):
        self.spec, self.intervals, self._scenario = spec, scenario.intervals, scenario
        self.worker = worker
        self._fastest_s, self._one_core_s, self._takes_s = fastest_s, one_core_s, takes_s
        self._coming, self._arrived = list(requests), 0
        self._queue, self._running = [], {}
        self._batches = self._interval = 0
        self._allocation, self._new, self._ended = spec.initial, [], []
        self._completions, self._arrivals, self._mean_delays_s = [], [], []
        self._bandwidths = []
        self._status, self._measured_s = worker.status(), worker.now()

    @property
    def done(self):
        return self._interval >= self.intervals

    def step(self, allocation):
        self._new, self._ended, self._completions = [], [], []
        self.worker.resize(allocation)
        self._allocation = allocation
        self._interval += 1
        self._serve(self._interval * self.spec.interval_s, arriving=True)
        self._remember()
        return self._measure()

    def drain(self):
        """Serve what is left; what still waits when the last deadline has passed is dropped."""
        left = [r for requests, _ in self._running.values() for r in requests] + self._queue
        last_s = max((request.deadline_s for request in left), default=0.0)
        while (self._queue or self._running) and self.worker.now() < last_s:
            self._serve(min(last_s, self.worker.now() + self.spec.interval_s), arriving=False)
        self._drop(list(self._queue))
        while self._running:
            for completion in self.worker.wait(self.worker.now() + self.spec.interval_s):
                self._settle(completion)

    def columns(self):
        rows = self._coming[: self._arrived]
        columns = {n: np.array([getattr(r, n) for r in rows]) for n in (*GIVEN, *RESULTS[1:])}
        outcome = np.array([request.outcome for request in rows], str)
        hopeless = np.array([self._hopeless(r) for r in rows], bool)
        short = np.array([r.budget_s < self._one_core_s for r in rows], bool)
        there = [request.outcome in ("queued", "running") for request in rows]
        answered = [request.outcome in ("on_time", "late") for request in rows]
        return {
            **columns, "outcome": outcome, "hopeless": hopeless, "needs_cores": short & ~hopeless,
            "accuracy": np.where(answered, 1.0, np.nan), "stage": -np.array(there, int),
        }  # fmt: skip

    def view(self):
        now_s, in_force, pending = self.worker.now(), self.worker.in_force, self.worker.pending
        return SimpleNamespace(
            now_s=now_s, delays_s=np.array([r.delay_s for r in self._new], float),
            budgets_s=np.array([r.budget_s for r in self._new], float),
            mean_delays_s=np.array(self._mean_delays_s[-HISTORY:], float),
            bandwidths_bytes_per_s=np.array(self._bandwidths[-HISTORY:], float),
            stage=SimpleNamespace(
                queued_deadlines_s=np.array(sorted(r.deadline_s for r in self._queue), float),
                running=tuple(
                    RunningBatch(len(requests), started_s, self._planned_end_s(requests, started_s))
                    for requests, started_s in self._running.values()),
                allocation=self._allocation.stages[0], replicas_ready=self._status.ready,
                starting_s=self._status.starting_s, cores_in_force=in_force[-1][1],
                arrivals=np.array(self._arrivals[-HISTORY:], float),
                pending=tuple((time_s - now_s, each.stages[0].cores) for time_s, each in pending)),
        )  # fmt: skip

    def _serve(self, until_s, arriving):
        """Serve until a moment, at which nothing is started any more."""
        # A batch starts as soon as a replica is idle and a request waits. What falls together
        # happens in this order: batches end, requests arrive, batches start.
        while True:
            now_s, next_s = self.worker.now(), math.inf
            if arriving:
                next_s = self._take_in(min(now_s, until_s))
            if now_s >= until_s:
                self._drop_expired()
                return
            while self.worker.idle() and self._start_batch():
                pass
            for completion in self.worker.wait(min(until_s, next_s)):
                self._settle(completion)

    def _take_in(self, until_s):
        while self._arrived < len(self._coming):
            request = self._coming[self._arrived]
            if request.arrival_s > until_s:
                return request.arrival_s
            self._arrived += 1
            self._new.append(request)
            self._enqueue(request)
        return math.inf

    def _enqueue(self, request):
        """Let a request wait: earliest deadline or, if the scenario says so, first come first."""
        fifo = self._scenario.serving.order == "fifo"
        insort(self._queue, request, key=lambda r: (r.arrival_s if fifo else r.deadline_s, r.id))

    def _start_batch(self):
        self._drop_expired()
        requests = self._queue[: self._batch_limit()]
        if not requests:
            return False
        alone = [k for k, request in enumerate(requests) if request.attempts == 2]
        requests = requests[: max(1, alone[0]) if alone else None]
        del self._queue[: len(requests)]
        for request in requests:
            request.outcome = "running"
            request.attempts += 1
        self._batches += 1
        self._running[self._batches] = requests, self.worker.now()
        self.worker.start(Batch(self._batches, tuple(request.id for request in requests)))
        return True

    def _batch_limit(self):
        """Return how large a batch may be; drop those first that none would answer in time."""
        limit, serving = self._allocation.stages[0].batch, self._scenario.serving
        if serving.drop != "unmeetable" or serving.order == "fifo":
            return limit
        while self._queue:
            takes_s = self._takes_s[:limit, self.worker.in_force[-1][1] - 1]
            left_s = self._queue[0].deadline_s - self.worker.now()
            if size := batch_in_time(takes_s, left_s, len(self._queue)):
                return size
            self._drop(self._queue[:1])
        return 0

    def _drop_expired(self):
        limit_s = self.worker.now() + self._scenario.serving.drop_below_s(self._fastest_s)
        self._drop([request for request in self._queue if request.deadline_s < limit_s])

    def _drop(self, requests):
        for request in requests:
            self._queue.remove(request)
            request.outcome, request.finished_s = "dropped", self.worker.now()
            self._ended.append(request)

    def _settle(self, completion):
        """Enter the end of a batch; those with budget left wait again if its replica died."""
        requests, _ = self._running.pop(completion.batch.id)
        self._completions.append(completion)
        for request in requests:
            in_time = completion.finished_s <= request.deadline_s
            again = request.attempts < 3 and completion.finished_s < request.deadline_s
            if not completion.ok and again:
                request.outcome = "queued"
                self._enqueue(request)
                continue
            request.outcome = ("on_time" if in_time else "late") if completion.ok else "failed"
            request.started_s, request.finished_s = completion.started_s, completion.finished_s
            request.batch_size, request.replica = len(requests), completion.replica
            self._ended.append(request)

    def _hopeless(self, request):
        return request.budget_s < self._fastest_s

    def _planned_end_s(self, requests, started_s):
        """When the latency model expects a running batch to end, whatever was resized since."""
        stage, in_force = self.spec.first, self.worker.in_force
        row_s = stage.latencies[0].table_s(stage.batch_max, stage.cores_max)[len(requests) - 1]
        before = [cores for time_s, cores in in_force if time_s <= started_s]
        old = before[-1]
        end_s = started_s + row_s[old - 1]
        for time_s, new in in_force[len(before) :]:
            end_s, old = time_s + max(0.0, end_s - time_s) * row_s[new - 1] / row_s[old - 1], new
        return float(end_s)

    def _remember(self):
        """Note the interval's arrivals; without any it repeats delay and bandwidth before it."""
        new, base_s = self._new, self._scenario.network.base_delay_s
        mean_s = self._mean_delays_s[-1] if self._mean_delays_s else math.nan
        bandwidth = self._bandwidths[-1] if self._bandwidths else math.nan
        if new:
            total_s = total(r.delay_s for r in new)
            transfer_s, mean_s = total_s - base_s * len(new), total_s / len(new)
            if transfer_s > ROUNDING_S * len(new):
                bandwidth = total(r.payload_bytes for r in new) / transfer_s
        self._arrivals.append(float(len(new)))
        self._mean_delays_s.append(mean_s)
        self._bandwidths.append(bandwidth)

    def _measure(self):
        before, self._status = self._status, self.worker.status()
        elapsed_s, self._measured_s = self.worker.now() - self._measured_s, self.worker.now()
        asked, stage = self._allocation.stages[0], self.spec.first
        metrics = {
            "time_s": self._interval * self.spec.interval_s, **self._requests_measured(),
            **latencies_measured(self._ended), **batches_measured(self._completions),
            **resources_measured(before, self._status, elapsed_s, stage.core_unit),
            "requested_cores": asked.cores, "batch": asked.batch, "replicas": asked.replicas,
            "delay_mean_s": self._mean_delays_s[-1],
            "delay_max_s": max((r.delay_s for r in self._new), default=math.nan),
            "bandwidth_bytes_per_s": self._bandwidths[-1],
            "feasible": int(self._allocation.feasible),
        }  # fmt: skip
        return metrics | {"reward": self._reward(metrics)}

    def _requests_measured(self):
        ended, names = self._ended, ("on_time", "late", "dropped", "failed")
        counts = {n: sum(r.outcome == n for r in ended) for n in names}
        missed = [request for request in ended if request.outcome != "on_time"]
        return {
            **counts, "offered": len(self._new), "hopeless": sum(map(self._hopeless, self._new)),
            "violations": len(missed),
            "avoidable_violations": sum(not self._hopeless(request) for request in missed),
            "violation_rate": len(missed) / len(ended) if ended else 0.0,
            "queued": len(self._queue),
            "running": sum(len(requests) for requests, _ in self._running.values()),
        }  # fmt: skip

    def _reward(self, metrics):
        """Charge the cores held and the requests that missed their deadline; credit accuracy."""
        weights, held = self._scenario.reward, metrics["cores"] / self.spec.total_cores
        accuracy = metrics["effective_accuracy"]
        gained = 0.0 if math.isnan(accuracy) else weights.accuracy_weight * accuracy
        return -held - weights.violation_weight * metrics["violation_rate"] + gained


def latencies_measured(ended):
    """Return end-to-end latencies and accuracies of what ended; the lost take for ever."""
    answered = [r for r in ended if r.outcome in ("on_time", "late")]
    times_s = sorted(r.finished_s - r.sent_s for r in answered)
    of_all = [*times_s, *[math.inf] * (len(ended) - len(times_s))]
    in_time = sum(request.outcome == "on_time" for request in ended)
    return {
        "latency_mean_s": total(times_s) / len(times_s) if times_s else math.nan,
        "latency_p50_s": quantile(of_all, 0.5), "latency_p99_s": quantile(of_all, 0.99),
        "accuracy": 1.0 if answered else math.nan,
        "effective_accuracy": in_time / len(ended) if ended else math.nan,
    }  # fmt: skip


def quantile(values, probability):
    if not values:
        return math.nan
    position = probability * (len(values) - 1)
    low, high = values[math.floor(position)], values[math.ceil(position)]
    return high if math.isinf(high) else low + (position - math.floor(position)) * (high - low)


def batches_measured(completions):
    sizes = [completion.batch.size for completion in completions]
    service_s = [c.finished_s - c.started_s for c in completions if c.ok]
    return {
        "batch_mean": sum(sizes) / len(sizes) if sizes else math.nan,
        "service_mean_s": total(service_s) / len(service_s) if service_s else math.nan,
    }


def resources_measured(before, after, elapsed_s, core_unit):
    """Return what was held and used between two states of the worker, ``elapsed_s`` apart."""
    core_seconds = after.core_seconds - before.core_seconds
    used = after.used_core_seconds - before.used_core_seconds
    stopped = (after.throttled_s - before.throttled_s) * after.effective_cores
    return {
        "cores": core_seconds / elapsed_s, "core_seconds": core_seconds,
        "physical_core_seconds": core_seconds * core_unit, "effective_cores": after.effective_cores,
        "replicas_ready": after.ready,
        "utilisation": min(1.0, used / core_seconds) if core_seconds > 0 else 0.0,
        "throttled_share": stopped / core_seconds if core_seconds > 0 else 0.0,
        "restarts": after.restarts - before.restarts,
    }  # fmt: skip
