"""The TensorBoard sink; nothing else imports TensorBoard.

It makes events of TensorBoard's own messages, which need neither torch nor TensorFlow. Each
agent and seed is a run with the same tags, so that TensorBoard overlays them. The tags are the
schema's; episode values carry the prefix ``episode/``, for some share their tag with an
interval's.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` needs TensorFlow
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from sponge_env.event_file import EventFile
from sponge_env.results.schema import (
    CELL,
    EpisodeMetrics,
    IntervalMetrics,
    axis_label,
    columns,
    names,
    scalars,
    tag,
)

if TYPE_CHECKING:
    import pandas as pd

EPISODE_PREFIX = "episode/"
TOTAL_PREFIX = "total/"

TOTALS = ("violations", "core_seconds")
"""Interval metrics whose running sums are written too, under the prefix ``total/``."""
_TOTAL_TAGS = {name: TOTAL_PREFIX + tag(IntervalMetrics, name) for name in TOTALS}

CHARTS: Mapping[str, tuple[str, ...]] = {
    "SLO violations beside cores in each interval": ("violations", "cores"),
    "Latency beside queue": ("latency_p99_s", "queued"),
    "Network beside allocation": ("delay_max_s", "batch"),
}
"""Sections of the custom-scalars page, and the interval metrics they chart side by side."""

IDENTITY = ("agent", "scenario", "backend", "seed", "start")
"""Episode metrics that name a row of the hyper-parameter table."""

COMPARED = tuple(column.metric for column in columns("tensorboard"))
"""Metrics that TensorBoard compares: in the hyper-parameter table, or means of a suite."""


def _help() -> Iterator[tuple[str, str]]:
    """Yield each tag and what the schema says about it."""
    for cls, prefix in ((IntervalMetrics, ""), (EpisodeMetrics, EPISODE_PREFIX)):
        for field in dataclasses.fields(cls):
            yield prefix + tag(cls, field.name), field.metadata["help"]
    for total_tag in _TOTAL_TAGS.values():
        yield total_tag, "Sum since the start of the episode."


HELP = dict(_help())

_of_interval = attrgetter(*names(IntervalMetrics))
_INTERVAL_TAGS = [tag(IntervalMetrics, name) for name in names(IntervalMetrics)]
_INTERVAL_TAGS += _TOTAL_TAGS.values()
_EMPTY = TensorProto(dtype=DT_FLOAT, float_val=[0.0])


class TensorBoardSink:
    """Writes one run: scalars, the layout of the custom page, and a row of the table.

    The step is the interval's index. Events are stamped with the start plus the
    episode's time, so that TensorBoard's relative axis shows the episode's time also
    where a simulated worker ran faster.
    """

    def __init__(self, folder: Path, trial: str = "") -> None:
        """Open an event file; without a trial's name, folder and parent name the table's row."""
        self._file = open_events(folder)
        self._trial = trial or f"{folder.parent.name}/{folder.name}"
        self._start_s = time.time()
        self._steps = 0
        self._totals = dict.fromkeys(TOTALS, 0.0)
        self._described: set[str] = set()
        self._forms: dict[tuple[str, bytes], _Form] = {}
        self._add(Event(summary=_layout()), 0.0)

    def interval(self, metrics: IntervalMetrics) -> None:
        """Write one interval's numbers."""
        for name in TOTALS:
            self._totals[name] += getattr(metrics, name)
        values = (*_of_interval(metrics), *self._totals.values())
        self._add_scalars(_INTERVAL_TAGS, values, metrics.time_s)
        self._steps += 1

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Write the summary's numbers and the row of the hyper-parameter table."""
        tags, values = zip(*scalars(metrics), strict=True)
        self._add_scalars([EPISODE_PREFIX + name for name in tags], values, metrics.duration_s)
        for summary in _table_row(metrics, self._trial):
            self._add(Event(summary=summary), metrics.duration_s)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def _add(self, event: Event, time_s: float) -> None:
        event.wall_time, event.step = self._start_s + time_s, self._steps
        self._file.add(event.SerializeToString())

    def _add_scalars(self, tags: Sequence[str], values: Sequence[float], time_s: float) -> None:
        """Write the numbers under their tags, without NaN: that was not measured."""
        measured = [value == value for value in values]
        key = tags[0], bytes(measured)
        form = self._forms.get(key)
        if form is None:
            there = list(compress(tags, measured))
            form = _Form(there, set(there) - self._described)
            if self._described.issuperset(there):
                self._forms[key] = form
            self._described.update(there)
        for slot, value in zip(form.slots, compress(values, measured), strict=True):
            slot[0] = value
        self._add(form.event, time_s)


