"""The schema of metrics, and what is generated from it."""

import math

import pytest
from project import ROOT

from benchmarks.results import environment_page, field_table, metric_table, metrics_page
from sponge_env import metrics
from sponge_env.core.fields import JOINT_NAMES

SCHEMAS = (metrics.IntervalMetrics, metrics.EpisodeMetrics, metrics.StageMetrics)


def test_the_docs_are_what_the_schema_generates():
    for name, page_of in {"environment.md": environment_page, "metrics.md": metrics_page}.items():
        page = (ROOT / "docs" / name).read_text()
        assert page == page_of(page), "run: make docs"
    assert [row.split("`")[1] for row in field_table().splitlines()[2:]] == list(JOINT_NAMES)


@pytest.mark.parametrize("cls", SCHEMAS)
def test_every_metric_is_declared_in_full_and_documented(cls):
    for field in metrics.declared(cls):
        assert set(field.metadata) == {"group", "help", "better"}, field.name
        assert field.metadata["group"]
        assert field.metadata["help"].endswith(".")
        assert field.metadata["better"] in ("less", "more", "")
    rows = metric_table(cls).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(metrics.names(cls))


def test_a_quantity_of_both_schemas_means_the_same_in_both():
    episode = {f.name: f.metadata for f in metrics.declared(metrics.EpisodeMetrics)}
    for field in metrics.declared(metrics.IntervalMetrics):
        if field.name in episode:
            for key in ("group", "better"):
                assert field.metadata[key] == episode[field.name][key], field.name


def test_tags_sort_violations_and_cores_before_all_else():
    assert metrics.tag(metrics.IntervalMetrics, "violations") == "slo/violations"
    assert metrics.tag(metrics.EpisodeMetrics, "mean_cores") == "resources/mean_cores"
    assert metrics.tag(metrics.IntervalMetrics, "latency_p99_s") == "system/latency/latency_p99_s"
    own = metrics.names(metrics.IntervalMetrics)
    tags = sorted(metrics.tag(metrics.IntervalMetrics, name) for name in own)
    groups = list(dict.fromkeys(name.partition("/")[0] for name in tags))
    assert groups == ["resources", "slo", "system"]
    with pytest.raises(KeyError):
        metrics.tag(metrics.IntervalMetrics, "mean_cores")


def test_every_column_shows_a_metric_once_in_its_unit():
    shown = [c.metric for c in metrics.COLUMNS]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= {*metrics.names(metrics.EpisodeMetrics)}
    assert {c.metric for c in metrics.STAGE_COLUMNS} <= {*metrics.names(metrics.StageMetrics)}
    for c in (*metrics.COLUMNS, *metrics.STAGE_COLUMNS):
        unit = metrics.unit_of(c.metric)
        assert (unit, c.unit) in {("", "%"), ("s", "ms")} or c.scale == 1.0, c.metric


def test_a_column_writes_a_value_in_its_unit():
    assert metrics.column("latency_p99_s").label == "p99 [ms]"
    assert metrics.column("latency_p99_s").text(0.0129) == "13"
    assert metrics.column("violation_rate").text(-1e-9) == "0.000"
    assert metrics.column("violation_rate").text(0.01234) == "1.234"


def test_accuracy_has_columns_only_where_some_answers_are_wrong():
    found = [math.nan, 1.0], [0.5]
    for place in ("tensorboard", "cell"):
        sure, wrong = ({c.metric for c in metrics.columns(place, accuracies=a)} for a in found)
        assert wrong - sure == {"effective_accuracy"}


LABELS = {"latency_p99_s": "latency p99 [s]", "cores": "cores [core units]",
          "violations": "violations", "bandwidth_bytes_per_s": "bandwidth [B/s]"}  # fmt: skip


@pytest.mark.parametrize(("name", "label"), LABELS.items())
def test_an_axis_label_names_the_quantity_and_its_unit_once(name, label):
    assert metrics.axis_label(metrics.IntervalMetrics, name) == label


def test_what_was_not_measured_has_a_value_of_its_own():
    assert math.isnan(metrics.IntervalMetrics().latency_p99_s)
    assert metrics.IntervalMetrics().violations == 0
