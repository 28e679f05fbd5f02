import dataclasses
import math
from pathlib import Path

import pytest

from sponge_env.core.fields import JOINT_NAMES
from sponge_env.metrics import (
    COLUMNS,
    AgainstBound,
    EpisodeMetrics,
    IntervalMetrics,
    StageMetrics,
    axis_label,
    blank,
    column,
    declared,
    names,
    tag,
)
from sponge_env.results.documentation import environment_page, field_table, metrics_page

SCHEMAS = (IntervalMetrics, EpisodeMetrics, StageMetrics)


def test_the_docs_are_what_the_schema_generates():
    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    assert page.read_text() == metrics_page(), "run: make docs"


def test_the_docs_have_the_fields_of_today():
    page = (Path(__file__).parent.parent / "docs" / "environment.md").read_text()
    assert page == environment_page(page), "run: make docs"
    rows = field_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(JOINT_NAMES)


@pytest.mark.parametrize("cls", SCHEMAS)
def test_every_metric_is_declared_in_full(cls):
    for field in declared(cls):
        assert set(field.metadata) == {"group", "unit", "help", "better"}, field.name
        assert field.metadata["group"]
        assert field.metadata["help"].endswith(".")
        assert field.metadata["better"] in ("less", "more", "")


@pytest.mark.parametrize("cls", SCHEMAS)
def test_a_name_that_carries_a_unit_is_declared_with_it(cls):
    units = {"_bytes_per_s": "B/s", "_s": "s"}
    for field in declared(cls):
        for suffix, unit in units.items():
            if field.name.endswith(suffix):
                assert field.metadata["unit"] == unit, field.name
                break


@pytest.mark.parametrize("cls", SCHEMAS)
def test_the_docs_have_one_row_for_each_metric(cls):
    section = metrics_page().split(f"`{cls.__name__}`")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert [row.split("`")[1] for row in rows] == list(names(cls))


def test_a_quantity_of_both_schemas_means_the_same_in_both():
    episode = {f.name: f.metadata for f in declared(EpisodeMetrics)}
    for field in declared(IntervalMetrics):
        if field.name in episode:
            for key in ("group", "unit", "better"):
                assert field.metadata[key] == episode[field.name][key], field.name


def test_a_tag_is_the_group_and_the_name():
    assert tag(IntervalMetrics, "violations") == "slo/violations"
    assert tag(EpisodeMetrics, "mean_cores") == "resources/mean_cores"


def test_a_metric_that_is_not_in_the_schema_has_no_tag():
    with pytest.raises(KeyError):
        tag(IntervalMetrics, "mean_cores")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("latency_p99_s", "latency p99 [s]"),
        ("cores", "cores [core units]"),
        ("violations", "violations"),
        ("bandwidth_bytes_per_s", "bandwidth [B/s]"),
    ],
)
def test_an_axis_label_names_the_quantity_and_its_unit_once(name, label):
    assert axis_label(IntervalMetrics, name) == label


def test_violations_and_cores_come_before_all_else_in_tensorboard():
    tags = sorted(tag(IntervalMetrics, name) for name in names(IntervalMetrics))
    groups = list(dict.fromkeys(name.partition("/")[0] for name in tags))
    assert groups == ["resources", "slo", "system"]
    assert tag(IntervalMetrics, "latency_p99_s") == "system/latency/latency_p99_s"


METRICS = {f.name: f for cls in (*SCHEMAS, AgainstBound) for f in declared(cls)}


def test_every_column_shows_a_metric_once():
    shown = [column.metric for column in COLUMNS]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= {
        *names(EpisodeMetrics),
        *names(AgainstBound),
    }


@pytest.mark.parametrize("shown", COLUMNS, ids=lambda shown: shown.metric)
def test_a_column_is_in_the_metrics_unit_or_one_that_is_scaled_to(shown):
    unit = METRICS[shown.metric].metadata["unit"]
    assert (unit, shown.unit) in {("", "%"), ("s", "ms")} or shown.scale == 1.0


def test_a_column_writes_a_value_in_its_unit():
    assert column("latency_p99_s").label == "p99 [ms]"
    assert column("latency_p99_s").text(0.0129) == "13"
    assert column("violation_rate").text(-1e-9) == "0.000"
    assert column("mean_cores").text(0.5, sign="+") == "+0.50"


def test_what_was_not_measured_has_a_value_of_its_own():
    assert dataclasses.asdict(IntervalMetrics()) == {"stages": {}} | {
        name: pytest.approx(value, nan_ok=True) for name, value in blank(IntervalMetrics).items()
    }
    assert math.isnan(blank(IntervalMetrics)["latency_p99_s"])
    assert blank(IntervalMetrics)["violations"] == 0
