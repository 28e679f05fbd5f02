"""Training runs: make a model, let it learn, validate it now and then, keep the best policy.

Validation is on simulated episodes that neither training nor evaluation uses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat, configure
from stable_baselines3.common.vec_env import VecEnv
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from torch import nn

from sponge_env.arrays import IntArray
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import PolicyError, SpongeError
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.memory import allocations

from .. import LEARNERS
from ..guard import Range
from ..learned import control_of, masks_for, preset
from ..lookahead.options import MPCConfig
from ..policy import (
    POLICY_FILE,
    FloatMatrix,
    Policy,
    PolicyInfo,
    Recurrence,
    load_policy,
    save_policy,
)
from . import CHECKPOINT_FILE, LearnConfig, Report, TrainingPlan, learn_config, save_settings
from .environments import ConstrainedRewards, CorrectionEnv, hidden_fields, make_environments

ALGORITHMS = {"ppo": PPO, "maskable": MaskablePPO, "recurrent": RecurrentPPO}
"""By :attr:`..Learner.algorithm`."""

_FIRST_LOGIT = 1.0
"""Of each choice that leaves the program as it is, when training begins; 0 for the others."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What a policy costs: means over all intervals."""

    cores: float
    total_cores: int
    """Those of the machine, to which the reward relates."""
    violation_rate: float
    avoidable_violation_rate: float
    effective_accuracy: float = 0.0
    input_range: FloatMatrix | None = dataclasses.field(default=None, compare=False, repr=False)
    """(2, inputs) least and most of each of the policy's inputs."""

    def score(self, violation_weight: float, accuracy_weight: float = 0.0) -> float:
        """Return one number, which is better when larger.

        A violated request costs that weight, against 1 for holding all cores for an interval of
        average load, and one that is answered right and in time gains the weight of accuracy.
        """
        cost = self.cores / self.total_cores + violation_weight * self.avoidable_violation_rate
        return accuracy_weight * self.effective_accuracy - cost


SHOWN = {
    "cores": "Cores held, mean over all intervals of the validation.",
    "violation_rate": "Requests that were not answered in time, as a share of all.",
    "avoidable_violation_rate": "The same without those that nobody could have answered in time.",
    "effective_accuracy": "Share of the requests that were answered right and in time.",
    "score": (
        "What the best policy is chosen by, better when larger: minus the share of the machine's "
        "cores held, minus the weight of violations times the rate of avoidable ones, plus the "
        "weight of accuracy times the effective accuracy."
    ),
}
"""What TensorBoard shows of a validation, below ``evaluation/``."""

Validated = Callable[[int, Validation], None]
"""Called with the number of steps done in this run, and how good the policy then is."""


def train(
    plan: TrainingPlan,
    config: LearnConfig | None = None,
    progress: Report = lambda steps, status: None,
    validated: Validated = lambda steps, result: None,
) -> Path:
    """Train a policy and return the file of the best that was seen.

    The best one so far is always in the policy file, the latest state in ``checkpoint.zip``, also
    after an interrupt. ``learn.json`` says with which hyper-parameters; the learner's if left out.
    What ``validated`` raises ends the training.

    On the live backend the arrivals pause while the learner computes; see
    :class:`~sponge_env.env.single.SpongeEnv`.
    """
    config = config or learn_config(plan.agent, {})
    # The networks are too small for more threads to help, and the simulator wants them.
    torch.set_num_threads(1)
    envs = make_environments(plan, config)
    try:
        model = make_model(plan, config, envs)
        model.set_logger(configure(str(plan.folder), ["tensorboard"]))
        save_settings(config, plan.folder)
        keeper = _Keeper(plan, config, progress, validated)
        try:
            model.learn(plan.steps, callback=keeper, reset_num_timesteps=False)
        except (KeyboardInterrupt, SpongeError):
            keeper.keep()
            raise
    finally:
        envs.close()
    return keeper.policy_path


def make_model(plan: TrainingPlan, config: LearnConfig, envs: VecEnv) -> Any:
    """Make the learner, or load the one to go on with."""
    algorithm: Any = ALGORITHMS[plan.learner.algorithm]
    settings: dict[str, Any] = {
        "learning_rate": lambda left: config.learning_rate * max(0.05, left),
        "n_steps": config.rollout_steps,
        "batch_size": divisor(config.rollout_steps * envs.num_envs, config.minibatch),
        "n_epochs": config.epochs,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
        "device": "cpu",
    }
    if plan.resume is not None:
        try:
            model = algorithm.load(plan.resume, env=envs, **settings)
        except Exception as error:
            # SB3 unpickles, and a damaged file may fail in any way.
            raise PolicyError(f"{plan.resume} cannot be resumed: {error}") from error
        # New episodes, not those of the first run again.
        model.set_random_seed(plan.seed + model.num_timesteps)
        return model
    network: dict[str, Any] = {"net_arch": list(config.hidden)}
    kind = "MlpPolicy"
    if plan.learner.algorithm == "recurrent":
        kind, network["lstm_hidden_size"] = "MlpLstmPolicy", config.hidden[0]
    model = algorithm(kind, envs, policy_kwargs=network, seed=plan.seed, **settings)
    edges = np.cumsum([0, *model.action_space.nvec[:-1]])
    with torch.no_grad():
        if plan.learner.corrects:
            # A new policy prefers the program as it is; that is then most probable everywhere.
            favoured = (edges + np.array(preset(MPCConfig()))).tolist()
            model.policy.action_net.bias[favoured] = _FIRST_LOGIT
        else:
            parts = [name for _, name in plan.control.parts]
            one = [int(edge) for edge, name in zip(edges, parts, strict=True) if name == "replicas"]
            model.policy.action_net.bias[one] = config.one_replica_logit
    return model


