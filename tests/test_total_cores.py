"""The live worker scales as the simulated one, and never holds more cores than the machine."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest
from fake_replicas import FakeLauncher
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference.worker import ProfileService, SimulatedWorker

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, Batch, StageAllocation, SystemSpec, fits
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.packing import most_cores, places

TOTAL = 16
UNIT = 1 / 16

sizes = st.tuples(st.integers(1, TOTAL), st.integers(1, TOTAL)).filter(  # cores and replicas
    lambda size: size[0] * size[1] <= TOTAL
)


def packs(sizes, nodes):
    if not sizes or sum(sizes) > sum(nodes):
        return not sizes
    left = ((*nodes[:n], all - sizes[0], *nodes[n + 1 :]) for n, all in enumerate(nodes))
    return any(min(room) >= 0 and packs(sizes[1:], room) for room in left)


class Machine(FakeLauncher):
    """Has so many core units; once it is watched, no limit and no launch may ask for more."""

    watched, nodes = False, (TOTAL,)

    @property
    def open(self):
        return [replica for replica in self.launched if not replica.closed]

    @property
    def limits(self):
        """Core units of each replica that is there, oldest first."""
        return [replica._limits[-1][1] / UNIT for replica in self.open]

    @property
    def busy(self):
        return [replica for replica in self.open if replica.batch_id is not None]

    def launch(self, id, cores, **more):
        replica = super().launch(id, cores, **more)
        ask = replica.limit

        def limit(cores):
            ask(cores)
            self.check()

        replica.limit = limit
        self.check()
        return replica

    def check(self):
        largest_first = sorted(self.limits, reverse=True)
        assert not self.watched or packs(largest_first, self.nodes), "more than there is"


class Rig:
    """A worker on a watched machine, whose replicas do only what a test tells them."""

    def __init__(self, cores, replicas, nodes=(TOTAL,)):
        self.machine = Machine()
        self.machine.nodes = nodes
        config = LiveConfig(initial=Allocation(cores, 1, replicas), nodes=nodes)
        self.worker = LiveWorker(config, launcher=self.machine)
        self.machine.willing, self.machine.watched = False, True
        self.batches = 0

    def fill(self):
        while self.worker.idle():
            self.batches += 1
            self.worker.start(Batch(self.batches, (self.batches,)))

    def resize(self, cores, replicas):
        self.worker.resize(Allocation(cores, 1, replicas))

    def ready(self):
        while waiting := self.worker.status().starting_s:
            for replica in self.machine.open[-len(waiting) :]:
                replica.ready()
            self.poll()

    def answer(self, place):
        self.machine.busy[place].answer()
        self.poll()

    def die(self):
        self.machine.busy[0].die()
        self.poll()

    def poll(self):
        self.worker.wait(self.worker.now())


class Simulated:
    """The reference's worker on the same machine, whose batches end when a test says so."""

    def __init__(self, cores, replicas, nodes):
        service, held = partial(ProfileService, np.full((1, TOTAL), 1e6)), (cores, 1, replicas)
        more = {"cold_start_s": 1e6, "nodes": nodes}
        self.worker = SimulatedWorker(service, Allocation(*held), **more)

    def fill(self):
        while self.worker.idle():
            self.worker.start(Batch(1, (1,)))

    def resize(self, cores, replicas):
        self.worker.resize(Allocation(cores, 1, replicas))

    def ready(self):
        for replica in self.worker._replicas:
            replica.ready_s = min(replica.ready_s, self.worker.now())
        self.worker.wait(self.worker.now())

    def answer(self, place):
        busy = [replica for replica in self.worker._replicas if replica.batch]
        busy[place].service.finish_s = self.worker.now()
        self.worker.wait(self.worker.now())

    def die(self):
        self.worker.crash()
        self.worker.wait(self.worker.now())


moves = sizes | st.integers(0, TOTAL - 1) | st.sampled_from(["fill", "ready", "die"])


