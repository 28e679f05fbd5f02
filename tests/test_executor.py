"""Executors: what becomes of tasks, wherever they run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import active_children
from typing import Any

import pytest

from sponge_env.run.executor import ONE_THREAD, Executor, Failure, Inline, Processes


def work(task: object) -> object:
    if task == "raise":
        raise ValueError("no good")
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(3600)
    if task == "threads":
        return [os.environ[name] for name in ONE_THREAD]
    return (task, os.getpid())


def processes(work: Callable[[Any], Any]) -> Executor:
    return Processes(work, 2)


@pytest.fixture(params=[Inline, processes], ids=["inline", "processes"])
def executor(request: pytest.FixtureRequest) -> Executor:
    made: Executor = request.param(work)
    return made


def test_every_task_ends_with_its_result_or_the_failure_of_it(executor: Executor) -> None:
    tasks = ["raise", *range(6), "raise", 7]
    with executor:
        done = list(executor.results(tasks))
    assert sorted(map(str, (task for task, _ in done))) == sorted(map(str, tasks))
    for task, result in done:
        assert result == Failure("ValueError", "no good") if task == "raise" else result[0] == task
    assert not active_children()


def test_results_come_as_tasks_end(executor: Executor) -> None:
    with executor:
        first, result = next(iter(executor.results([1, 2, 3])))
        assert result[0] == first
    assert not active_children()


def test_without_tasks_there_are_no_results(executor: Executor) -> None:
    with executor:
        assert list(executor.results([])) == []


def test_in_this_process_a_failure_has_its_exception() -> None:
    ((_, failure),) = Inline(work).results(["raise"])
    assert isinstance(failure.cause, ValueError)


def test_an_interrupt_is_no_failure() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Inline(interrupt).results([1]))


def test_a_process_that_dies_takes_only_its_task_along() -> None:
    tasks = ["raise", "die", *range(6), "die", "threads", 7]
    with Processes(work, 2) as pool:
        done = list(pool.results(tasks))
    assert sorted(map(str, (task for task, _ in done))) == sorted(map(str, tasks))
    died = Failure("ProcessDied", "its process ended with code 7")
    expected = {"raise": Failure("ValueError", "no good"), "die": died, "threads": ["1"] * 4}
    for task, result in done:
        assert result == expected[task] if task in expected else result[0] == task
    processes = {result[1] for task, result in done if task not in expected}
    assert os.getpid() not in processes
    assert len(processes) <= 4, "a process does more than one task"
    assert not active_children()


def interrupted_after_two() -> None:
    with Processes(work, 2) as pool:
        for task, _ in pool.results([1, "hang", 2]):
            if task == 2:
                raise KeyboardInterrupt


def test_no_process_outlives_the_pool() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_after_two()
    assert not active_children()


def test_nothing_to_do_starts_nothing() -> None:
    with Processes(work, 0) as pool:
        assert list(pool.results([])) == []