def export(model: Any, plan: TrainingPlan, config: LearnConfig, seconds: float) -> Policy:
    """Take the policy network out of a model that was trained for so long in this run."""
    networks = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
    info = PolicyInfo(
        agent=plan.agent,
        fingerprint=plan.fingerprint,
        scenarios=tuple(dict.fromkeys(scenario.name for scenario in plan.scenarios)),
        actions=tuple(int(n) for n in model.action_space.nvec),
        inputs=plan.control.fields,
        steps=model.num_timesteps,
        seed=plan.seed,
        planned=model._total_timesteps,
        partial=True,
        command=plan.command,
        seconds=round(seconds, 1),
    )
    layers = [(_numpy(layer.weight), _numpy(layer.bias)) for layer in linear]
    recurrence = None
    if (lstm := getattr(model.policy, "lstm_actor", None)) is not None:
        bias = _numpy(lstm.bias_ih_l0) + _numpy(lstm.bias_hh_l0)
        recurrence = Recurrence(_numpy(lstm.weight_ih_l0), _numpy(lstm.weight_hh_l0), bias)
    # What the policy was blind to may not count when it sees everything.
    first = layers[0][0] if recurrence is None else recurrence.weight_in
    first[:, hidden_fields(config.blind_to, plan.control)] = 0.0
    return Policy(info, tuple(layers), recurrence)


def _numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(tensor.detach().cpu().numpy(), np.float32)


def divisor(total: int, largest: int) -> int:
    """Return the largest divisor of ``total`` up to ``largest``."""
    return next(size for size in range(min(total, largest), 0, -1) if total % size == 0)


