"""Measure the real worker on this machine: ``python -m sponge_env.calibrate``.

The result is a :class:`~sponge_env.profile.Profile`: the CPU work of each batch size, the
saturated latency of batches on a grid of sizes and cores with the fit of l(b, c) to it,
the dispatch overhead and the cold start. The simulator and the controllers live on it.
:mod:`sponge_env.live.bench` takes the measurements.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import get_args

import numpy as np

from sponge_env import cli
from sponge_env.config import Limiter, positive
from sponge_env.errors import ConfigError
from sponge_env.files import check_writable
from sponge_env.installation import describe_host, describe_versions, require_extra
from sponge_env.interfaces import Allocation, FloatArray
from sponge_env.latency import CONTENDING, MOST_LOST, QuotaService, fit_latency, to_quantiles
from sponge_env.live.bench import PAUSED_SIZE, Bench, ColdStart, Grid, Runs
from sponge_env.live.cgroups import find_hierarchy
from sponge_env.live.limits import DESCRIPTIONS
from sponge_env.live.replica import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.models.model import shares_of_tasks
from sponge_env.models.registry import KNOWN, canonical_name, resolve_model
from sponge_env.profile import (
    LOCAL_MODEL,
    Accuracy,
    Facts,
    Profile,
    Sample,
    load_profile,
    local_profile_path,
    save_profile,
)
from sponge_env.scenario import load_scenario

SECONDS = 45.0
"""About how long a calibration takes."""
IMAGES = 100
"""Drawn images on which accuracy is measured."""
FEW_IMAGES = 20
"""The same where it is measured by the way."""
SCENARIO_SECONDS = 75.0
"""The same of all models of a scenario, beside their loading."""
POOR_FIT = 0.15
"""Mean absolute relative error of a fit from which on there is something to be said of it."""
QUANTILES = 21
"""Quantiles kept of scatter and residuals."""


def calibrate(config: LiveConfig, seconds: float = SECONDS, shown: bool = False) -> Profile:
    """Measure the worker that a configuration describes, with one replica.

    It takes about so many seconds, shown on the terminal or not; the grid is measured once at
    least.

    Raises:
        ConfigError: The configuration cannot be used.
        WorkerError: The worker does not start or does not stay alive.
        ProfileError: The measurements cannot be described by l(b, c).
    """
    _check(config, seconds)
    end_s = time.monotonic() + seconds
    config = dataclasses.replace(
        config,
        model=canonical_name(config.model),
        initial=Allocation(config.cores_max, config.batch_max),
        replicas_max=max(1 + CONTENDING, config.replicas_max),
    )
    with LiveWorker(config) as worker, closing(Bench(worker, shown)) as bench:
        alone, together = bench.cold_starts(CONTENDING)
        lost_s = bench.pauses()
        work = bench.work()
        grid = bench.grid(interpolate_work(work, config.batch_max), end_s)
    profile = build_profile(config, grid, alone.latency_s, worker.limiter)
    profile = dataclasses.replace(profile, facts=_facts(config.model, alone))
    if config.physical_cores(config.cores_max) > 1:
        return profile  # the token bucket of the simulator is one CPU's
    contention = max(1.0, together.cpu_s / alone.cpu_s)  # less is noise
    period_s, tick_s = worker.launcher.period_s, worker.launcher.tick_s
    quota = build_quota(config, period_s, tick_s, work, lost_s, contention)
    return dataclasses.replace(profile, quota=quota)


def _facts(model: str, alone: ColdStart) -> Facts:
    """Return what is known of a model beside how long it takes; most of it is looked up here."""
    from sponge_env.models.accuracy import accuracy_of  # imports Pillow

    accuracy = accuracy_of(model, FEW_IMAGES, f"sponge calibrate --model {model}")
    return Facts(alone.cpu_s, alone.memory_bytes, shares_of_tasks(resolve_model(model)), accuracy)


def _check(config: LiveConfig, seconds: float) -> None:
    """Raise what keeps a configuration from being measured."""
    positive("the seconds to measure", seconds)
    if config.limiter == "none":
        raise ConfigError("a calibration needs a CPU limiter; choose another than 'none'")
    if min(config.cores_max, config.batch_max) < 2:
        raise ConfigError(
            "a calibration needs at least 2 core units and batches of 2, not "
            f"{config.cores_max} and {config.batch_max}"
        )


def interpolate_work(work: Runs, batch_max: int) -> FloatArray:
    """Return the (batch_max,) mean CPU seconds of each batch size."""
    mean_s = [fmean(run.cpu_s for run in runs) for runs in work.values()]
    return np.interp(np.arange(1, batch_max + 1), list(work), mean_s)


def build_quota(
    config: LiveConfig,
    period_s: float,
    tick_s: float,
    work: Runs,
    lost_s: Sequence[float],
    loading_contention: float,
) -> QuotaService:
    """Put together what the simulator needs of a worker under a quota.

    ``work`` are runs at full speed, ``lost_s`` is from :meth:`~sponge_env.live.bench.Bench.pauses`.
    """
    dispatch_s = [float(np.median([run.dispatch_s for run in runs])) for runs in work.values()]
    per_request_s, per_batch_s = np.polyfit(list(work), dispatch_s, 1)
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
    """Fit l(b, c) to the grid and put the profile together, without quota data."""
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
        latency_s=tuple(map(tuple, mean_s.tolist())),
        latency=model,
        fit_error=fit_error,
        # the scatter of latencies would count the phase of the token bucket a second time,
        # which the simulator's quota service has by itself
        noise_quantiles=_scatter(values / values.mean() - 1 for values in cpu_s.values()),
        cold_start_s=cold_start_s,
        core_unit=config.core_unit,
        limiter=limiter,
        host=_host_facts(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=tuple(
            Sample(*cell, tuple(latency_s[cell].tolist()), tuple(cpu_s[cell].tolist()))
            for cell in sorted(grid)
        ),
    )


def _scatter(deviations: Iterable[FloatArray]) -> tuple[float, ...]:
    """Summarise single runs' deviations, those of each cell with equal weight."""
    cells = [to_quantiles(values, QUANTILES) for values in deviations]
    return to_quantiles(np.concatenate(cells), QUANTILES)


