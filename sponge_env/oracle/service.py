"""Both service models in the terms of the lower side; ``docs/oracle.md`` derives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sponge_env.core.quota import SLICE_S
from sponge_env.interfaces import FloatArray
from sponge_env.profile import Profile, QuotaService
from sponge_env.scenario import Scenario


def service_terms(scenario: Scenario, profile: Profile) -> dict[str, Any]:
    """Return the fields of :class:`~sponge_env.oracle.problem.Problem` about service."""
    limits, sizes = scenario.limits, np.arange(1, scenario.limits.batch + 1)
    quota = profile.quota
    nothing = np.zeros(limits.cores)
    limited = profile.resolve_service(scenario.simulation.service) == "quota"
    if limited and quota is not None:
        work_s = np.repeat(profile.work_table_s(limits.batch)[:, None], limits.cores, axis=1)
        dispatch_s = quota.dispatch_s + sizes * quota.dispatch_request_s
        grants = _grants(scenario, profile, quota)
    else:
        work_s = profile.service_table_s(limits.batch, limits.cores)
        dispatch_s = np.zeros(limits.batch)
        grants = {"share": nothing + 1, "ahead_s": nothing}
        grants |= {"ahead_awake_s": nothing, "refill_s": nothing}
    padded_s = np.minimum.accumulate(work_s[::-1], axis=0)[::-1].copy()
    return {
        "work_s": np.ascontiguousarray(work_s),
        "padded_s": padded_s,
        "shortest_s": padded_s.min(axis=1),
        "dispatch_s": dispatch_s,
        "quota": limited,
        "loading_contention": quota.loading_contention if limited and quota is not None else 1.0,
        **grants,
        "fastest_s": float(padded_s[0].min() + dispatch_s[0]),
        "rate_rps": float(np.max(sizes / padded_s.min(axis=1))),
    }


def _grants(scenario: Scenario, profile: Profile, quota: QuotaService) -> dict[str, FloatArray]:
    """Bound what a quota grants; full cores are not limited."""
    share = np.minimum(1.0, np.arange(1, scenario.limits.cores + 1) * profile.core_unit)
    limited = share < 1 - 1e-9
    periods = scenario.interval_s / quota.period_s
    first = 1 if abs(periods - round(periods)) < 1e-9 else 2
    kept_s = np.minimum(SLICE_S, share * quota.period_s)
    debt_s = (kept_s + quota.tick_s) / share
    return {
        "share": share,
        "ahead_s": limited * (first * quota.period_s + debt_s),
        "ahead_awake_s": limited * (2 * quota.period_s + debt_s),
        "refill_s": limited * quota.period_s,
    }