def steps_left(path: Path) -> int:
    """Return how many steps a checkpoint lacks of those that were planned; 0 if none."""
    try:
        with zipfile.ZipFile(path) as file:
            state = json.loads(file.read("data"))
        return max(0, int(state["_total_timesteps"]) - int(state["num_timesteps"]))
    except (OSError, LookupError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise PolicyError(f"{path} cannot be resumed: {error}") from error


def check_checkpoint(path: Path, plan: TrainingPlan) -> None:
    """Refuse a checkpoint that is missing, or of another learner, system or observation."""
    if not path.is_file():
        raise PolicyError(f"there is no checkpoint {str(path)!r} to resume from")
    info = load_policy(path.with_name(POLICY_FILE)).info
    if info.agent != plan.agent:
        raise PolicyError(f"the checkpoint is one of {info.agent}, not of {plan.agent}")
    if bool(info.batches) != plan.phased:
        asked, learned = ("in", "without") if plan.phased else ("without", "in")
        raise PolicyError(
            f"the checkpoint was learned {learned} phases and cannot go on {asked} them; train anew"
        )
    if info.fingerprint != plan.fingerprint:
        wanted = (scenario.name for scenario in plan.scenarios)
        raise PolicyError(
            f"the checkpoint was trained on {', '.join(info.scenarios)}, whose profile or stages, "
            f"interval or limits differ from those of {', '.join(wanted)}; train anew"
        )
    if info.inputs != plan.inputs:
        raise PolicyError("the checkpoint was trained on other observation fields; train anew")


class _Keeper(BaseCallback):
    """Evaluates now and then, keeps the best policy and the latest checkpoint."""

    def __init__(
        self, plan: TrainingPlan, config: LearnConfig, progress: Report, validated: Validated
    ) -> None:
        super().__init__()
        self.policy_path = plan.folder / POLICY_FILE
        self._plan, self._config = plan, config
        self._progress, self._report = progress, validated
        weight = config.violation_weight or plan.scenarios[0].reward.violation_weight
        self._weight = weight if config.violation_target is None else 1 / config.violation_target
        usual = plan.scenarios[0].reward.accuracy_weight
        self._accuracy_weight = usual if config.accuracy_weight is None else config.accuracy_weight
        self._validate = make_validator(plan.scenarios, config.evaluation_episodes, plan.agent)
        self._every = max(1, plan.steps // config.evaluations)
        self._best = -math.inf
        self._status = ""
        self._start = self._validated_at = 0
        self._began_s = time.monotonic()

    def _on_training_start(self) -> None:
        self._start = self._validated_at = self.model.num_timesteps
        self._began_s = time.monotonic()
        if self._plan.learner.corrects and self._plan.resume is None:
            self.keep()  # the program as it is: not to be worse than that

    def _on_step(self) -> bool:
        self._progress(self.num_timesteps - self._start, self._status)
        return True

    def _on_rollout_start(self) -> None:
        if isinstance(self.training_env, ConstrainedRewards):
            self.training_env.adapt()
            self.logger.record("train/violation_weight", self.training_env.multiplier)
        if self.num_timesteps - self._validated_at >= self._every:
            self.keep()

    def _on_training_end(self) -> None:
        self.keep()
        best = load_policy(self.policy_path)
        whole = dataclasses.replace(best.info, partial=False)
        save_policy(dataclasses.replace(best, info=whole), self.policy_path)

    def keep(self) -> None:
        """Evaluate, and save what is best and what is latest."""
        self._validated_at = self.num_timesteps
        policy = export(self.model, self._plan, self._config, time.monotonic() - self._began_s)
        result = self._validate(policy)
        score = result.score(self._weight, self._accuracy_weight)
        self._show({**dataclasses.asdict(result), "score": score})
        self._status = f"{result.violation_rate:.2%} missed, {result.cores:.2f} cores"
        if score > self._best:
            self._best = score
            save_policy(
                dataclasses.replace(policy, input_range=result.input_range), self.policy_path
            )
        self.model.save(self._plan.folder / CHECKPOINT_FILE)
        self._report(self.num_timesteps - self._start, result)

    def _show(self, measured: Mapping[str, float]) -> None:
        """Write what was measured to TensorBoard, with what it is; SB3 has no way to say that."""
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                writer: Any = output.writer
                for name, about in SHOWN.items():
                    scalar = scalar_pb(f"evaluation/{name}", measured[name], about)
                    writer.file_writer.add_summary(scalar, self.num_timesteps)
                writer.flush()


def make_validator(
    scenarios: Sequence[Scenario], episodes: int, agent: str = "ppo"
) -> Callable[[Policy], Validation]:
    """Prepare episodes on which a learner's policies are validated, always the same.

    They are shared out to the scenarios, at least one each.
    """
    seeds = SEED_LIMIT + np.arange(max(episodes, len(scenarios)))
    prepared = _play_corrections if LEARNERS[agent].corrects else _play_batch
    play = prepared(scenarios, seeds, agent)
    names = ("cores", "violations", "avoidable_violations", "offered", "on_time")

    def validate(policy: Policy) -> Validation:
        sums, seen = np.zeros(7), Range(len(policy.info.inputs))
        for count, metrics, observations in play(policy):
            shown = observations if policy.places is None else observations[:, policy.places]
            seen.widen(shown)
            ended = metrics["on_time"] + metrics["violations"]
            right = np.nan_to_num(metrics["effective_accuracy"]) * ended
            sums += (count, *(float(np.sum(metrics[name])) for name in names), np.sum(right))
        intervals, cores, violations, avoidable, offered, on_time, right = sums.tolist()
        rates = violations / max(1.0, offered), avoidable / max(1.0, offered)
        accuracy = right / max(1.0, on_time + violations)
        machine_cores = scenarios[0].limits.machine_cores
        return Validation(cores / intervals, machine_cores, *rates, accuracy, seen.ends)

    return validate


Played = Iterator[tuple[int, Any, FloatMatrix]]
"""Number of intervals, their metrics by name, one or an array of each, and the (intervals, fields)
observations that were decided on."""


def _play_batch(
    scenarios: Sequence[Scenario], seeds: IntArray, agent: str
) -> Callable[[Policy], Played]:
    """Play all episodes at once, with policies that choose allocations."""
    length = max(each.intervals for each in scenarios)
    spec = make_spec(scenarios[0], scenario_profile(scenarios[0]))
    control, masks = control_of(agent, spec), masks_for(agent, spec)
    assigned = np.arange(seeds.size) % len(scenarios)
    simulator = BatchSimulator(scenarios, assigned, obs_dim=control.obs_dim)
    wanted, _ = allocations(seeds.size, len(spec.stages))

    def play(policy: Policy) -> Played:
        observations = np.zeros((seeds.size, control.obs_dim), np.float32)
        simulator.reset(np.ones(seeds.size, np.bool_), seeds, observations)
        memory = policy.memory(seeds.size)
        for _ in range(length):
            seen = observations[~simulator.over]
            allowed = masks(observations) if masks is not None else None
            control.write(policy.act(observations, allowed, memory), wanted)
            observations, metrics = simulator.step(wanted)
            yield len(seen), metrics, seen

    return play


def _play_corrections(
    scenarios: Sequence[Scenario], seeds: IntArray, agent: str
) -> Callable[[Policy], Played]:
    """Play one episode after the other, with policies that correct the look-ahead program."""
    envs = [CorrectionEnv(SpongeEnv(each)) for each in scenarios]

    def play(policy: Policy) -> Played:
        for number, seed in enumerate(seeds.tolist()):
            env, over = envs[number % len(envs)], False
            observation, _ = env.reset(options={"episode_seed": seed})
            while not over:
                seen = observation[None]
                observation, _, _, over, _ = env.step(policy.act(observation))
                yield 1, env.metrics, seen

    return play
