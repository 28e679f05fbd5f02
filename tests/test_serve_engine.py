"""The serving thread: controllers that fail, are exchanged or late, and every way to end."""

import asyncio
import logging
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fake_replicas import FakeLauncher
from machine import wait_until as until
from scenarios import short
from views import make_spec, make_view

from sponge_env.errors import ConfigError, ControllerError, WorkerError
from sponge_env.interfaces import Allocation, StageAllocation
from sponge_env.live import fleet
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.models.model import TensorSpec
from sponge_env.scenario.config import Limits
from sponge_env.serve.engine import Decider, ServingEngine
from sponge_env.serve.interface import Call, ServedModel, Status
from sponge_env.serve.system import ServedSystem

SCENARIO = short(interval_s=0.05, limits=Limits(cores=4, batch=4, replicas=2, total_cores=8))
SERVED = ServedModel("echo", TensorSpec((1,)), TensorSpec((1,)), 4, 1.0, ("echo",), ("model",))
CONFIG = LiveConfig(
    batch_max=4, cores_max=4, core_unit=1.0, replicas_max=2, nodes=(8,), cold_start_s=0.1
)
SOON_S = 10.0


class Fixed:
    """Asks for the same always, or fails."""

    def __init__(self, cores=2, fails=None):
        self.cores, self.fails = cores, fails
        self.decided = threading.Semaphore(0)

    def reset(self, spec, seed):
        if self.cores > spec.first.cores_max:
            raise ConfigError("too many cores")

    def decide(self, view):
        self.decided.release()
        if self.fails:
            raise self.fails
        return Allocation(self.cores, 2)


class Rig:
    """An engine on fake replicas, and a client."""

    def __init__(self, launcher, scenario, **agents):
        self.launcher, self.agents, self.followed, self.replies = launcher, agents, [], []
        system = ServedSystem(scenario, lambda spec: LiveWorker(CONFIG, launcher=launcher))
        self.engine = ServingEngine(system, [SERVED], next(iter(agents)), self.agents.__getitem__)
        self.engine.follow(self.followed.append)

    @property
    def intervals(self):
        return [snapshot.last for snapshot in self.followed if snapshot.last is not None]

    def submit(self, x=0.0, budget_s=5.0, payload=8):
        replies, now_s = [], time.monotonic()
        self.replies.append(replies)
        self.engine.submit(Call(np.array([x]), now_s, now_s + budget_s, payload), replies.append)
        return lambda: until(lambda: replies and replies[0])

    def started(self, batches=1):
        return until(lambda: next((r for r in self.launcher.launched if r.batch_id), None))


@contextmanager
def rig(launcher=None, scenario=SCENARIO, **agents):
    made = Rig(launcher or FakeLauncher(), scenario, **(agents or {"fixed": Fixed()}))
    with closing(made.engine):
        yield made
    assert {len(replies) for replies in made.replies} <= {1}
    assert made.launcher.closed
    ours = ("sponge-serving", "sponge-deciding")
    until(lambda: not [t for t in threading.enumerate() if t.name in ours])


def test_a_call_is_answered_with_its_own_output():
    with rig() as r:
        replies = [r.submit(float(x)) for x in range(20)]
        for x, reply in enumerate(replies):
            assert reply().status is Status.ANSWERED
            assert reply().output == np.array([x])
            assert (reply().variant, reply().cores) == ("yolov5s", 2)
        assert time.monotonic() - SOON_S < replies[0]().finished_s <= time.monotonic()


def test_the_snapshot_follows_the_intervals():
    with rig() as r:
        r.submit()()
        until(lambda: sum(interval.on_time for interval in r.intervals) == 1)
        snapshot = until(lambda: r.engine.snapshot() if r.engine.snapshot().last else None)
        assert (snapshot.agent, snapshot.ready, snapshot.cores) == ("fixed", True, (2,))
        assert (snapshot.queued, snapshot.budgets_s) == ((0,), ())
        assert r.intervals[0].decision_s > 0
    assert not r.engine.snapshot().ready
    assert not r.followed[-1].ready
    times_s = [interval.time_s for interval in r.intervals[:-1]]
    assert times_s == sorted(set(times_s))


def test_another_controller_takes_over_without_losing_a_call():
    with rig(first=Fixed(1), second=Fixed(3), too_much=Fixed(5)) as r:
        replies = []
        for k in range(40):
            if k == 20:
                r.engine.use("second")
            replies.append(r.submit())
            time.sleep(0.002)
        assert {reply().status for reply in replies} == {Status.ANSWERED}
        until(lambda: r.engine.snapshot().cores == (3,))
        assert r.engine.snapshot().agent == "second"
        with pytest.raises(ConfigError, match="too many"):
            r.engine.use("too_much")
        assert r.engine.snapshot().agent == "second"


