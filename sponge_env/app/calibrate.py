"""Measure the real worker on this machine: ``python -m sponge_env calibrate``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sponge_env import cli
from sponge_env.env.factory import calibrations, prepare_machine
from sponge_env.errors import ConfigError
from sponge_env.live.calibration import SECONDS, SEVERAL_SECONDS, calibrate_files, warn_if_disturbed
from sponge_env.live.protocol import LiveConfig
from sponge_env.models.registry import KNOWN, resolve_model
from sponge_env.scenario.profile import LOCAL_MODEL, REMEDY, Profile, local_profile_path
from sponge_env.scenario.scenario import load_scenario


def summary(profile: Profile) -> str:
    """Describe a profile in a short table: measured and fitted latencies in ms."""
    fitted_s = profile.latency.predict_s(*np.ix_(profile.batches, profile.cores))
    lines = ["saturated latency [ms], measured / fit", ""]
    lines.append("batch" + "".join(f"{f'{c} units':>17}" for c in profile.cores))
    for batch, measured, fit in zip(profile.batches, profile.latency_s, fitted_s, strict=True):
        cells = (f"{m * 1e3:8.1f} /{f * 1e3:7.1f}" for m, f in zip(measured, fit, strict=True))
        lines.append(f"{batch:5}" + "".join(cells))
    error, facts = profile.fit_error, profile.facts
    lines += [
        "",
        f"fit         MAPE {error.mape:.1%}, R2 {error.r2:.4f}, worst {error.worst_error:+.0%} at "
        f"batch {error.worst_batch} on {error.worst_cores} units",
        f"cold start  {profile.cold_start_s:.1f} s on one unit of {profile.core_unit:g} cores",
        f"loading     {facts.load_cpu_s:.2f} s of CPU, then {facts.memory_bytes / 1e6:.0f} MB",
        f"limiter     {profile.limiter}"
        + (f", period {profile.quota.period_s * 1e3:g} ms" if profile.quota else ""),
    ]
    if profile.poor_fit:
        lines.append(f"note        l(b, c) does not describe this model: {REMEDY}")
    if facts.tasks:
        mean = sum(tasks * share for tasks, share in enumerate(facts.tasks))
        lines.append(f"leads to    {mean:.1f} tasks on average, at most {len(facts.tasks) - 1}")
    return "\n".join(lines)


@cli.command
def main(argv: Sequence[str]) -> int:
    """Measure and report."""
    args = _parser().parse_args(argv)
    files = _files(args)
    prepare_machine(args.wait, args.cpus, args.replicas, args.limiter)
    for config in files.values():
        resolve_model(config.model)  # which says what is missing before anything is measured
    with cli.terminate_like_interrupt():
        profiles = calibrate_files(files, args.seconds)
    for (path, config), profile in zip(files.items(), profiles, strict=True):
        sys.stdout.write(f"model       {config.model}\n{summary(profile)}\nsaved       {path}\n")
        warn_if_disturbed(profile)
    if not args.scenario and local_profile_path() not in files:
        by_itself = f"local:{args.model}; sponge serve --model {args.model} does so by itself"
        sys.stdout.write(f"use it      --profile {args.out or by_itself}\n")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="sponge calibrate", description="Measure the real worker.")
    times = f"{SECONDS:g}, of several models {SEVERAL_SECONDS:g}"
    models = f"{', '.join(KNOWN)}, an .onnx file, or module:Class"
    for option, metavar, kind, text in (
        ("--model", "M", str, f"{models} (default: {LOCAL_MODEL})"),
        ("--scenario", "S", str, "measure all models of this machine that a scenario names"),
        ("--out", "FILE", Path, "profile to write (default: this machine's, one for each model)"),
        ("--cores", None, cli.at_least(2), "largest number of core units (default: 16)"),
        ("--core-unit", None, float, "cores in one unit (default: all units are one core)"),
        ("--batch", None, cli.at_least(2), "largest batch (default: 16)"),
        ("--seconds", None, float, f"about how long to measure (default: {times})"),
    ):
        parser.add_argument(option, metavar=metavar, type=kind, help=text)
    limiters = [name for name in cli.LIMITERS if name != "none"]
    text = f"means to limit CPU: {', '.join(limiters)}"
    limiter = cli.one_of("limiter", limiters)
    parser.add_argument("--limiter", type=limiter, default="auto", help=text)
    cli.add_replicas(parser)
    cli.add_machine(parser)
    return parser


def _files(args: argparse.Namespace) -> dict[Path, LiveConfig]:
    if not args.scenario:
        cli.check_file("--out", args.out)
        cores = args.cores or 16
        config = LiveConfig(
            model=args.model or LOCAL_MODEL, batch_max=args.batch or 16, cores_max=cores,
            core_unit=1 / cores if args.core_unit is None else args.core_unit, limiter=args.limiter,
        )  # fmt: skip
        return {args.out or local_profile_path(config.model): config}
    for name in ("model", "cores", "core_unit", "batch", "out"):
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"--scenario says itself what is measured; leave out {option}")
    if not (files := calibrations([load_scenario(args.scenario)], args.limiter)):
        raise ConfigError(f"scenario {args.scenario!r} names no model of this machine")
    return files
