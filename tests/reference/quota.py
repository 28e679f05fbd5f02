"""The service of a replica under a CPU quota, as Linux enforces it.

A quota is not a slower CPU: a lone small batch runs at full speed, only back-to-back work
is slowed down to the share, and a batch that finds the quota overdrawn waits before it
begins.
"""

from __future__ import annotations

import math

from sponge_env.interfaces import FloatArray
from sponge_env.latency import CONTENDING, QuotaService

SLICE_S = 0.005
"""What a CPU draws on the group's pool at once (``sched_cfs_bandwidth_slice_us``)."""
KEPT_S = 0.001
"""What it keeps of that when the group falls asleep (``min_cfs_rq_runtime``)."""
NANOSECOND_S = 1e-9
"""The kernel counts in whole ones: less than that is nothing."""


_Account = tuple[float, float, float, float, float, bool, float, float]


class QuotaBucket:
    """The account that Linux keeps of a group's CPU time, on the one CPU it is pinned to.

    At fixed moments, a period apart, the group's pool is filled up to the quota; what was
    not used is lost. The CPU draws on the pool in slices and spends them at full speed. It
    looks whether its slice is used up at the ticks of the kernel's clock only, and when the
    group falls asleep. If the pool is empty then, the group has overdrawn by up to a tick,
    and stops until the refills of the periods that follow have paid for that. Writing a
    quota fills the pool and forgives the debt. To load the model is work like a batch.
    Where replicas want more of the CPU than there is, the fair scheduler gives each an equal
    part, which is here a smaller quota.

    Source: ``kernel/sched/fair.c`` of Linux 6.18 (``__assign_cfs_rq_runtime``,
    ``throttle_cfs_rq``, ``distribute_cfs_runtime``, ``__return_cfs_rq_runtime``,
    ``tg_set_cfs_bandwidth``), and docs/fidelity.md for how well it does.
    """

    def __init__(
        self,
        quota: QuotaService,
        work_s: FloatArray,
        core_unit: float,
        cores: int,
        phase: float = 0.0,
    ) -> None:
        """Start idle, with a full pool.

        Args:
            quota: Period, tick and dispatch overhead.
            work_s: (batch_max,) CPU seconds of a batch at full speed.
            core_unit: Physical cores in a core unit.
            cores: Core units at first.
            phase: Moment of the refills within a period of the clock, in periods.
        """
        self._quota = quota
        self._work_s = work_s
        self._core_unit = core_unit
        self._share = float(cores)
        self._granted_s = self._share * core_unit * quota.period_s
        self._refill_s = phase * quota.period_s  # the next one
        self._pool_s = self._granted_s
        self._slice_s = 0.0  # what the CPU has drawn and not spent; a debt below 0
        self._stopped = False
        self._wake_s = 0.0  # what a rest before it costs the work at hand
        self._resume_s = 0.0  # what going on after a pause costs it
        self._left_s = 0.0  # CPU time the batch still needs; 0 while the group sleeps
        self._now_s = 0.0  # the account is kept up to here
        self.finish_s = 0.0
        self.used_core_s = 0.0
        self.throttled_s = 0.0
        self._end = self._account  # as they will be when the work is done

    def load(self, now_s: float, cold_start_s: float, loading: int) -> None:
        """Begin to load the model, which alone takes ``cold_start_s`` on one core unit.

        That time was measured with its pauses, so these cost nothing more.
        """
        self._wake_s = self._resume_s = 0.0
        self._wake(now_s, cold_start_s * self._core_unit * self._slowdown(loading))

    def _slowdown(self, loading: int) -> float:
        """Return the work of loading relative to a replica that does so alone."""
        contention = min(1.0, (loading - 1) / (CONTENDING - 1))
        return 1.0 + (self._quota.loading_contention - 1.0) * contention

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch; it reaches the CPU after the dispatch overhead."""
        self._wake_s, self._resume_s = self._quota.wake_cost_s, self._quota.resume_s
        dispatch_s = self._quota.dispatch_s + size * self._quota.dispatch_request_s
        self._wake(now_s + dispatch_s, float(self._work_s[size - 1]) * noise)

    def advance(self, now_s: float) -> None:
        """Progress to ``now_s``."""
        if self._left_s > 0 and now_s >= self.finish_s:
            self._account = self._end
        elif self._left_s > 0:
            self._run(now_s)

    def resize(self, now_s: float, cores: int) -> None:
        """Write the quota."""
        self.advance(now_s)
        self._pass_refills(now_s)
        self._grant(float(cores))
        self._pool_s, self._slice_s, self._stopped = self._granted_s, 0.0, False
        if self._left_s > 0:
            self._predict()

    def share(self, now_s: float, cores: float) -> None:
        """Get a part of the CPU, which neither fills the pool nor forgives the debt."""
        if cores == self._share:
            return
        self.advance(now_s)
        self._catch_up(now_s)
        self._grant(cores)
        self._pool_s = min(self._pool_s, self._granted_s)
        if self._left_s > 0:
            self._predict()

    def _grant(self, cores: float) -> None:
        self._share = cores
        self._granted_s = cores * self._core_unit * self._quota.period_s

    def _wake(self, now_s: float, work_s: float) -> None:
        """Begin work at ``now_s``."""
        self.advance(now_s)
        self._catch_up(now_s)
        rested = now_s - self._now_s >= self._quota.idle_s
        self._now_s, self._left_s = now_s, work_s + rested * self._wake_s
        self._predict()

    def _catch_up(self, now_s: float) -> None:
        """Bring the account of a group that sleeps up to ``now_s``."""
        while self._stopped and self._refill_s <= now_s:
            self._refill()
        self._pass_refills(now_s)

    def _pass_refills(self, now_s: float) -> None:
        """Pass over the refills until ``now_s`` of a group that has no debt."""
        if self._refill_s <= now_s:
            periods = math.floor((now_s - self._refill_s) / self._quota.period_s) + 1
            self._refill_s += periods * self._quota.period_s
            self._pool_s = self._granted_s

    def _predict(self) -> None:
        """Find the end by going there and back."""
        here = self._account
        self._run(math.inf)
        self.finish_s, self._end = self._now_s, self._account
        self._account = here

    @property
    def _account(self) -> _Account:
        """All that changes while work goes on."""
        return (
            self._now_s,
            self._left_s,
            self._refill_s,
            self._pool_s,
            self._slice_s,
            self._stopped,
            self.used_core_s,
            self.throttled_s,
        )

    @_account.setter
    def _account(self, account: _Account) -> None:
        (
            self._now_s,
            self._left_s,
            self._refill_s,
            self._pool_s,
            self._slice_s,
            self._stopped,
            self.used_core_s,
            self.throttled_s,
        ) = account

    def _run(self, until_s: float) -> None:
        """Go on until ``until_s`` or the end of the work."""
        while self._left_s > 0 and self._now_s < until_s:
            if self._stopped:
                to_s = min(self._refill_s, until_s)
                self.throttled_s += to_s - self._now_s
                self._now_s = to_s
                if to_s == self._refill_s:
                    self._refill()
            else:
                self._spend(until_s)

    def _spend(self, until_s: float) -> None:
        """Run until the next event: end, refill, or a tick at which the slice is used up."""
        limited = self._granted_s < self._quota.period_s
        end_s = self._now_s + self._left_s
        refill_s = self._refill_s if limited else math.inf
        empty_s = self._tick_after(self._now_s + self._slice_s) if limited else math.inf
        to_s = min(end_s, refill_s, empty_s, until_s)
        done_s = to_s - self._now_s
        self._now_s = to_s
        self._left_s -= done_s
        if limited:
            self._slice_s -= done_s
        self.used_core_s += done_s / self._core_unit
        if to_s == refill_s:
            self._refill()
        if self._left_s < NANOSECOND_S:
            self._sleep()
        elif to_s == empty_s:
            self._draw()

    def _tick_after(self, time_s: float) -> float:
        """Return the first tick at ``time_s`` or later, but not one that has passed."""
        ticks = math.ceil((time_s - NANOSECOND_S) / self._quota.tick_s)
        return max(self._now_s, ticks * self._quota.tick_s)

    def _refill(self) -> None:
        """Begin a period; the debt of a group that stands still is paid first."""
        self._refill_s += self._quota.period_s
        self._pool_s = self._granted_s
        if self._stopped:
            paid_s = min(self._pool_s, -self._slice_s)
            self._pool_s -= paid_s
            self._slice_s += paid_s
            self._stopped = self._slice_s <= -NANOSECOND_S
            if self._left_s > 0 and not self._stopped:
                self._left_s += self._resume_s

    def _draw(self) -> None:
        """Draw a slice on the pool; without anything in it, stop."""
        drawn_s = min(self._pool_s, SLICE_S - self._slice_s)
        self._pool_s -= drawn_s
        self._slice_s += drawn_s
        self._stopped = self._slice_s < NANOSECOND_S

    def _sleep(self) -> None:
        """End the work: most of the slice goes back into the pool, or a debt stays."""
        self._left_s = 0.0
        if self._slice_s < NANOSECOND_S:
            self._draw()
        elif self._slice_s > KEPT_S:
            self._pool_s += self._slice_s - KEPT_S
            self._slice_s = KEPT_S