def test_a_controller_that_fails_keeps_the_last_allocation(caplog):
    caplog.set_level(logging.WARNING, "sponge_env")
    partly = ControllerError("one does")
    partly.stages = (StageAllocation(1, 1),)
    bad, half = (Fixed(fails=error) for error in (RuntimeError("no idea"), partly))
    with rig(good=Fixed(3), bad=bad, greedy=Fixed(4), half=half) as r:
        until(lambda: r.engine.snapshot().cores == (3,))
        r.engine.use("bad")
        for _ in range(4):
            r.agents["bad"].decided.acquire(timeout=SOON_S)
        assert r.engine.snapshot().cores == (3,)
        assert r.submit()().status is Status.ANSWERED
        until(lambda: r.engine.snapshot().last.feasible == 0)
        r.agents["greedy"].cores = 100
        r.agents["greedy"].reset = lambda spec, seed: None
        r.engine.use("greedy")
        for _ in range(2):
            r.agents["greedy"].decided.acquire(timeout=SOON_S)
        assert r.submit()().status is Status.ANSWERED
        r.engine.use("half")
        until(lambda: r.engine.snapshot().cores == (1,))
        assert r.engine.error is None
    first, second, _ = (record.message for record in caplog.records)
    assert "no idea" in first
    assert "must be a whole number" in second


class Growing(Fixed):
    """Lets the ready replica have what those that start leave, and fails once all are ready."""

    def decide(self, view):
        assert view.ready == (1,)
        return Allocation(4, 2, replicas=2)


def test_the_last_allocation_fits_when_replicas_have_become_ready():
    tight = replace(SCENARIO, limits=Limits(cores=4, batch=4, replicas=2, total_cores=5))
    with rig(scenario=tight, growing=Growing()) as r:
        until(lambda: (now := r.engine.snapshot()).cores == (2,) and now.replicas == (2,))
        assert r.submit()().status is Status.ANSWERED
        assert r.engine.error is None


class Hanging(Fixed):
    """Decides, once it is told to hang, when it is let go."""

    def __init__(self, cores=2):
        super().__init__(cores)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def decide(self, view):
        allocation = super().decide(view)
        assert self.goes_on.wait(6 * SOON_S)
        return allocation


def test_a_controller_that_hangs_does_not_stop_serving(caplog):
    hanging = Hanging(3)
    with rig(hanging=hanging, good=Fixed(1)) as r:
        until(lambda: r.engine.snapshot().cores == (3,))
        hanging.goes_on.clear()
        until(lambda: r.intervals[-1].decision_s > 3 * SCENARIO.interval_s)
        assert (r.intervals[-1].feasible, r.submit()().cores) == (0, 3)
        assert len(caplog.records) == 1
        r.engine.use("good")
        until(lambda: r.engine.snapshot().cores == (1,))
        assert r.engine.snapshot().agent == "good"
        assert r.intervals[-1].decision_s < SCENARIO.interval_s
        hanging.goes_on.set()


def test_a_controller_that_hangs_does_not_hold_up_the_end():
    hanging = Hanging()
    with rig(Lazy(), hanging=hanging) as r:
        hanging.goes_on.clear()
        until(lambda: (last := r.engine.snapshot().last) and not last.feasible)
        replies = [r.submit() for _ in range(3)]
        r.started()
        began_s = time.monotonic()
        r.engine.drain(0.1)
        assert 0.1 <= time.monotonic() - began_s < 2
        assert {reply().status for reply in replies} == {Status.STOPPED}
        hanging.goes_on.set()


def test_a_client_that_raises_harms_nobody(caplog):
    def done(_):
        raise RuntimeError("gone")

    with rig() as r:
        now_s = time.monotonic()
        r.engine.submit(Call(np.zeros(1), now_s, now_s + 1, 8), done)
        assert r.submit()().status is Status.ANSWERED
    assert caplog.records


def test_a_loop_serves_while_the_engine_waits():
    with rig() as r:
        threads, count = [], 40

        async def serve():
            loop = asyncio.get_running_loop()
            with r.engine.lend(loop):
                for _ in range(count):
                    answered, now_s = loop.create_future(), time.monotonic()

                    def done(reply, answered=answered):
                        threads.append(threading.get_ident())
                        loop.call_soon_threadsafe(answered.set_result, reply)

                    r.engine.submit(Call(np.zeros(1), now_s, now_s + SOON_S, 8), done)
                    assert (await answered).status is Status.ANSWERED

        asyncio.run(serve())
        assert threading.get_ident() in threads  # the engine's own has its turn now and then
        assert r.submit()().status is Status.ANSWERED  # it serves alone again
        until(lambda: sum(past.on_time for past in r.intervals) == count + 1)


def test_the_loop_goes_on_while_the_engine_has_its_turn_and_serves_at_once():
    async def serve(r):
        loop = asyncio.get_running_loop()
        with r.engine.lend(loop):
            reply = r.submit()  # in the first interval, which ends later
            with r.engine._system.turn:
                assert not r.engine._system.serve_now(True)
                await asyncio.sleep(0)
            return await loop.run_in_executor(None, reply)

    with rig(scenario=short(interval_s=8.0, limits=SCENARIO.limits)) as r:
        assert asyncio.run(serve(r)).status is Status.ANSWERED


