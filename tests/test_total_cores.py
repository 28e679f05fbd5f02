"""The replicas of the live worker never hold more than the machine, while it scales under load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from fake_replicas import FakeLauncher, FakeReplica
from hypothesis import example, given
from hypothesis import strategies as st
from reference.worker import ProfileService, SimulatedWorker

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, Batch
from sponge_env.live.replica import LiveConfig
from sponge_env.live.worker import LiveWorker

TOTAL = 16
UNIT = 1 / 16

sizes = st.tuples(st.integers(1, TOTAL), st.integers(1, TOTAL)).filter(
    lambda size: size[0] * size[1] <= TOTAL
)
"""Cores and replicas."""


class Machine(FakeLauncher):
    """Has ``TOTAL`` core units; once it is watched, no limit and no launch may ask for more."""

    watched = False

    @property
    def open(self) -> list[FakeReplica]:
        return [replica for replica in self.launched if not replica.closed]

    @property
    def limits(self) -> list[float]:
        """Core units of each replica that is there, oldest first."""
        return [replica._limits[-1][1] / UNIT for replica in self.open]

    @property
    def busy(self) -> list[FakeReplica]:
        return [replica for replica in self.open if replica.batch_id is not None]

    def launch(self, id: int, cores: float, *, full_speed: bool = False) -> FakeReplica:
        replica = super().launch(id, cores, full_speed=full_speed)
        ask = replica.limit

        def limit(cores: float) -> None:
            ask(cores)
            self.check()

        replica.limit = limit  # type: ignore[method-assign] # watched on each replica
        self.check()
        return replica

    def check(self) -> None:
        assert not self.watched or sum(self.limits) <= TOTAL, "more than there is"


class Rig:
    """A worker on a watched machine, whose replicas do only what a test tells them."""

    def __init__(self, cores: int, replicas: int) -> None:
        self.machine = Machine()
        initial = Allocation(cores, 1, replicas)
        config = LiveConfig(initial=initial, total_cores=TOTAL)
        self.worker = LiveWorker(config, launchers=[self.machine])
        self.machine.willing, self.machine.watched = False, True
        self.batches = 0

    def fill(self) -> None:
        """Give each idle replica a batch."""
        while self.worker.idle():
            self.batches += 1
            self.worker.start(Batch(self.batches, (self.batches,)))

    def resize(self, cores: int, replicas: int) -> None:
        self.worker.resize(Allocation(cores, 1, replicas))
        self.check()

    def ready(self) -> None:
        """Let all replicas that start be ready."""
        while waiting := self.worker.status().starting_s:
            for replica in self.machine.open[-len(waiting) :]:
                replica.ready()
            self.poll()

    def answer(self, replica: FakeReplica) -> None:
        replica.answer()
        self.poll()

    def poll(self) -> None:
        self.worker.wait(self.worker.now())
        self.check()

    def check(self) -> None:
        self.machine.check()
        status, held = self.worker.status(), sum(self.machine.limits)
        assert status.held_cores == held <= TOTAL
        assert len(set(self.machine.limits)) == 1, "all have the same"


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    rigs: list[Rig] = []
    yield rigs
    for rig in rigs:
        rig.worker.close()
        assert not rig.machine.open


def test_from_many_small_to_one_large_while_all_are_busy(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(1, 16))
    rig.fill()
    rig.resize(16, 1)
    assert rig.machine.limits == [1] * 16, "those that drain hold the machine"
    (staying, *draining) = rig.machine.open
    granted = []
    for replica in reversed(draining):
        rig.answer(replica)
        granted.append(rig.machine.limits[0])
    assert granted == [TOTAL // (16 - gone) for gone in range(1, 16)]
    assert rig.machine.open == [staying]
    assert rig.machine.limits == [16]
    assert rig.worker.status().effective_cores == 16
    assert staying.batch_id is not None, "its batch went on meanwhile"


def test_one_that_dies_while_it_drains_makes_room_too(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(8, 2))
    rig.fill()
    rig.resize(16, 1)
    assert rig.machine.limits == [8, 8]
    rig.machine.open[1].die()
    rig.poll()
    assert rig.machine.limits == [16]
    assert rig.worker.status().restarts == 0


def simulated(cores: int, replicas: int) -> SimulatedWorker:
    """The reference's worker on the same machine, with batches that never end by themselves."""
    table_s = np.full((1, TOTAL), 1e6)
    return SimulatedWorker(
        lambda cores: ProfileService(table_s, cores),
        Allocation(cores, 1, replicas),
        cold_start_s=1e6,
        total_cores=TOTAL,
    )


