"""Searches for the static settings under which Triton misses the fewest deadlines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import fmean

from benchmarks.triton_server import TritonModel
from sponge_env.scenario.seeds import EVALUATION_SEEDS

CORES = (16, 15, 13)
"""Core units: all, and what our controllers hold in the mean."""
BATCHES = (4, 8, 16, 32)
DELAY_S = 0.01
QUEUES = (2, 4)
"""Largest batches that may wait."""
INSTANCES = 2
FINALISTS = 3
"""Settings that are tried on all seeds: one run alone is mostly luck."""
SEEDS = range(EVALUATION_SEEDS, EVALUATION_SEEDS + 3)
"""The first that no evaluation uses."""

SPACE = (
    f"of {', '.join(map(str, CORES))} core units each: largest batches of "
    f"{', '.join(map(str, BATCHES))}; with the best of them a delay of {1000 * DELAY_S:.0f} ms, "
    f"queues of {' and '.join(map(str, QUEUES))} batches, {INSTANCES} instances under the same "
    f"limit; the best {FINALISTS} again on {len(SEEDS) - 1} more seeds, none of which is evaluated"
)
"""The search space, for readers of the table."""

Score = tuple[float, ...]
"""How bad a run is: violations first."""
Measure = Callable[[TritonModel, int], Score]
"""Runs a setting on a seed."""


def best_settings(model: TritonModel, measure: Measure) -> list[TritonModel]:
    """Return the best setting for each of :data:`CORES`."""
    return [best_setting(replace(model, cores=cores), measure) for cores in CORES]


def best_setting(model: TritonModel, measure: Measure) -> TritonModel:
    """Return the best setting of a model: by the mean over seeds, of the best on the first."""
    scores: dict[TritonModel, list[Score]] = {}

    def try_out(settings: Iterable[TritonModel], seed: int) -> None:
        for each in settings:
            scores.setdefault(each, []).append(measure(each, seed))
            print("tried", each.cores, each.settings, scores[each][-1], file=sys.stderr)

    def mean(setting: TritonModel) -> Score:
        return tuple(map(fmean, zip(*scores[setting], strict=True)))

    try_out((replace(model, batch_max=batch) for batch in BATCHES), SEEDS[0])
    try_out(neighbours(min(scores, key=mean)), SEEDS[0])
    finalists = sorted(scores, key=mean)[:FINALISTS]
    for seed in SEEDS[1:]:
        try_out(finalists, seed)
    return min(finalists, key=mean)


def neighbours(model: TritonModel) -> list[TritonModel]:
    """Return settings that differ in one thing other than the batch."""
    return [
        replace(model, delay_s=DELAY_S),
        *(replace(model, queue_max=batches * model.batch_max) for batches in QUEUES),
        replace(model, instances=INSTANCES),
    ]
