"""Executors: what becomes of tasks, wherever they run."""

import os
import time
from contextlib import closing, suppress
from multiprocessing import active_children

import pytest

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.run.executor import Failure, Processes
from sponge_env.utils import installation as trust
from sponge_env.utils.installation import ONE_THREAD


def work(task):
    if task == "raise":
        raise ValueError("no good")
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(3600)
    if task == "finish":  # as a training does, which an interrupt ends with what there is
        with suppress(KeyboardInterrupt), cli.terminate_like_interrupt():
            time.sleep(3600)
    if task == "threads":
        return [os.environ[name] for name in ONE_THREAD]
    return (task, os.getpid())


def test_results_come_as_tasks_end():
    with closing(Processes(2).run(work, [1, 2, 3])) as results:
        first, result = next(results)
        assert result[0] == first
    assert not active_children()
    assert list(Processes(2).run(work, [])) == []


def may_run(name):
    trust.check_typed(name, "agent")
    return True


def test_code_counts_as_typed_in_every_process():
    with trust.typing(["--agent", "own:Mine"]):
        found = dict(Processes(2).run(may_run, ["own:Mine", "a:B"]))
    assert found["own:Mine"] is True
    assert found["a:B"].type == "ConfigError"


def test_a_process_that_dies_takes_only_its_task_along():
    tasks = ["raise", "die", *range(6), "die", "threads", 7]
    done = list(Processes(2).run(work, tasks))
    assert sorted(map(str, (task for task, _ in done))) == sorted(map(str, tasks))
    died = Failure("ProcessDied", "its process ended with code 7")
    expected = {"raise": Failure("ValueError", "no good"), "die": died, "threads": ["1"] * 4}
    for task, result in done:
        assert result == expected[task] if task in expected else result[0] == task
    processes = {result[1] for task, result in done if task not in expected}
    assert os.getpid() not in processes
    assert len(processes) <= 4, "a process does more than one task"
    assert not active_children()


def interrupted_after_two(other):
    with closing(Processes(2).run(work, [1, other, 2])) as results:
        for task, _ in results:
            if task == 2:
                raise KeyboardInterrupt


@pytest.mark.parametrize("other", ["hang", "finish"])
def test_no_process_outlives_the_results(other):
    with pytest.raises(KeyboardInterrupt):
        interrupted_after_two(other)
    assert not active_children()


@pytest.mark.parametrize(
    ("words", "name"), [("--suite s.toml", "--suite"), ("--jobs 4 --suite s.toml", "4"),
     ("--profile p.json --run-dir r", "p.json"), ("--profile p.json --run-dir r", "r"),
     ("--drop late:2", "2"), ("--drop late:2", "late:2"), ("--agent a:B --trace x", "x")],
)  # fmt: skip
def test_words_that_name_no_code_let_no_file_run(words, name):
    with trust.typing(words.split()), pytest.raises(ConfigError, match="runs code"):
        trust.check_typed(name, "model")