class _Form:
    """An event with a slot for each number: filling it in is quicker than making another."""

    def __init__(self, tags: Sequence[str], described: Set[str]) -> None:
        """Make an event with numbers under these tags, some of them described."""
        self.event = Event()
        # Tensors, because TensorBoard's fast loader ignores what is said about simple_value.
        for name in tags:
            scalar = self.event.summary.value.add(tag=name, tensor=_EMPTY)
            if name in described:
                scalar.metadata.CopyFrom(create_summary_metadata("", HELP[name]))
        self.slots = [scalar.tensor.float_val for scalar in self.event.summary.value]


def open_events(folder: Path) -> EventFile:
    """Start an event file."""
    file = EventFile(folder)
    file.add(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return file


def write_summary(folder: Path, values: Mapping[str, float]) -> None:
    """Write a run that is one set of numbers by tag, without those that are NaN."""
    summary = Summary()
    for name, value in values.items():
        if not math.isnan(value):
            tensor = TensorProto(dtype=DT_FLOAT, float_val=[value])
            metadata = create_summary_metadata("", "")
            summary.value.add(tag=name, tensor=tensor, metadata=metadata)
    file = open_events(folder)
    file.add(Event(wall_time=time.time(), step=0, summary=summary).SerializeToString())
    file.close()


def write_runs(folder: Path, episodes: pd.DataFrame) -> None:
    """Write a suite anew: one run per agent, one number per metric and cell.

    The episodes are those of :func:`sponge_env.run.read.load_results`; what was in the folder
    goes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    means = episodes.groupby(["agent", *CELL], as_index=False)[list(COMPARED)].mean()
    for agent, table in means.groupby("agent"):
        values = {
            f"{row['start']} {name}/{row['scenario']} {row['profile']}": float(row[name])
            for row in table.to_dict("records")
            for name in COMPARED
        }
        write_summary(folder / str(agent), values)


def _layout() -> Summary:
    """Return the custom-scalars page: charts of all runs, two in a row."""
    totals = [_chart(name, TOTAL_PREFIX) for name in TOTALS]
    sections = [Category(title="SLO violations beside core-seconds since the start", chart=totals)]
    for title, charted in CHARTS.items():
        sections.append(Category(title=title, chart=[_chart(name) for name in charted]))
    summary = Summary()
    summary.value.add(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=make_tensor_proto(Layout(category=sections).SerializeToString()),
    )
    return summary


def _chart(name: str, prefix: str = "") -> Chart:
    pattern = f"^{re.escape(prefix + tag(IntervalMetrics, name))}$"
    title = prefix.replace("/", " ") + axis_label(IntervalMetrics, name)
    return Chart(title=title, multiline=MultilineChartContent(tag=[pattern]))


def _table_row(metrics: EpisodeMetrics, trial: str) -> tuple[Summary, Summary]:
    """Return what declares the hyper-parameter table and what adds one row to it."""
    compared = [
        hparams.Metric(
            EPISODE_PREFIX + tag(EpisodeMetrics, name),
            display_name=axis_label(EpisodeMetrics, name),
        )
        for name in COMPARED
        if name in names(EpisodeMetrics)
    ]
    identity = [hparams.HParam(name) for name in IDENTITY]
    row = {name: getattr(metrics, name) for name in IDENTITY}
    return hparams.hparams_config_pb(identity, compared), hparams.hparams_pb(row, trial_id=trial)
