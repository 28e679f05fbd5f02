"""What a policy learns before it tries anything by itself: to do as a program does.

First the program plays training episodes, in which random cores replace its own now and then for
some seconds, so that the policy also sees the way back (DART: Laskey et al., CoRL 2017). From then
on the policy plays, and the program says what it would have done (DAgger: Ross et al., AISTATS
2011): a policy that only saw where the program leads does not know what to do where its own errors
lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.env.factory import make_system
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.run.registry import known_controllers, make_controller, start
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream

from ..history import FloatMatrix
from ..policy import Policy
from ..stepwise import PolicyState, allocation
from . import PhasedConfig, TrainingPlan
from .actor_critic import ActorCritic
from .episodes import batches_for, changed
from .evaluation import Task, run_programs

DISTURBED = 0.04
"""Share of the intervals in which random cores begin to replace the program's."""
MAX_DISTURBED = 5
"""Largest number of intervals for which they do so."""
LEARNING_RATE = 2e-3
"""At first; falls linearly to nothing."""


class Demonstrations(NamedTuple):
    """(n, ...) what was seen, and what the program did then, as a stepwise policy could."""

    seen: FloatMatrix
    choices: IntArray
    """(n, stages, 4)"""
    replicas: IntArray
    """(n, stages) requested before."""


def demonstrations(
    plan: TrainingPlan,
    config: PhasedConfig,
    programs: Sequence[str],
    seed: int,
    policy: Policy | None,
) -> Demonstrations:
    """Let programs show what they do where a policy leads, or without one where they do.

    Each scenario of the plan has a program. The episodes are like those of the training; half are
    of other systems if it is randomised.
    """
    random, tasks = stream(seed, "demonstrations"), []
    for k in range(config.demonstrations):
        for program, each in zip(programs, plan.scenarios, strict=True):
            scenario = changed(each, plan.randomised and k % 2 == 1, random)
            tasks.append((program, int(random.integers(EVALUATION_SEEDS, SEED_LIMIT)), scenario))
    return joined(run_programs(partial(_demonstrate, plan.every, policy), tasks))


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Return all of some demonstrations."""
    return Demonstrations(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _demonstrate(every: int, policy: Policy | None, task: Task) -> Demonstrations:
    program, seed, scenario = task
    system = make_system(scenario, seed)
    expert, disturbance = _Expert(program, system.spec, every), Disturbance(system.spec, seed)
    state = expert.state
    while not system.done:
        choices = expert.decide(system.view())
        if policy is None:
            requested = disturbance.apply(allocation(state.take(choices[None])[0]))
            state.follow(requested)
        else:
            requested = allocation(state.choose(policy.logits(state.seen))[0])
        system.step(requested)
    return Demonstrations(*(np.array(column) for column in zip(*expert.rows, strict=True)))


class _Expert:
    """A program, beside which a policy's state is kept."""

    def __init__(self, program: str, spec: SystemSpec, every: int) -> None:
        self._spec, self._program = spec, make_controller(program, known_controllers())
        start(self._program, spec, 0)
        self.state = PolicyState([spec], every, batches_for(spec))
        self.rows: list[tuple[NDArray[Any], ...]] = []
        """A row of :class:`Demonstrations` for each decision."""

    def decide(self, view: SystemView) -> IntArray:
        """Return the program's (stages, 4) choices, as far as all fits and replicas may step."""
        state, sizes = self.state, self.state.choices.sizes
        state.look(view)
        cores, batch, replicas, variants = np.array(self._program.decide(view).stages).T
        before, most = state.replicas[0].copy(), state.choices.limits[:, 2]
        steps = np.sign(np.clip(replicas, 1, most) - before)
        cores = np.minimum(cores, most_cores(self._spec, before + steps))
        # A larger batch than the program's only starts if so many wait.
        places = np.minimum(np.searchsorted(sizes, batch), len(sizes) - 1)
        variants = np.where(state.choices.counts[:, 3] > 0, np.maximum(variants, 0), 0)
        choices = np.stack([cores - 1, places, steps + 1, variants], axis=-1)
        self.rows.append((state.seen[0].copy(), choices, before))
        return choices


class Disturbance:
    """Chooses random cores now and then, for some intervals."""

    def __init__(self, spec: SystemSpec, seed: int) -> None:
        self._random, self._spec = stream(seed, "disturbance"), spec
        self._left, self._cores = 0, np.zeros(len(spec.stages), np.int64)

    def apply(self, decided: Allocation) -> Allocation:
        """Return an allocation, perhaps with other cores."""
        most = most_cores(self._spec, np.array([stage.replicas for stage in decided.stages]))
        if not self._left and self._random.random() < DISTURBED:
            self._left = int(self._random.integers(1, MAX_DISTURBED + 1))
            self._cores = np.array([self._random.integers(1, each + 1) for each in most.tolist()])
        if not self._left:
            return decided
        self._left -= 1
        cores = np.minimum(self._cores, most).tolist()
        changed = zip(decided.stages, cores, strict=True)
        stages = tuple(stage._replace(cores=each) for stage, each in changed)
        return self._spec.fitting(decided.with_stages(stages))


def most_cores(spec: SystemSpec, replicas: IntArray) -> IntArray:
    """Return the largest number of cores of (stages,) replicas, each stage by itself."""
    limits = np.array([stage.cores_max for stage in spec.stages])
    cores: IntArray = np.maximum(1, np.minimum(limits, spec.total_cores // replicas))
    return cores


def imitate(model: ActorCritic, shown: Demonstrations, config: PhasedConfig) -> None:
    """Make the demonstrated actions probable.

    The inputs are normalised by their mean and deviation in the demonstrations from now on.
    """
    model.normalise(shown.seen)
    seen, choices, replicas = model.inputs(shown.seen), *map(torch.from_numpy, shown[1:])
    optimizer = torch.optim.Adam(model.actor.parameters(), eps=1e-5)
    minibatches = [
        rows
        for _ in range(config.imitation_epochs)
        for rows in torch.split(torch.randperm(len(seen)), config.minibatch)
    ]
    for k, rows in enumerate(minibatches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - k / len(minibatches))
        log_probability, _ = model.probabilities(seen[rows], choices[rows], replicas[rows])
        optimizer.zero_grad()
        (-log_probability.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
