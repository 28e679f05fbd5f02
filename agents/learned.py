"""Controllers that follow a trained policy, and where they find one."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.control.base import BaseController
from sponge_env.errors import PolicyError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.scenario.option import require
from sponge_env.simulation.encoding import Control, control_named, reaching
from sponge_env.utils.installation import program

from . import LEARNERS
from .guard import Guard
from .history import batch_times_of, layout_of
from .policy import ANY_MODEL, POLICY_FILE, FloatMatrix, Policy, load_policy, reading
from .stepwise import PolicyState, allocation

RUNS = Path("runs")  # Where train.py leaves its run directories
SHIPPED = Path(__file__).resolve().parent / "policies"  # Policies that come with the project


def control_of(agent: str, spec: SystemSpec) -> Control:
    """Return what an agent sees and chooses: of a pipeline, what there is in every stage."""
    return control_named(reaching(LEARNERS[agent], spec), spec)


class PolicyController(BaseController):
    """Follows a policy that was trained for the system at hand, under a :class:`.guard.Guard`."""

    grows_ready = True  # as has the program that the guard may ask
    plans_for = "all"

    def __init__(self, agent: str, policy: str = "newest", guard: bool = True) -> None:
        """Choose where a learner's policy comes from; it is read by :meth:`reset`.

        ``newest`` is the newest in ``runs/`` that fits the system and was trained to the end on
        this scenario, else the shipped one for the system, else the shipped one for any model. Or
        ``shipped``, or the path of a file or run. Without ``guard`` it is followed everywhere.
        """
        require(isinstance(guard, bool), "guard", guard, "true or false")
        self._agent, self._source, self._guarded = agent, str(policy), guard
        self._policy: Policy | None = None
        self._system: tuple[str, str] | None = None  # Fingerprint and scenario of the policy

    def begin(self, spec: SystemSpec) -> None:
        """Find a policy for this system, unless the last one was for it."""
        self._control = control_of(self._agent, spec)
        system = self._control.fingerprint(spec), spec.scenario
        if self._system != system:
            self._path, policy = self._find(spec)
            self._policy, self._system = reading(policy, layout_of(spec).inputs), system
        self._begin_many(spec, 1)

    def reset_many(self, spec: SystemSpec, count: int) -> bool:
        """Start as many episodes on the described system, if it is of one model."""
        if spec.is_one_model:
            self.reset(spec, 0)
            self._begin_many(spec, count)
        return spec.is_one_model

    def _begin_many(self, spec: SystemSpec, count: int) -> None:
        info, self.alone = self.policy.info, np.zeros(count, np.bool_)
        self._state = PolicyState([spec] * count, info.form)
        if info.actions != self._state.choices.actions:
            raise PolicyError(f"{self._path} is damaged: it chooses other things than there are")
        guards = self._guarded and spec.is_chain
        self._guard = Guard(self.policy, spec, self._control.scales_out) if guards else None

    def decide_many(self, view: Any) -> IntArray:
        """Return the policy's most probable allocations; with an alarm, an episode is ``alone``."""
        self._state.see(view.observations, batch_times_of(view.last))
        shown = self._state.seen
        if self._guard is not None:
            shown, alarmed = self._guard.alarmed(shown, view)
            self.alone |= alarmed
        # A stack of single rows: the product with a matrix of many rows differs a little.
        return self._state.choose(self.policy.logits(shown[:, None])[:, 0])

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the policy's most probable allocation, or the program's."""
        self._state.look(view)
        observation = self._state.seen[0]
        if self._guard is None:
            return self._chosen(observation)
        shown, answer = self._guard.watch(observation, view)
        # The policy counts the interval, and goes on from the replicas of the program.
        chosen = self._chosen(shown)
        if answer is None:
            return chosen
        self._state.follow(answer)
        return answer

    def _chosen(self, observation: FloatMatrix) -> Allocation:
        return allocation(self._state.choose(self.policy.logits(observation)[None])[0])

    @property
    def policy(self) -> Policy:
        """The policy that it follows."""
        assert self._policy is not None, "call reset first"
        return self._policy

    @property
    def description(self) -> str:
        """Which policy it follows; empty before the first :meth:`reset`."""
        if self._policy is None or self._system is None:
            return ""
        info, text = self._policy.info, f"follows {self._path}, trained for"
        if info.partial:
            return f"{text} {info.steps} steps of {info.planned}, when training was interrupted"
        if info.planned > info.steps:
            return f"{text} {info.planned} steps, the best by validation after {info.steps}"
        return f"{text} {info.steps} steps"

    def _find(self, spec: SystemSpec) -> tuple[Path, Policy]:
        fitting = [self._control.fingerprint(spec)] + [ANY_MODEL] * spec.is_one_model
        train = f"{program('train')} --agent {self._agent}"
        if self._source not in ("newest", "shipped"):
            path = Path(self._source)
            path = path / POLICY_FILE if path.is_dir() else path
            info = (policy := load_policy(path)).info
            if info.agent != self._agent:
                raise PolicyError(f"{path} is a policy of {info.agent}, not of {self._agent}")
            if info.fingerprint not in fitting:
                raise PolicyError(
                    f"{path} was trained on {', '.join(info.scenarios)}, whose profile or stages, "
                    f"interval or limits are others; train one with: {train}"
                )
            return path, policy
        runs = RUNS if self._source == "newest" else None
        known = ((each, *found) for each in fitting for found in known_policies(runs))
        for fingerprint, path, policy in known:
            info = policy.info
            sees_all = set(info.inputs) <= set(layout_of(spec).inputs)
            if info.partial or (info.agent, info.fingerprint) != (self._agent, fingerprint):
                continue
            for_any = fingerprint == ANY_MODEL or path.is_relative_to(SHIPPED)
            if sees_all and (for_any or spec.scenario in ("", *info.scenarios)):
                return path, policy
        raise PolicyError(
            f"no policy of {self._agent} for this profile or pipeline, interval and these "
            f"limits; name one with --policy or train one: {train} "
            f"--scenario {spec.scenario or 'NAME'}"
        )


def known_policies(runs: Path | None) -> Iterator[tuple[Path, Policy]]:
    """Yield the policies of training runs, the newest first, then the shipped ones."""
    made = () if runs is None else runs.glob(f"*/{POLICY_FILE}")
    newest = sorted(made, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (*newest, *sorted(SHIPPED.glob("*.safetensors"))):
        with contextlib.suppress(PolicyError):  # of an older version, or still being written
            yield path, load_policy(path)


ppo = partial(PolicyController, "ppo")
ppo_joint = partial(PolicyController, "ppo-joint")
