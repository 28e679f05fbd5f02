"""Builds the views and specs that controllers decide on."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from sponge_env import Allocation
from sponge_env.interfaces import RunningBatch, StageSpec, StageView, SystemSpec, SystemView
from sponge_env.scenario.profile import load_profile

NOTHING = np.zeros(0)
INITIAL = Allocation(cores=4, batch=4)
OF_STAGE = {each.name for each in dataclasses.fields(StageSpec)}
SEEN_OF_STAGE = {each.name for each in dataclasses.fields(StageView)} - {"allocation", "last"}


def make_spec(profile="yolov5s", **changes):
    """Return the reference system with an SLO of 1 s and limits of 16, with changes."""
    if "latency" in changes:
        changes["latencies"] = (changes.pop("latency"),)
    own = {"latencies": (load_profile(profile).latency,), "cold_start_s": 10.0}
    own |= {name: changes.pop(name) for name in OF_STAGE & changes.keys()}
    limits = {name: own.pop(name, 16) for name in ("cores_max", "batch_max", "replicas_max")}
    only = StageSpec(own.pop("name", "model"), **limits, **own)
    return SystemSpec(**{"slo_s": 1.0, "interval_s": 1.0, "stages": (only,), **changes})


def make_view(**changes):
    """Return the view before the first interval, with changes, of its stage, too."""
    allocation = changes.setdefault("allocation", INITIAL)
    own = {"queued_deadlines_s": NOTHING, "running": (), "replicas_ready": 1, "arrivals": NOTHING}
    own |= {"allocation": allocation.stages[0], "cores_in_force": allocation.cores}
    own |= {name: changes.pop(name) for name in SEEN_OF_STAGE & changes.keys()}
    network = ("delays_s", "budgets_s", "mean_delays_s", "bandwidths_bytes_per_s")
    known = {"now_s": 0.0, **dict.fromkeys(network, NOTHING), "stages": (StageView(**own),)}
    seen = {**known, **changes}
    came_s = seen["now_s"] - np.linspace(1, 0, len(seen["budgets_s"]), endpoint=False)
    return SystemView(**{"arrived_s": came_s, **seen})


def with_first(system, **changes):
    first = dataclasses.replace(system.first, **changes)
    return dataclasses.replace(system, stages=(first, *system.stages[1:]))


def busy_view(rate_rps=20, delay_s=0.1, slo_s=1.0, intervals=10, budgets_left_s=(), **changes):
    now_s = float(intervals)
    values = {
        "now_s": now_s,
        "queued_deadlines_s": now_s + np.sort(np.array(budgets_left_s, dtype=np.float64)),
        "arrivals": np.full(intervals, float(rate_rps)), "delays_s": np.full(rate_rps, delay_s),
        "budgets_s": np.full(rate_rps, slo_s - delay_s),
        "mean_delays_s": np.full(intervals, delay_s),
        "bandwidths_bytes_per_s": np.full(intervals, 3e6),
    }  # fmt: skip
    return make_view(**values | changes)


@st.composite
def views(draw, max_queued=60):
    """Views from idle to overloaded, of any moment of an episode."""
    now_s, intervals = draw(st.floats(0, 1000)), draw(st.integers(0, 30))
    counts = draw(st.lists(st.integers(0, 60), min_size=intervals, max_size=intervals))
    arrived = counts[-1] if counts else 0
    delays_s = np.array(draw(st.lists(st.floats(0, 1.5), min_size=arrived, max_size=arrived)))
    means_s = draw(st.lists(st.floats(0, 1.5), min_size=intervals, max_size=intervals))
    if not any(counts):
        means_s = [float("nan")] * intervals
    slacks_s = np.sort(np.array(draw(st.lists(st.floats(-2, 1.2), max_size=max_queued))))
    allocation = Allocation(draw(st.integers(1, 16)), draw(st.integers(1, 16)))
    sizes = draw(st.lists(st.integers(1, 16), max_size=2))
    return make_view(
        now_s=now_s, queued_deadlines_s=now_s + slacks_s,
        running=tuple(
            RunningBatch(size, now_s - 0.1, now_s + draw(st.floats(-0.1, 0.5))) for size in sizes
        ),
        allocation=allocation, replicas_ready=draw(st.integers(0, 2)),
        starting_s=tuple(sorted(draw(st.lists(st.floats(0, 10), max_size=2)))),
        arrivals=np.array(counts, dtype=np.float64), delays_s=delays_s, budgets_s=1.0 - delays_s,
        mean_delays_s=np.array(means_s, dtype=np.float64),
        bandwidths_bytes_per_s=np.full(intervals, 3e6),
    )  # fmt: skip