@given(st.data())
def test_a_death_leaves_the_others_with_what_the_simulated_worker_gives_them(
    data: st.DataObject,
) -> None:
    """Replicas that stay and those that drain die, busy ones, the oldest first."""
    cores, replicas = data.draw(sizes)
    rig, other = Rig(cores, replicas), simulated(cores, replicas)
    with closing(rig.worker):
        rig.fill()
        while other.idle():
            other.start(Batch(other.idle(), (1,)))
        for _ in range(data.draw(st.integers(1, 3))):
            size = data.draw(sizes)
            rig.resize(*size)
            other.resize(Allocation(size[0], 1, size[1]))
            for _ in range(data.draw(st.integers(0, len(rig.machine.busy)))):
                rig.machine.busy[0].die()
                rig.poll()
                other.crash()
                status = other.status()
                assert set(rig.machine.limits) == {status.effective_cores}
                assert sum(rig.machine.limits) == status.held_cores


def test_from_one_large_to_many_small_while_it_is_busy(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(16, 1))
    rig.fill()
    rig.resize(1, 16)
    assert rig.machine.limits == [1] * 16, "the running batch gives its cores away"
    rig.ready()
    assert rig.worker.idle() == 15


def test_scale_out_while_others_drain_waits_for_their_places(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(4, 4))
    rig.fill()
    rig.resize(16, 1)
    assert rig.machine.limits == [4] * 4
    rig.resize(1, 16)
    assert rig.machine.limits == [1] * 16
    assert rig.worker.status().ready == 1, "three of them drain, twelve start"
    for missing, replica in zip((2, 1, 0), rig.machine.busy[1:], strict=True):
        rig.answer(replica)
        assert replica.closed
        status = rig.worker.status()
        assert status.ready + len(status.starting_s) == 16 - missing
    rig.ready()
    assert (rig.worker.status().ready, rig.machine.limits) == (16, [1] * 16)


def test_new_ones_get_fewer_cores_until_others_have_drained(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(4, 4))
    rig.fill()
    rig.resize(16, 1)
    rig.resize(2, 8)
    assert rig.machine.limits == [1] * 11, "8 that stay and 3 that drain"
    for replica in rig.machine.busy[1:]:
        rig.answer(replica)
    assert rig.machine.limits == [2] * 8


def test_a_later_decision_counts_and_not_the_one_that_fell_short(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(8, 2))
    rig.fill()
    rig.resize(16, 1)
    rig.resize(4, 1)
    assert rig.machine.limits == [4, 4]
    rig.answer(rig.machine.open[1])
    assert rig.machine.limits == [4]


def test_more_than_the_machine_is_refused(rigs: list[Rig]) -> None:
    rigs.append(rig := Rig(4, 4))
    with pytest.raises(ConfigError, match="5 replicas of 4 cores are more than the 16 cores"):
        rig.worker.resize(Allocation(4, 1, 5))
    assert rig.machine.limits == [4] * 4


def test_only_the_first_that_is_missing_is_written(rigs: list[Rig]) -> None:
    """A quota write refills the kernel's tokens, so that none is made without need."""
    rigs.append(rig := Rig(4, 2))
    rig.fill()
    rig.resize(4, 4)
    rig.ready()
    rig.answer(rig.machine.busy[0])
    assert [len(replica._limits) for replica in rig.machine.open] == [2, 2, 1, 1]


moves = st.one_of(
    sizes,
    st.integers(0, TOTAL - 1),
    st.sampled_from(["fill", "ready", "die"]),
)


@example([(4, 4), "fill", (16, 1), (2, 8)])
@given(st.lists(moves, max_size=40))
def test_whatever_happens_the_machine_is_enough_and_in_the_end_all_is_granted(
    moves: list[tuple[int, int] | int | str],
) -> None:
    """Resizes, answers of the n-th busy replica, new batches, cold starts and deaths."""
    rig = Rig(1, 16)
    cores, replicas = 1, 16
    for move in moves:
        if isinstance(move, tuple):
            cores, replicas = move
            rig.resize(cores, replicas)
        elif isinstance(move, int):
            if rig.machine.busy:
                rig.answer(rig.machine.busy[move % len(rig.machine.busy)])
        elif move == "die":
            if rig.machine.busy:
                rig.machine.busy[-1].die()
                rig.poll()
        else:
            getattr(rig, move)()
    while rig.machine.busy:
        rig.answer(rig.machine.busy[0])
    rig.ready()
    assert rig.machine.limits == [cores] * replicas
    assert rig.worker.status().ready == replicas
    rig.worker.close()