# Many small to one large; one large to many small; others while some still drain.
@example([(1, 16), "fill", (16, 1), *[1] * 15])
@example([(16, 1), "fill", (1, 16), "ready"])
@example([(4, 4), "fill", (16, 1), (1, 16), 1, 1, 1, "ready"])
@example([(4, 4), "fill", (16, 1), (2, 8), 1, 1, 1])
@example([(8, 2), "fill", (16, 1), (4, 1), 1])
@example([(8, 2), "fill", (16, 1), "die"])
@settings(deadline=None)
@given(st.lists(moves, max_size=40))
@pytest.mark.parametrize("nodes", [(TOTAL,), (8, 8), (3, 9, 4)])
def test_it_scales_as_the_simulated_worker_whatever_happens(nodes, moves):
    """Resizes, answers of the n-th busy replica, new batches, cold starts and deaths."""
    rig, other = Rig(1, 16, nodes), Simulated(1, 16, nodes)
    cores, replicas = 1, 16
    with closing(rig.worker):
        for move in [*moves, *[0] * 3 * TOTAL, "ready"]:
            if isinstance(move, tuple) and not fits(nodes, [StageAllocation(move[0], 1, move[1])]):
                continue
            busy = len(rig.machine.busy)
            for each in (rig, other):
                if isinstance(move, tuple):
                    cores, replicas = move
                    each.resize(*move)
                elif isinstance(move, str) and (busy or move != "die"):
                    getattr(each, move)()
                elif isinstance(move, int) and busy:
                    each.answer(move % busy)
            status, expected = rig.worker.status(), other.worker.status()
            starting, serving = len(expected.starting_s), len(rig.machine.limits)
            few = 1.0 if serving > starting else expected.effective_cores
            own = [expected.effective_cores] * (serving - starting)
            assert sorted(rig.machine.limits) == sorted([*own, *[few] * starting])
            assert sum(rig.machine.limits) == status.held_cores == expected.held_cores <= TOTAL
            assert status.ready == expected.ready
            assert len(status.starting_s) == len(expected.starting_s)
            assert status.restarts == expected.restarts
        if len(nodes) == 1:  # what lies on another node cannot come
            assert rig.machine.limits == [cores] * replicas
        assert rig.worker.status().ready == replicas


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=2),
)
def test_what_fits_is_what_can_be_packed(nodes, sizes):
    stages = [StageAllocation(cores, 1, replicas) for cores, replicas in sizes]
    assume(sum(nodes) >= len(stages))

    def can_be(stages):
        held = [each.cores for each in stages for _ in range(each.replicas)]
        return packs(sorted(held, reverse=True), nodes)

    # one stage: exactly; of several, which are placed one after the other, some are refused
    assert fits(nodes, stages) == can_be(stages) or (len(stages) > 1 and can_be(stages))
    spec = SystemSpec(slo_s=1.0, interval_s=1.0, stages=(), nodes=nodes)
    assert can_be(spec.fit_stages(stages))
    assert can_be(spec.fit_stages([each._replace(replicas=1) for each in stages], "cores"))
    (cores, replicas), numbers = sizes[0], range(1, 22)
    held = [n for n in numbers if can_be([StageAllocation(cores, 1, n)])]
    assert places(nodes, cores) == max(held, default=0)
    held = [n for n in numbers if can_be([StageAllocation(n, 1, replicas)])]
    assert most_cores(nodes, replicas) == max(held, default=1)


def test_more_than_the_machine_is_refused():
    rig = Rig(4, 4)
    with closing(rig.worker):
        with pytest.raises(ConfigError, match="2 replicas of 16 cores are more than the 16 cores"):
            rig.worker.resize(Allocation(16, 1, 2))
        assert rig.machine.limits == [4] * 4


def test_only_the_first_that_is_missing_is_written():
    """A quota write refills the kernel's tokens, so that none is made without need."""
    rig = Rig(4, 2)
    with closing(rig.worker):
        rig.fill()
        rig.resize(4, 4)
        rig.ready()
        rig.answer(0)
        assert [len(replica._limits) for replica in rig.machine.open] == [2, 2, 2, 2]