def _host_facts() -> dict[str, str | int | None]:
    """Describe this machine as far as it matters for a latency."""
    hierarchy, versions = find_hierarchy(), describe_versions()
    facts = {"cgroup": hierarchy.version if hierarchy else 0}
    return describe_host() | facts | {name: versions[name] for name in ("python", "onnxruntime")}


def calibrate_to(path: Path, config: LiveConfig, seconds: float = SECONDS) -> Profile:
    """Calibrate with progress on the terminal, and save the profile."""
    check_writable(path)
    profile = calibrate(config, seconds, shown=True)
    if config.model != LiveConfig().model:
        profile = dataclasses.replace(profile, name=path.stem)
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
    facts = profile.facts
    lines += [
        "",
        f"fit         MAPE {error.mape:.1%}, R2 {error.r2:.4f}, worst {error.worst_error:+.0%} at "
        f"batch {error.worst_batch} on {error.worst_cores} units",
        f"cold start  {profile.cold_start_s:.1f} s on one unit of {profile.core_unit:g} cores",
        f"loading     {facts.load_cpu_s:.2f} s of CPU, then {facts.memory_bytes / 1e6:.0f} MB",
        f"limiter     {DESCRIPTIONS[profile.limiter]}"
        + (f", period {profile.quota.period_s * 1e3:g} ms" if profile.quota else ""),
    ]
    if error.mape > POOR_FIT:
        lines.append(
            "note        l(b, c) does not describe this model; who plans with it is off as much"
        )
    if facts.tasks:
        mean = sum(tasks * share for tasks, share in enumerate(facts.tasks))
        lines.append(f"leads to    {mean:.1f} tasks on average, at most {len(facts.tasks) - 1}")
    if facts.accuracy:
        known = facts.accuracy
        looked = f", {known.count} looked at" * (known.count > 0)
        lines.append(f"accuracy    {known.share:.1%} of {known.of}{looked}")
    return "\n".join(lines)


