"""The model that the benchmark compares with simulates the same system."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from reference.system import requests_of
from reference.worker import noise_source

from sponge_env.env.factory import make_system
from sponge_env.interfaces import Allocation
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.seeds import stream
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.encoding import FIELDS, encode
from sponge_env.simulation.workload import draw_workload

pytest.importorskip("simpy")

ROUGH = ("running_left", "utilisation")
"""The model knows when its batch really ends, and counts its time at the end."""


def test_it_counts_and_observes_what_the_system_does() -> None:
    from reference.simpy_model import Server

    scenario = dataclasses.replace(load_scenario("paper"), duration_s=30.0)
    profile = scenario_profile(scenario)
    spec = make_spec(scenario, profile)
    noise = noise_source(profile.noise_quantiles, 1.0, stream(0, "noise"))
    latency_s = profile.service_table_s(spec.first.batch_max, spec.first.cores_max)
    server = Server(spec, requests_of(draw_workload(scenario, profile, 0)), latency_s, noise)
    system = make_system(scenario, 0)
    exact = [name not in ROUGH for name in FIELDS]
    for cores, batch in np.random.default_rng(0).integers(1, 17, (30, 2)).tolist():
        observation, interval = server.step(cores, batch)
        metrics = system.step(Allocation(cores, batch))
        assert len(interval.arrived) == metrics.offered
        assert (interval.on_time, interval.late) == (metrics.on_time, metrics.late)
        expected = encode(system.view(), spec)
        np.testing.assert_allclose(observation[exact], expected[exact], atol=1e-5)
