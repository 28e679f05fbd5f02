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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

FLUSH_EVERY_S = 1.0
"""Wall time after which events are in the file, so that a killed process loses few."""

EPISODE_PREFIX = "whole_episode/"
SUITE_PREFIX = "whole_suite/"
TOTAL_PREFIX = "total/"
STAGE_PREFIX = "stages/"

TOTALS = ("violations", "core_seconds")
"""Interval metrics whose running sums are written too, under the prefix ``total/``."""

OUTCOMES = "SLO violations beside cores in each interval", ("violations", "cores")
OUTCOMES_OF_VARIANTS = (
    "Accuracy beside violations and cores in each interval",
    ("effective_accuracy", "violations", "cores"),
)
"""Sections of the custom-scalars page: a title, and the interval metrics charted side by side."""

OF_STAGES = ("queued", "waiting_mean_s", "service_mean_s", "batch_mean", "cores", "utilisation")
"""Metrics of stages that have a chart, in which all stages are together."""

IDENTITY = ("agent", "scenario", "backend", "seed", "start")
"""Episode metrics that name a row of the hyper-parameter table."""

SIDE_BY_SIDE = ("avoidable_violation_rate", "mean_cores", "effective_accuracy")
"""Metrics of a suite that the custom-scalars page charts."""

_INTERVAL = names(IntervalMetrics)
_TOTAL_TAGS = [TOTAL_PREFIX + tag(IntervalMetrics, name) for name in TOTALS]
_INTERVAL_TAGS = [*(tag(IntervalMetrics, name) for name in _INTERVAL), *_TOTAL_TAGS]
_of_interval = attrgetter(*_INTERVAL)

