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
from pathlib import Path
from typing import get_args

import numpy as np

from sponge_env import cli
from sponge_env.cache import local_profile_path
from sponge_env.config import Limiter
from sponge_env.console import Progress
from sponge_env.errors import ConfigError
from sponge_env.files import check_writable
from sponge_env.interfaces import Allocation
from sponge_env.live.bench import (
    Bench,
    OnProgress,
    measure_cold_starts,
    measure_grid,
    measure_pauses,
    measure_work,
)
from sponge_env.live.config import LiveConfig
from sponge_env.live.limits import DESCRIPTIONS
from sponge_env.live.measured import build_profile, build_quota, interpolate_work
from sponge_env.live.worker import LiveWorker
from sponge_env.models import resolve_model
from sponge_env.profile import Profile, save_profile
from sponge_env.quota import CONTENDING

SECONDS = 45.0
"""About how long a calibration takes."""


class StageProgress:
    """Shows each stage of a calibration on the terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._shown: Progress | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a stage are done."""
        if self._shown is None or stage != self._stage:
            self.close()
            self._stage, self._shown = stage, Progress("calibrating", total, "step")
            self._shown.say(stage)
        self._shown.show(done)

    def close(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.close()


def calibrate(
    config: LiveConfig, seconds: float = SECONDS, progress: OnProgress | None = None
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
    _check(config, seconds)
    end_s = time.monotonic() + seconds
    config = dataclasses.replace(
        config,
        model=resolve_model(config.model).name,
        initial=Allocation(config.cores_max, config.batch_max),
        replicas_max=max(1 + CONTENDING, config.replicas_max),
    )
    with LiveWorker(config) as worker:
        bench = Bench(worker, progress or (lambda stage, done, total: None))
        alone, together = measure_cold_starts(bench, CONTENDING)
        lost_s = measure_pauses(bench)
        work = measure_work(bench)
        grid = measure_grid(bench, interpolate_work(work, config.batch_max), end_s)
    profile = build_profile(config, grid, alone.latency_s, worker.limiter)
    if config.physical_cores(config.cores_max) > 1:
        return profile  # the token bucket of the simulator is one CPU's
    contention = max(1.0, together.cpu_s / alone.cpu_s)  # less is noise
    period_s, tick_s = worker.launcher.period_s, worker.launcher.tick_s
    quota = build_quota(config, period_s, tick_s, work, lost_s, contention)
    return dataclasses.replace(profile, quota=quota)


def _check(config: LiveConfig, seconds: float) -> None:
    """Raise what keeps a configuration from being measured."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"the seconds to measure must be above 0, not {seconds:g}")
    if config.limiter == "none":
        raise ConfigError("a calibration needs a CPU limiter; choose another than 'none'")
    if min(config.cores_max, config.batch_max) < 2:
        raise ConfigError(
            "a calibration needs at least 2 core units and batches of 2, not "
            f"{config.cores_max} and {config.batch_max}"
        )


def calibrate_to(path: Path, config: LiveConfig, seconds: float = SECONDS) -> Profile:
    """Calibrate with progress on the terminal, and save the profile.

    Raises:
        SpongeError: The worker cannot be measured, or the profile not be written.
    """
    check_writable(path)
    progress = StageProgress()
    try:
        profile = calibrate(config, seconds, progress)
    finally:
        progress.close()
    save_profile(profile, path)
    return profile


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


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="sponge calibrate", description="Measure the real worker.")
    limiters = [name for name in get_args(Limiter) if name != "none"]
    parser.add_argument("--model", default="efficientnet-lite0", help="known name or .onnx file")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="profile to write (default: this machine's)"
    )
    parser.add_argument(
        "--cores", type=cli.at_least(2), default=16, help="largest number of core units"
    )
    parser.add_argument(
        "--core-unit", type=float, help="cores in one unit (default: all units are one core)"
    )
    parser.add_argument("--batch", type=cli.at_least(2), default=16, help="largest batch")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="about how long to measure")
    parser.add_argument(
        "--limiter",
        type=cli.one_of("limiter", limiters),
        default="auto",
        help=f"means to limit CPU: {', '.join(limiters)}",
    )
    return parser.parse_args(argv)


def _config(args: argparse.Namespace) -> LiveConfig:
    return LiveConfig(
        model=args.model,
        batch_max=args.batch,
        cores_max=args.cores,
        core_unit=1 / args.cores if args.core_unit is None else args.core_unit,
        limiter=args.limiter,
    )


def _run(argv: Sequence[str]) -> int:
    """Calibrate, save and report."""
    args = _parse(argv)
    path = args.out or local_profile_path()
    with cli.terminate_like_interrupt():
        profile = calibrate_to(path, _config(args), args.seconds)
    sys.stdout.write(f"{summary(profile)}\nsaved       {path}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
