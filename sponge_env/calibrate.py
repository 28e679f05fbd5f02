"""Measure the real worker on this machine: ``python -m sponge_env.calibrate``.

The result is a :class:`~sponge_env.profile.Profile`: the CPU work of each batch size, the
saturated latency of batches on a grid of sizes and cores with the fit of l(b, c) to it,
the dispatch overhead and the cold start. The simulator and the controllers live on it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np

from sponge_env.cache import local_profile_path
from sponge_env.config import Limiter
from sponge_env.console import Progress
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.host import describe_host, describe_versions
from sponge_env.interfaces import Allocation, FloatArray
from sponge_env.latency import LatencyModel, fit_latency, to_quantiles
from sponge_env.profile import Profile, QuotaService, Sample, save_profile
from sponge_env.workers.bench import Bench, Grid, Report, Run, measure_grid, measure_work, silent
from sponge_env.workers.cgroups import find_hierarchy
from sponge_env.workers.limits import DESCRIPTIONS
from sponge_env.workers.pool import PoolWorker
from sponge_env.workers.real_config import RealWorkerConfig

SECONDS = 45.0
"""About how long a calibration takes."""
QUANTILES = 21
"""Quantiles kept of scatter and residuals."""


class TerminalProgress:
    """Shows each stage of a calibration on the terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._shown: Progress | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the state."""
        if self._shown is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._shown = Progress("calibrating", total, "step")
            self._shown.say(stage)
        self._shown.show(done)

    def close(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.close()


def calibrate(
    config: RealWorkerConfig, seconds: float = SECONDS, progress: Report = silent
) -> Profile:
    """Measure the worker that a configuration describes.

    Args:
        config: The worker; it is measured with one replica.
        seconds: About how long it may take; the grid is measured once at least.
        progress: Is told how far it has come.

    Raises:
        ConfigError: The configuration cannot be used.
        WorkerError: The worker does not start or does not stay alive.
        ProfileError: The measurements cannot be described by l(b, c).
    """
    if config.limiter == "none":
        raise ConfigError("a calibration needs a CPU limiter; choose another than 'none'")
    if min(config.cores_max, config.batch_max) < 2:
        raise ConfigError(
            "a calibration needs at least 2 core units and batches of 2, not "
            f"{config.cores_max} and {config.batch_max}"
        )
    end_s = time.monotonic() + seconds
    full = Allocation(config.cores_max, config.batch_max)
    config = dataclasses.replace(config, initial=full, replicas_max=max(2, config.replicas_max))
    with PoolWorker(config) as worker:
        bench = Bench(worker)
        progress("cold start", 0, 1)
        cold_start_s = bench.cold_start_s()
        bench.resize(config.cores_max)
        work = measure_work(bench, config.batch_max, progress)
        work_s = interpolate_work(work, config.batch_max)
        grid = measure_grid(bench, config, work_s, end_s, progress)
    profile = build_profile(config, grid, cold_start_s, worker.limiter)
    if config.cores_max * config.core_unit > 1:
        return profile  # the token bucket of the simulator is one CPU's
    dispatch_s = float(np.median([run.dispatch_s for runs in work.values() for run in runs]))
    quota = QuotaService(worker.period_s, tuple(work_s.tolist()), dispatch_s)
    return dataclasses.replace(profile, quota=quota)


def interpolate_work(work: dict[int, list[Run]], batch_max: int) -> FloatArray:
    """Return the (batch_max,) CPU seconds of each batch size."""
    median_s = [float(np.median([run.cpu_s for run in runs])) for runs in work.values()]
    return np.interp(np.arange(1, batch_max + 1), list(work), median_s)


def build_profile(
    config: RealWorkerConfig, grid: Grid, cold_start_s: float, limiter: str
) -> Profile:
    """Fit l(b, c) to the grid and put the profile together, without quota data.

    Raises:
        ProfileError: The measurements cannot be described by l(b, c).
    """
    batches, cores = sorted({b for b, _ in grid}), sorted({c for _, c in grid})
    mean_s = np.array(
        [[np.mean([run.latency_s for run in grid[b, c]]) for c in cores] for b in batches]
    )
    model, fit_error = fit_latency(batches, cores, mean_s, relative=True)
    model = dataclasses.replace(model, residual_quantiles=_residuals(model, grid))
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
        noise_quantiles=_noise(grid),
        cold_start_s=cold_start_s,
        core_unit=config.core_unit,
        limiter=limiter,
        host=host_facts(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=tuple(
            Sample(b, c, tuple(run.latency_s for run in runs), tuple(run.cpu_s for run in runs))
            for (b, c), runs in sorted(grid.items())
        ),
    )


def calibrate_to(path: Path, config: RealWorkerConfig, seconds: float = SECONDS) -> Profile:
    """Calibrate with progress on the terminal, and save the profile.

    Raises:
        SpongeError: The worker cannot be measured.
    """
    progress = TerminalProgress()
    try:
        profile = calibrate(config, seconds, progress)
    finally:
        progress.close()
    save_profile(profile, path)
    return profile


def _residuals(model: LatencyModel, grid: Grid) -> tuple[float, ...]:
    """Summarise measured / predicted - 1 over single runs, every cell with equal weight."""
    errors = [
        to_quantiles(
            np.array([run.latency_s for run in runs]) / model.predict_s(b, c) - 1, QUANTILES
        )
        for (b, c), runs in grid.items()
    ]
    return to_quantiles(np.concatenate(errors), QUANTILES)


def _noise(grid: Grid) -> tuple[float, ...]:
    """Summarise how CPU work scatters about its cell's mean.

    The scatter of latencies would count the phase of the token bucket a second time, which
    the simulator's quota service has by itself.
    """
    deviations = []
    for runs in grid.values():
        cpu_s = np.array([run.cpu_s for run in runs])
        deviations.append(to_quantiles(cpu_s / cpu_s.mean() - 1, QUANTILES))
    return to_quantiles(np.concatenate(deviations), QUANTILES)


def host_facts() -> dict[str, str | int | None]:
    """Describe this machine as far as it matters for a latency."""
    hierarchy, versions = find_hierarchy(), describe_versions()
    return {
        **describe_host(),
        "cgroup": hierarchy.version if hierarchy else 0,
        "python": versions["python"],
        "onnxruntime": versions["onnxruntime"],
    }


def summary(profile: Profile) -> str:
    """Describe a profile in a short table: measured and fitted latencies in ms."""
    fitted_s = profile.latency.predict_s(
        np.array(profile.batches)[:, None], np.array(profile.cores)[None, :]
    )
    lines = ["saturated latency [ms], measured / fit", ""]
    lines.append("batch" + "".join(f"{f'{c} units':>17}" for c in profile.cores))
    for batch, measured, fit in zip(profile.batches, profile.latency_s, fitted_s, strict=True):
        cells = (f"{m * 1e3:8.1f} /{f * 1e3:7.1f}" for m, f in zip(measured, fit, strict=True))
        lines.append(f"{batch:5}" + "".join(cells))
    error = profile.fit_error
    lines += [
        "",
        f"fit         MAPE {error.mape:.1%}, R2 {error.r2:.4f}, worst {error.worst_error:+.0%} at "
        f"batch {error.worst_batch} on {error.worst_cores} units",
        f"cold start  {profile.cold_start_s:.1f} s on one unit of {profile.core_unit:g} cores",
        f"limiter     {DESCRIPTIONS[profile.limiter]}"
        + (f", period {profile.quota.period_s * 1e3:g} ms" if profile.quota else ""),
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sponge_env.calibrate", description="Measure the real worker."
    )
    limiters = [name for name in get_args(Limiter) if name != "none"]
    parser.add_argument("--model", default="efficientnet-lite0", help="known name or .onnx file")
    parser.add_argument("--out", type=Path, help="profile to write (default: this machine's)")
    parser.add_argument("--cores", type=int, default=16, help="largest number of core units")
    parser.add_argument(
        "--core-unit", type=float, help="cores in one unit (default: all units are one core)"
    )
    parser.add_argument("--batch", type=int, default=16, help="largest batch")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="about how long to measure")
    parser.add_argument("--limiter", choices=limiters, default="auto", help="means to limit CPU")
    return parser


def _config(args: argparse.Namespace) -> RealWorkerConfig:
    if not 0 < args.seconds < math.inf:
        raise ConfigError(f"--seconds must be above 0, not {args.seconds:g}")
    if args.out is not None and args.out.is_dir():
        raise ConfigError(f"--out must name a file, but {str(args.out)!r} is a folder")
    return RealWorkerConfig(
        model=args.model,
        batch_max=args.batch,
        cores_max=args.cores,
        core_unit=1 / max(1, args.cores) if args.core_unit is None else args.core_unit,
        limiter=args.limiter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, save and report; return the exit code."""
    args = _parser().parse_args(argv)
    path = args.out or local_profile_path()
    try:
        profile = calibrate_to(path, _config(args), args.seconds)
    except (SpongeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was saved\n")
        return 130
    sys.stdout.write(f"{summary(profile)}\nsaved       {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
