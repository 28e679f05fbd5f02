"""The simulated worker: replicas on a virtual clock that jumps from event to event.

How long a batch takes is a service's business: :class:`ProfileService` charges the measured
l(b, c), right for whole cores; ``reference.quota.QuotaBucket`` is the kernel's bandwidth control.
"""

import math
from dataclasses import dataclass
from typing import Any

from sponge_env.arrays import total
from sponge_env.interfaces import Batch, Completion, WorkerStatus
from sponge_env.latency import quantile


class ProfileService:
    """Every batch takes l(b, c); a resize rescales the time that is left.

    Loading takes its time on any cores, of which it is no use. Like a ``QuotaBucket`` it says when
    its batch ends if nothing changes, and keeps counters up to where it was advanced.
    """

    throttled_s = 0.0

    def __init__(self, latency_s, cores):
        """Start idle; ``latency_s`` is (batch_max, cores_max)."""
        self._latency_s, self._cores = latency_s, cores
        self._size = 0  # 0 while loading
        self._since_s, self.finish_s, self.used_core_s = 0.0, 0.0, 0.0

    def load(self, now_s, cold_start_s, loading):
        self._size, self.finish_s = 0, now_s + cold_start_s

    def start(self, now_s, size, noise):
        self._size, self._since_s = size, now_s
        self.finish_s = now_s + float(self._latency_s[size - 1, self._cores - 1]) * noise

    def advance(self, now_s):
        to_s = min(now_s, self.finish_s)
        if self._size and to_s > self._since_s:
            self.used_core_s += (to_s - self._since_s) * self._cores
            self._since_s = to_s

    def resize(self, now_s, cores):
        self.advance(now_s)
        if self._size and self.finish_s > now_s:
            old, new = self._latency_s[self._size - 1, [self._cores - 1, cores - 1]]
            self.finish_s = now_s + (self.finish_s - now_s) * float(new / old)
        self._cores = cores

    def share(self, now_s, cores):
        """Do nothing: whole cores are a replica's own."""


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, and the batch that it runs."""

    id: int
    cores: int
    node: int
    ready_s: float
    service: Any
    batch: Batch | None = None
    started_s: float = 0.0
    draining: bool = False

    def is_idle(self, now_s):
        return self.batch is None and self.ready_s <= now_s

    def completion(self, finished_s, ok):
        return Completion(self.batch, self.id, self.started_s, finished_s, ok)


class SimulatedWorker:
    """Serves batches in virtual time; implements ``interfaces.Worker``."""

    limiter = "simulated"

    def __init__(
        self, make_service, initial, *, cold_start_s, actuation_delay_s=0.0, nodes=(1 << 30,),
        cpu_cores=math.inf, noise=lambda: 1.0,
    ):  # fmt: skip
        """Start at time 0 with the initial replicas warm."""
        self._make_service, self._noise = make_service, noise
        self._cold_start_s, self._actuation_delay_s = cold_start_s, actuation_delay_s
        self._nodes, self.cpu_cores = nodes, cpu_cores
        self._now_s = 0.0
        self._target, self._cores = initial.stages[0], initial.stages[0].cores
        self._next_id, self._replicas = 0, []
        self.pending = []  # when resizes that were asked for come into force
        self.in_force = [(-math.inf, self._cores)]  # when resizes came into force, and their cores
        self._crashed = []
        self._retired_core_s = self._retired_throttled_s = 0.0
        self._restarts = 0
        self._held = self._held_since_s = self._held_core_s = 0.0
        for _ in range(initial.stages[0].replicas):
            self._add_replica(self._cores, self._next_node())
        self._update_held()

    def now(self):
        return self._now_s

    def idle(self, stage=0):
        return sum(replica.is_idle(self._now_s) for replica in self._replicas)

    def start(self, batch):
        """Give a batch to the idle replica with the lowest id."""
        replica = next((r for r in self._replicas if r.is_idle(self._now_s)), None)
        if replica is None:
            raise RuntimeError("no replica is idle")
        replica.batch, replica.started_s = batch, self._now_s
        replica.service.start(self._now_s, batch.size, self._noise())

    def wait(self, until_s):
        if self._crashed:
            crashed, self._crashed = self._crashed, []
            return crashed
        self._now_s = max(self._now_s, min([until_s, *self.events_s()]))
        while self.pending and self.pending[0][0] <= self._now_s:
            self._apply(self.pending.pop(0)[1])
        completions = self._take_completions()
        self._fit()  # those that have become ready get their cores
        return completions

    def forget(self, requests):
        """Do nothing: nothing is kept of requests."""

    def wake(self):
        """Do nothing: virtual time never blocks."""

    def resize(self, allocation):
        """Put an allocation in force, after the actuation delay if there is one."""
        if self._actuation_delay_s > 0:
            self.pending.append((self._now_s + self._actuation_delay_s, allocation))
        else:
            self._apply(allocation)

    def hold(self):
        """Do nothing: the virtual clock stands still by itself."""

    def release(self):
        return 0.0

    def status(self, stage=0):
        for replica in self._replicas:
            replica.service.advance(self._now_s)
        starting_s = sorted(r.ready_s - self._now_s for r in self._staying if self._is_cold(r))
        services = [replica.service for replica in self._replicas]
        return WorkerStatus(
            ready=len(self._staying) - len(starting_s), starting_s=tuple(starting_s),
            held_cores=self._held, effective_cores=float(self._cores),
            core_seconds=self._held_core_s + self._held * (self._now_s - self._held_since_s),
            used_core_seconds=self._retired_core_s + total(s.used_core_s for s in services),
            cpu_s=0.0,
            throttled_s=self._retired_throttled_s + total(s.throttled_s for s in services),
            restarts=self._restarts, actuation_s=0.0,
        )  # fmt: skip

    def close(self):
        """Do nothing: nothing is held."""

    def crash(self, spared=-1):
        """Kill the first replica that serves, a busy one if there is one; restart it cold."""
        serving = [r for r in self._replicas if not self._is_cold(r) and r.id != spared]
        if not serving:
            raise RuntimeError("no replica serves that could crash")
        replica = min(serving, key=lambda r: (r.batch is None, r.id))
        if replica.batch is not None:
            self._crashed.append(replica.completion(self._now_s, ok=False))
        self._retire(replica)
        self._restarts += 1
        self._fit()

    def events_s(self):
        self._share_cpu()
        ends = [r.service.finish_s for r in self._replicas if r.batch is not None]
        ready = [r.ready_s for r in self._replicas if self._is_cold(r)]
        return ends + ready + [time_s for time_s, _ in self.pending[:1]]

    def _is_cold(self, replica):
        return replica.ready_s > self._now_s

    @property
    def _staying(self):
        return [replica for replica in self._replicas if not replica.draining]

    def _share_cpu(self):
        """Let each replica that serves or loads have an equal part of the CPU, if it needs it."""
        busy, level, left = len(self._replicas) - self.idle(), math.inf, self.cpu_cores
        for cores, others in zip(self._wanted(), range(busy, 0, -1), strict=True):
            level = left / others  # who wants less leaves the rest to the others
            if cores > level:
                break
            left, level = left - cores, math.inf
        for replica in self._replicas:
            cores = float(replica.cores)
            if not replica.is_idle(self._now_s):
                cores = min(cores, level)
            replica.service.share(self._now_s, cores)
            self._follow_loading(replica)

    def _wanted(self):
        """Return the cores of those that serve or load, ascending."""
        return sorted(r.cores for r in self._replicas if not r.is_idle(self._now_s))

    def _follow_loading(self, replica):
        if self._is_cold(replica):
            replica.ready_s = replica.service.finish_s

    def _take_completions(self):
        ended = [r for r in self._replicas if r.batch and r.service.finish_s <= self._now_s]
        ended.sort(key=lambda replica: (replica.service.finish_s, replica.id))
        completions = [r.completion(r.service.finish_s, ok=True) for r in ended]
        for replica in ended:
            replica.service.advance(replica.service.finish_s)
            replica.batch = None
            if replica.draining:
                self._retire(replica)
                self._fit()
        return completions

    def _apply(self, allocation):
        """Put an allocation in force, as far as the machine has room for it."""
        # Cold replicas go first, then those on the node with the least room, idle ones before busy
        # ones, which finish their batch; the youngest first.
        self._target = allocation.stages[0]
        self.in_force.append((self._now_s, self._target.cores))
        while len(staying := self._staying) > self._target.replicas:
            kinds = [(not self._is_cold(r), self._room()[r.node], bool(r.batch)) for r in staying]
            _, _, replica = min(zip(kinds, (-r.id for r in staying), staying, strict=True))
            if replica.batch is None:
                self._retire(replica)
            replica.draining = True
        self._fit()

    def _fit(self):
        """Come as close to the allocation as those that still drain, and hold cores, allow."""
        # One core each goes to those that start, and as many to each of the others as are left; if
        # there are no others, those that start share all.
        places, missing = [], self._target.replicas - len(self._staying)
        while len(places) < missing and (node := self._next_node(places)) is not None:
            places.append(node)
        cold = [*places, *(r.node for r in self._replicas if self._is_cold(r))]
        warm = [r.node for r in self._replicas if not self._is_cold(r)]
        apart, sharing = (cold, warm) if warm else ([], cold)
        shares = [(self._nodes[n] - apart.count(n)) // sharing.count(n) for n in sharing]
        self._cores = max(1, min([self._target.cores, *shares]))
        few = 1 if warm else self._cores
        for replica in self._replicas:
            own = few if self._is_cold(replica) else self._cores
            if replica.cores != own:
                replica.cores = own
                replica.service.resize(self._now_s, own)
                self._follow_loading(replica)
        new = [self._add_replica(few, node) for node in places]
        for replica in new:
            replica.service.load(self._now_s, self._cold_start_s, len(cold))
            replica.ready_s = replica.service.finish_s
        if any(not self._is_cold(replica) for replica in new):  # there is no cold start
            self._fit()
        self._update_held()

    def _room(self, places=()):
        """Return the cores of each node that are left when those that stay have what is asked."""
        held = [*places, *(replica.node for replica in self._staying)]
        return [all - held.count(n) * self._target.cores for n, all in enumerate(self._nodes)]

    def _next_node(self, places=()):
        """Return the node with the most room of those with a core for another replica."""
        held, room = [*places, *(replica.node for replica in self._replicas)], self._room(places)
        free = [n for n, all in enumerate(self._nodes) if held.count(n) < all]
        return max(free, key=lambda n: room[n], default=None)

    def _add_replica(self, cores, node):
        replica = Replica(self._next_id, cores, node, self._now_s, self._make_service(cores))
        self._replicas.append(replica)
        self._next_id += 1
        return replica

    def _retire(self, replica):
        replica.service.advance(self._now_s)
        self._retired_core_s += replica.service.used_core_s
        self._retired_throttled_s += replica.service.throttled_s
        self._replicas.remove(replica)
        self._update_held()

    def _update_held(self):
        self._held_core_s += self._held * (self._now_s - self._held_since_s)
        self._held, self._held_since_s = float(sum(r.cores for r in self._replicas)), self._now_s


def noise_source(quantiles, scale, rng):
    """Make a source of multiplicative noise from a profile's scatter."""
    return lambda: max(0.05, 1.0 + scale * quantile(quantiles, rng.random()))
