"""Random systems: what a controller learns on that is to decide for more than one.

Latencies, limits, objectives, loads, networks and the ways in which a profile is wrong are drawn
anew (domain randomisation: Tobin et al., 2017), over wider ranges than deployments have; or a
scenario keeps its model and its kind of load, and the rest is drawn.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sponge_env.errors import ProfileError
from sponge_env.latency import fit_latency
from sponge_env.scenario import config
from sponge_env.scenario.profile import POOR_FIT, Profile, load_profile, save_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.traffic import rate_rps
from sponge_env.utils.files import cache_dir

_GRID = (1, 2, 4, 8, 16)  # Batch sizes and cores of a profile's measurements
_SLOWEST = 0.15  # Share of the shortest measurement that a drawn fit may fall to
_MOST_RPS, _BYTES_PER_S = 800.0, 3e6  # Highest rate, and the bandwidth for which payloads are drawn
_KINDS = {"poisson": 0.15, "constant": 0.1, "bursty": 0.25, "flash-crowd": 0.25, "diurnal": 0.25}
"""Shares of the kinds of arrivals."""
_SEED, _CORES = 200_000, (4, 8, 16, 32)  # Of the systems of suites; cores of their machines in turn


@contextmanager
def random_systems(random: np.random.Generator, cores: Sequence[int]) -> Iterator[list[Scenario]]:
    """Draw a system for each machine of so many cores; their profiles go with the context."""
    with TemporaryDirectory(prefix="sponge-") as folder:
        paths = [Path(folder) / f"system-{k}.json" for k in range(len(cores))]
        yield [_random_system(random, *each) for each in zip(paths, cores, strict=True)]


@cache
def suite_systems(count: int) -> tuple[Scenario, ...]:
    """Return systems, the same however many follow; the cache folder keeps their profiles."""
    random, paths = np.random.default_rng(_SEED), cache_dir() / "systems" / f"{_SEED}"
    systems = ((paths / f"system-{k:03}.json", _CORES[k % len(_CORES)]) for k in range(count))
    drawn = (_random_system(random, *each) for each in systems)
    return tuple(replace(s, warmup_s=330.0, duration_s=s.duration_s + 300.0) for s in drawn)


def _random_system(random: np.random.Generator, path: Path, cores: int) -> Scenario:
    """Draw a system on a machine of so many cores; its profile is written to a file."""
    # Some machines of 16 core units are one CPU, which quotas share out.
    if cores == 16 and random.random() < 0.4:
        profile = load_profile("lite0").scaled(_between(random, 0.4, 2.5))
    else:
        profile = _random_profile(random)
    profile = replace(profile, name=path.stem, model=path.stem, samples=())
    kept = None
    with suppress(ProfileError):  # missing or damaged
        kept = load_profile(str(path))
    if kept != profile:  # else another process may read it now
        save_profile(profile, path)
    each = min(cores, 16)
    alone_s, fastest_s = profile.service_table_s(1, each)[0, 0], profile.fastest_s(each)
    slo_s = float(np.clip(alone_s * _between(random, 1.3, 25.0), 0.05, 3.0))
    slo_s = max(slo_s, 2 * fastest_s)
    network = _random_network(random, slo_s)
    made = Scenario(
        name=path.stem,
        profile=str(path),
        slo_s=slo_s,
        duration_s=round(_between(random, 120.0, 900.0)),
        classes=_random_classes(random, slo_s, network.payload_bytes),
        limits=config.Limits(cores=each, replicas=min(cores, 16), total_cores=cores),
        initial=_random_initial(random, cores),
        arrivals=_random_arrivals(random),
        network=network,
        # Keeping all requests would take gigabytes where a system is too slow.
        serving=config.Serving("expired" if random.random() < 0.15 else "unmeetable"),
        simulation=config.Simulation(**_random_machine(random)),
    )
    peak = (made.arrivals.peak or 0.0) / max(rate_rps(made, profile) / _MOST_RPS, 1.0)
    return replace(made, arrivals=replace(made.arrivals, peak=peak))


def other(scenario: Scenario, random: np.random.Generator) -> Scenario:
    """Draw another system in a scenario's place: what the next deployment of the model changes."""
    # In half of them the network fades. Traces keep their load, and classes that have arrivals.
    longer, larger, busier = (_between(random, 1 / most, most) for most in (1.3, 2.0, 1.2))
    network, arrivals = scenario.network, scenario.arrivals
    scales = () if any(each.arrivals for each in scenario.classes) else ("rate_rps", "load", "peak")
    rates = {name: x and x * busier for name in scales for x in [getattr(arrivals, name)]}
    fades = _random_fades(random, 0.0 if network.trace == "none" else 0.5)
    classes = (
        replace(each, slo_s=each.slo_s * longer, payload_bytes=each.payload_bytes * larger)
        for each in scenario.classes
    )
    return replace(
        scenario, slo_s=scenario.slo_s * longer, classes=tuple(classes),
        arrivals=replace(arrivals, **rates),
        network=replace(network, payload_bytes=network.payload_bytes * larger, **fades),
        simulation=replace(scenario.simulation, **_random_machine(random)),
    )  # fmt: skip


