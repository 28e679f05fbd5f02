"""The summary of requests: what counts as a violation, per what, and how long they took."""

import math

import numpy as np
import pytest

from sponge_env.latency import latency_quantile_s
from sponge_env.simulation.summary import (
    latency_quantiles_s,
    summarise_accuracy,
    summarise_requests,
)

OUTCOME = np.array(["on_time", "on_time", "late", "dropped", "failed", "queued", "running"])
LATENCY_S = np.array([0.1, 0.3, 0.9, math.nan, math.nan, math.nan, math.nan])


def test_rates_are_of_what_has_ended():
    hopeless = np.array([False, False, True, False, True, True, False])
    summary = summarise_requests(OUTCOME, LATENCY_S, hopeless)
    assert (summary["offered"], summary["violations"], summary["hopeless"]) == (7, 3, 3)
    assert summary["violation_rate"] == 3 / 5
    assert summary["avoidable_violation_rate"] == 1 / 5
    assert summary["hopeless_rate"] == 2 / 5
    assert summary["latency_mean_s"] == pytest.approx(1.3 / 3)
    assert (summary["latency_p50_s"], summary["latency_p99_s"]) == (0.9, math.inf)


def test_accuracy_counts_answers_in_time_only():
    accuracy = np.array([0.7, 0.9, 0.8, math.nan, math.nan, math.nan, math.nan])
    needs_cores = OUTCOME == "dropped"
    found = summarise_accuracy(OUTCOME, accuracy, needs_cores)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["effective_accuracy"] == pytest.approx(1.6 / 5)
    assert found["more_cores_rate"] == 1 / 5


def test_nothing_offered_has_no_latency():
    nothing = summarise_requests(OUTCOME[:0], LATENCY_S[:0], np.zeros(0, np.bool_))
    assert (nothing["offered"], nothing["violation_rate"]) == (0, 0.0)
    assert math.isnan(nothing["latency_p99_s"])


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_an_interval_has_the_quantiles_of_an_episode(probability):
    rng = np.random.default_rng(0)
    for answered, dropped in rng.integers(0, 9, (40, 2)).tolist():
        latency_s = np.sort(rng.uniform(0, 1, answered))
        outcome = np.array(["late"] * answered + ["failed"] * dropped, "U9")
        padded_s = np.append(latency_s, np.zeros(dropped))
        (found_s,) = latency_quantiles_s(outcome, padded_s, [probability])
        expected_s = latency_quantile_s(latency_s.tolist(), dropped, probability)
        assert found_s == pytest.approx(expected_s, nan_ok=True)
