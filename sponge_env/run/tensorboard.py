"""The TensorBoard sink; nothing else imports TensorBoard.

It makes events of TensorBoard's own messages, which need neither torch nor TensorFlow. Each
agent and seed is a run with the same tags, so that TensorBoard overlays them; of a suite each
agent. The tags are the schema's. What the hyper-parameter table compares has to be a scalar as
well, and carries the prefix ``whole_episode/``, for some share their tag with an interval's.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.custom_scalar import layout_pb2 as custom
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` needs TensorFlow
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from sponge_env.metrics import (
    CELL,
    SHARE,
    ByStage,
    EpisodeMetrics,
    IntervalMetrics,
    StageMetrics,
    axis_label,
    columns,
    declared,
    names,
    of_stage,
    tag,
)
from sponge_env.utils.files import explained

if TYPE_CHECKING:
    import pandas as pd

EPISODE_PREFIX = "whole_episode/"
SUITE_PREFIX = "whole_suite/"
TOTAL_PREFIX = "total/"
STAGE_PREFIX = "stages/"

TOTALS = ("violations", "core_seconds")
"""Interval metrics whose running sums are written too, under the prefix ``total/``."""

OUTCOMES = ("violations", "cores")
"""Interval metrics charted side by side; with variants the effective accuracy, too."""

OF_STAGES = ("queued", "waiting_mean_s", "service_mean_s", "batch_mean", "cores", "utilisation")
"""Metrics of stages that have a chart, in which all stages are together."""

IDENTITY = ("agent", "scenario", "backend", "seed", "start")
"""Episode metrics that name a row of the hyper-parameter table."""

SIDE_BY_SIDE = ("avoidable_violation_rate", "mean_cores", "effective_accuracy")
"""Metrics of a suite that the custom-scalars page charts."""

_INTERVAL = names(IntervalMetrics)
_INTERVAL_TAGS = [tag(IntervalMetrics, name) for name in _INTERVAL]
_INTERVAL_TAGS += [TOTAL_PREFIX + tag(IntervalMetrics, name) for name in TOTALS]
_of_interval = attrgetter(*_INTERVAL)
_NUMBERS = itertools.count()


class EventFile:
    """One run's file, laid out as TensorFlow does; events are appended.

    TensorBoard's own writer computes the checksums byte by byte in Python, which takes longer
    than all the rest of a simulated episode.
    """

    def __init__(self, folder: Path) -> None:
        """Start a file of a new name in a folder, which is made if need be."""
        now_s = time.time()
        name = f"{int(now_s):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._path = folder / f"events.out.tfevents.{name}"
        with explained(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        self.add(Event(wall_time=now_s, file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Append one record; ``length, checksum, event, checksum``."""
        record = event.SerializeToString()
        with explained(self._path):
            self._file.write(_checked(struct.pack("<Q", len(record))) + _checked(record))
            self._file.flush()  # so that a killed process loses none

    def close(self) -> None:
        """Close the file."""
        with explained(self._path):
            self._file.close()


