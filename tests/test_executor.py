"""Processes that work through tasks, and what becomes of them."""

from __future__ import annotations

import os
import time
from multiprocessing import active_children

import pytest

from sponge_env.run.executor import ONE_THREAD, Failure, Processes


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


def test_every_task_ends_with_its_result_or_its_failure() -> None:
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
