"""Sentences follow the data, whatever it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import COLD, write_suite

from benchmarks import targets as ours
from benchmarks.targets import Rates, corrected, picked
from sponge_env.results.comparison import Comparison, load_run
from sponge_env.results.layout import listed, percent
from sponge_env.results.page import findings

FEW, MANY = [1, 0, 0, 1, 0, 0], [40, 41, 42, 40, 41, 43]


def source(path: Path, **agents: tuple[list[int], float]) -> Comparison:
    named = {name.replace("_", "-"): value for name, value in agents.items()}
    return load_run(write_suite(path / "run", named, bounds={"oracle": 4.0})).comparison


def said(found: Comparison, word: str) -> list[str]:
    sentences = [*ours.findings(found), *findings(found)]
    return [sentence for sentence in sentences if word in sentence]


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (FEW, MANY, "more in flash-crowd (124 times: 4.117 % against 0.033 %)."),
        (MANY, FEW, "fewer in flash-crowd"),
        (FEW, FEW, "no significant difference in flash-crowd"),
    ],
)
def test_who_has_more_violations_is_what_the_data_says(
    tmp_path: Path, ours: list[int], theirs: list[int], words: str
) -> None:
    (sentence,) = said(source(tmp_path, sponge_ip=(ours, 8.0), fa2=(theirs, 5.0)), "warm start: ")
    assert words in sentence


def test_too_few_seeds_are_called_so(tmp_path: Path) -> None:
    found = source(tmp_path, sponge_ip=([0] * 5, 8.0), fa2=([850] * 5, 5.0))
    (sentence,) = said(found, "warm start: ")
    assert "too few seeds to tell in flash-crowd (85.000 % against 0.000 %)" in sentence
    assert "no significant difference" not in sentence


def test_fewer_and_more_cores_than_published(tmp_path: Path) -> None:
    cheaper = source(tmp_path / "a", sponge_ip=(FEW, 6.0), sponge_paper=(FEW, 8.0))
    assert "holds 25 % fewer cores" in said(cheaper, "sponge-paper;")[0]
    more_cores = source(tmp_path / "b", sponge_ip=(FEW, 10.0), sponge_paper=(FEW, 8.0))
    assert "holds 25 % more cores" in said(more_cores, "sponge-paper;")[0]


def test_violations_of_the_first_minute_are_told_from_later_ones(tmp_path: Path) -> None:
    found = source(tmp_path, fa2=(MANY, 5.0))
    assert said(found, "first minute") == [
        "Most of fa2's avoidable violations after a cold start (first seed) fall into the first "
        "minute in paper-300kb (100 %)."
    ]
    found.intervals.loc[found.intervals["avoidable_violations"] > 0, "time_s"] = 61.0
    assert "come after the first minute in paper-300kb (0 %)" in said(found, "first minute")[0]


def test_hopeless_requests_say_nothing_about_the_first_minute(tmp_path: Path) -> None:
    found = source(tmp_path, fa2=(MANY, 5.0))
    found.intervals["avoidable_violations"] = 0
    assert not said(found, "first minute")


def test_of_an_episode_of_a_minute_nothing_is_said_about_its_first(tmp_path: Path) -> None:
    found = source(tmp_path, fa2=(MANY, 5.0))
    short = replace(found, intervals=found.intervals[found.intervals["time_s"] <= 60.0])
    assert not said(short, "first minute")


def test_the_cheapest_agent_must_meet_the_slo(tmp_path: Path) -> None:
    found = source(tmp_path, sponge_ip=(FEW, 8.0), fa2=(MANY, 5.0), static_16=(FEW, 16.0))
    assert found.cheapest(COLD) == "sponge-ip"
    assert source(tmp_path / "b", fa2=(MANY, 5.0)).cheapest(COLD) == ""


def test_without_the_agents_nothing_is_said_about_them(tmp_path: Path) -> None:
    found = load_run(write_suite(tmp_path / "run", {"static-8": (FEW, 8.0)})).comparison
    assert all("cheapest" in sentence for sentence in said(found, ""))


def test_the_better_horizontal_scaler_counts_in_each_cell(tmp_path: Path) -> None:
    found = source(tmp_path, sponge_ip=(FEW, 8.0), fa2=(MANY, 5.0), fa2_tuned=([9] * 6, 6.0))
    assert picked(found, COLD, ("fa2", "fa2-tuned")) == "fa2-tuned"
    (sentence,) = said(found, "warm start: ")
    assert "of the better of fa2 and fa2-tuned against sponge-ip" in sentence
    assert "(27 times: 0.900 % against 0.033 %)" in sentence


def test_of_two_with_as_many_violations_the_cheaper_counts(tmp_path: Path) -> None:
    found = source(tmp_path, fa2=(MANY, 5.0), fa2_tuned=(MANY, 4.0))
    assert picked(found, COLD, ("fa2", "fa2-tuned")) == "fa2-tuned"
    assert picked(found, COLD, ("hpa",)) == ""


def test_what_one_sentence_lists_is_corrected_together() -> None:
    both = corrected([Rates(0.0, 0.1, 0.03), Rates(0.0, 0.1, 0.04)])
    assert [r.p for r in both] == pytest.approx([0.06, 0.06])
    assert not any(r.significant for r in both)


def test_the_gap_is_relative_to_what_is_proven(tmp_path: Path) -> None:
    gaps = source(tmp_path, sponge_ip=(FEW, 8.0)).bound_gaps()
    assert gaps["oracle"]["cores"].tolist() == pytest.approx([1 / 0.98 - 1] * 2)
    assert gaps["oracle"]["violations"].tolist() == [0.0, 0.0]


def test_violations_between_the_sides_of_a_bound_are_said(tmp_path: Path) -> None:
    found = source(tmp_path, sponge_ip=(FEW, 8.0))
    found.bounds["violations_upper"] += 5.0
    (sentence,) = said(found, "oracle")
    assert "in 2 of 2 cells, by at most 0.500 % of the requests" in sentence


def test_a_ratio_without_violations_is_no_number() -> None:
    assert math.isnan(Rates(0.0, 0.0, 1.0).ratio)
    assert str(Rates(0.0, 0.0, 1.0)) == "0 against 0: nothing to divide"
    assert str(Rates(0.0, 0.02, 0.01)) == "2.000 % against 0.000 %"
    assert math.isinf(Rates(0.0, 0.02, 0.01).ratio)


def test_parts_are_listed_as_in_a_sentence() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
    assert percent(0.1234, 1) == "12.3 %"