def _checked(data: bytes) -> bytes:
    """Return data and its CRC-32C, which is masked because data may hold checksums itself."""
    check = google_crc32c.value(data)
    return data + struct.pack("<I", (((check >> 15) | (check << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class TensorBoardSink:
    """Writes one run: scalars, the layout of the custom page, and a row of the table.

    The step is the interval's index. Events are stamped with the start plus the
    episode's time, so that TensorBoard's relative axis shows the episode's time also
    where a simulated worker ran faster.
    """

    def __init__(self, folder: Path, trial: str = "") -> None:
        """Open an event file; without a trial's name, folder and parent name the table's row."""
        self._file = EventFile(folder)
        self._trial = trial or f"{folder.parent.name}/{folder.name}"
        self._start_s = time.time()
        self._steps = 0
        self._totals = dict.fromkeys(TOTALS, 0.0)
        self._described: set[str] = set()

    def interval(self, metrics: IntervalMetrics) -> None:
        """Write one interval's numbers, before the first the layout."""
        if not self._steps:
            self._add(Event(summary=_layout(_page(metrics.stages))), 0.0)
        for name in TOTALS:
            self._totals[name] += getattr(metrics, name)
        values = [*_of_interval(metrics), *self._totals.values()]
        tags = list(_INTERVAL_TAGS)
        for stage, measured in metrics.stages.items():
            tags += [STAGE_PREFIX + of_stage(stage, name) for name in measured]
            values += measured.values()
        self._add_scalars(tags, values, metrics.time_s)
        self._steps += 1

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Write the row of the hyper-parameter table, and the numbers in it."""
        own = names(EpisodeMetrics)
        shown = [name for name in compared_in([metrics.accuracy]) if name in own]
        tags = [EPISODE_PREFIX + tag(EpisodeMetrics, name) for name in shown]
        values = [getattr(metrics, name) for name in shown]
        self._add_scalars(tags, values, metrics.duration_s)
        labels = (axis_label(EpisodeMetrics, name) for name in shown)
        row = {name: getattr(metrics, name) for name in IDENTITY}
        for summary in _table_row(row, dict(zip(tags, labels, strict=True)), self._trial):
            self._add(Event(summary=summary), metrics.duration_s)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def _add(self, event: Event, time_s: float) -> None:
        event.wall_time, event.step = self._start_s + time_s, self._steps
        self._file.add(event)

    def _add_scalars(self, tags: Sequence[str], values: Sequence[float], time_s: float) -> None:
        """Write the numbers that are finite; each tag is described with its first number."""
        pairs = zip(tags, values, strict=True)
        finite = {name: value for name, value in pairs if math.isfinite(value)}
        self._add(Event(summary=_scalars(finite, self._described)), time_s)
        self._described.update(finite)


def _scalars(values: Mapping[str, float], described: Collection[str] = ()) -> Summary:
    """Return numbers under their tags, each with its description unless it was described.

    They are tensors: TensorBoard's fast loader ignores the descriptions of simple values.
    """
    summary = Summary()
    for name, value in values.items():
        tensor = TensorProto(dtype=DT_FLOAT, float_val=[value])
        scalar = summary.value.add(tag=name, tensor=tensor)
        if name not in described:
            scalar.metadata.CopyFrom(create_summary_metadata("", _help(name)))
    return summary


def _help(name: str) -> str:
    """Return the schema's sentence about a tag; none about a suite's."""
    if name.startswith(TOTAL_PREFIX):
        return "Sum since the start of the episode."
    prefixes = {STAGE_PREFIX: StageMetrics, EPISODE_PREFIX: EpisodeMetrics, "": IntervalMetrics}
    cls = next(cls for prefix, cls in prefixes.items() if name.startswith(prefix))
    sentences = {field.name: str(field.metadata["help"]) for field in declared(cls)}
    shares = "Share of the stage's tasks that this variant did." if cls is StageMetrics else ""
    return sentences.get(name.rpartition("/")[2], shares)


def compared_in(accuracies: Iterable[float]) -> tuple[str, ...]:
    """Return the metrics that TensorBoard compares of episodes with such accuracies."""
    return tuple(column.metric for column in columns("tensorboard", accuracies=accuracies))


def write_runs(folder: Path, episodes: pd.DataFrame) -> None:
    """Write a suite anew: one run per agent, with the mean of each metric in each cell.

    They are numbers of their own, series over the cells for the custom page, and means over all
    cells of a start for the hyper-parameter table. The episodes are those of
    :func:`sponge_env.run.read.load_results`; what was in the folder goes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # runs of earlier versions do not have all of them
    compared = [name for name in compared_in(episodes["accuracy"]) if name in episodes]
    means = episodes.groupby(["agent", *CELL], as_index=False)[compared].mean()
    means["place"] = means.groupby(["scenario", "profile"]).ngroup()
    starts = sorted(means["start"].unique())
    charted = [name for name in SIDE_BY_SIDE if name in compared]
    page = [
        (
            f"{start} start, over the cells",
            [(axis_label(EpisodeMetrics, name), _series(start, name)) for name in charted],
        )
        for start in starts
    ]
    over = {(start, name): f"{start} {name}" for start in starts for name in compared}
    labels = {SUITE_PREFIX + label: label for label in over.values()}
    for agent, table in means.groupby("agent"):
        file = EventFile(folder / str(agent))

        def add(summary: Summary, step: int = 0, file: EventFile = file) -> None:
            file.add(Event(wall_time=time.time(), step=step, summary=summary))

        add(_layout(page))
        for row in table.sort_values("place").to_dict("records"):
            cell, start = f"{row['scenario']} {row['profile']}", row["start"]
            values = {f"{start} {name}/{cell}": row[name] for name in compared}
            values |= {_series(start, name): row[name] for name in charted}
            add(_measured(values), row["place"])
        by_start = table.groupby("start")[compared].mean().to_dict("index")
        add(
            _measured(
                {
                    SUITE_PREFIX + label: by_start[start][name]
                    for (start, name), label in over.items()
                    if start in by_start
                }
            )
        )
        for summary in _table_row({"agent": agent}, labels, str(agent)):
            add(summary)
        file.close()


def _measured(values: Mapping[str, float]) -> Summary:
    """Return the numbers of a suite without those that were not measured."""
    return _scalars({name: value for name, value in values.items() if not math.isnan(value)})


def _series(start: str, name: str) -> str:
    """Return the tag of a metric's chart over the cells of a start."""
    return f"{tag(EpisodeMetrics, name)}, {start}"


Page = Sequence[tuple[str, Sequence[tuple[str, str]]]]
"""Sections of the custom-scalars page: a title, and title and tag of each chart. ``*`` in a tag
stands for the name of any stage."""


def _page(stages: ByStage) -> Page:
    """Return the page of an episode: with sections of their own for variants and for stages.

    TensorBoard merges the pages of all runs by the sections' titles and loses charts that only
    later ones have: sections of one title have the same charts, or their titles say which.
    """

    def charts(*metrics: str, prefix: str = "") -> list[tuple[str, str]]:
        titles = (prefix.replace("/", " ") + axis_label(IntervalMetrics, name) for name in metrics)
        tags = (prefix + tag(IntervalMetrics, name) for name in metrics)
        return list(zip(titles, tags, strict=True))

    of_variants = [
        (
            f"Share of the tasks of {stage} by variant: {', '.join(variants)}",
            [(v, STAGE_PREFIX + of_stage(stage, SHARE + v)) for v in variants],
        )
        for stage, own in stages.items()
        if (variants := [name.removeprefix(SHARE) for name in own if name.startswith(SHARE)])
    ]
    title, outcomes = "SLO violations beside cores in each interval", list(OUTCOMES)
    if of_variants:
        title = "Accuracy beside violations and cores in each interval"
        outcomes.insert(0, "effective_accuracy")
    page = [
        (
            "SLO violations beside core-seconds since the start",
            charts(*TOTALS, prefix=TOTAL_PREFIX),
        ),
        (title, charts(*outcomes)),
        *of_variants,
        ("Latency beside queue", charts("latency_p99_s", "queued")),
        ("Network beside allocation", charts("delay_max_s", "batch")),
    ]
    if len(stages) > 1:  # one stage's numbers are those of the interval
        of_each = {name: STAGE_PREFIX + of_stage("*", name) for name in (*OF_STAGES, "batch")}
        batch = "batch of each stage", of_each.pop("batch")
        title = "All stages: a colour for each run, a marker for each stage"
        labelled = [(axis_label(StageMetrics, name), each) for name, each in of_each.items()]
        page.insert(-2, (title, labelled))
        page[-1] = "Network beside allocation of each stage", [*charts("delay_max_s"), batch]
    return page


def _layout(page: Page) -> Summary:
    """Return the custom-scalars page: charts of all runs, two in a row."""
    layout = custom.Layout()
    for title, charts in page:
        section = layout.category.add(title=title)
        for name, charted in charts:
            pattern = re.escape(charted).replace(re.escape("*"), "[^/]+")
            section.chart.add(title=name).multiline.tag.append(f"^{pattern}$")
    summary = Summary()
    summary.value.add(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return summary


def _table_row(
    row: Mapping[str, Any], compared: Mapping[str, str], trial: str
) -> tuple[Summary, Summary]:
    """Return what declares the hyper-parameter table and what adds one row to it.

    The scalars that are compared are given by tag, with how they are called.
    """
    metrics = [hparams.Metric(name, display_name=label) for name, label in compared.items()]
    identity = [hparams.HParam(name) for name in row]
    return hparams.hparams_config_pb(identity, metrics), hparams.hparams_pb(row, trial_id=trial)
