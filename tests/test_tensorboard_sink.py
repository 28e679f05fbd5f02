import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.util.tensor_util import make_ndarray

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, axis_label, columns, names, tag
from sponge_env.run.tensorboard import EPISODE_PREFIX, IDENTITY, EventFile, TensorBoardSink

INTERVALS = [
    IntervalMetrics(time_s=1.0, violations=2, cores=4.0, core_seconds=4.0, delay_max_s=0.3),
    IntervalMetrics(time_s=2.0, violations=0, cores=8.0, core_seconds=8.0, latency_p99_s=0.9),
    IntervalMetrics(time_s=3.0, violations=1, cores=6.0, core_seconds=6.0, latency_p99_s=0.5),
]
EPISODE = EpisodeMetrics(
    agent="fa2", scenario="paper", backend="sim", seed=3, duration_s=3.0, violation_rate=0.015
)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one" / "fa2-seed3"
    sink = TensorBoardSink(folder)
    for interval in INTERVALS:
        sink.interval(interval)
    sink.episode(EPISODE)
    sink.close()
    return EventAccumulator(str(folder)).Reload()


def points(events, name):
    return [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(name)]


def test_each_number_of_an_interval_is_a_scalar_at_its_index_if_it_was_measured(events):
    for name in names(IntervalMetrics):
        values = [np.float32(getattr(interval, name)) for interval in INTERVALS]
        measured = [(step, value) for step, value in enumerate(values) if not np.isnan(value)]
        assert bool(measured) == (tag(IntervalMetrics, name) in events.Tags()["tensors"])
        if measured:
            assert points(events, tag(IntervalMetrics, name)) == measured, name
    times = [event.wall_time for event in events.Tensors(tag(IntervalMetrics, "cores"))]
    np.testing.assert_allclose(np.diff(times), 1.0, atol=1e-3)  # of the episode


def test_running_sums_show_what_the_run_has_cost(events):
    assert points(events, "total/slo/violations") == [(0, 2), (1, 2), (2, 3)]
    assert points(events, "total/resources/core_seconds") == [(0, 4), (1, 12), (2, 18)]


def test_episode_values_stay_apart_from_the_intervals(events):
    name = tag(EpisodeMetrics, "violation_rate")
    assert name == tag(IntervalMetrics, "violation_rate")
    assert points(events, EPISODE_PREFIX + name) == [(3, np.float32(0.015))]
    assert len(points(events, name)) == 3


def test_the_custom_page_charts_violations_beside_cores(events):
    (event,) = events.Tensors(custom_scalars.CONFIG_SUMMARY_TAG)
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    charted = [[chart.title for chart in category.chart] for category in layout.category]
    assert ["violations", axis_label(IntervalMetrics, "cores")] in charted
    written = events.PluginTagToContent(scalar_metadata.PLUGIN_NAME)
    for category in layout.category:
        assert len(category.chart) == 2
        for chart in category.chart:
            (pattern,) = chart.multiline.tag
            assert len([name for name in written if re.match(pattern, name)]) == 1, pattern


def test_the_table_names_the_run_and_compares_values_that_are_written(events):
    content = events.PluginTagToContent(hparams.PLUGIN_NAME)
    start = hparams.parse_session_start_info_plugin_data(content[hparams.SESSION_START_INFO_TAG])
    assert (start.group_name, set(start.hparams)) == ("one/fa2-seed3", set(IDENTITY))
    assert (start.hparams["agent"].string_value, start.hparams["seed"].number_value) == ("fa2", 3)
    experiment = hparams.parse_experiment_plugin_data(content[hparams.EXPERIMENT_TAG])
    assert [info.name for info in experiment.hparam_infos] == list(IDENTITY)
    compared = [info.name.tag for info in experiment.metric_infos]
    own = [column.metric for column in columns("tensorboard")]
    assert compared == [EPISODE_PREFIX + tag(EpisodeMetrics, name) for name in own]
    measured = [name for name in compared if not name.endswith("latency_p99_s")]
    assert set(measured) <= set(events.Tags()["tensors"])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 2048, 6000])
def test_tensorboard_reads_back_what_was_added(tmp_path, size):
    content, file = np.random.default_rng(size).bytes(size), EventFile(tmp_path / "run")
    (path,) = (tmp_path / "run").iterdir()
    added = [Event(step=step, wall_time=1.0 + step, graph_def=content) for step in range(3)]
    for event in added:
        before = path.stat().st_size
        file.add(event)
        assert path.stat().st_size == before + 8 + 4 + len(event.SerializeToString()) + 4, "at once"
    file.close()
    first, *read = RawEventFileLoader(str(path)).Load()  # which compares the checksums
    assert Event.FromString(first).file_version == "brain.Event:2"
    assert [Event.FromString(event) for event in read] == added
