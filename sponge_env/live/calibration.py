"""From measurements on the real worker to profiles.

A :class:`.Profile` holds the CPU work of each batch size, the saturated latency of batches on a
grid of sizes and cores with the fit of l(b, c) to it, the dispatch overhead and the cold start. The
simulator and the controllers live on it. :mod:`sponge_env.live.bench` takes the measurements.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np

from sponge_env.errors import ConfigError, ProfileError
from sponge_env.interfaces import FloatArray
from sponge_env.latency import MOST_LOST, QuotaService, fit_latency, to_quantiles
from sponge_env.live.bench import PAUSED_SHARE, PAUSED_SIZE, WORK_RUNS, Bench, Grid
from sponge_env.live.cgroups import find_hierarchy
from sponge_env.live.protocol import LiveConfig
from sponge_env.models.model import shares_of_tasks
from sponge_env.models.registry import resolve_model
from sponge_env.scenario.option import positive
from sponge_env.scenario.profile import LOCAL_MODEL, MOST_OFF, Facts, Profile, Sample, save_profile
from sponge_env.utils.files import check_writable
from sponge_env.utils.installation import describe_host, describe_versions

LOG = logging.getLogger("sponge_env")

SECONDS = 45.0  # About how long a calibration takes, beside the loading
SEVERAL_SECONDS = 75.0  # The same of several models
LOADED, SLACK_S = 1.1, 0.001  # By how much a cell may exceed another; 3 % on an idle machine
QUANTILES = 21  # Quantiles kept of scatter and residuals


def calibrate_all(
    configs: Sequence[LiveConfig], seconds: float = SECONDS, shown: bool = False
) -> list[Profile]:
    """Measure workers with one replica each; ProfileError if l(b, c) cannot describe one."""
    # It takes about ``seconds`` beside the loading, and up to DISTURBED_S more for each model on a
    # busy machine; each grid is measured at least once. After each grid, all models run a round of
    # batches at full speed: a machine's speed drifts by 10 %, and what is compared must not be
    # measured minutes apart.
    positive("the seconds to measure", seconds)
    if any(config.limiter == "none" for config in configs):
        raise ConfigError("a calibration needs a CPU limiter; choose another than 'none'")
    runs = max(2, math.ceil(WORK_RUNS / (1 + len(configs))))
    with ExitStack() as opened:
        benches = list[Bench]()
        for config in configs:
            benches.append(bench := opened.enter_context(Bench(config, shown)))
            if bench.worker.limiter.endswith("outside"):
                text = "limits from outside act late or never, so nothing can be measured under"
                raise ConfigError(f"{text} them; calibrate on nodes that limit, or here")
        for bench in benches:
            bench.measure_cold_starts()
            bench.measure_pauses()
        end_s = time.monotonic() + seconds
        for bench in benches:
            bench.measure_work(runs)
        for left, bench in zip(range(len(benches), 0, -1), benches, strict=True):
            now_s = time.monotonic()
            bench.measure_grid(now_s + (end_s - now_s) / left)
            for other in benches:
                other.measure_work(runs, again=True)
        return [_profile_of(bench) for bench in benches]


def _profile_of(bench: Bench) -> Profile:
    config, alone, worker = bench.config, bench.alone, bench.worker
    try:
        profile = build_profile(config, bench.grid, alone.latency_s, worker.limiter)
    except ProfileError as error:
        raise ProfileError(f"{config.model}: {error}") from None
    tasks = shares_of_tasks(resolve_model(config.model))
    # the token bucket of the simulator is one CPU's
    quota = build_quota(bench) if config.physical_cores(config.cores_max) <= 1 else None
    facts = Facts(alone.cpu_s, alone.memory_bytes, tasks)
    return dataclasses.replace(profile, facts=facts, quota=quota)


def build_quota(bench: Bench) -> QuotaService:
    """Put together what the simulator needs of a worker under a quota."""
    config, period_s, tick_s = bench.config, bench.limits.period_s, bench.limits.tick_s
    dispatch_s = [median(run.dispatch_s for run in runs) for runs in bench.work.values()]
    per_request_s, per_batch_s = np.polyfit(list(bench.work), dispatch_s, 1)
    work_s = bench.work_s()
    wake_s = max(0.0, median(bench.idle_penalty_s))
    paused_work_s = float(work_s[min(PAUSED_SIZE, config.batch_max) - 1]) + wake_s
    share = config.physical_cores(max(1, config.cores_max // PAUSED_SHARE))
    pauses = paused_work_s / max(tick_s, share * period_s)
    max_s = MOST_LOST * config.core_unit * period_s
    return QuotaService(
        period_s,
        tuple(work_s.tolist()),
        dispatch_s=max(0.0, float(per_batch_s)),
        dispatch_request_s=max(0.0, float(per_request_s)),
        tick_s=tick_s,
        wake_s=wake_s,
        resume_s=min(max_s, max(0.0, fmean(bench.pauses_s) / pauses)),
        loading_contention=max(1.0, bench.contending.cpu_s / bench.alone.cpu_s),  # less is noise
    )


def build_profile(config: LiveConfig, grid: Grid, cold_start_s: float, limiter: str) -> Profile:
    """Fit l(b, c) to the grid and put the profile together, without quota data."""
    hierarchy, versions = find_hierarchy(), describe_versions()
    host = describe_host() | {"cgroup": hierarchy.version if hierarchy else 0}
    batches, cores = sorted({b for b, _ in grid}), sorted({c for _, c in grid})
    latency_s = {cell: np.array([run.latency_s for run in runs]) for cell, runs in grid.items()}
    cpu_s = {cell: np.array([run.cpu_s for run in runs]) for cell, runs in grid.items()}
    mean_s = np.array([[latency_s[b, c].mean() for c in cores] for b in batches])
    model, fit_error = fit_latency(batches, cores, mean_s, relative=True)
    residuals = _scatter(latency_s[b, c] / model.predict_s(b, c) - 1 for b, c in grid)
    model = dataclasses.replace(model, residual_quantiles=residuals)
    profile = Profile(
        name="local",
        model=config.model,
        source="measured by python -m sponge_env calibrate",
        statistic="mean",
        batches=tuple(batches),
        cores=tuple(cores),
        latency_s=tuple(map(tuple, mean_s.tolist())),
        latency=model,
        fit_error=fit_error,
        # that of latencies would count the token bucket's phase, as the quota service does, again
        noise_quantiles=_scatter(_noise(values) for values in cpu_s.values() if len(values) > 1),
        cold_start_s=cold_start_s,
        core_unit=config.core_unit,
        limiter=limiter,
        host=host | {name: versions[name] for name in ("python", "onnxruntime")},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=tuple(
            Sample(*cell, tuple(latency_s[cell].tolist()), tuple(cpu_s[cell].tolist()))
            for cell in sorted(grid)
        ),
    )
    profile.planned.table_s(config.batch_max, config.cores_max)  # refuses what is not positive
    return profile


def warn_if_disturbed(profile: Profile) -> None:
    """Warn of a profile with signs that something else ran on the CPU during its calibration."""
    if found := _doubts(profile):
        text = "other work disturbed the calibration of %s (%s%s); calibrate again when the "
        more = f", and {len(found) - 1} more" * (len(found) > 1)
        LOG.warning(text + "machine is idle", profile.model, found[0], more)


def _doubts(profile: Profile) -> list[str]:
    found, quota = [], profile.quota
    for run in profile.samples:
        if quota is None or run.cores < profile.cores[-1]:
            continue
        wall_s = fmean(run.latency_s) - quota.dispatch_s - run.batch * quota.dispatch_request_s
        if wall_s > LOADED * fmean(run.cpu_s) + SLACK_S:
            found.append(
                f"a batch of {run.batch} on all cores took {wall_s * 1e3:.1f} ms for "
                f"{fmean(run.cpu_s) * 1e3:.1f} ms of CPU time"
            )
    cells = {
        (b, c): cell
        for b, row in zip(profile.batches, profile.latency_s, strict=True)
        for c, cell in zip(profile.cores, row, strict=True)
    }
    smaller = [((b, c), (a, c)) for a, b in pairwise(profile.batches) for c in profile.cores]
    faster = [((b, a), (b, c)) for a, c in pairwise(profile.cores) for b in profile.batches]
    for long, short in smaller + faster:
        if cells[short] > LOADED * cells[long] + SLACK_S:
            found.append(
                f"a batch of {short[0]} took {cells[short] * 1e3:.1f} ms on {short[1]} units, one "
                f"of {long[0]} only {cells[long] * 1e3:.1f} on {long[1]}"
            )
    return found


def _noise(values: FloatArray) -> FloatArray:
    """Return relative deviations from the mean, as large as those from the unknown true one."""
    relative: FloatArray = values / values.mean() - 1
    return relative * math.sqrt(len(values) / (len(values) - 1))


def _scatter(deviations: Iterable[FloatArray]) -> tuple[float, ...]:
    """Summarise single runs' deviations, those of each cell with equal weight, within a limit."""
    cells = [to_quantiles(v.clip(-MOST_OFF, MOST_OFF), QUANTILES) for v in deviations]
    return to_quantiles(np.concatenate(cells or [(0.0,)]), QUANTILES)


def calibrate_files(
    files: Mapping[Path, LiveConfig], seconds: float | None = None
) -> list[Profile]:
    """Calibrate models with progress on the terminal, and save each profile in its file."""
    for path in files:
        check_writable(path)
    usual_s = SECONDS if len(files) == 1 else SEVERAL_SECONDS
    measured = calibrate_all([*files.values()], usual_s if seconds is None else seconds, shown=True)
    profiles = [
        p if p.model == LOCAL_MODEL else dataclasses.replace(p, name=path.stem)
        for path, p in zip(files, measured, strict=True)
    ]
    for path, profile in zip(files, profiles, strict=True):
        save_profile(profile, path)
    return profiles
