"""Training in phases: imitate a program, practise, evaluate, keep the best, resume.

A policy that chooses cores, batch size and replicas from the start stays with one replica: until it
has learned that two replicas need fewer cores each, a second one only costs cores. So it first
imitates a program (:mod:`.programs`), and then improves by practice.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from sponge_env.metrics import MET
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.randomised import random_systems
from sponge_env.utils.files import write_json

from ..guard import InputRange
from ..history import DEPLOYMENT
from ..policy import POLICY_FILE, Policy, load_policy, save_policy
from ..training import machines
from . import EVALUATED_FILE, SETTINGS_FILE, LearnConfig, Report, TrainingPlan
from .episodes import DRAWS, Episodes, Evaluation, evaluated
from .ppo import ActorCritic, Transitions, collect, update
from .programs import Demonstrations, demonstrations, joined, play_program, program_for

RENEWED = 1_200_000  # Steps after which random systems are drawn anew
AVERAGED = 0.2  # Share of the steps, the last ones, over which the policy's weights are averaged
CRITIC_FIRST = 0.02  # Share of the steps, the first ones, in which only the critic learns
IMITATION_RATE = 2e-3  # Learning rate of the imitation at first; falls linearly to 0
TOLERANCE = 1e-4  # Violations above the limit, as a share of the requests, that do not count


def train(plan: TrainingPlan, config: LearnConfig, progress: Report = lambda *_: None) -> Path:
    """Train a policy; return the file of the best one, which is kept after an interrupt, too."""
    Training(plan, config, progress).run()
    path = plan.folder / POLICY_FILE
    best = load_policy(path)
    save_policy(replace(best, info=replace(best.info, partial=False)), path)
    return path


class Training:
    """A training run and its state."""

    def __init__(self, plan: TrainingPlan, config: LearnConfig, progress: Report) -> None:
        # The networks are too small for more threads to help, and the simulator uses them.
        torch.set_num_threads(1)
        torch.manual_seed(plan.seed)
        write_json(plan.folder / SETTINGS_FILE, asdict(config))
        self.plan, self.config, self._progress = plan, config, progress
        self._info, self._path = plan.info, plan.folder / POLICY_FILE
        inputs, machines = len(self._info.inputs), list(plan.choices.values())
        self._model = ActorCritic(config.hidden, machines, inputs)
        self._exported = self._model
        program = program_for(plan.control.scales_out)
        progress(0, f"measuring {program}")
        sums = play_program(program, plan.scenarios, config.evaluation_episodes)
        self._rule = Evaluation.of(sums)
        self._begun = plan.start.info.steps if plan.start and plan.resumed else 0
        self._steps, self._planned = self._begun, self._begun + plan.steps
        self._best, self._status, self._began_s = math.inf, "", time.monotonic()
        self._has_policy = False  # not before it has imitated
        self._deployed = InputRange(inputs)  # Of all inputs in training
        self._writer = SummaryWriter(str(plan.folder))

    def run(self) -> None:
        """Imitate the programs, or begin with a policy, and practise."""
        try:
            if self.plan.start is None:
                self._imitate()
            else:
                self._model.begin_with(self.plan.start.layers)
                if self.plan.resumed and self.plan.start.input_range is not None:
                    self._deployed.widen(self.plan.start.input_range)
            self._practise()
        except KeyboardInterrupt:
            if self._has_policy:
                self._evaluate()
            raise
        finally:
            self._writer.close()

    def _imitate(self) -> None:
        plan, config, policy = self.plan, self.config, None
        rounds: list[Demonstrations] = []
        for k in range(config.imitations):
            which = f"round {k + 1} of {config.imitations}"
            self._progress(0, f"imitating programs before the first step, {which}")
            rounds.append(demonstrations(plan, config, plan.seed * config.imitations + k, policy))
            self._deployed.widen(rounds[-1].seen)
            imitate(self._model, joined(rounds), config)
            policy = self._export()

    def _practise(self) -> None:
        config, model, looked_at = self.config, self._model, self._steps
        self._has_policy = True
        optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
        mean = AveragedModel(model)
        self._evaluate()
        for batch in self._rollouts():
            left = 1 - self._steps / self._planned
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * max(0.1, left)
            critic_only = self._steps - self._begun < CRITIC_FIRST * self._planned
            entropy = config.entropy * (0.2 + 0.8 * left)
            losses = update(model, optimizer, batch, config, entropy, critic_only)
            self._steps += len(batch.inputs)
            if left < AVERAGED:
                mean.update_parameters(model)
                self._exported = cast(ActorCritic, mean.module)
            for key, value in losses.items():
                self._writer.add_scalar(f"train/{key}", value, self._steps)
            self._progress(self._steps - self._begun, self._status)
            interval = max(1, self._planned // config.evaluations)
            if self._steps - looked_at >= interval or self._steps >= self._planned:
                looked_at = self._steps
                self._evaluate()

    def _rollouts(self) -> Iterator[Transitions]:
        """Let the policy act until all steps are done; the caller counts them."""
        while self._steps < self._planned:
            until = self._steps + RENEWED if self.plan.systems else self._planned
            with self._episodes() as groups:
                while self._steps < min(until, self._planned):
                    parts = map(self._collect, groups)
                    yield Transitions(*map(torch.cat, zip(*parts, strict=True)))

    def _collect(self, episodes: Episodes) -> Transitions:
        part = collect(self._model, episodes, self.config)
        self._deployed.widen(episodes.state.seen)
        return part

    @contextmanager
    def _episodes(self) -> Iterator[list[Episodes]]:
        """Begin episodes on each machine of the plan."""
        # A resumed run draws other episodes than those it has learned from.
        plan, seed = self.plan, self.plan.seed + self._steps
        drawn = random_systems(stream(seed, "systems"), machines(plan.systems))
        with drawn as systems, ExitStack() as stack:
            scenarios, draws = (systems, 1) if plan.systems else (plan.scenarios, DRAWS)
            groups = []
            for machine, limits in enumerate(plan.choices):
                own = [each for each in scenarios if each.limits == limits]
                count = plan.envs * len(own) // len(scenarios)
                episodes = Episodes(own, count, plan.form, seed, plan.randomised, draws, machine)
                groups.append(stack.enter_context(closing(episodes)))
            yield groups
            groups.clear()  # their memory is the next ones'

    def _evaluate(self) -> None:
        """Evaluate the policy, and keep it if it is the best so far."""
        policy, scenarios, add = self._export(), self.plan.scenarios, self._writer.add_scalar
        result = evaluated(policy, scenarios, self.config.evaluation_episodes)
        score = score_of(result, self._rule)
        # Many random systems are hopeless, so the last policy is kept there, whatever its score.
        if score < self._best or self.plan.systems:
            self._best = score
            self._keep(policy, result)
        for k, scenario in enumerate(() if self.plan.systems else scenarios):
            add(f"cores/{scenario.name}", result.cores[k], self._steps)
            add(f"violations/{scenario.name}", result.violation_rate[k], self._steps)
        add("evaluation/cost", score, self._steps)
        self._status = "{missed:.3%} missed, {cores:.2f} cores".format(**result.means)

    def _keep(self, policy: Policy, result: Evaluation) -> None:
        """Write a policy, and what it reaches beside the program."""
        assert result.input_range is not None
        seen, trained = result.input_range.copy(), self._deployed.ends
        own = [self._info.inputs.index(name) for name in DEPLOYMENT]
        seen[0, own] = np.minimum(seen[0, own], trained[0, own])
        seen[1, own] = np.maximum(seen[1, own], trained[1, own])
        info = replace(policy.info, score=round(self._best, 4))
        save_policy(replace(policy, info=info, input_range=seen), self._path)
        means = {"policy": result.means, "program": self._rule.means}
        write_json(self.plan.folder / EVALUATED_FILE, means)

    def _export(self) -> Policy:
        """Return the policy as it is now."""
        seconds = round(time.monotonic() - self._began_s, 1)
        info = replace(self._info, steps=self._steps, planned=self._planned, seconds=seconds)
        return Policy(info, tuple(self._exported.layers()))


def imitate(model: ActorCritic, shown: Demonstrations, config: LearnConfig) -> None:
    """Make the demonstrated actions probable."""
    # The inputs are normalised by their mean and deviation in the demonstrations from now on.
    model.normalise(shown.seen)
    seen, choices, situations = model.inputs(shown.seen), *map(torch.from_numpy, shown[1:])
    optimizer = torch.optim.Adam(model.actor.parameters(), eps=1e-5, fused=True)
    minibatches = [
        rows
        for _ in range(config.imitation_epochs)
        for rows in torch.split(torch.randperm(len(seen)), config.minibatch)
    ]
    for k, rows in enumerate(minibatches):
        for group in optimizer.param_groups:
            group["lr"] = IMITATION_RATE * (1 - k / len(minibatches))
        _, log_probability, _ = model.decide(seen[rows], situations[rows], choices[rows])
        optimizer.zero_grad()
        (-log_probability.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def score_of(result: Evaluation, rule: Evaluation) -> float:
    """Return the mean of cores relative to the program's, plus a penalty; lower is better."""
    # The limit of violations is the program's, or MET if that is lower, plus TOLERANCE. TOLERANCE
    # above it costs like a tenth of the cores; more grows slower, since some systems are hopeless.
    allowed = np.minimum(rule.violation_rate, MET) + TOLERANCE
    over = np.maximum(0, result.violation_rate - allowed) / TOLERANCE
    return float(np.mean(result.cores / rule.cores + np.log1p(0.1 * over)))
