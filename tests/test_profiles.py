"""The shipped reference profiles hold the published numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from baselines.fa2 import FA2
from sponge_env.errors import ProfileError
from sponge_env.latency import QuotaService, fit_latency, quantile
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Simulation
from sponge_env.scenario.profile import PROFILE_DIR, Profile, load_profile, save_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.system import SimulatedSystem

REFERENCE = ("yolov5s", "resnet18")


@pytest.fixture(params=REFERENCE)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_stored_fit_is_the_fit_of_the_floored_table(profile: Profile) -> None:
    floored_s = np.floor(np.array(profile.latency_s) * 1e3 + 1e-9) / 1e3
    model, error = fit_latency(profile.batches, profile.cores, floored_s)
    for name in ("gamma_s", "delta_s", "epsilon_s", "eta_s"):
        assert getattr(profile.latency, name) == pytest.approx(getattr(model, name), abs=1e-9)
    assert profile.latency.residual_quantiles == pytest.approx(model.residual_quantiles)
    assert profile.fit_error.mape == pytest.approx(error.mape)
    assert profile.fit_error.r2 == pytest.approx(error.r2)


def test_yolov5s_has_the_published_fit() -> None:
    profile = load_profile("yolov5s")
    fit = profile.latency
    coefficients_ms = [1e3 * v for v in (fit.gamma_s, fit.delta_s, fit.epsilon_s, fit.eta_s)]
    assert coefficients_ms == pytest.approx([140.435, 25.239, -50.842, 22.136], abs=5e-4)
    assert profile.fit_error.r2 == pytest.approx(0.995, abs=5e-4)
    assert profile.fit_error.mape == pytest.approx(0.056, abs=5e-4)


def test_resnet18_is_near_the_published_fit() -> None:
    fit = load_profile("resnet18").latency
    coefficients_ms = [1e3 * v for v in (fit.gamma_s, fit.delta_s, fit.epsilon_s, fit.eta_s)]
    assert coefficients_ms == pytest.approx([18.29, 4.488, 45.47, 1.046], abs=0.2)


def test_tables_are_the_published_ones() -> None:
    yolo, resnet = (load_profile(name) for name in REFERENCE)
    assert (yolo.statistic, resnet.statistic) == ("p99", "p95")
    assert yolo.latency_s[3][0] == 1.275413
    assert yolo.service_table_s(16, 16)[1, 3] == 0.137768
    assert resnet.latency_s[4][3] == 0.1145


def test_scatter_is_declared_an_assumption_and_has_mean_zero(profile: Profile) -> None:
    assert "Assumed" in profile.source
    assert len(profile.noise_quantiles) == 21
    draws = [quantile(profile.noise_quantiles, p) for p in np.linspace(0, 1, 10_001)]
    assert np.mean(draws) == pytest.approx(0.0, abs=1e-9)
    assert np.std(draws) == pytest.approx(0.05, abs=0.005)


def test_whole_cores_and_the_published_cold_start(profile: Profile) -> None:
    assert profile.quota is None
    assert profile.core_unit == 1.0
    assert profile.cold_start_s == 10.0


def test_file_is_what_saving_writes(
    profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("profiles") / f"{profile.name}.json"
    save_profile(profile, path)
    assert load_profile(path) == profile


@pytest.mark.parametrize(
    "damage",
    [
        {"latency": None},
        {"noise_quantiles": []},
        {"cold_start_s": float("nan")},
        {"core_unit": 0.0},
        {"latency_s": [[1.0]]},
        {"quota": {"period_s": 0.0, "work_s": [1.0], "dispatch_s": 0.0}},
        {"quota": {"period_s": 0.02, "work_s": [], "dispatch_s": 0.0}},
    ],
)
def test_a_malformed_profile_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    data = json.loads((PROFILE_DIR / "yolov5s.json").read_text())
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data | damage))
    with pytest.raises(ProfileError):
        load_profile(path)


def test_the_fastest_service_under_a_quota_is_full_speed() -> None:
    quota = QuotaService(period_s=0.02, work_s=(0.0101, 0.02), dispatch_s=0.0005)
    profile = dataclasses.replace(load_profile("resnet18"), quota=quota)
    assert profile.fastest_s(1) == profile.fastest_s(16) == pytest.approx(0.0106)


def test_the_fastest_service_of_a_table_may_be_on_fewer_cores() -> None:
    profile = load_profile("resnet18")
    assert profile.fastest_s(16) == profile.service_table_s(1, 16).min()


def test_a_profile_of_version_0_1_still_loads(tmp_path: Path) -> None:
    profile = load_profile("lite0")
    assert profile.quota is not None
    quota = dataclasses.replace(profile.quota, loading_contention=1.5)
    contended = dataclasses.replace(profile, quota=quota)
    save_profile(contended, tmp_path / "new.json")
    text = (tmp_path / "new.json").read_text()
    assert '"loading_contention": 1.5' in text
    (tmp_path / "old.json").write_text(text.replace("loading_contention", "crowd_loading"))
    assert load_profile(tmp_path / "old.json") == contended


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cores": "1, 2"}, "cores must be a list of numbers, not '1, 2'"),
        ({"kores": [1, 2]}, "unknown key 'kores'"),
        ({"cold_start_s": None}, "cold_start_s must be a number, not None"),
    ],
)
def test_a_damaged_profile_says_what_is_wrong(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    data = json.loads((PROFILE_DIR / "yolov5s.json").read_text())
    (tmp_path / "damaged.json").write_text(json.dumps(data | change))
    with pytest.raises(ProfileError, match=rf"damaged\.json is not a latency profile: .*{reason}"):
        load_profile(tmp_path / "damaged.json")
    del data["cores"]
    (tmp_path / "damaged.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="the profile needs cores"):
        load_profile(tmp_path / "damaged.json")


@pytest.mark.parametrize("name", ["yolov5s", "lite0"])
def test_a_scaled_profile_takes_longer_for_everything(name: str) -> None:
    profile = load_profile(name)
    assert profile.scaled(1) is profile
    slow = profile.scaled(2)
    assert np.array_equal(slow.service_table_s(16, 16), 2 * profile.service_table_s(16, 16))
    if profile.quota is not None:
        assert np.array_equal(slow.work_table_s(20), 2 * profile.work_table_s(20))


def test_service_may_take_longer_than_controllers_plan_with() -> None:
    scenario = dataclasses.replace(load_scenario("paper"), duration_s=60.0)
    slow = dataclasses.replace(scenario, simulation=Simulation(service_scale=1.3))
    planned = [SimulatedSystem(each, 0).spec.first.latency for each in (scenario, slow)]
    assert planned[0] == planned[1]
    rates = [
        run_episode(SimulatedSystem(each, 0), FA2(), Run.of("fa2", each, "sim", 0)).summary
        for each in (scenario, slow)
    ]
    assert rates[0].utilisation < rates[1].utilisation


@pytest.mark.parametrize(
    ("name", "measured", "ratio"),
    [
        ("lite1", "lite0", 631 / 407),
        ("lite2", "lite0", 899 / 407),
        ("yolov5n", "yolov5s", 45 / 98),
        ("yolov5m", "yolov5s", 224 / 98),
    ],
)
def test_what_was_not_measured_says_so_and_is_a_measured_profile_scaled(
    name: str, measured: str, ratio: float
) -> None:
    profile, base = load_profile(name), load_profile(measured)
    assert profile.source.startswith(f"Not measured: {measured}")
    fields = {each: getattr(profile, each) for each in ("name", "model", "source", "samples")}
    assert profile == dataclasses.replace(base.scaled(ratio), **fields)
