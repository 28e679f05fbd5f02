"""What launchers need of the models of all stages: jobs for children, and samples."""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env import __version__
from sponge_env.errors import ConfigError
from sponge_env.live.child import Job
from sponge_env.live.protocol import LiveConfig
from sponge_env.models.model import Model, described
from sponge_env.models.registry import resolve_variants

_DRAWS = 1 << 16  # Requests whose samples are drawn independently


class Stages:
    """The models of a chain's stages. Raises ``ConfigError`` if they cannot be used."""

    # The first stage's answers lead to what the second takes, those of later stages to one task.

    def __init__(self, configs: Sequence[LiveConfig]) -> None:
        names = [config.variants or (config.model,) for config in configs]
        models = list(map(resolve_variants, names))
        if not configs[0].of_a_set:
            _check_chain([config.model for config in configs], [each[0] for each in models])
        self.jobs = list(map(make_job, models, [config.batch_max for config in configs]))
        self.max_tasks: Sequence[int] = [job.max_tasks for job in self.jobs]
        self.facts: dict[str, Any] = {
            "version": __version__,
            "models": [list(map(os.path.basename, each)) for each in names],
            "tensors": [[_listed(j.inputs), _listed(j.outputs), j.max_tasks] for j in self.jobs],
            "of_a_set": configs[0].of_a_set,
            "core_unit": configs[0].core_unit,
            "at_most": [
                max(config.physical_cores(config.cores_max) for config in configs),
                *(float(config.batch_max) for config in configs),
            ],
        }  # On what front ends and nodes must agree, and the cores and batches that they need
        # drawn when first asked for, which a node never does
        self._samples = functools.cache(lambda stage: _in_order(models[stage][0].samples()))

    def sample(self, request_id: int, stage: int = 0) -> NDArray[Any]:
        """Return one of the model's samples, the same for an id: each once, then at random."""
        samples, order = self._samples(stage)
        sample: NDArray[Any] = samples[order[request_id % len(order)]]
        return sample


def _check_chain(names: Sequence[str], models: Sequence[Model]) -> None:
    for k, (lead, after) in enumerate(itertools.pairwise(models)):
        if k and lead.max_tasks:
            raise ConfigError(f"{names[k]} says how many follow, which only the first stage may")
        if lead.max_tasks and lead.outputs != after.inputs:
            raise ConfigError(
                f"{names[k]} leads to tasks of {described(lead.outputs)}, but {names[k + 1]} takes "
                f"{described(after.inputs)}"
            )


def _listed(side: tuple[Sequence[int], Any]) -> list[Any]:
    shape, layout = side
    return [list(shape), layout]


def _in_order(samples: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return samples, and the order in which they are shown: each once, then at random."""
    drawn = np.random.default_rng(0).integers(len(samples), size=_DRAWS)
    return samples, np.concatenate([np.arange(len(samples)), drawn])


def make_job(models: Sequence[Model], batch_max: int) -> Job:
    """Describe to a child what to run: models of the same inputs and outputs."""
    makers = []
    for model in models:
        own: dict[str, Any] = dataclasses.asdict(model) if dataclasses.is_dataclass(model) else {}
        makers.append((f"{type(model).__module__}:{type(model).__qualname__}", own))
    inputs, outputs, max_tasks = models[0].inputs, models[0].outputs, models[0].max_tasks
    sides = (inputs.shape, inputs.layout), (outputs.shape, outputs.layout)
    return Job(makers, batch_max, *sides, max_tasks=max_tasks, path=sys.path)
