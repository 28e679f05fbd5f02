"""From measured runs to a latency profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import fmean

import numpy as np

from sponge_env.host import describe_host, describe_versions
from sponge_env.interfaces import FloatArray
from sponge_env.latency import fit_latency, to_quantiles
from sponge_env.live.bench import PAUSED_SIZE, BatchRun, Grid
from sponge_env.live.cgroups import find_hierarchy
from sponge_env.live.config import LiveConfig
from sponge_env.profile import Profile, Sample
from sponge_env.quota import MOST_LOST, QuotaService

QUANTILES = 21
"""Quantiles kept of scatter and residuals."""


def interpolate_work(work: dict[int, list[BatchRun]], batch_max: int) -> FloatArray:
    """Return the (batch_max,) mean CPU seconds of each batch size."""
    mean_s = [fmean(run.cpu_s for run in runs) for runs in work.values()]
    return np.interp(np.arange(1, batch_max + 1), list(work), mean_s)


def build_quota(
    config: LiveConfig,
    period_s: float,
    tick_s: float,
    work: dict[int, list[BatchRun]],
    lost_s: Sequence[float],
    loading_contention: float,
) -> QuotaService:
    """Put together what the simulator needs of a worker under a quota.

    Args:
        config: Of the worker.
        period_s: Period of its quota.
        tick_s: Time between two looks of the limiter.
        work: Runs at full speed by batch size.
        lost_s: See :func:`~sponge_env.live.bench.measure_pauses`.
        loading_contention: See :class:`~sponge_env.quota.QuotaService`.
    """
    sizes = list(work)
    dispatch_s = [float(np.median([run.dispatch_s for run in work[size]])) for size in sizes]
    per_request_s, per_batch_s = np.polyfit(sizes, dispatch_s, 1)
    work_s = interpolate_work(work, config.batch_max)
    paused_work_s = float(work_s[min(PAUSED_SIZE, config.batch_max) - 1])
    share = config.physical_cores(config.cores_max // 2)
    pauses = paused_work_s / max(tick_s, share * period_s)
    most_s = MOST_LOST * config.core_unit * period_s
    return QuotaService(
        period_s,
        tuple(work_s.tolist()),
        dispatch_s=max(0.0, float(per_batch_s)),
        dispatch_request_s=max(0.0, float(per_request_s)),
        tick_s=tick_s,
        resume_s=min(most_s, max(0.0, fmean(lost_s) / pauses)),
        loading_contention=loading_contention,
    )


def build_profile(config: LiveConfig, grid: Grid, cold_start_s: float, limiter: str) -> Profile:
    """Fit l(b, c) to the grid and put the profile together, without quota data.

    Raises:
        ProfileError: The measurements cannot be described by l(b, c).
    """
    batches, cores = sorted({b for b, _ in grid}), sorted({c for _, c in grid})
    latency_s = {cell: np.array([run.latency_s for run in runs]) for cell, runs in grid.items()}
    cpu_s = {cell: np.array([run.cpu_s for run in runs]) for cell, runs in grid.items()}
    mean_s = np.array([[latency_s[b, c].mean() for c in cores] for b in batches])
    model, fit_error = fit_latency(batches, cores, mean_s, relative=True)
    residuals = _scatter(latency_s[b, c] / model.predict_s(b, c) - 1 for b, c in grid)
    model = dataclasses.replace(model, residual_quantiles=residuals)
    model.table_s(config.batch_max, config.cores_max)  # refuses a fit that is not positive
    return Profile(
        name="local",
        model=config.model,
        source="measured by python -m sponge_env.calibrate",
        statistic="mean",
        batches=tuple(batches),
        cores=tuple(cores),
        latency_s=tuple(tuple(row) for row in mean_s.tolist()),
        latency=model,
        fit_error=fit_error,
        # the scatter of latencies would count the phase of the token bucket a second time,
        # which the simulator's quota service has by itself
        noise_quantiles=_scatter(values / values.mean() - 1 for values in cpu_s.values()),
        cold_start_s=cold_start_s,
        core_unit=config.core_unit,
        limiter=limiter,
        host=host_facts(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=tuple(
            Sample(b, c, tuple(latency_s[b, c].tolist()), tuple(cpu_s[b, c].tolist()))
            for b, c in sorted(grid)
        ),
    )


def _scatter(deviations: Iterable[FloatArray]) -> tuple[float, ...]:
    """Summarise single runs' deviations, those of each cell with equal weight."""
    cells = [to_quantiles(values, QUANTILES) for values in deviations]
    return to_quantiles(np.concatenate(cells), QUANTILES)


def host_facts() -> dict[str, str | int | None]:
    """Describe this machine as far as it matters for a latency."""
    hierarchy, versions = find_hierarchy(), describe_versions()
    return {
        **describe_host(),
        "cgroup": hierarchy.version if hierarchy else 0,
        "python": versions["python"],
        "onnxruntime": versions["onnxruntime"],
    }
