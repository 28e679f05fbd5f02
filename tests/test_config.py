import pytest

from sponge_env.errors import ConfigError, ProfileError
from sponge_env.run.suite import changed
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import SCENARIO_DIR, Scenario, load_scenario
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
    path = tmp_path / "relative.toml"
    path.write_text(pipeline.replace("RESNET", "resnet18"))
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "slo_services = 5\n[[classes]]\nslo_s = 1\nshare = 1\npayload_bytes = 1",
            r"slo_services must be left out where classes have",
        ),
        ("slo = 1", r"unknown key 'slo'.*did you mean 'slo_s'"),
        ("[limits]\ncors = 4", r"unknown key 'limits\.cors'.*did you mean 'limits\.cores'"),
        ("slo_s = 0", r"slo_s must be a number above 0, not 0\.0"),
        ('slo_s = "1"', r"slo_s must be a number, not '1'"),
        ("[limits]\ncores = 0", r"limits\.cores must be between 1 and 4096, not 0"),
        ("[limits]\nbatch = 1.5", r"limits\.batch must be a whole number, not 1\.5"),
        ("[serving]\ndrop = 'expire'", r"unknown serving\.drop 'expire'.*mean 'expired'"),
        ("[serving]\ndrop = 'late'", "unknown serving.drop 'late'"),
        (
            "[network]\nstart = 'random'",
            r"network\.start must be 'beginning' for the trace '4g', which is no file, not 'ra",
        ),
        ("name = 'a/b'", r"name must be letters, digits, .* not 'a/b'"),
        ("[arrivals]\nkind = 'poisson'", r"arrivals needs one of rate_rps, load and peak"),
        (
            "[arrivals]\nkind = 'trace'\nfile = 'x'\nrate_rps = 1\nload = 1",
            r"arrivals of a trace take one of rate_rps, load, peak, or none",
        ),
        ("[arrivals]\nkind = 'trace'", r"arrivals\.file must be the path of a trace"),
        ("[arrivals]\nrate_rps = 1\nburst_factors = ['a']", r"burst_factors must be a number"),
        ("[initial]\ncores = 17", r"initial\.cores must be between 1 and 16, not 17"),
        ("duration_s = 0.5", r"duration_s must be at least one interval"),
        ("[limits]\ncores = 4096\nbatch = 4096", r"limits\.batch must be at most 256 with"),
        ("[limits]\ntotal_cores = 10_000_000_000", r"limits\.total_cores must be .* at most"),
        (
            "[arrivals]\nrate_rps = 1\nburst_dwell_s = 1e-9",
            r"burst_dwell_s must be at least 0\.0006",
        ),
        ("[network]\nfade_s = 1e-9\nfade_every_s = 1e-9", r"fade_every_s must be at least"),
        ("slo_s = 1" + "0" * 400, r"a whole number that is too large"),
        ("x = " + "[" * 9000, r"is not a TOML scenario: it is nested too deeply"),
        ("slo_s = ", r"is not a TOML scenario"),
    ],
)
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


@pytest.mark.parametrize("path", sorted(SCENARIO_DIR.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_scenarios_load(path):
    scenario = load_scenario(path.stem)
    assert scenario.name == path.stem
    assert scenario.description
    assert scenario == load_scenario(path)
