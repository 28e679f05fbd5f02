"""The harness keeps off its workers' CPUs, however many workers there are."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

from machine import needs_two_cpus

from sponge_env.live.local import RESERVATIONS, Reservations, choose_cpus

pytestmark = needs_two_cpus


def test_workers_may_end_in_any_order() -> None:
    before = os.sched_getaffinity(0)
    cpus = frozenset({max(before)})
    reservations = Reservations()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(reservations.keep_off(cpus))
        second.enter_context(reservations.keep_off(cpus))
        first.close()
        assert os.sched_getaffinity(0) == before - cpus
        assert reservations.available() == before
    assert os.sched_getaffinity(0) == before


def test_a_harness_without_another_cpu_stays_where_it_is() -> None:
    before = os.sched_getaffinity(0)
    with Reservations().keep_off(frozenset(before)):
        assert os.sched_getaffinity(0) == before


def test_a_thread_that_was_started_meanwhile_is_released_too() -> None:
    before, end = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=end.wait, daemon=True)
    with Reservations().keep_off(frozenset({max(before)})):
        thread.start()
        assert thread.native_id is not None
        assert os.sched_getaffinity(thread.native_id) != before
    assert os.sched_getaffinity(thread.native_id) == before
    end.set()
    thread.join()


def test_a_second_worker_takes_the_same_cpu() -> None:
    cpus = choose_cpus((), 1.0)
    with RESERVATIONS.keep_off(cpus):
        assert choose_cpus((), 1.0) == cpus
        assert len(choose_cpus((), 2.0)) == 2
