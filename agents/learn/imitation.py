"""What a policy learns before it tries anything by itself: to do as the program does.

First the program plays training episodes, in which now and then others choose the cores for some
seconds, so that the way back is seen as well (DART: Laskey et al., CoRL 2017). From then on the
policy plays, and the program says what it would have done (DAgger: Ross et al., AISTATS 2011): a
policy that only saw where the program leads does not know what to do where its own errors lead.
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
from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.run.registry import known_controllers, make_controller, start
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream

from ..history import FloatMatrix
from ..policy import Policy
from ..stepwise import PolicyState, allocation
from . import TrainingPlan
from .actor_critic import Actions, ActorCritic, Inputs, Shown
from .episodes import other, perturbed
from .judge import Task, everywhere
from .phases import PhasedConfig

DISTURBED = 0.04
"""Share of the intervals in which others begin to choose the cores."""
DISTURBED_MOST = 5
"""Intervals for which they do so at most."""
LEARNING_RATE = 2e-3
"""At first; falls linearly to nothing."""


class Demonstrations(NamedTuple):
    """(n, ...) what was seen, and what the program did then, as a stepwise policy could."""

    seen: FloatMatrix
    cores: IntArray
    """(n, stages), as all that follows."""
    batches: IntArray
    steps: IntArray
    variants: IntArray
    replicas: IntArray
    """Asked for before."""
    may_step: NDArray[np.bool_]
    """(n, stages, 3)"""


def demonstrations(
    plan: TrainingPlan,
    config: PhasedConfig,
    every: int,
    programs: Sequence[str],
    seed: int,
    policy: Policy | None,
) -> Demonstrations:
    """Let programs show what they do where a policy leads, or without one where they do.

    Each scenario of the plan has a program that plays it. The episodes are like those of the
    training; half are of other systems if it is randomised.
    """
    random, tasks = stream(seed, "demonstrations"), []
    for k in range(config.demonstrations):
        for program, each in zip(programs, plan.scenarios, strict=True):
            system = other(each, random) if plan.randomised and k % 2 else each
            scenario = perturbed(system, config, every, k, random)
            tasks.append((program, int(random.integers(EVALUATION_SEEDS, SEED_LIMIT)), scenario))
    return joined(everywhere(partial(_demonstrated, config.batches, every, policy), tasks))


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Return all of some demonstrations."""
    return Demonstrations(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _demonstrated(
    batches: tuple[int, ...], every: int, policy: Policy | None, task: Task
) -> Demonstrations:
    program, seed, scenario = task
    system = make_system(scenario, seed)
    expert = _Expert(program, system.spec, batches, every)
    disturbance = _Disturbance(system.spec, seed)
    while not system.done:
        expert.look(system.view())
        if policy is None:
            answer = disturbance.of(expert.take())
            expert.go_on_from(answer)
            system.step(answer)
        else:
            system.step(expert.follow(policy))
    return Demonstrations(*(np.array(column) for column in zip(*expert.shown, strict=True)))


class _Expert:
    """A program, beside which a policy's state is kept."""

    def __init__(
        self, program: str, spec: SystemSpec, batches: tuple[int, ...], every: int
    ) -> None:
        self._spec = spec
        self._program: Controller = make_controller(program, known_controllers())
        start(self._program, spec, 0)
        self._state = PolicyState([spec], every, batches)
        self._does: tuple[IntArray, ...] = ()
        self.shown: list[tuple[NDArray[Any], ...]] = []
        """A row of :class:`Demonstrations` for each answer."""

    def look(self, view: SystemView) -> None:
        """Show what the program does, as far as the replicas may move and all find room."""
        state, sizes = self._state, self._state.choices.sizes
        state.look(view)
        asked = np.array(self._program.decide(view).stages)
        wanted_cores, wanted_batch, wanted_replicas, wanted_variants = asked.T
        before, allowed = state.replicas[0].copy(), state.steps_allowed()[0]
        steps = np.sign(wanted_replicas - before) + 1
        steps = np.where(allowed[np.arange(len(steps)), steps], steps, 1)
        most = most_cores(self._spec, before + steps - 1)
        # A larger batch than the program's only starts if so many wait.
        places = np.minimum(np.searchsorted(sizes, wanted_batch), len(sizes) - 1)
        variants = np.where(state.choices.counts[:, 3] > 0, np.maximum(wanted_variants, 0), 0)
        self._does = np.minimum(wanted_cores, most) - 1, places, steps, variants
        self.shown.append((state.seen[0].copy(), *self._does, before, allowed))

    def take(self) -> Allocation:
        """Go on with what the program does."""
        return allocation(self._state.take(*(part[None] for part in self._does))[0])

    def go_on_from(self, answer: Allocation) -> None:
        """Take note of what was asked for in place of that."""
        self._state.follow(answer)

    def follow(self, policy: Policy) -> Allocation:
        """Go on with what the policy does."""
        return allocation(self._state.choose(policy.logits(self._state.seen))[0])


class _Disturbance:
    """Chooses other cores now and then, for some intervals."""

    def __init__(self, spec: SystemSpec, seed: int) -> None:
        self._random, self._spec = stream(seed, "disturbance"), spec
        self._left, self._cores = 0, np.zeros(len(spec.stages), np.int64)

    def of(self, answer: Allocation) -> Allocation:
        """Return an answer, perhaps with other cores."""
        most = most_cores(self._spec, np.array([stage.replicas for stage in answer.stages]))
        if not self._left and self._random.random() < DISTURBED:
            self._left = int(self._random.integers(1, DISTURBED_MOST + 1))
            self._cores = np.array([self._random.integers(1, each + 1) for each in most.tolist()])
        if not self._left:
            return answer
        self._left -= 1
        cores = np.minimum(self._cores, most).tolist()
        changed = zip(answer.stages, cores, strict=True)
        stages = tuple(stage._replace(cores=each) for stage, each in changed)
        return self._spec.fitting(answer.with_stages(stages))


def most_cores(spec: SystemSpec, replicas: IntArray) -> IntArray:
    """Return the most cores that each of (stages,) replicas can have, each stage by itself."""
    limits = np.array([stage.cores_max for stage in spec.stages])
    most: IntArray = np.maximum(1, np.minimum(limits, spec.total_cores // replicas))
    return most


def imitate(
    model: ActorCritic, inputs: Inputs, demonstrations: Demonstrations, config: PhasedConfig
) -> Shown:
    """Make what was shown probable, and return it as the networks see it.

    The normalisation of the inputs becomes that of it.
    """
    inputs.fit(demonstrations.seen)
    seen = inputs(demonstrations.seen)
    actions = Actions._make((*map(torch.from_numpy, demonstrations[1:]), torch.zeros(len(seen))))
    optimizer = torch.optim.Adam(model.actor.parameters(), eps=1e-5)
    minibatches = [
        chosen
        for _ in range(config.imitation_epochs)
        for chosen in torch.split(torch.randperm(len(seen)), config.minibatch)
    ]
    for k, chosen in enumerate(minibatches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - k / len(minibatches))
        log_probability, _ = model.judged(seen[chosen], actions.at(chosen))
        optimizer.zero_grad()
        (-log_probability.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Shown(seen, actions)
