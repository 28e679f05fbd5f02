"""The shipped reference profiles hold the published numbers."""

import dataclasses
import json
import math

import numpy as np
import pytest

from sponge_env.errors import ProfileError
from sponge_env.latency import QuotaService, fit_latency
from sponge_env.scenario.profile import PROFILE_DIR, Sample, load_profile, save_profile

REFERENCE = ("yolov5s", "resnet18")


@pytest.fixture(params=REFERENCE)
def profile(request):
    return load_profile(request.param)


def test_stored_fit_is_the_fit_of_the_floored_table(profile):
    floored_s = np.floor(np.array(profile.latency_s) * 1e3 + 1e-9) / 1e3
    model, error = fit_latency(profile.batches, profile.cores, floored_s)
    for name in ("gamma_s", "delta_s", "epsilon_s", "eta_s"):
        assert getattr(profile.latency, name) == pytest.approx(getattr(model, name), abs=1e-9)
    assert profile.latency.residual_quantiles == pytest.approx(model.residual_quantiles)
    assert profile.fit_error.mape == pytest.approx(error.mape)
    assert profile.fit_error.r2 == pytest.approx(error.r2)


def test_yolov5s_has_the_published_fit():
    profile = load_profile("yolov5s")
    fit = profile.latency
    coefficients_ms = [1e3 * v for v in (fit.gamma_s, fit.delta_s, fit.epsilon_s, fit.eta_s)]
    assert coefficients_ms == pytest.approx([140.435, 25.239, -50.842, 22.136], abs=5e-4)
    assert profile.fit_error.r2 == pytest.approx(0.995, abs=5e-4)
    assert profile.fit_error.mape == pytest.approx(0.056, abs=5e-4)


def test_tables_are_the_published_ones():
    yolo, resnet = (load_profile(name) for name in REFERENCE)
    assert (yolo.statistic, resnet.statistic) == ("p99", "p95")
    assert yolo.latency_s[3][0] == 1.275413
    assert yolo.service_table_s(16, 16)[1, 3] == 0.137768
    assert resnet.latency_s[4][3] == 0.1145


def test_file_is_what_saving_writes(profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / f"{profile.name}.json"
    save_profile(profile, path)
    assert load_profile(path) == profile


def test_the_fastest_service_under_a_quota_is_full_speed():
    quota = QuotaService(period_s=0.02, work_s=(0.0101, 0.02), dispatch_s=0.0005)
    profile = dataclasses.replace(load_profile("resnet18"), quota=quota)
    assert profile.fastest_s(1) == profile.fastest_s(16) == pytest.approx(0.0106)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cores": "1, 2"}, "cores must be a list of numbers, not '1, 2'"),
        ({"kores": [1, 2]}, "unknown key 'kores'"),
        ({"cold_start_s": None}, "cold_start_s must be a number, not None"),
    ],
)
def test_a_damaged_profile_says_what_is_wrong(tmp_path, change, reason):
    data = json.loads((PROFILE_DIR / "yolov5s.json").read_text())
    (tmp_path / "damaged.json").write_text(json.dumps(data | change))
    with pytest.raises(ProfileError, match=rf"damaged\.json is not a latency profile: .*{reason}"):
        load_profile(tmp_path / "damaged.json")
    del data["cores"]
    (tmp_path / "damaged.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="the profile needs cores"):
        load_profile(tmp_path / "damaged.json")


@pytest.mark.parametrize("name", ["yolov5s", "lite0"])
def test_a_scaled_profile_takes_longer_for_everything(name):
    profile = load_profile(name)
    assert profile.scaled(1) is profile
    slow = profile.scaled(2)
    assert np.array_equal(slow.service_table_s(16, 16), 2 * profile.service_table_s(16, 16))
    if profile.quota is not None:
        assert np.array_equal(slow.work_table_s(20), 2 * profile.work_table_s(20))
    error = dataclasses.replace(profile.fit_error, mape=0.5)
    measured = dataclasses.replace(profile, fit_error=error).planned
    np.testing.assert_allclose(measured.scaled(2).table_s(16, 16), 2 * measured.table_s(16, 16))


@pytest.mark.parametrize("latencies_s", [(), (0.0,), (1e308,), (math.nan,)])
def test_samples_are_latencies(latencies_s):
    sample = Sample(1, 1, latencies_s, latencies_s)
    with pytest.raises(ProfileError, match="has samples without latencies"):
        dataclasses.replace(load_profile("yolov5s"), samples=(sample,))


def test_work_goes_on_in_a_line_beyond_the_largest_measured_batch():
    profile = load_profile("lite0")
    measured = len(profile.quota.work_s)
    steps_s = np.diff(profile.work_table_s(measured + 3))[measured - 1 :]
    slope_s = (profile.quota.work_s[-1] - profile.quota.work_s[0]) / (measured - 1)
    np.testing.assert_allclose(steps_s, slope_s)
