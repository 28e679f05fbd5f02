"""Doors into compiled parts of the core that the product calls from compiled code only."""

import numpy as np

from sponge_env.core import entry, quota, rng, service
from sponge_env.core.compiled import entry_point, rows
from sponge_env.core.entry import _world
from sponge_env.core.records import LISTED_REQUEST
from sponge_env.core.rng import seed_stream, uniform
from sponge_env.core.settings import CONSTANT, FIXED, write_table
from sponge_env.simulation.memory import MemoryPlan, blank_metrics
from sponge_env.simulation.traffic import add_trace

METRICS = blank_metrics(1)


@entry_point
def draw_uniforms(state, seed, purpose, out):
    seed_stream(state, seed, purpose)
    for k in range(len(out)):
        out[k] = uniform(state)


@entry_point
def mixed_uniform(key, row, stage, task):
    return rng.mixed_uniform(key, row, stage, task)


BEGIN, LOAD, START, ADVANCE, RESIZE, SHARE = range(6)


@entry_point
def _serve(arrays, metrics, move, now_s, value, part):
    """Make one of the moves above, compiled at once; ``value`` are cores, replicas or requests."""
    w = _world(arrays, 0, metrics)
    replica = w.replicas[0]
    if move == BEGIN:
        service.new_service(w, replica, value)
        quota.new_bucket(w.model, replica, part)
    elif move == LOAD:
        replica.batch_size = 0
        service.load_service(w, replica, now_s, value)
    elif move == START:
        replica.batch_size = value
        service.start_service(w, replica, now_s)
    elif move == ADVANCE:
        service.advance(w, replica, now_s)
    elif move == RESIZE:
        service.resize_service(w, replica, now_s, value)
    else:
        quota.set_share(w.model, replica, now_s, part)


@entry_point
def _replayed(arrays, metrics, variant, size):
    return service._replayed(_world(arrays, 0, metrics), variant, size)


def measured_works(table, sizes, variants=(), batch_max=0):
    """Return the relative works that batches of these sizes get of a table of measured ones."""
    plan = MemoryPlan(1)
    plan.models["replay_at"], plan.models["limits"]["batch"] = plan.numbers.add(table), batch_max
    arrays, kinds = plan.allocate(1), zip(variants or [0] * len(sizes), sizes, strict=True)
    return [_replayed(arrays, METRICS, variant, size) for variant, size in kinds]


class CoreService:
    """The core's service of one replica under a quota, with the face of the reference's."""

    def __init__(self, quota, core_unit, cores, phase):
        plan, sizes = MemoryPlan(1), len(quota.work_s)
        row = plan.models[0, 0]
        # A table of measured work that is used up: every batch takes the ratio at its beginning.
        parts = [np.ones(1), np.zeros(2 * sizes), np.array(quota.work_s)]
        overheads_s = quota.dispatch_s, quota.dispatch_request_s, quota.idle_s
        parts.append(np.array([*overheads_s, quota.wake_cost_s, quota.resume_s]))
        row["replay_at"] = plan.numbers.add(np.concatenate(parts))
        row["work_at"] = 2 + 2 * sizes
        row["overheads_at"] = row["work_at"] + sizes
        row["core_unit"], row["limited"] = core_unit, True
        write_table(row["quota"], quota)
        self._arrays = plan.allocate(1)
        self._serve(BEGIN, 0.0, cores, phase)

    def _serve(self, move, now_s, value=0, part=0.0):
        _serve(self._arrays, METRICS, move, now_s, value, part)

    @property
    def finish_s(self):
        return float(self._arrays.replicas["finish_s"][0, 0, 0])

    @property
    def used_core_s(self):
        return float(self._arrays.replicas["account"]["used_core_s"][0, 0, 0])

    @property
    def throttled_s(self):
        return float(self._arrays.replicas["account"]["throttled_s"][0, 0, 0])

    def load(self, now_s, cold_start_s, loading):
        self._arrays.models["cold_start_s"] = cold_start_s
        self._serve(LOAD, now_s, loading)

    def start(self, now_s, size, noise):
        self._arrays.numbers[1] = noise
        self._serve(START, now_s, size)

    def advance(self, now_s):
        self._serve(ADVANCE, now_s)

    def resize(self, now_s, cores):
        self._serve(RESIZE, now_s, cores)

    def share(self, now_s, cores):
        self._serve(SHARE, now_s, 0, cores)


def arrival_s(trace, sent_s, payload_bytes):
    """Return when the core says that transfers end which begin at ascending times."""
    plan = MemoryPlan(1)
    row = plan.settings[0]
    add_trace(plan, row, trace)
    row["network_kind"], row["arrival_kind"] = FIXED, CONSTANT
    arrays, sent_s = plan.allocate(1), np.atleast_1d(np.asarray(sent_s, np.float64))
    requests = rows(np.zeros(sent_s.size, LISTED_REQUEST))
    requests["sent_s"], requests["payload_bytes"] = sent_s, payload_bytes
    entry.begin_traffic_range(arrays, 0, 1, np.zeros(1, np.int64), METRICS)
    entry.arrive(arrays, METRICS, requests, payload_bytes)
    return np.array(requests["arrival_s"])
