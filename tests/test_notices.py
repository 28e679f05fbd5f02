"""What is said of trace files, and what is warned of: never of what ships."""

from dataclasses import replace

import numpy as np
import pytest

from sponge_env.errors import TraceError
from sponge_env.run.notices import announce, beginnings, replayed, warnings
from sponge_env.scenario.config import Arrivals, Network
from sponge_env.scenario.profile import load_profile, local_model
from sponge_env.scenario.scenario import SCENARIO_DIR, Scenario, load_scenario
from sponge_env.scenario.spec import scenario_profile

PROFILES = ("yolov5s", "resnet18", "lite0")
CSV = "time_s,bandwidth_bytes_per_s\n"


def short(**changes):
    fields = {"duration_s": 20.0, "arrivals": Arrivals("constant", 10.0), **changes}
    return Scenario("short", **fields)


def warned(scenario):
    return list(warnings(scenario, load_profile("yolov5s")))


def elsewhere(scenario):
    """Return a scenario whose stages have a shipped profile where they want this machine's."""

    def known(variant):
        return replace(variant, profile="lite0") if local_model(variant.profile) else variant

    stages = (replace(s, variants=tuple(map(known, s.variants))) for s in scenario.stages)
    return replace(scenario, stages=tuple(stages))


@pytest.mark.parametrize("path", sorted(SCENARIO_DIR.glob("*.toml")), ids=lambda path: path.stem)
def test_no_shipped_scenario_is_warned_of(path):
    scenario = elsewhere(shipped := load_scenario(path))
    assert (shipped.name, shipped) == (path.stem, load_scenario(path.stem))
    assert shipped.description
    # Those for this machine's worker are for a profile like lite0; the paper's rates are absolute.
    local, absolute = scenario.profile == "local", scenario.arrivals.rate_rps is not None
    for name in ("lite0",) if local else ("yolov5s",) if absolute else PROFILES:
        assert not list(warnings(replace(scenario, profile=name), load_profile(name)))


def test_a_file_is_described_once_however_many_scenarios_play_it(tmp_path, capsys):
    path = tmp_path / "arrivals"
    path.write_text("arrival_s\n0.5\n0.75\n3.5\n")
    one = short(arrivals=Arrivals("trace", file=str(path)))
    assert announce([one, replace(one, start="warm", warmup_s=1.0)]) == [
        f"read {path}: arrivals, times of requests, in seconds (CSV arrival_s); "
        "3 requests over 5 s, mean 0.6 requests/s (0 to 2 in a second); played 4 times in 20 s"
    ]
    (notice,) = announce([replace(one, duration_s=3.0)])
    assert notice.endswith("; only 3 s of it are played (--duration, duration_s)")
    assert announce([replace(one, duration_s=3e5)]) != [], "what cannot be played says so itself"
    assert capsys.readouterr().err == ""
    (notice,) = beginnings([one, one, replace(one, start="warm", warmup_s=1.0)])
    assert notice.startswith("20 s are little beside cold starts of 10 s: the result is mostly")


def test_seeds_with_the_same_requests_are_told(tmp_path):
    path = tmp_path / "arrivals"
    path.write_text("arrival_s\n0.5\n0.75\n3.5\n")
    drawn = short(arrivals=Arrivals("trace", file=str(path)))
    alike = replace(drawn, network=Network("none"))
    said = "every seed has the same requests in short: one seed says as much"
    assert replayed([alike], 2) == {"short": said}
    for scenario, seeds in ((alike, 1), (drawn, 2), (short(network=Network("none")), 2)):
        assert not replayed([scenario], seeds)


@pytest.mark.parametrize(
    ("step_s", "bytes_per_s", "sentence"), [(1.0, 3.5, "has a mean bandwidth of 3.5e-06 MB/s"),
     (1.0, 5e9, "has a mean bandwidth of 5e+03 MB/s"),
     (1.0, 28_000.0, "100% of the requests are hopeless: 300000 bytes take 10.7 s")],
)  # fmt: skip
def test_bandwidth_in_other_units(step_s, bytes_per_s, sentence, tmp_path):
    path = tmp_path / "bandwidth"
    path.write_text(CSV + "".join(f"{step_s * i},{bytes_per_s}\n" for i in range(20)))
    assert sentence in " | ".join(warned(short(network=Network(str(path)))))


@pytest.mark.parametrize(
    ("times_s", "sentence"),
    [(50.5 * np.arange(100), "in 50 s; --rate or --load scales it; are its times in milli"),
     (50.0 * np.arange(100), "has one request in 50 s"),
     (5.0 * np.arange(100), "has whole numbers only; are its times in milliseconds"),
     (60.25 * np.arange(5), "has one request in 60 s")],
)  # fmt: skip
def test_arrivals_in_milliseconds(times_s, sentence, tmp_path):
    path = tmp_path / "arrivals"
    path.write_text("arrival_s\n" + "".join(f"{time_s}\n" for time_s in times_s))
    said = " | ".join(warned(short(arrivals=Arrivals("trace", file=str(path)), duration_s=600.0)))
    assert sentence in said
    assert said.count("its times") <= 1
    path.write_text("".join(f"{second}\n" for second in range(9)))
    rising = short(arrivals=Arrivals("trace", file=str(path)))
    assert "never falls: if it has times, they need the header arrival_s" in "".join(warned(rising))
    path.write_text("arrival_s\n700\n701\n")
    with pytest.raises(TraceError, match="has no request in its first 600 s"):
        warned(short(arrivals=Arrivals("trace", file=str(path)), duration_s=600.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"arrivals": Arrivals(rate_rps=1 / 60)}, "scenario short has one request in 60 s; --rate"),
     ({"arrivals": Arrivals(rate_rps=40.0)}, "has 40 requests/s as played, more than the 30.4"),
     ({"slo_s": 0.01}, "100% of the requests are hopeless"),
     ({"network": Network(payload_bytes=3e8)}, "100% of the requests are hopeless: 3e+08 bytes")],
)  # fmt: skip
def test_a_scenario_that_can_hardly_be_meant(changes, sentence):
    (warning,) = warned(short(**{"duration_s": 120.0, **changes}))
    assert sentence in warning


def test_more_than_a_pipeline_can_serve_is_warned_of():
    video = load_scenario("pipeline-video")
    for rate, warned_of in ((100.0, 0), (500.0, 1)):
        loaded = replace(video, arrivals=Arrivals("constant", rate))
        said = list(warnings(loaded, scenario_profile(loaded)))
        assert len(said) == warned_of
        assert all("that detector-classifier can serve on 32 cores" in one for one in said)
