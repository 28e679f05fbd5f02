"""The service of a replica under a CPU quota, as Linux enforces it.

A quota is not a slower CPU: a lone small batch runs at full speed, only back-to-back work
is slowed down to the share, and a batch that finds the quota overdrawn waits before it begins.
"""

import math
from dataclasses import dataclass, replace

from sponge_env.latency import CONTENDING

SLICE_S = 0.005  # what a CPU draws on the group's pool at once (``sched_cfs_bandwidth_slice_us``)
KEPT_S = 0.001  # what it keeps of that when the group falls asleep (``min_cfs_rq_runtime``)
NANOSECOND_S = 1e-9  # the kernel counts in whole ones: less than that is nothing


@dataclass
class Account:
    """All that changes while work goes on."""

    refill_s: float  # the next refill
    pool_s: float
    now_s: float = 0.0
    left_s: float = 0.0  # CPU time the batch still needs; 0 while the group sleeps
    slice_s: float = 0.0  # what the CPU has drawn and not spent; a debt below 0
    stopped: bool = False
    used_core_s: float = 0.0
    throttled_s: float = 0.0


class QuotaBucket:
    """The account that Linux keeps of a group's CPU time, on the one CPU it is pinned to.

    At fixed moments, a period apart, the group's pool is filled up to the quota; what was not used
    is lost. The CPU draws on the pool in slices and spends them at full speed. It looks whether its
    slice is used up at the ticks of the kernel's clock only, and when the group falls asleep. If
    the pool is empty then, the group has overdrawn by up to a tick, and stops until the refills of
    the periods that follow have paid for that. Writing a quota fills the pool and forgives the
    debt. Loading the model is work like a batch. Where replicas want more of the CPU than there is,
    the fair scheduler gives each an equal part, which is here a smaller quota.
    """

    def __init__(self, quota, work_s, core_unit, cores, phase=0.0):
        self._quota, self._work_s, self._core_unit = quota, work_s, core_unit
        self._grant(float(cores))
        self._now = Account(phase * quota.period_s, self._granted_s)
        self._end = self._now  # as it will be when the work is done
        self._wake_s = self._resume_s = 0.0  # idle penalty, and what each pause costs
        self.finish_s = 0.0

    @property
    def used_core_s(self):
        return self._now.used_core_s

    @property
    def throttled_s(self):
        return self._now.throttled_s

    def load(self, now_s, cold_start_s, loading):
        self._wake_s = self._resume_s = 0.0
        contention = min(1.0, (loading - 1) / (CONTENDING - 1))
        slowdown = 1.0 + (self._quota.loading_contention - 1.0) * contention
        self._wake(now_s, cold_start_s * self._core_unit * slowdown)

    def start(self, now_s, size, noise):
        self._wake_s, self._resume_s = self._quota.wake_cost_s, self._quota.resume_s
        dispatch_s = self._quota.dispatch_s + size * self._quota.dispatch_request_s
        self._wake(now_s + dispatch_s, float(self._work_s[size - 1]) * noise)

    def advance(self, now_s):
        if self._now.left_s > 0:
            if now_s >= self.finish_s:
                self._now = replace(self._end)
            else:
                self._run(self._now, now_s)

    def resize(self, now_s, cores):
        self.advance(now_s)
        self._catch_up(now_s, paying=False)
        self._grant(float(cores))
        self._now = replace(self._now, pool_s=self._granted_s, slice_s=0.0, stopped=False)
        self._predict()

    def share(self, now_s, cores):
        """Get a part of the CPU, which neither fills the pool nor forgives the debt."""
        if cores != self._share:
            self.advance(now_s)
            self._catch_up(now_s)
            self._grant(cores)
            self._now.pool_s = min(self._now.pool_s, self._granted_s)
            self._predict()

    def _grant(self, cores):
        self._share, self._granted_s = cores, cores * self._core_unit * self._quota.period_s

    def _wake(self, now_s, work_s):
        self.advance(now_s)
        self._catch_up(now_s)
        rested = now_s - self._now.now_s >= self._quota.idle_s
        self._now.now_s, self._now.left_s = now_s, work_s + rested * self._wake_s
        self._predict()

    def _catch_up(self, now_s, paying=True):
        """Pass the refills until ``now_s`` of a group that sleeps, or whose debt is forgiven."""
        account, period_s = self._now, self._quota.period_s
        while paying and account.stopped and account.refill_s <= now_s:
            self._refill(account)
        if account.refill_s <= now_s:
            account.refill_s += (math.floor((now_s - account.refill_s) / period_s) + 1) * period_s
            account.pool_s = self._granted_s

    def _predict(self):
        if self._now.left_s > 0:
            self._end = replace(self._now)
            self._run(self._end, math.inf)
            self.finish_s = self._end.now_s

    def _run(self, account, until_s):
        while account.left_s > 0 and account.now_s < until_s:
            if account.stopped:
                to_s = min(account.refill_s, until_s)
                account.throttled_s += to_s - account.now_s
                account.now_s = to_s
                if to_s == account.refill_s:
                    self._refill(account)
            else:
                self._spend(account, until_s)

    def _spend(self, account, until_s):
        """Run until the next event: end, refill, or a tick at which the slice is used up."""
        limited = self._granted_s < self._quota.period_s
        refill_s = empty_s = math.inf
        if limited:
            refill_s = account.refill_s
            ticks = math.ceil((account.now_s + account.slice_s - NANOSECOND_S) / self._quota.tick_s)
            empty_s = max(account.now_s, ticks * self._quota.tick_s)
        to_s = min(account.now_s + account.left_s, refill_s, empty_s, until_s)
        done_s = to_s - account.now_s
        account.now_s = to_s
        account.left_s -= done_s
        account.slice_s -= done_s * limited
        account.used_core_s += done_s / self._core_unit
        if to_s == refill_s:
            self._refill(account)
        if account.left_s < NANOSECOND_S:
            self._sleep(account)
        elif to_s == empty_s:
            self._draw(account)

    def _refill(self, account):
        account.refill_s += self._quota.period_s
        account.pool_s = self._granted_s
        if account.stopped:
            paid_s = min(account.pool_s, -account.slice_s)
            account.pool_s -= paid_s
            account.slice_s += paid_s
            account.stopped = account.slice_s <= -NANOSECOND_S
            if account.left_s > 0 and not account.stopped:
                account.left_s += self._resume_s

    @staticmethod
    def _draw(account):
        drawn_s = min(account.pool_s, SLICE_S - account.slice_s)
        account.pool_s -= drawn_s
        account.slice_s += drawn_s
        account.stopped = account.slice_s < NANOSECOND_S

    def _sleep(self, account):
        account.left_s = 0.0
        if account.slice_s < NANOSECOND_S:
            self._draw(account)
        elif account.slice_s > KEPT_S:
            account.pool_s += account.slice_s - KEPT_S
            account.slice_s = KEPT_S