def _between(random: np.random.Generator, least: float, most: float) -> float:
    """Draw evenly by the logarithm."""
    return float(math.exp(random.uniform(math.log(least), math.log(most))))


def _random_profile(random: np.random.Generator) -> Profile:
    """Draw measurements that scatter around a fit of l(b, c), and fit them again."""
    batches, cores = np.meshgrid(_GRID, _GRID, indexing="ij")
    while True:
        # Of one request on one core, and the share of that which more cores speed up.
        alone_s, parallel = _between(random, 0.005, 0.4), random.uniform(0.3, 0.98)
        of_batch, of_each = random.uniform(-0.4, 0.75), random.uniform(0.1, 0.95)
        work_s = parallel * alone_s * ((1 - of_batch) * batches + of_batch) / cores
        serial_s = (1 - parallel) * alone_s * (of_each * batches + 1 - of_each)
        bend = random.uniform(0, 0.2)
        table_s = (work_s + serial_s) * np.exp(random.uniform(-bend, bend, batches.shape))
        if table_s.min() <= 0:
            continue
        table_s = np.minimum.accumulate(np.maximum.accumulate(table_s, axis=0), axis=1)
        latency, error = fit_latency(_GRID, _GRID, table_s, relative=bool(random.integers(2)))
        try:
            whole_s = latency.table_s(_GRID[-1], _GRID[-1])
        except ProfileError:  # not positive everywhere
            continue
        if whole_s.min() >= _SLOWEST * table_s.min() and error.mape <= POOR_FIT:
            grid = tuple(tuple(row) for row in table_s.tolist())
            own: dict[str, Any] = {"latency_s": grid, "latency": latency, "fit_error": error}
            return replace(load_profile("yolov5s"), batches=_GRID, cores=_GRID, **own)


def _random_arrivals(random: np.random.Generator) -> config.Arrivals:
    fast, flash_s = random.random() < 0.6, random.uniform(10.0, 40.0)
    kind: Any = str(random.choice([*_KINDS], p=[*_KINDS.values()]))
    return config.Arrivals(
        kind=kind,
        # A third of the systems is under a high load.
        peak=random.uniform(0.4, 0.9) if random.random() < 1 / 3 else _between(random, 0.05, 0.85),
        burst_factors=(0.4, 1.0, 2.4) if fast else (0.4, 1.0, 1.6),
        burst_dwell_s=_between(random, 4.0, 30.0) if fast else random.uniform(50.0, 120.0),
        flash_factor=random.uniform(2.0, 8.0),
        flash_s=flash_s,
        flash_every_s=max(flash_s, random.uniform(60.0, 240.0)),
        diurnal_amplitude=random.uniform(0.3, 0.9),
        diurnal_period_s=_between(random, 60.0, 400.0),
    )


def _random_network(random: np.random.Generator, slo_s: float) -> config.Network:
    if random.random() < 0.08:
        return config.Network(trace="none")
    return config.Network(
        payload_bytes=_between(random, 0.01, 0.5) * slo_s * _BYTES_PER_S,
        base_delay_s=0.01 * min(1.0, slo_s), **_random_fades(random, 0.25),
    )  # fmt: skip


def _random_fades(random: np.random.Generator, share: float) -> dict[str, Any]:
    """Draw the keys of a network that fades; none but in a share of the cases."""
    if random.random() >= share:
        return {}
    fades = {"fade_every_s": random.uniform(40.0, 120.0), "fade_s": random.uniform(1.0, 6.0)}
    return {**fades, "fade_depth": _between(random, 1e-3, 0.1)}


def _random_machine(random: np.random.Generator) -> dict[str, Any]:
    """Draw the keys of a simulation in which a machine differs from its profile."""
    delay_s, at_once = _between(random, 0.1, 2.0), random.random() < 0.5
    scale, as_profiled = _between(random, 0.9, 1.3), random.random() < 0.45
    return {
        "actuation_delay_s": 0.0 if at_once else delay_s,
        "service_scale": 1.0 if as_profiled else scale, "cold_start_s": _between(random, 2.0, 30.0),
    }  # fmt: skip


def _random_classes(
    random: np.random.Generator, slo_s: float, payload_bytes: float
) -> tuple[config.RequestClass, ...]:
    if random.random() >= 0.05:
        return ()
    kinds = (0.3, 1.0, 1 / 3), (0.5, 1.6, 1.0), (0.2, 3.2, 2.0)
    return tuple(config.RequestClass(a, b * slo_s, c * payload_bytes) for a, b, c in kinds)


def _random_initial(random: np.random.Generator, machine: int) -> config.Initial:
    if random.random() < 0.3:
        return config.Initial()
    replicas = int(random.integers(1, min(5, machine) + 1))
    most = max(1, min(16, machine // replicas) // 2)
    cores = int(random.integers(1, most + 1))
    return config.Initial(cores, int(random.choice((1, 2, 4, 8))), replicas)
