"""Domain randomisation: random variants of a scenario for training.

A policy that has seen one load, payload and SLO has learned those by heart. Trained on
variants (Tobin et al., IROS 2017), it has to read them from its observation, and then also
fits workloads that nobody foresaw. Variants change the workload, the network, the SLO and
the drop policy; model, interval and limits, which give actions their meaning, stay.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sponge_env.config import Arrivals, Initial, Network, Serving
from sponge_env.scenario import Scenario
from sponge_env.seeds import stream

_LOADS = (0.08, 0.75)
"""Mean load, relative to the capacity with all cores."""
_SLOS_S = (0.5, 2.0)
_PAYLOADS_BYTES = (20e3, 600e3)
_DURATION_S = 200.0
"""Variants are short, so that a batch of them shows many beginnings."""


def variants(scenario: Scenario, count: int, seed: int) -> list[Scenario]:
    """Draw variants of a scenario.

    Args:
        scenario: Gives profile, interval, limits and simulation.
        count: Number of variants.
        seed: Seed of the draws.

    Returns:
        ``count`` scenarios with random arrivals, network, SLO, drop policy and initial
        allocation.
    """
    rng = stream(seed, "variants")
    return [_variant(scenario, rng, number) for number in range(count)]


def _variant(scenario: Scenario, rng: np.random.Generator, number: int) -> Scenario:
    limits = scenario.limits
    return dataclasses.replace(
        scenario,
        name=f"{scenario.name}-{number}",
        slo_s=_between(rng, _SLOS_S, scale="log"),
        duration_s=_DURATION_S,
        classes=(),
        start="cold",
        arrivals=_arrivals(rng),
        network=_network(rng),
        serving=Serving(drop="expired" if rng.random() < 0.3 else "none"),
        initial=Initial(
            cores=1 + int(rng.random() * limits.cores), batch=1 + int(rng.random() * limits.batch)
        ),
    )


def _arrivals(rng: np.random.Generator) -> Arrivals:
    kind = ("constant", "poisson", "bursty", "flash-crowd", "diurnal")[int(rng.random() * 5)]
    # A peak of k times the mean must still be served: the mean gets lower instead.
    peak = {"bursty": 2.0, "flash-crowd": 2.5, "diurnal": 1.5}.get(kind, 1.0)
    load = _between(rng, _LOADS) / peak
    return Arrivals(
        kind=kind,  # type: ignore[arg-type]  # one of its literals
        load=load,
        burst_dwell_s=_between(rng, (4.0, 30.0), scale="log"),
        flash_factor=_between(rng, (2.0, 6.0)),
        flash_s=_between(rng, (10.0, 40.0)),
        flash_every_s=_between(rng, (60.0, 150.0)),
        diurnal_amplitude=_between(rng, (0.3, 0.9)),
        diurnal_period_s=_between(rng, (60.0, 300.0)),
    )


def _network(rng: np.random.Generator) -> Network:
    if rng.random() < 0.1:
        return Network(trace="none")
    return Network(
        payload_bytes=_between(rng, _PAYLOADS_BYTES, scale="log"),
        base_delay_s=_between(rng, (0.001, 0.03)),
        fade_every_s=_between(rng, (20.0, 90.0)) if rng.random() < 0.25 else None,
        fade_s=_between(rng, (1.0, 6.0)),
    )


def _between(rng: np.random.Generator, ends: tuple[float, float], scale: str = "linear") -> float:
    low, high = ends
    share = float(rng.random())
    if scale == "log":
        return float(low * (high / low) ** share)
    return low + share * (high - low)
