"""The engine: takes calls, lets a controller decide, replies to each call."""

import asyncio
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from sponge_env.errors import ControllerError, SpongeError, WorkerError
from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.k8s.launcher import KubernetesLauncher, Resizes
from sponge_env.run.decision import decision
from sponge_env.run.rollout import start_rehearsed
from sponge_env.serve.interface import Batches, Call, Reply, ServedModel, Snapshot, Status
from sponge_env.serve.system import ServedSystem, send

LOG = logging.getLogger("sponge_env")

MAX_BUDGETS = 256  # In a snapshot, of the calls that wait in the first stage
RETRY_S = 1e-3  # Pause before the loop looks again whether it may serve
MAX_UNREAD = 4096  # Calls that may wait in the inbox
MAX_WAIT_S = 0.1  # For a decision; at most half an interval


class ServingEngine:
    """Serves calls in a thread of its own; every method may be called from any thread."""

    # The system is closed when it has drained. A controller that fails keeps the last allocation.

    def __init__(
        self, system: ServedSystem, served: Sequence[ServedModel], agent: str,
        make_controller: Callable[[str], Controller],
    ) -> None:  # fmt: skip
        self.served = served[0]
        self.models = {each.name: each for each in served}
        self.error: SpongeError | None = None  # Why it stopped by itself
        self._system, self._make_controller = system, make_controller
        self._next: deque[Decider] = deque(maxlen=1)
        self._followers: list[Callable[[Snapshot], None]] = []
        self._warned = self._stopped = False
        self.ready = True  # Whether calls are taken
        self._view = system.view()
        self._decider = self._started(agent)
        self._snapshot = self._make_snapshot(self._view)
        self._thread = threading.Thread(target=self._serve, name="sponge-serving", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once it has ended for good; :attr:`error` says whether by itself."""
        return self._thread.is_alive()

    def submit(self, call: Call, done: Callable[[Reply], None]) -> int:
        """Take a call; ``done`` is called exactly once, by the thread that serves, quickly.

        The ticket that is returned is for :meth:`cancel`. It does not block: a call that cannot
        be met or has no room is refused through ``done``, perhaps before this returns.
        """
        if not self.ready:
            send(done, Reply(Status.STOPPED, finished_s=time.monotonic()))
            return 0
        if len(self._system.inbox) >= MAX_UNREAD:
            send(done, Reply(Status.REFUSED, finished_s=time.monotonic(), retry_after_s=1.0))
            return 0
        ticket = self._system.inbox.submit(call, done)
        if self._stopped:
            self._sweep()
        return ticket

    def cancel(self, ticket: int) -> None:
        """Cancel a call; if it has not ended, it ends as CANCELLED and frees its place."""
        self._system.inbox.cancel(ticket)

    def snapshot(self) -> Snapshot:
        """Return the latest snapshot."""
        return self._snapshot

    def batches(self) -> tuple[tuple[Batches, ...], ...]:
        """Return the batches of each stage that have ended up to now, by size, smallest first."""
        return self._system.batches.totals()

    def resizes(self) -> Resizes | None:
        """Return how far Kubernetes has come with resizes; None if replicas are no pods."""
        launcher = getattr(self._system.worker, "launcher", None)
        return launcher.resizes() if isinstance(launcher, KubernetesLauncher) else None

    @contextmanager
    def lend(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Serve in this thread, which runs ``loop``, while the engine's own thread waits."""
        system, inbox = self._system, self._system.inbox
        try:  # the worker may close its descriptor before the end
            fd = os.dup(system.worker.fileno())
        except ValueError:  # and has closed it already
            yield
            return

        def serve(events: bool) -> None:
            # While the engine has its turn, the loop goes on and looks again later.
            if not system.serve_now(events):
                loop.remove_reader(fd)
                loop.call_later(RETRY_S, watch)

        def watch() -> None:
            if system.lent:
                loop.add_reader(fd, serve, True)
                serve(True)

        wake, inbox.wake = inbox.wake, lambda: loop.call_soon_threadsafe(serve, False)
        system.lent = True
        system.worker.wake()  # Else the engine's thread keeps its turn until its interval ends
        watch()
        try:
            yield
        finally:
            inbox.wake, system.lent = wake, False
            loop.remove_reader(fd)
            os.close(fd)

    def follow(self, follower: Callable[[Snapshot], None]) -> None:
        """Call ``follower``, which must be quick, in the engine's thread with each new snapshot."""
        # However the engine ends, the last snapshot says that it is not ready.
        self._followers.append(follower)

    def use(self, agent: str) -> None:
        """Put another controller in charge from the next interval on, or raise ``SpongeError``."""
        self._next.append(self._started(agent))

    def set_loaded(self, name: str, loaded: bool) -> None:
        """Load a model, or unload it: end its calls and take no more."""
        model = self.models[name]
        self._system.set_loaded(range(model.stage, model.stage + len(model.stages)), loaded)

    def is_loaded(self, name: str) -> bool:
        """Return whether calls of a model are taken, if any are."""
        return self.models[name].stage not in self._system.unloaded

    def drain(self, timeout_s: float) -> None:
        """Take no more calls, answer those that are left within a time, then stop. Idempotent."""
        # Those that are still left end as STOPPED.
        self.ready = False
        self._system.close_by(time.monotonic() + timeout_s)
        self._system.worker.wake()
        self._thread.join()

    def close(self) -> None:
        """Stop at once; does nothing after :meth:`drain`."""
        self.drain(0.0)

    def _started(self, agent: str) -> "Decider":
        """Make a controller that is ready to decide; this may take a while."""
        controller = self._make_controller(agent)
        controller = start_rehearsed(controller, self._system, 0)
        return Decider(agent, controller, self._system.spec)

    def _serve(self) -> None:
        status = Status.STOPPED
        self._system.turn.acquire()
        try:
            while not self._system.is_closed:
                allocation, decision_s = self._decision(self._view)
                self._system.step(allocation, decision_s=decision_s)
                self._view = self._system.view()
                self._publish(self._make_snapshot(self._view))
        except Exception as error:
            status = Status.FAILED
            self.error = error if isinstance(error, SpongeError) else WorkerError(repr(error))
            unexpected = None if error is self.error else error
            LOG.error("the server cannot go on: %s", self.error, exc_info=unexpected)
        finally:
            self._stop(status)
            self._system.turn.release()

    def _stop(self, status: Status) -> None:
        self.ready = False
        self._publish(replace(self._snapshot, ready=False))
        try:
            self._system.abandon(status)
        except Exception:
            LOG.exception("what was left could not be ended in order")
        self._stopped, self._system.lent = True, False
        self._decider.close()
        self._sweep()
        self._system.close()

    def _sweep(self) -> None:
        for submitted in self._system.inbox.take(len(self._system.inbox)):
            if submitted.call is not None:
                send(submitted.done, Reply(Status.STOPPED, finished_s=time.monotonic()))

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        for follower in self._followers:
            follower(snapshot)

    def _decision(self, view: SystemView) -> tuple[Allocation, float]:
        """Return the allocation of the controller in charge, and how long the decision took."""
        # The last allocation stays in force while it is still deciding, and if it fails.
        with suppress(IndexError):
            following = self._next.popleft()
            self._decider.close()
            self._decider, self._warned = following, False
        late = WorkerError(f"{self._decider.agent} takes long to decide")
        answer, took_s = self._decider.decide(view) or (late, self._decider.waited_s)
        if isinstance(answer, Allocation):
            return answer, took_s
        if not isinstance(answer, SpongeError):
            raise answer
        if not self._warned:
            LOG.warning("the last allocation stays in force: %s", answer)
        self._warned = True
        kept = answer.stages if isinstance(answer, ControllerError) else ()
        return Allocation(stages=tuple(kept or view.allocation.stages), feasible=False), took_s

    def _make_snapshot(self, view: SystemView) -> Snapshot:
        cores, batch, replicas, chosen = zip(*view.allocation.stages, strict=True)
        own = zip(self._system.variants, chosen, strict=True)
        return Snapshot(
            now_s=view.now_s, agent=self._decider.agent, last=view.last, ready=self.ready,
            cores=cores, replicas=replicas, batch=batch,
            variant=tuple(names[k] if k >= 0 else "" for names, k in own),
            queued=tuple(len(stage.queued_deadlines_s) for stage in view.stages),
            budgets_s=tuple((view.first.queued_deadlines_s[:MAX_BUDGETS] - view.now_s).tolist()),
        )  # fmt: skip


class Decision(NamedTuple):
    """A controller's allocation or error."""

    answer: Allocation | Exception
    took_s: float


class Decider:
    """Has a started controller decide about one view after another, in a thread of its own."""

    # All methods belong to one thread. A controller that hangs costs its thread and nothing else.

    def __init__(self, agent: str, controller: Controller, spec: SystemSpec) -> None:
        self.agent = agent
        self._controller, self._spec = controller, spec
        self._max_wait_s = min(MAX_WAIT_S, spec.interval_s / 2)
        self._views: queue.SimpleQueue[SystemView | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Decision] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="sponge-deciding", daemon=True)
        self._sent_s: float | None = None  # Time of the view that it has not decided about yet

    @property
    def waited_s(self) -> float:
        """How long it has been deciding by now."""
        return 0.0 if self._sent_s is None else time.perf_counter() - self._sent_s

    def decide(self, view: SystemView) -> Decision | None:
        """Return its decision about a view if it comes soon, else about an earlier one, or None."""
        # None while it is still busy. After a decision that took long the next one is not waited
        # for, and comes an interval late.
        if self._thread.ident is None:
            self._thread.start()
        late = self._take(0.0)
        if self._sent_s is not None:
            return None
        self._sent_s = time.perf_counter()
        self._views.put(view)
        if late is not None and late.took_s > self._max_wait_s:
            return late
        return self._take(self._max_wait_s) or late

    def close(self) -> None:
        """Let its thread end once it has decided; it gets no more views."""
        self._views.put(None)

    def _take(self, timeout_s: float) -> Decision | None:
        try:
            decided = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._sent_s = None
        return decided

    def _serve(self) -> None:
        while (view := self._views.get()) is not None:
            began_s = time.perf_counter()
            answer: Allocation | Exception
            try:
                answer = decision(self._controller, view, self._spec)
            except Exception as error:
                answer = error
            self._answers.put(Decision(answer, time.perf_counter() - began_s))
