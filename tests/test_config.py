"""Scenario and profile files: what is refused, and that the shipped ones hold what they claim."""

import dataclasses
import json
import math

import numpy as np
import pytest

from sponge_env.errors import ConfigError, ProfileError
from sponge_env.latency import QuotaService, fit_latency
from sponge_env.run.suite import changed
from sponge_env.scenario.profile import PROFILE_DIR, Sample, load_profile, save_profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.toml import from_mapping


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_an_objective_can_be_relative_to_the_models(tmp_path):
    pipeline = """
        slo_s = 0.7
        slo_services = 10.0
        [[stages]]
        name = "a"
        variants = [{ profile = "resnet18", accuracy = 0.7 }, { profile = "yolov5s" }]
        fan_out_shares = [0.5, 0.0, 0.0, 0.5]
        [[stages]]
        name = "b"
        variants = [{ profile = "RESNET" }]
    """
    path = write(tmp_path, pipeline.replace("RESNET", "resnet18"))
    alone_s = {name: load_profile(name).fastest_s(16) for name in ("yolov5s", "resnet18")}
    expected_s = 10 * (alone_s["yolov5s"] + 1.5 * alone_s["resnet18"])
    assert load_scenario(path).slo_s == pytest.approx(expected_s, rel=0.05)
    beside = '[[stages]]\nname = "c"\nafter = ["a"]\nvariants = [{ profile = "yolov5s" }]'
    path.write_text(pipeline.replace("RESNET", "resnet18") + beside)
    slower_s = 10 * (alone_s["yolov5s"] + 1.5 * max(alone_s.values()))
    assert load_scenario(path).slo_s == pytest.approx(slower_s, rel=0.05)
    slowed = changed(load_scenario(path), {"simulation.service_scale": 2.0})
    assert slowed.slo_s == load_scenario(path).slo_s  # slower than planned is no later a deadline
    path.write_text(pipeline.replace("RESNET", "local:never-measured"))
    assert load_scenario(path).slo_s == 0.7


CLASSES = "slo_services = 5\n[[classes]]\nslo_s = 1\nshare = 1\npayload_bytes = 1"
LOADED = "[arrivals]\nkind = 'trace'\nfile = 'x'\nrate_rps = 1\nload = 1"


@pytest.mark.parametrize(
    ("text", "message"), [(CLASSES, r"slo_services must be left out where classes have"),
     ("slo = 1", r"unknown key 'slo'.*did you mean 'slo_s'"),
     ("[limits]\ncors = 4", r"unknown key 'limits\.cors'.*did you mean 'limits\.cores'"),
     ("[limits]\nfoo = 4", r"unknown key 'limits\.foo'; choose from limits\.batch"),
     ("slo_s = 0", r"slo_s must be a number above 0, not 0\.0"),
     ('slo_s = "1"', r"slo_s must be a number, not '1'"),
     ("[limits]\ncores = 0", r"limits\.cores must be between 1 and 4096, not 0"),
     ("[limits]\nbatch = 1.5", r"limits\.batch must be a whole number, not 1\.5"),
     ("[serving]\ndrop = 'expire'", r"unknown serving\.drop 'expire'.*mean 'expired'"),
     ("[serving]\ndrop = 'late'", "unknown serving.drop 'late'"), ("[network]\nstart = 'random'",
      r"network\.start must be 'beginning' for the trace '4g', which is no file, not 'ra"),
     ("name = 'a/b'", r"name must be letters, digits, .* not 'a/b'"),
     ("[arrivals]\nkind = 'poisson'", r"arrivals needs one of rate_rps, load and peak"),
     (LOADED, r"arrivals of a trace take one of rate_rps, load, peak, or none"),
     ("[arrivals]\nkind = 'trace'", r"arrivals\.file must be the path of a trace"),
     ("[arrivals]\nrate_rps = 1\nburst_factors = ['a']", r"burst_factors must be a number"),
     ("[initial]\ncores = 17", r"initial\.cores must be between 1 and 16, not 17"),
     ("duration_s = 0.5", r"duration_s must be at least one interval"),
     ("[limits]\ncores = 4096\nbatch = 4096", r"limits\.batch must be at most 256 with"),
     ("[limits]\ntotal_cores = 10_000_000_000", r"limits\.total_cores must be .* at most"),
     ("[limits]\nnodes = [8, 4]", r"limits\.cores must be at most 8, the largest of limits\.no"),
     ("[limits]\nnodes = [0]", r"limits\.nodes must be between 1 and"),
     (f"[limits]\nnodes = {[16] * 17}", r"the number of limits\.nodes must be at most 16"),
     ("[limits]\nnodes = [16, 16]\ntotal_cores = 16",
      r"limits\.total_cores must be 32, the sum of limits\.nodes, or left out, not 16"),
     ("[limits]\ncores = 3\nnodes = [5, 5]\n[initial]\ncores = 3\nreplicas = 3",
      r"initial replicas must be of at most 5 \+ 5 cores together, each on one node, not 9"),
     ("[arrivals]\nrate_rps = 1\nburst_dwell_s = 1e-9", r"burst_dwell_s must be at least 0\.0006"),
     ("[network]\nfade_s = 1e-9\nfade_every_s = 1e-9", r"fade_every_s must be at least"),
     ("slo_s = 1" + "0" * 400, r"a whole number that is too large"),
     ("x = " + "[" * 9000, r"is not a TOML scenario: it is nested too deeply"),
     ("slo_s = ", r"is not a TOML scenario")],
)  # fmt: skip
def test_bad_toml_gets_one_sentence(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        load_scenario(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_files_are_found_beside_the_scenario(tmp_path):
    (tmp_path / "bandwidth.csv").write_text("time_s,bandwidth_bytes_per_s\n0,1e6\n1,2e6\n")
    scenario = load_scenario(write(tmp_path, "[network]\ntrace = 'bandwidth.csv'"))
    assert scenario.network.trace == str(tmp_path / "bandwidth.csv")


def test_only_the_required_keys_are_missed():
    with pytest.raises(ConfigError, match=r"^the scenario needs name$"):
        from_mapping(Scenario, {"slo_s": 1.0})


def test_a_service_that_is_scaled_beyond_an_hour_names_the_key():
    with pytest.raises(ProfileError, match=r"an hour with simulation\.service_scale = 1e\+06"):
        load_profile("yolov5s").scaled(1e6)


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
    assert (yolo.latency_s[3][0], yolo.service_table_s(16, 16)[1, 3]) == (1.275413, 0.137768)
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
    ("change", "reason"), [({"cores": "1, 2"}, "cores must be a list of numbers, not '1, 2'"),
     ({"kores": [1, 2]}, "unknown key 'kores'"),
     ({"cold_start_s": None}, "cold_start_s must be a number, not None")],
)  # fmt: skip
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