def test_an_error_in_the_loop_ends_the_engine():
    async def serve(r):
        with r.engine.lend(asyncio.get_running_loop()):
            reply = r.submit(payload="no number")
            while r.engine.alive:
                await asyncio.sleep(0.001)
            assert reply().status is Status.FAILED

    with rig() as r:
        asyncio.run(serve(r))
        assert isinstance(r.engine.error, WorkerError)
        with r.engine.lend(None):  # one that has ended serves no more
            assert not r.engine.alive


class Lazy(FakeLauncher):
    def launch(self, id, cores, **more):
        self.willing = self.is_ready()
        replica = super().launch(id, cores, **more)
        self.willing = False
        return replica

    def is_ready(self):
        return True


def test_to_drain_is_to_answer_what_is_there():
    with rig(Lazy(), slow=Fixed()) as r:
        replies = [r.submit(float(x)) for x in range(3)]
        draining, replica = threading.Thread(target=r.engine.drain, args=(SOON_S,)), r.started()
        draining.start()
        until(lambda: not r.engine.ready)
        assert r.submit()().status is Status.STOPPED
        for _ in range(3):
            if until(lambda: replica.batch_id or not draining.is_alive()) is not True:
                replica.answer()
        draining.join(SOON_S)
        assert not draining.is_alive()
        assert {reply().status for reply in replies} == {Status.ANSWERED}


class Doomed(Lazy):
    """All but the first replica die before they are ready, until a test says otherwise."""

    doomed = True

    def is_ready(self):
        return not (self.launched and self.doomed)

    def launch(self, id, cores, **more):
        ready, replica = self.is_ready(), super().launch(id, cores, **more)
        if not ready:
            replica.die("no memory")
        return replica


def test_the_server_outlives_replicas_that_do_not_start(monkeypatch):
    monkeypatch.setattr(fleet, "HEARTBEAT_S", 0.001)
    launcher = Doomed()
    with rig(launcher, slow=Fixed()) as r:
        hopeless, *replies = [r.submit(budget_s=budget_s) for budget_s in (0.5, 9.0, 9.0)]
        r.started().die()
        assert hopeless().status is Status.EXPIRED
        until(lambda: len(launcher.launched) > 5)
        launcher.doomed = False
        until(lambda: next((r for r in launcher.launched[5:] if r.batch_id), None)).answer()
        assert {reply().status for reply in replies} == {Status.ANSWERED}


def test_a_call_that_breaks_the_engine_is_told_like_the_others():
    """The fault is in the engine's own hands when it happens, and again as it gives up."""
    with rig(Lazy(), slow=Fixed()) as r:
        replies = [r.submit()]
        r.started()
        for size in ("no number", "nor this"):
            r.submit(payload=size)
            replies.append(r.submit())
        assert {reply().status for reply in replies} <= {Status.FAILED, Status.STOPPED}
        r.engine._thread.join(SOON_S)
        assert isinstance(r.engine.error, WorkerError)


class ByTime(Fixed):
    """Wants as many cores as the view's time says, when a test lets it."""

    def __init__(self):
        super().__init__()
        self.may = threading.Semaphore(0)

    def decide(self, view):
        assert self.may.acquire(timeout=SOON_S)
        return Allocation(int(view.now_s), 1)


@pytest.fixture
def asked():
    return ByTime()


@pytest.fixture
def decider(asked):
    """It waits for as long as it takes, unless it is not to wait at all."""
    with closing(Decider("asked", asked, make_spec(interval_s=60.0))) as decider:
        decider._max_wait_s = SOON_S
        yield decider
    asked.may.release(2)


def cores(decided):
    return decided.answer.cores


def is_late(decider, asked, now_s):
    """Ask it while nobody has patience, and let it decide then."""
    decider._max_wait_s = 0.0
    assert decider.decide(make_view(now_s=now_s)) is None
    assert decider.waited_s > 0
    assert decider.decide(make_view(now_s=now_s + 1)) is None, "it is asked one thing at a time"
    asked.may.release()
    until(lambda: not decider._answers.empty())


def test_one_that_is_quick_decides_on_what_is_there_now(decider, asked):
    asked.may.release(3)
    assert [cores(decider.decide(make_view(now_s=k))) for k in (1, 2, 3)] == [1, 2, 3]
    assert decider.waited_s == 0


def test_one_that_takes_long_is_an_interval_late(decider, asked):
    is_late(decider, asked, 1)
    for k, decided in ((3, 1), (4, 3), (5, 4)):
        assert cores(decider.decide(make_view(now_s=k))) == decided
        asked.may.release()
        until(lambda: not decider._answers.empty())


def test_what_it_said_late_stands_if_the_next_is_late_as_well(decider, asked):
    is_late(decider, asked, 1)
    decider._answers.put(decider._answers.get()._replace(took_s=-1.0))  # quick, for all that
    assert cores(decider.decide(make_view(now_s=3))) == 1
