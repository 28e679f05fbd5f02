"""The batch simulator does what the reference system does, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from differential import allocations, check_equal, simulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenarios import QUOTA_PROFILE

from sponge_env.config import Arrivals, Initial, Limits, Network, Serving, Simulation
from sponge_env.encoding import OBS_DIM
from sponge_env.profile import save_profile
from sponge_env.scenario import Scenario, load_scenario

SEEDS = st.integers(0, 2**40)

TRACES = {
    "wrapping.csv": "time_s,bandwidth_bytes_per_s\n0,2e6\n1.5,4e4\n2.25,7e5\n3,3e6\n",
    "stalls.csv": "time_s,bandwidth_bytes_per_s\n0,0\n0.5,4e6\n1,0\n1.1,0\n1.9,1e6\n",
    "events.csv": "arrival_s\n0.1\n0.1\n0.25\n0.9\n1.4\n1.45\n2.0\n",
    "counts.txt": "3\n0\n41\n7\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vector")
    for name, text in TRACES.items():
        (folder / name).write_text(text)
    save_profile(QUOTA_PROFILE, folder / "quota.json")
    return folder


def arrivals(folder: Path) -> st.SearchStrategy[Arrivals]:
    rates = st.floats(0.2, 90.0)
    recorded = st.sampled_from(["events.csv", "counts.txt"]).map(lambda name: str(folder / name))
    return st.one_of(
        st.builds(Arrivals, st.sampled_from(["poisson", "constant"]), rates),
        st.builds(Arrivals, st.just("poisson"), load=st.floats(0.05, 1.5)),
        st.builds(
            Arrivals,
            st.just("bursty"),
            rates,
            burst_factors=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=4).map(
                lambda factors: (*factors, 1.0)
            ),
            burst_dwell_s=st.floats(0.2, 5.0),
        ),
        st.builds(
            Arrivals,
            st.just("flash-crowd"),
            rates,
            flash_factor=st.floats(0.2, 9.0),
            flash_s=st.floats(0.1, 2.0),
            flash_every_s=st.floats(2.0, 6.0),
        ),
        st.builds(
            Arrivals,
            st.just("diurnal"),
            rates,
            diurnal_amplitude=st.floats(0.0, 1.0),
            diurnal_period_s=st.floats(0.5, 20.0),
        ),
        # Enough for a request in every episode, without which the reference refuses a trace.
        st.builds(Arrivals, st.just("trace"), st.none() | st.floats(5.0, 90.0), file=recorded),
    )


def networks(folder: Path) -> st.SearchStrategy[Network]:
    made = st.tuples(st.sampled_from(["4g", "none"]), st.just("beginning"))
    files = [str(folder / "wrapping.csv"), str(folder / "stalls.csv"), "4g-600s"]
    recorded = st.tuples(st.sampled_from(files), st.sampled_from(["beginning", "random"]))
    fades = st.tuples(st.floats(2.0, 6.0), st.floats(0.1, 2.0), st.floats(0.01, 1.0))
    return st.builds(
        lambda trace, payload_bytes, delay_s, fades: Network(
            *trace, payload_bytes, delay_s, *(fades if trace[0] != "none" else ())
        ),
        made | recorded,
        st.sampled_from([0.0, 1.5, 123_456.7, 300_000.0, 2e6]),
        st.sampled_from([0.0, 0.01, 0.4]),
        st.just(()) | fades,
    )


@st.composite
def scenarios(
    draw: st.DrawFn, folder: Path, limits: Limits | None = None, interval_s: float | None = None
) -> Scenario:
    if limits is None:
        limits = Limits(*(draw(st.integers(1, 16)) for _ in range(2)), draw(st.integers(1, 6)))
    if interval_s is None:
        interval_s = draw(st.sampled_from([0.1, 0.5, 1.0, 2.5]))
    profile = draw(st.sampled_from(["resnet18", "yolov5s", str(folder / "quota.json")]))
    service = st.sampled_from(["auto", "profile"])
    return Scenario(
        name="drawn",
        profile=profile,
        slo_s=draw(st.floats(0.1, 3.0)),
        interval_s=interval_s,
        duration_s=max(1.5, interval_s * draw(st.floats(1.0, 14.0))),
        limits=limits,
        initial=Initial(*(draw(st.integers(1, most)) for most in dataclasses.astuple(limits))),
        arrivals=draw(arrivals(folder)),
        network=draw(networks(folder)),
        serving=draw(
            st.sampled_from([Serving(), Serving("expired"), Serving("late", 0.05)])
            | st.builds(Serving, st.just("late"), st.floats(0.001, 1.0))
        ),
        simulation=Simulation(
            service=draw(service),
            noise=draw(st.sampled_from([0.0, 1.0, 8.0])),
            cold_start_s=draw(st.sampled_from([None, 0.0, 0.3, 2.0])),
            actuation_delay_s=draw(st.sampled_from([0.0, 0.0, 0.05, 0.7, 3.0])),
        ),
    )


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), seed=SEEDS)
def test_any_scenario_runs_alike(files: Path, data: st.DataObject, seed: int) -> None:
    check_equal([data.draw(scenarios(files))], [seed])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), seeds=st.lists(SEEDS, min_size=4, max_size=4))
def test_different_scenarios_run_side_by_side(
    files: Path, data: st.DataObject, seeds: list[int]
) -> None:
    limits = Limits(12, 9, 3)
    batch = [data.draw(scenarios(files, limits, 0.5)) for _ in seeds]
    check_equal(batch, seeds)


@pytest.mark.parametrize("replicas_max", [1, 3, 16])
@pytest.mark.parametrize(
    "serving", [Serving("none"), Serving("expired"), Serving("late", 0.25)], ids=lambda s: s.drop
)
@pytest.mark.parametrize("name", ["paper", "bursty", "local"])
def test_shipped_scenarios_run_alike(
    files: Path, name: str, serving: Serving, replicas_max: int
) -> None:
    scenario = load_scenario(name)
    changes = {"profile": str(files / "quota.json")} if name == "local" else {}
    scenario = dataclasses.replace(
        scenario,
        duration_s=40.0,
        serving=serving,
        **changes,  # type: ignore[arg-type]
    )
    check_equal([scenario] * 2, [0, 7], replicas_max)


@pytest.mark.parametrize("trace", ["arrivals-bursty-600s", "arrivals-day-600s"])
def test_recorded_arrivals_run_alike(trace: str) -> None:
    arrivals = [Arrivals("trace", file=trace), Arrivals("trace", 40.0, file=trace)]
    scenario = dataclasses.replace(load_scenario("bursty"), duration_s=60.0)
    check_equal([dataclasses.replace(scenario, arrivals=a) for a in arrivals], [3, 4], 2)


@pytest.mark.parametrize("delay_s", [0.0, 0.13])
def test_replicas_that_come_and_go_run_alike(delay_s: float) -> None:
    """Busy ones that drain outlive several decisions here, so many are held at once."""
    scenario = Scenario(
        name="flapping",
        interval_s=0.1,
        duration_s=4.0,
        limits=Limits(2, 16, 8),
        arrivals=Arrivals("poisson", 400.0),
        network=Network("none"),
        simulation=Simulation(noise=3.0, cold_start_s=0.0, actuation_delay_s=delay_s),
    )
    check_equal([scenario], [1])


@pytest.mark.parametrize("trace", ["wrapping.csv", "stalls.csv"])
@pytest.mark.parametrize("start", ["beginning", "random"])
@pytest.mark.parametrize("short_trace", ["wrap", "end"])
def test_a_trace_shorter_than_the_episode_wraps_or_ends_it(
    files: Path, trace: str, start: str, short_trace: str
) -> None:
    scenario = dataclasses.replace(
        load_scenario("paper"),
        duration_s=30.0,
        interval_s=0.5,
        network=Network(str(files / trace), start),  # type: ignore[arg-type]
        short_trace=short_trace,  # type: ignore[arg-type]
    )
    check_equal([scenario] * 3, [0, 1, 2], 1)


@pytest.mark.parametrize("name", ["paper", "bursty", "flash-crowd", "deep-fade", "diurnal"])
def test_whole_episodes_run_alike(name: str) -> None:
    check_equal([load_scenario(name)], [0], 1)


def test_the_same_seeds_give_the_same_bytes() -> None:
    scenario = dataclasses.replace(load_scenario("bursty"), duration_s=20.0)
    plan = np.array(allocations(scenario, 0))
    runs = []
    for threads in (1, 3):
        batch = simulator([scenario] * 5, threads=threads)
        first = np.zeros((5, OBS_DIM), np.float32)
        batch.reset(np.ones(5, np.bool_), np.arange(5), first)
        steps = [batch.step(np.tile(row, (5, 1))) for row in plan]
        runs.append(first.tobytes() + b"".join(o.tobytes() + m.tobytes() for o, m in steps))
        batch.close()
    assert runs[0] == runs[1]
