"""Hypothesis strategies for scenarios, and the files that they name."""

from hypothesis import strategies as st
from scenarios import QUOTA_PROFILE

from sponge_env.scenario import config
from sponge_env.scenario.config import Arrivals, Initial, Limits, Network, RequestClass, Serving
from sponge_env.scenario.profile import save_profile
from sponge_env.scenario.scenario import Scenario

SEEDS = st.integers(0, 2**40)

TRACES = {
    "wrapping.csv": "time_s,bandwidth_bytes_per_s\n0,2e6\n1.5,4e4\n2.25,7e5\n3,3e6\n",
    "stalls.csv": "time_s,bandwidth_bytes_per_s\n0,0\n0.5,4e6\n1,0\n1.1,0\n1.9,1e6\n",
    "events.csv": "arrival_s\n0.1\n0.1\n0.25\n0.9\n1.4\n1.45\n2.0\n", "counts.txt": "3\n0\n41\n7\n",
}  # fmt: skip


def write_files(folder):
    for name, text in TRACES.items():
        (folder / name).write_text(text)
    save_profile(QUOTA_PROFILE, folder / "quota.json")
    return folder


def arrivals(folder):
    rates = st.floats(0.2, 90.0)
    recorded = st.sampled_from(["events.csv", "counts.txt"]).map(lambda name: str(folder / name))
    factors = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=4).map(lambda own: (*own, 1.0))
    bursts = {"burst_factors": factors, "burst_dwell_s": st.floats(0.2, 5.0)}
    crowds = {"flash_factor": st.floats(0.2, 9.0), "flash_s": st.floats(0.1, 2.0)}
    crowds["flash_every_s"] = st.floats(2.0, 6.0)
    days = {"diurnal_amplitude": st.floats(0.0, 1.0), "diurnal_period_s": st.floats(0.5, 20.0)}
    return st.one_of(
        st.builds(Arrivals, st.sampled_from(["poisson", "constant"]), rates),
        st.builds(Arrivals, st.just("poisson"), load=st.floats(0.05, 1.5)),
        st.builds(Arrivals, st.just("bursty"), rates, **bursts),
        st.builds(Arrivals, st.just("flash-crowd"), rates, **crowds),
        st.builds(Arrivals, st.just("diurnal"), rates, **days),
        # Enough for a request in every episode, without which the reference refuses a trace.
        st.builds(Arrivals, st.just("trace"), st.none() | st.floats(5.0, 90.0), file=recorded),
    )


def networks(folder):
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


def servings():
    drops, orders = ["none", "expired", "unmeetable"], ["edf", "fifo"]
    return st.builds(Serving, st.sampled_from(drops), st.sampled_from(orders))


def classes():
    """Some with equal SLOs and multiples of them, so that deadlines coincide."""
    slos_s = st.sampled_from([0.2, 0.4, 0.8]) | st.floats(0.05, 3.0)
    payloads = st.sampled_from([0.0, 5e4, 6e5]) | st.floats(1.0, 2e6)
    kinds = st.builds(RequestClass, st.floats(0.1, 3.0), slos_s, payloads)
    return st.lists(kinds, min_size=1, max_size=4).map(tuple)


@st.composite
def initials(draw, limits):
    cores, batch = draw(st.integers(1, limits.cores)), draw(st.integers(1, limits.batch))
    room = min(limits.replicas, sum(node // cores for node in limits.machine))
    return Initial(cores, batch, draw(st.integers(1, room)))


@st.composite
def scenarios(draw, folder, limits=None, interval_s=None):
    if limits is None:
        cores, batch, replicas = (draw(st.integers(1, n)) for n in (16, 16, 6))
        nodes = draw(st.sampled_from([(), (), (cores, 2), (cores, cores), (1, cores, cores + 3)]))
        total_cores = draw(st.sampled_from([None, cores * replicas, 2 * cores]))
        limits = Limits(cores, batch, replicas, None if nodes else total_cores, nodes)
    if interval_s is None:
        interval_s = draw(st.sampled_from([0.1, 0.5, 1.0, 2.5]))
    profile = draw(st.sampled_from(["resnet18", "yolov5s", str(folder / "quota.json")]))
    kinds, service = draw(st.just(()) | classes()), st.sampled_from(["auto", "profile"])
    return Scenario(
        name="drawn", profile=profile,
        slo_s=min((kind.slo_s for kind in kinds), default=draw(st.floats(0.1, 3.0))), classes=kinds,
        interval_s=interval_s, duration_s=max(1.5, interval_s * draw(st.floats(1.0, 14.0))),
        limits=limits, initial=draw(initials(limits)), arrivals=draw(arrivals(folder)),
        network=draw(networks(folder)), serving=draw(servings()), simulation=config.Simulation(
            service=draw(service), noise=draw(st.sampled_from([0.0, 1.0, 8.0])),
            service_scale=draw(st.sampled_from([1.0, 0.8, 1.3])),
            cold_start_s=draw(st.sampled_from([None, 0.0, 0.3, 2.0])),
            actuation_delay_s=draw(st.sampled_from([0.0, 0.0, 0.05, 0.7, 3.0]))),
    )  # fmt: skip
