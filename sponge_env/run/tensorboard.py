"""The TensorBoard sink; nothing else imports TensorBoard.

It makes events of TensorBoard's own messages, which need neither torch nor TensorFlow. Each
agent and seed is a run with the same tags, so that TensorBoard overlays them. The tags are the
schema's. What the hyper-parameter table compares has to be a scalar as well, and carries the
prefix ``whole_episode/``, for some share their tag with an interval's.
"""

import itertools
import math
import os
import re
import socket
import struct
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2 as custom
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` needs TensorFlow
from tensorboard.util.tensor_util import make_tensor_proto

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, axis_label, columns, names, tag
from sponge_env.utils.files import explained

EPISODE_PREFIX = "whole_episode/"
TOTAL_PREFIX = "total/"
STAGE_PREFIX = "stages/"

TOTALS = ("violations", "core_seconds")  # Whose running sums are written below ``total/``

IDENTITY = ("agent", "scenario", "backend", "seed", "start")  # Of a row of the table

CHARTS = (
    ("SLO violations beside core-seconds since the start", TOTALS, TOTAL_PREFIX),
    ("SLO violations beside cores in each interval", ("violations", "cores"), ""),
    ("Latency beside queue", ("latency_p99_s", "queued"), ""),
    ("Network beside allocation", ("delay_max_s", "batch"), ""),
)
"""Sections of the custom-scalars page: title, interval metrics, prefix of their tags."""

_INTERVAL = names(IntervalMetrics)
_INTERVAL_TAGS = [tag(IntervalMetrics, name) for name in _INTERVAL]
_INTERVAL_TAGS += [TOTAL_PREFIX + tag(IntervalMetrics, name) for name in TOTALS]
_of_interval = attrgetter(*_INTERVAL)
_NUMBERS = itertools.count()


class EventFile:
    """One run's file, laid out as TensorFlow does; events are appended.

    TensorBoard's own writer computes checksums in Python, which takes longer than an episode.
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

    The step is the interval's index. Events are stamped with the start plus the episode's time,
    which TensorBoard's relative axis shows then, also where a simulated worker ran faster.
    """

    def __init__(self, folder: Path, trial: str = "") -> None:
        """Open an event file; without a trial's name, folder and parent name the table's row."""
        self._file = EventFile(folder)
        self.close = self._file.close
        self._trial = trial or f"{folder.parent.name}/{folder.name}"
        self._start_s = time.time()
        self._steps = 0
        self._totals = dict.fromkeys(TOTALS, 0.0)

    def interval(self, metrics: IntervalMetrics) -> None:
        """Write one interval's numbers, before the first the layout."""
        if not self._steps:
            self._add(Event(summary=_layout()), 0.0)
        for name in TOTALS:
            self._totals[name] += getattr(metrics, name)
        values, tags = [*_of_interval(metrics), *self._totals.values()], list(_INTERVAL_TAGS)
        for stage, measured in metrics.stages.items():
            tags += [f"{STAGE_PREFIX}{stage}/{name}" for name in measured]
            values += measured.values()
        self._add_scalars(tags, values, metrics.time_s)
        self._steps += 1

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Write the row of the hyper-parameter table, and the numbers in it."""
        shown = [c.metric for c in columns("tensorboard", accuracies=[metrics.accuracy])]
        tags = [EPISODE_PREFIX + tag(EpisodeMetrics, name) for name in shown]
        self._add_scalars(tags, [getattr(metrics, name) for name in shown], metrics.duration_s)
        pairs = zip(tags, (axis_label(EpisodeMetrics, name) for name in shown), strict=True)
        compared = [hparams.Metric(name, display_name=label) for name, label in pairs]
        row = {name: getattr(metrics, name) for name in IDENTITY}
        table = hparams.hparams_config_pb([hparams.HParam(name) for name in row], compared)
        for summary in (table, hparams.hparams_pb(row, trial_id=self._trial)):
            self._add(Event(summary=summary), metrics.duration_s)

    def _add(self, event: Event, time_s: float) -> None:
        event.wall_time, event.step = self._start_s + time_s, self._steps
        self._file.add(event)

    def _add_scalars(self, tags: Sequence[str], values: Sequence[float], time_s: float) -> None:
        pairs = zip(tags, values, strict=True)
        finite = {name: value for name, value in pairs if math.isfinite(value)}
        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        self._add(Event(summary=Summary(value=numbers)), time_s)


def _layout() -> Summary:
    layout = custom.Layout()
    for title, metrics, prefix in CHARTS:
        section = layout.category.add(title=title)
        for name in metrics:
            label = prefix.replace("/", " ") + axis_label(IntervalMetrics, name)
            pattern = f"^{re.escape(prefix + tag(IntervalMetrics, name))}$"
            section.chart.add(title=label).multiline.tag.append(pattern)
    summary = Summary()
    summary.value.add(
        tag=custom_scalars.CONFIG_SUMMARY_TAG, metadata=custom_scalars.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )  # fmt: skip
    return summary
