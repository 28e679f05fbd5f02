"""What a policy learns before it tries anything by itself: to do as the program does.

First the program plays training episodes, in which now and then others choose the cores for some
seconds, so that the way back is seen as well (DART: Laskey et al., CoRL 2017). From then on the
policy plays, and the program says what it would have done (DAgger: Ross et al., AISTATS 2011): a
policy that only saw where the program leads does not know what to do where its own errors lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.encoding import JOINT, encode
from sponge_env.factory import make_system
from sponge_env.interfaces import Allocation, Controller, SystemSpec, SystemView
from sponge_env.run.registry import known_controllers, make_controller, start
from sponge_env.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream

from ..history import FloatMatrix
from ..policy import Policy
from ..stepwise import PolicyState
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
    batches: IntArray
    steps: IntArray
    replicas: IntArray
    """Asked for before."""
    may_step: NDArray[np.bool_]


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
        answer = expert.answer(system.view())
        if policy is None:
            system.step(disturbance.of(expert.take(answer)))
        else:
            system.step(expert.follow(policy))
    return Demonstrations(*(np.array(column) for column in zip(*expert.shown, strict=True)))


class _Expert:
    """A program, beside which a policy's state is kept."""

    def __init__(
        self, program: str, spec: SystemSpec, batches: tuple[int, ...], every: int
    ) -> None:
        self._spec, self._sizes = spec, np.array(batches)
        self._program: Controller = make_controller(program, known_controllers())
        start(self._program, spec, 0)
        self._state = PolicyState([spec], every)
        self.shown: list[tuple[FloatMatrix, int, int, int, int, NDArray[np.bool_]]] = []
        """A row of :class:`Demonstrations` for each answer."""

    def answer(self, view: SystemView) -> Allocation:
        """Return what the program does, as far as the replicas may move and all find room."""
        spec, state = self._spec, self._state
        state.see(encode(view, spec, JOINT)[None])
        wanted = self._program.decide(view)
        before, allowed = int(state.replicas[0]), state.steps_allowed()[0]
        step = int(np.sign(wanted.replicas - before)) + 1
        step = step if allowed[step] else 1
        replicas = before + step - 1
        cores = min(wanted.cores, spec.most_cores(replicas))
        # A larger batch than the program's only starts if so many wait.
        place = min(int(np.searchsorted(self._sizes, wanted.batch)), len(self._sizes) - 1)
        self.shown.append((state.seen[0].copy(), cores - 1, place, step, before, allowed))
        return Allocation(cores=cores, batch=int(self._sizes[place]), replicas=replicas)

    def take(self, answer: Allocation) -> Allocation:
        """Go on with the program's answer."""
        self._state.take(np.array([answer.replicas]) - self._state.replicas + 1)
        return answer

    def follow(self, policy: Policy) -> Allocation:
        """Go on with the policy's."""
        logits = policy.logits(self._state.seen)
        cores, batch, replicas = self._state.choose(logits, self._sizes)[0].tolist()
        return Allocation(cores=cores, batch=batch, replicas=replicas)


class _Disturbance:
    """Chooses other cores now and then, for some intervals."""

    def __init__(self, spec: SystemSpec, seed: int) -> None:
        self._random, self._spec = stream(seed, "disturbance"), spec
        self._left = self._cores = 0

    def of(self, answer: Allocation) -> Allocation:
        """Return an answer, perhaps with other cores."""
        most = self._spec.most_cores(answer.replicas)
        if not self._left and self._random.random() < DISTURBED:
            self._left = int(self._random.integers(1, DISTURBED_MOST + 1))
            self._cores = int(self._random.integers(1, most + 1))
        if not self._left:
            return answer
        self._left -= 1
        cores = min(self._cores, most)
        return Allocation(cores=cores, batch=answer.batch, replicas=answer.replicas)


def imitate(
    model: ActorCritic, inputs: Inputs, demonstrations: Demonstrations, config: PhasedConfig
) -> Shown:
    """Make what was shown probable, and return it as the networks see it.

    The normalisation of the inputs becomes that of it.
    """
    inputs.fit(demonstrations.seen)
    seen = inputs(demonstrations.seen)
    cores, batches, steps, replicas, may_step = map(torch.from_numpy, demonstrations[1:])
    actions = Actions(cores, batches, steps, replicas, may_step, torch.zeros(len(seen)))
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