def _run(argv: Sequence[str]) -> int:
    """Calibrate, save and report."""
    parser = cli.Parser(prog="sponge calibrate", description="Measure the real worker.")
    add, at_least_2 = parser.add_argument, cli.at_least(2)
    limiters = [name for name in get_args(Limiter) if name != "none"]
    said = f"{', '.join(KNOWN)}, an .onnx file, or module:Class"
    add("--model", metavar="M", help=f"{said} (default: {LOCAL_MODEL})")
    said = "measure all models of this machine that a scenario names, instead of one"
    add("--scenario", metavar="S", help=said)
    said = "profile to write (default: this machine's, or another for another model)"
    add("--out", type=Path, metavar="FILE", help=said)
    add("--cores", type=at_least_2, help="largest number of core units (default: 16)")
    said = "cores in one unit (default: all units are one core)"
    add("--core-unit", type=float, help=said)
    add("--batch", type=at_least_2, help="largest batch (default: 16)")
    add("--seconds", type=float, default=SECONDS, help="about how long to measure")
    said = f"means to limit CPU: {', '.join(limiters)}"
    add("--limiter", type=cli.one_of("limiter", limiters), default="auto", help=said)
    said = "instead, measure how well OCR reads so many drawn images, "
    said += f"and print what is known of others (default: {IMAGES})"
    add("--accuracy", type=cli.at_least(1), nargs="?", const=IMAGES, metavar="N", help=said)
    args = parser.parse_args(argv)
    if args.accuracy:
        for extra in ("live", "ocr"):
            require_extra(extra, "the measurement of accuracy")
        from sponge_env.models.accuracy import accuracy_table, known_accuracies, measure_accuracy

        command = f"{parser.prog} --accuracy {args.accuracy}"
        measured = measure_accuracy(args.accuracy, shown=True)
        sys.stdout.write(accuracy_table(measured, command) + "\n")
        _note_accuracies(known_accuracies(measured, command))
        return 0
    cores = args.cores or 16
    config = LiveConfig(
        model=args.model or LOCAL_MODEL,
        batch_max=args.batch or 16,
        cores_max=cores,
        core_unit=1 / cores if args.core_unit is None else args.core_unit,
        limiter=args.limiter,
    )
    configs, seconds = [config], args.seconds
    if args.scenario:
        for name in ("model", "cores", "core_unit", "batch", "out"):
            if getattr(args, name) is not None:
                raise ConfigError(
                    f"--scenario says itself what is measured; leave out --{name.replace('_', '-')}"
                )
        configs = _of_scenario(args.scenario, args.limiter)
        seconds = min(seconds, SCENARIO_SECONDS / len(configs))
    with cli.terminate_like_interrupt():
        for config in configs:
            path = args.out or local_profile_path(config.model)
            profile = calibrate_to(path, config, seconds)
            sys.stdout.write(
                f"model       {config.model}\n{summary(profile)}\nsaved       {path}\n"
            )
    if path != local_profile_path() and not args.scenario:
        sys.stdout.write(f"use it      --profile {path}\n")
    return 0


def _note_accuracies(found: Mapping[str, Accuracy]) -> None:
    """Keep how often models are right in this machine's profiles of them."""
    for model, accuracy in found.items():
        path = local_profile_path(model)
        if path.exists():
            profile = load_profile(path)
            facts = dataclasses.replace(profile.facts, accuracy=accuracy)
            save_profile(dataclasses.replace(profile, facts=facts), path)
            sys.stdout.write(f"noted in    {path}\n")


def _of_scenario(name: str, limiter: Limiter) -> list[LiveConfig]:
    """Return what is to be measured for a scenario; a ConfigError if nothing is."""
    from sponge_env.factory import calibrations  # which calibrates for live runs

    if configs := calibrations([load_scenario(name)], limiter):
        for config in configs:
            resolve_model(config.model)  # which says what is missing before anything is measured
        return configs
    raise ConfigError(f"scenario {name!r} names no model of this machine, such as local:ocr-det-v5")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
