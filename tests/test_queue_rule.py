from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from baselines.rules import BatchConfig, QueueRule, batch_size
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation


def run(controller: QueueRule, queued: list[int], held: int) -> list[int]:
    """Return the cores after each decision, with so many requests waiting at it."""
    controller.reset(make_spec(), seed=0)
    answers = []
    for waiting in queued:
        view = busy_view(budgets_left_s=(0.5,) * waiting, allocation=Allocation(held, 1))
        held = controller.decide(view).cores
        answers.append(held)
    return answers


def test_grows_at_once_and_shrinks_by_one_after_a_calm_while() -> None:
    rule = QueueRule(up_queue=1.0, up_factor=1.5, down_after=3)
    assert run(rule, [5, 8, 0, 0, 0, 0, 0, 0], held=4) == [6, 9, 9, 9, 8, 8, 8, 7]


def test_between_the_thresholds_nothing_changes() -> None:
    rule = QueueRule(up_queue=1.0, calm_share=0.25, down_after=1)
    assert run(rule, [4, 2, 1, 3], held=4) == [4, 4, 4, 4]


def test_a_busy_interval_interrupts_the_calm() -> None:
    rule = QueueRule(down_after=3)
    assert run(rule, [0, 0, 3, 0, 0, 0], held=4) == [4, 4, 4, 4, 4, 3]


def test_one_core_grows_too_and_the_last_one_stays() -> None:
    assert run(QueueRule(up_factor=1.0), [3], held=1) == [2]
    assert run(QueueRule(down_after=1), [0, 0], held=2) == [1, 1]


def test_first_decision_keeps_the_cores() -> None:
    rule = QueueRule(batch=2, down_after=1)
    rule.reset(make_spec(), seed=0)
    assert rule.decide(make_view(allocation=Allocation(6, 9))) == Allocation(cores=6, batch=2)


@given(
    cores=st.integers(1, 16),
    share=st.floats(0.01, 1),
    profile=st.sampled_from(["yolov5s", "resnet18"]),
)
def test_the_batch_is_the_largest_that_fits(cores: int, share: float, profile: str) -> None:
    spec = make_spec(profile)
    batch = batch_size(BatchConfig(batch_slo_share=share), spec, cores)
    latency_s = spec.first.latency.table_s(16, 16)[:, cores - 1]
    assert batch == 1 or latency_s[batch - 1] <= share * spec.slo_s
    assert batch == 16 or latency_s[batch] > share * spec.slo_s


def test_a_chosen_batch_stays_within_the_limit() -> None:
    assert batch_size(BatchConfig(batch=5), make_spec(), cores=1) == 5
    assert batch_size(BatchConfig(batch=5), make_spec(batch_max=3), cores=1) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"up_queue": 0.0}, "up_queue must be"),
        ({"calm_share": 1.5}, "calm_share must be"),
        ({"up_factor": 0.5}, "up_factor must be"),
        ({"down_after": 0}, "down_after must be"),
        ({"batch": 0}, "batch must be"),
        ({"batch_slo_share": 0.0}, "batch_slo_share must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QueueRule(**options)
