"""In which order servers are compared, and what Triton is told."""

from __future__ import annotations

import re

import pytest

from benchmarks.serving_slo import TRITON, Summary, in_turn, table
from benchmarks.triton_server import TritonModel
from sponge_env.models.model import TensorSpec


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("all cores, batches of 16, 10 ms delay", [16, 10_000, 1]),
        ("15 cores, batches of 32, two instances", [32, 0, 2]),
    ],
)
def test_triton_is_told_the_settings(name: str, told: list[int]) -> None:
    tensors = ("images", TensorSpec((2,))), ("logits", TensorSpec((1,)))
    text = TritonModel("m", *tensors, **TRITON[name]).config()  # type: ignore[arg-type]
    said = dict(re.findall(r"(\w+): (\d+)", text))
    names = "max_batch_size", "max_queue_delay_microseconds", "count"
    assert [int(said[each]) for each in names] == told


def test_everybody_serves_a_seed_before_the_next_one() -> None:
    order: list[tuple[str, int]] = []

    def contender(name: str, seed: int) -> Summary:
        order.append((name, seed))
        keys = "violation_rate", "avoidable_violation_rate", "mean_cores"
        return dict.fromkeys(keys, float(seed)) | {"latency_p99_s": None if seed else 0.5}

    both = {"a": lambda seed: contender("a", seed), "b": lambda seed: contender("b", seed)}
    *_, first, second = table(in_turn(both, 2)).splitlines()
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    percent, cores, p99 = ["50.00", "0.00", "100.00"], ["0.50", "0.00", "1.00"], ["500.00", "inf"]
    assert first.split() == ["a", *percent * 2, *cores, "inf", *p99]
    assert second.split()[1:] == first.split()[1:]
