"""Sentences follow the data, whatever it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import COLD, write_suite

from benchmarks import targets as ours
from benchmarks.pairs import Rates, corrected, pairs, picked
from sponge_env.results.comparison import Comparison, load_run
from sponge_env.results.layout import listed, percent
from sponge_env.results.page import Remarks, Section, choices, findings
from sponge_env.results.tables import best_of_notes, dominant_notes, scenario_table

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
        (
            FEW,
            MANY,
            "more in flash-crowd (124 times: 4.117 % against 0.033 %, on 0.62 times the cores).",
        ),
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
    assert "too few seeds to tell in flash-crowd (85.000 % against 0.000 %, on " in sentence
    assert "no significant difference" not in sentence


def test_fewer_and_more_cores_than_published(tmp_path: Path) -> None:
    cheaper = source(tmp_path / "a", sponge_ip=(FEW, 6.0), sponge_paper=(FEW, 8.0))
    assert "holds 25 % fewer cores" in said(cheaper, "than sponge-paper")[0]
    more_cores = source(tmp_path / "b", sponge_ip=(FEW, 10.0), sponge_paper=(FEW, 8.0))
    assert "holds 25 % more cores" in said(more_cores, "than sponge-paper")[0]


def test_violations_of_the_first_minute_are_told_from_later_ones(tmp_path: Path) -> None:
    found = source(tmp_path, fa2_tuned=(MANY, 5.0))
    assert said(found, "first minute") == [
        "Most of fa2-tuned's avoidable violations after a cold start (first seed) fall into the "
        "first minute in paper-300kb (100 %)."
    ]
    found.intervals.loc[found.intervals["avoidable_violations"] > 0, "time_s"] = 61.0
    assert "come after the first minute in paper-300kb (0 %)" in said(found, "first minute")[0]


def test_hopeless_requests_say_nothing_about_the_first_minute(tmp_path: Path) -> None:
    found = source(tmp_path, fa2_tuned=(MANY, 5.0))
    found.intervals["avoidable_violations"] = 0
    assert not said(found, "first minute")


def test_of_an_episode_of_a_minute_nothing_is_said_about_its_first(tmp_path: Path) -> None:
    found = source(tmp_path, fa2_tuned=(MANY, 5.0))
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
    assert "(27 times: 0.900 % against 0.033 %, on 0.75 times the cores)" in sentence


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
    assert str(Rates(0.0, 0.0, 1.0)) == "none against none"
    assert str(Rates(0.0, 0.02, 0.01)) == "2.000 % against 0.000 %"
    assert math.isinf(Rates(0.0, 0.02, 0.01).ratio)


def test_parts_are_listed_as_in_a_sentence() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
    assert percent(0.1234, 1) == "12.3 %"


CALM = ("flash-crowd", "yolov5s", "cold")
BEST = "fa2 / -smooth / -tuned"


def test_the_best_of_several_is_picked_cell_by_cell(tmp_path: Path) -> None:
    for cell, (first, second) in {COLD: (MANY, FEW), CALM: (FEW, FEW)}.items():
        agents = {"fa2": (first, 5.0), "fa2-tuned": (second, 6.0), "hpa": (FEW, 3.0)}
        write_suite(tmp_path / "run", agents, [cell])
    run = load_run(tmp_path / "run")
    found = run.comparison
    assert found.best_of == {BEST: {COLD: "fa2-tuned", CALM: "fa2"}}
    assert BEST not in found.agents
    assert found.mean(BEST, "mean_cores", COLD) == 6.0
    assert found.mean(BEST, "mean_cores", CALM) == 5.0
    assert not found.intervals_of(BEST, COLD).empty
    assert best_of_notes(found, [BEST]) == [
        f"`{BEST}` is in each cell whichever has the fewest avoidable violations (`fa2` in 1 and "
        "`fa2-tuned` in 1)"
    ]


def test_one_of_several_alone_stands_for_itself(tmp_path: Path) -> None:
    run = load_run(write_suite(tmp_path / "run", {"fa2": (FEW, 5.0), "hpa": (FEW, 3.0)}))
    assert run.comparison.best_of == {}
    assert BEST not in run.featured
    assert "fa2" in run.featured


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        (
            {"a": (FEW, 8.0), "b": (MANY, 4.0), "c": ([1] * 6, 6.0)},
            "of 3 controllers a (0.033 %, at most 0.1 % in 1 of 1 cells; 8.00 cores) has the "
            "fewest avoidable violations (not shown to be fewer than those of c), and of those "
            "with at most 0.1 % on average c (0.100 %, at most 0.1 % in 1 of 1 cells; 6.00 cores) "
            "the fewest cores.",
        ),
        (
            {"a": ([0, 1] * 5, 8.0), "b": ([40] * 10, 4.0), "c": ([1, 0, 0, 0, 2] * 2, 6.0)},
            "cores) has the fewest avoidable violations (not shown to be fewer than those of c), "
            "and of those",
        ),
        (
            {"a": (FEW, 8.0), "b": (FEW, 6.0)},
            "b (0.033 %, at most 0.1 % in 1 of 1 cells; 6.00 cores) has the fewest avoidable "
            "violations (as few: 1 more, none on fewer cores), and of those",
        ),
        (
            {"a": (FEW, 8.0), "b": (FEW, 6.0), "c": ([1] * 6, 7.0)},
            "(as few: 1 more, none on fewer cores) (not shown to be fewer than those of c), and",
        ),
        (
            {"a": ([0] * 4, 8.0), "b": ([40] * 4, 6.0)},
            "has the fewest avoidable violations (too few seeds to show it), and of those",
        ),
        (
            {"a": ([0, 1] * 5, 8.0)} | {f"b{n}": ([1, 0] * 4 + [n, 1], 9.0) for n in range(2, 8)},
            "(not shown to be fewer than those of b2, b3, b4, b5 and 2 more), and of those",
        ),
        (
            {"a": (FEW, 4.0), "b": (MANY, 8.0)},
            "has the fewest avoidable violations, and of those with at most 0.1 % on average also "
            "the fewest cores.",
        ),
        ({"a": (MANY, 4.0), "b": (MANY, 8.0)}, "and nobody has at most 0.1 % on average."),
    ],
    ids=["two", "as good", "equal", "both", "few seeds", "many", "one", "none"],
)
def test_who_to_choose_is_what_the_data_says(
    tmp_path: Path, agents: dict[str, tuple[list[int], float]], words: str
) -> None:
    found = load_run(write_suite(tmp_path / "run", agents, [COLD])).comparison
    (sentence,) = choices(found)
    assert sentence.startswith("After a cold start, ")
    assert words in sentence


def test_who_failed_somewhere_is_not_to_be_chosen(tmp_path: Path) -> None:
    path = write_suite(tmp_path / "run", {"a": (FEW, 8.0), "b": (FEW, 9.0)}, [COLD, CALM])
    write_suite(path, {"c": ([0] * 6, 1.0)}, [CALM])
    (sentence,) = choices(load_run(path).comparison)
    assert "of 2 controllers with results everywhere a (" in sentence


def test_scenarios_of_a_family_share_a_table(tmp_path: Path) -> None:
    sizes = [(f"paper-{size}kb", "yolov5s", "cold") for size in (100, 300)]
    for cell, violations in zip(sizes, (FEW, MANY), strict=True):
        agents = {"a": (violations, 4.0), "b": (FEW, 8.0), "c": (FEW, 6.0)}
        write_suite(tmp_path / "run", agents, [cell, CALM])
    found = load_run(tmp_path / "run").comparison
    assert found.kinds == {"paper": ["paper-100kb", "paper-300kb"], "flash-crowd": ["flash-crowd"]}
    table = scenario_table(found, "paper", ["a", "b"])
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["`a`", "2.075 %", "4.117 % (paper-300kb, yolov5s)", "4.00"],
        ["`b`", "0.033 %", "0.033 % (paper-100kb, yolov5s)", "8.00"],
        ["`c`", "0.033 %", "0.033 % (paper-100kb, yolov5s)", "6.00"],
    ]  # c, the best of all, is there without being asked for
    assert [row[-1].strong for row in table.rows] == [False, False, True]


def test_what_explains_a_difference_stands_before_its_numbers(tmp_path: Path) -> None:
    found = source(tmp_path, fa2=(MANY, 4.0), fa2_smooth=(FEW, 6.0))
    (sentence,) = said(found, "cancels replicas")
    assert sentence.endswith(
        "With a warm start, fa2-smooth holds 50 % more cores than fa2, whose avoidable violations "
        "are more: 124 times: 4.117 % against 0.033 %."
    )


def apart(path: Path) -> Comparison:
    """Return a run whose agents hold 6 and 8 cores on one cell, 12 and 8 on the other."""
    for cell, cores, bound in ((COLD, 6.0, 1.0), (CALM, 12.0, 8.0)):
        agents = {"sponge-ip": (FEW, cores), "hpa": (MANY, 8.0)}
        write_suite(path / "run", agents, [cell], {"oracle": bound})
    return load_run(path / "run").comparison


def test_cores_of_two_are_the_same_from_either_side(tmp_path: Path) -> None:
    found, sides = apart(tmp_path), (["sponge-ip"], ["hpa"])
    ours, theirs = (pairs(found, [("", found.cells, *order)])[0] for order in (sides, sides[::-1]))
    assert ours.core_ratio == pytest.approx(math.sqrt(6 / 8 * 12 / 8))
    assert ours.core_ratio * theirs.core_ratio == pytest.approx(1.0)
    assert ours.cores_p == theirs.cores_p


def test_tables_that_say_the_opposite_are_explained(tmp_path: Path) -> None:
    (sentence,) = said(apart(tmp_path), "than hpa")
    assert "holds 6 % more cores than hpa (though 3.75 against 4.50 times the bound" in sentence
    agreeing = source(tmp_path / "b", sponge_ip=(FEW, 6.0), hpa=(FEW, 8.0))
    assert "though" not in said(agreeing, "than hpa")[0]


def test_a_cell_that_is_most_of_a_mean_is_named(tmp_path: Path) -> None:
    for cell, violations in ((COLD, MANY), (CALM, FEW)):
        write_suite(tmp_path / "run", {"a": (violations, 4.0), "b": (FEW, 8.0)}, [cell])
    assert dominant_notes(load_run(tmp_path / "run").comparison, ["a", "b"]) == [
        "One cell makes up more than half of mean avoidable violations after a cold start: "
        "paper-300kb, yolov5s 99 % of `a`'s"
    ]


def below_the_table(path: Path) -> Remarks:
    run = load_run(path)
    return ours.remarks(Section(run, list(run.comparison.agents)))


def test_what_a_cold_start_costs_is_said_of_who_adds_replicas(tmp_path: Path) -> None:
    (sentence,) = below_the_table(write_suite(tmp_path / "run", {"hpa": (MANY, 5.0)})).summary
    assert sentence.startswith(
        "Episodes last 120 s, a replica takes 10 s to start: of the avoidable violations after a "
        "cold start (first seed of each cell), 100 % of `hpa`'s fall into the first minute. Tuning"
    )


def test_delays_of_a_resize_have_a_column_each(tmp_path: Path) -> None:
    points = {"0": (FEW, MANY), "0.5": (MANY, FEW), "1.8 on average": (FEW, FEW)}
    by_point = {point: [("paper-300kb", f"p{n}", "cold")] for n, point in enumerate(points)}
    arrangement = {"cells": by_point["0"], "sweeps": {"resize delay [s]": by_point}}
    for point, (resized, static) in points.items():
        agents = {"sponge-joint": (resized, 3.0), "static-16": (static, 16.0)}
        write_suite(tmp_path / "run", agents, by_point[point], arrangement=arrangement)
    assert below_the_table(tmp_path / "run").readme.splitlines()[2:] == [
        "| controller | at once, cold | 0.5 s, cold | 1.8 s on average, cold |",
        "| :-- | --: | --: | --: |",
        "| `sponge-joint` | 0.03 % · 3.00 | 4.12 % · 3.00 | 0.03 % · 3.00 |",
        "| `hpa` | - | - | - |",
        "| `static-16` | 4.12 % · 16.00 | 0.03 % · 16.00 | 0.03 % · 16.00 |",
    ]


def test_scenarios_that_a_policy_was_trained_on_are_counted(tmp_path: Path) -> None:
    cells = [COLD, ("paper-200kb", "yolov5s", "cold")]
    (sentence,) = below_the_table(write_suite(tmp_path / "run", {"ppo": (FEW, 4.0)}, cells)).summary
    assert sentence.startswith(
        "The policies of `ppo` were trained on 1 of the 2 scenarios that they are measured on "
        "here (on other seeds; only paper-200kb is held out)"
    )