_EMPTY = TensorProto(dtype=DT_FLOAT, float_val=[0.0])
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
        self._due_s = 0.0
        self.add(Event(wall_time=now_s, file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Append one record; ``length, checksum, event, checksum``."""
        record = event.SerializeToString()
        with explained(self._path):
            self._file.write(_checked(struct.pack("<Q", len(record))) + _checked(record))
            if time.monotonic() >= self._due_s:
                self._file.flush()
                self._due_s = time.monotonic() + FLUSH_EVERY_S

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
        self._forms: dict[tuple[str, ...], tuple[Event, list[Any]]] = {}

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
        labels = [axis_label(EpisodeMetrics, name) for name in shown]
        compared = dict(zip(tags, labels, strict=True))
        row = {name: getattr(metrics, name) for name in IDENTITY}
        for summary in _table_row(row, compared, self._trial):
            self._add(Event(summary=summary), metrics.duration_s)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def _add(self, event: Event, time_s: float) -> None:
        event.wall_time, event.step = self._start_s + time_s, self._steps
        self._file.add(event)

    def _add_scalars(self, tags: Sequence[str], values: Sequence[float], time_s: float) -> None:
        """Write the numbers under their tags, without those that are not finite.

        NaN was not measured, and no chart has room for infinity.
        """
        measured = [value - value == 0 for value in values]
        key = tuple(itertools.compress(tags, measured))
        # Filling in an event that describes nothing is quicker than making another.
        event, slots = self._forms.get(key) or _form(key, self._described)
        if self._described.issuperset(key):
            self._forms[key] = event, slots
        self._described.update(key)
        for slot, value in zip(slots, itertools.compress(values, measured), strict=True):
            slot[0] = value
        self._add(event, time_s)


def _form(tags: Sequence[str], described: set[str]) -> tuple[Event, list[Any]]:
    """Return an event with numbers under these tags and their places; new tags are described."""
    event = Event()
    # Tensors, because TensorBoard's fast loader ignores the descriptions of simple_value.
    for name in tags:
        scalar = event.summary.value.add(tag=name, tensor=_EMPTY)
        if name not in described:
            scalar.metadata.CopyFrom(create_summary_metadata("", _help(name)))
    return event, [scalar.tensor.float_val for scalar in event.summary.value]


def _help(name: str) -> str:
    """Return the schema's sentence about a tag."""
    if name.startswith(TOTAL_PREFIX):
        return "Sum since the start of the episode."
    prefixes = {STAGE_PREFIX: StageMetrics, EPISODE_PREFIX: EpisodeMetrics, "": IntervalMetrics}
    cls = next(cls for prefix, cls in prefixes.items() if name.startswith(prefix))
    sentences = {field.name: str(field.metadata["help"]) for field in declared(cls)}
    own = name.rpartition("/")[2]
    return sentences.get(own, "Share of the stage's tasks that this variant did.")


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
        (f"{start} start, over the cells", [_series(start, name) for name in charted])
        for start in starts
    ]
    labels = {
        f"{SUITE_PREFIX}{start} {name}": f"{start} {name}" for start in starts for name in compared
    }
    for agent, table in means.groupby("agent"):
        file = EventFile(folder / str(agent))
        for step, summary in [(0, _layout(page)), *_cells(table, compared, charted)]:
            file.add(Event(wall_time=time.time(), step=step, summary=summary))
        for summary in _table_row({"agent": agent}, labels, str(agent)):
            file.add(Event(wall_time=time.time(), summary=summary))
        file.close()


def _cells(
    table: pd.DataFrame, compared: Sequence[str], charted: Sequence[str]
) -> Iterator[tuple[int, Summary]]:
    """Yield an agent's numbers: those of each cell with its place, then means over the cells."""
    for row in table.sort_values("place").to_dict("records"):
        cell = f"{row['scenario']} {row['profile']}"
        values = {f"{row['start']} {name}/{cell}": row[name] for name in compared}
        values |= {_series(row["start"], name)[1]: row[name] for name in charted}
        yield row["place"], _numbers(values)
    over_cells = table.groupby("start")[list(compared)].mean().to_dict("index")
    pairs = ((start, name) for start in over_cells for name in compared)
    yield 0, _numbers({f"{SUITE_PREFIX}{s} {name}": over_cells[s][name] for s, name in pairs})


def _series(start: str, name: str) -> tuple[str, str]:
    """Return title and tag of a metric's chart over the cells of a start."""
    return axis_label(EpisodeMetrics, name), f"{tag(EpisodeMetrics, name)}, {start}"


def _numbers(values: Mapping[str, float]) -> Summary:
    """Return scalars under their tags, without those that were not measured."""
    summary, metadata = Summary(), create_summary_metadata("", "")
    for name, value in values.items():
        if not math.isnan(value):
            tensor = TensorProto(dtype=DT_FLOAT, float_val=[value])
            summary.value.add(tag=name, tensor=tensor, metadata=metadata)
    return summary


def _chart(name: str, prefix: str = "") -> tuple[str, str]:
    """Return title and tag of an interval metric's chart."""
    title = prefix.replace("/", " ") + axis_label(IntervalMetrics, name)
    return title, prefix + tag(IntervalMetrics, name)


ANY = "*"
"""Stands for the name of any stage in a chart's tag."""

Page = Sequence[tuple[str, Sequence[tuple[str, str]]]]
"""Sections of the custom-scalars page: a title, and title and tag of each chart."""


def _page(stages: ByStage) -> Page:
    """Return the page of an episode: with sections of their own for variants and for stages.

    TensorBoard merges the pages of all runs by the sections' titles and loses charts that only
    later ones have: sections of one title have the same charts, or their titles say which.
    """
    shares = {
        stage: [name.removeprefix(SHARE) for name in own if name.startswith(SHARE)]
        for stage, own in stages.items()
    }
    of_variants = [
        (
            f"Share of the tasks of {stage} by variant: {', '.join(variants)}",
            [(v, STAGE_PREFIX + of_stage(stage, SHARE + v)) for v in variants],
        )
        for stage, variants in shares.items()
        if variants
    ]
    several = len(stages) > 1
    of_stages = [
        (axis_label(StageMetrics, name), STAGE_PREFIX + of_stage(ANY, name)) for name in OF_STAGES
    ]
    title, outcomes = OUTCOMES_OF_VARIANTS if of_variants else OUTCOMES
    batch = "batch of each stage", STAGE_PREFIX + of_stage(ANY, "batch")
    return [
        (
            "SLO violations beside core-seconds since the start",
            [_chart(name, TOTAL_PREFIX) for name in TOTALS],
        ),
        (title, [_chart(name) for name in outcomes]),
        *of_variants,
        *[("All stages: a colour for each run, a marker for each stage", of_stages)] * several,
        ("Latency beside queue", [_chart("latency_p99_s"), _chart("queued")]),
        (
            f"Network beside allocation{' of each stage' * several}",
            [_chart("delay_max_s"), batch if several else _chart("batch")],
        ),
    ]


def _layout(page: Page) -> Summary:
    """Return the custom-scalars page: charts of all runs, two in a row."""
    layout = custom.Layout()
    for title, charts in page:
        section = layout.category.add(title=title)
        for name, charted in charts:
            section.chart.add(title=name).multiline.tag.append(_pattern(charted))
    summary = Summary()
    summary.value.add(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return summary


def _pattern(charted: str) -> str:
    """Return what matches a tag, or those of any stage."""
    return f"^{re.escape(charted).replace(re.escape(ANY), '[^/]+')}$"


def _table_row(
    row: Mapping[str, Any], compared: Mapping[str, str], trial: str
) -> tuple[Summary, Summary]:
    """Return what declares the hyper-parameter table and what adds one row to it.

    The scalars that are compared are given by tag, with how they are called.
    """
    metrics = [hparams.Metric(name, display_name=label) for name, label in compared.items()]
    identity = [hparams.HParam(name) for name in row]
    return hparams.hparams_config_pb(identity, metrics), hparams.hparams_pb(row, trial_id=trial)
