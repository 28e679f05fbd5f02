"""The service of a replica under a CPU quota, as Linux enforces it.

A quota is not a slower CPU: a lone small batch runs at full speed, only back-to-back work is slowed
down to the share, and a batch that finds the quota overdrawn waits before it begins.

At fixed moments, a period apart, the group's pool is filled up to the quota; what was not used
is lost. The CPU draws on the pool in slices and spends them at full speed. Only at the ticks of
the kernel's clock, and when the group falls asleep, does it check whether its slice is used up. If
the pool is empty then, the group has overdrawn by up to a tick, and stops until the refills of
the next periods have paid for that. Writing a quota fills the pool and forgives the debt. A rest
before a batch and each pause in it add a little work. Loading the model is work like a batch.
Where replicas want more CPU than there is, the fair scheduler gives each an equal share, which is
modelled as a smaller quota.

Source: ``kernel/sched/fair.c`` of Linux 6.18 (``__assign_cfs_rq_runtime``, ``throttle_cfs_rq``,
``distribute_cfs_runtime``, ``__return_cfs_rq_runtime``, ``tg_set_cfs_bandwidth``), and
docs/fidelity.md for how well it does.
"""

import math

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.records import Account, ReplicaState
from sponge_env.core.settings import StageSettings

SLICE_S = 0.005  # What a CPU draws on the group's pool at once (``sched_cfs_bandwidth_slice_us``)
KEPT_S = 0.001  # What it keeps of that when the group falls asleep (``min_cfs_rq_runtime``)
NANOSECOND_S = 1e-9  # The kernel counts whole nanoseconds: less counts as nothing

Costs = tuple[float, float, float]  # Least rest before a batch that costs, its cost, and of a pause


@inlined
def new_bucket(model: StageSettings, replica: ReplicaState, phase: float) -> None:
    """Start idle, with a full pool."""
    _grant(model, replica, float(replica.cores))
    replica.account.refill_s = phase * model.quota.period_s
    replica.account.pool_s = replica.granted_s
    replica.account.slice_s = replica.account.left_s = 0.0
    replica.account.stopped = False


@compiled
def advance_bucket(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Let work and counters progress to ``now_s``."""
    if replica.account.left_s > 0:
        if now_s >= replica.finish_s:
            replica.account = replica.at_end
        else:
            _run(model, replica, replica.account, now_s)


@inlined
def write_quota(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Put the quota of ``replica.cores`` in force."""
    advance_bucket(model, replica, now_s)
    _pass_refills(model, replica, now_s)
    _grant(model, replica, float(replica.cores))
    replica.account.pool_s = replica.granted_s
    replica.account.slice_s, replica.account.stopped = 0.0, False
    _predict(model, replica)


@inlined
def set_share(model: StageSettings, replica: ReplicaState, now_s: float, cores: float) -> None:
    """Set the share of the CPU; unlike a new quota, it neither fills the pool nor forgives debt."""
    if cores == replica.share:
        return
    advance_bucket(model, replica, now_s)
    _catch_up(model, replica, now_s)
    _grant(model, replica, cores)
    replica.account.pool_s = min(replica.account.pool_s, replica.granted_s)
    _predict(model, replica)


@compiled
def wake(
    model: StageSettings, replica: ReplicaState, now_s: float, work_s: float, costs_s: Costs
) -> None:
    """Begin work at ``now_s``."""
    advance_bucket(model, replica, now_s)
    _catch_up(model, replica, now_s)
    idle_s, wake_s, replica.resume_s = costs_s
    rested = now_s - replica.account.since_s >= idle_s
    replica.account.since_s, replica.account.left_s = now_s, work_s + rested * wake_s
    _predict(model, replica)


@inlined
def _grant(model: StageSettings, replica: ReplicaState, cores: float) -> None:
    replica.share = cores
    replica.granted_s = cores * model.core_unit * model.quota.period_s


@compiled
def _catch_up(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Bring the account of a group that sleeps up to ``now_s``."""
    while replica.account.stopped and replica.account.refill_s <= now_s:
        _refill(model, replica, replica.account)
    _pass_refills(model, replica, now_s)


@compiled
def _pass_refills(model: StageSettings, replica: ReplicaState, now_s: float) -> None:
    """Pass over the refills until ``now_s`` of a group that has no debt."""
    if replica.account.refill_s <= now_s:
        periods = math.floor((now_s - replica.account.refill_s) / model.quota.period_s) + 1
        replica.account.refill_s += periods * model.quota.period_s
        replica.account.pool_s = replica.granted_s


@compiled
def _predict(model: StageSettings, replica: ReplicaState) -> None:
    # A resize or another replica's batch may still change the end, so the account itself stays as
    # it is; if nothing does, ``at_end`` takes its place. Without work the end is now.
    replica.at_end = replica.account
    _run(model, replica, replica.at_end, math.inf)
    replica.finish_s = replica.at_end.since_s


@compiled
def _run(model: StageSettings, replica: ReplicaState, account: Account, until_s: float) -> None:
    """Go on until a moment or the end of the work."""
    while account.left_s > 0 and account.since_s < until_s:
        if account.stopped:
            to_s = min(account.refill_s, until_s)
            account.throttled_s += to_s - account.since_s
            account.since_s = to_s
            if to_s == account.refill_s:
                _refill(model, replica, account)
        else:
            _spend(model, replica, account, until_s)


@inlined
def _spend(model: StageSettings, replica: ReplicaState, account: Account, until_s: float) -> None:
    """Run until the next event: end, refill, or a tick at which the slice is used up."""
    # A whole CPU is no limit: the kernel has no account of such a group.
    limited = replica.granted_s < model.quota.period_s
    refill_s = empty_s = math.inf
    if limited:
        refill_s = account.refill_s
        ticks = math.ceil((account.since_s + account.slice_s - NANOSECOND_S) / model.quota.tick_s)
        empty_s = max(account.since_s, ticks * model.quota.tick_s)
    to_s = min(account.since_s + account.left_s, refill_s, empty_s, until_s)
    done_s = to_s - account.since_s
    account.since_s = to_s
    account.left_s -= done_s
    if limited:
        account.slice_s -= done_s
    account.used_core_s += done_s / model.core_unit
    if to_s == refill_s:
        _refill(model, replica, account)
    if account.left_s < NANOSECOND_S:
        account.left_s = 0.0
        if account.slice_s < NANOSECOND_S:
            _draw(account)
        elif account.slice_s > KEPT_S:  # most of the slice goes back into the pool
            account.pool_s += account.slice_s - KEPT_S
            account.slice_s = KEPT_S
    elif to_s == empty_s:
        _draw(account)


@compiled
def _refill(model: StageSettings, replica: ReplicaState, account: Account) -> None:
    """Begin a period; the debt of a group that was stopped is paid first."""
    account.refill_s += model.quota.period_s
    account.pool_s = replica.granted_s
    if account.stopped:
        paid_s = min(account.pool_s, -account.slice_s)
        account.pool_s -= paid_s
        account.slice_s += paid_s
        account.stopped = account.slice_s <= -NANOSECOND_S
        if account.left_s > 0 and not account.stopped:
            account.left_s += replica.resume_s


@compiled
def _draw(account: Account) -> None:
    """Draw a slice on the pool; without anything in it, stop."""
    drawn_s = min(account.pool_s, SLICE_S - account.slice_s)
    account.pool_s -= drawn_s
    account.slice_s += drawn_s
    account.stopped = account.slice_s < NANOSECOND_S
