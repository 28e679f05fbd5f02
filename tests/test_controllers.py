"""What a controller of somebody else does wrong is said in one sentence."""

import os
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from scenarios import SHORT, Scripted

import evaluate
from sponge_env.env.factory import make_system, scenario_profile
from sponge_env.errors import ConfigError, ControllerError, SpongeError
from sponge_env.interfaces import Allocation
from sponge_env.run import rollout
from sponge_env.run.decision import decision, start
from sponge_env.run.registry import make_controller
from sponge_env.run.rollout import Run, run_episode, settled
from sponge_env.simulation.system import SimulatedSystem

pytestmark = pytest.mark.usefixtures("unpainted")


class SilentError(Exception):
    def __str__(self):
        raise KeyError


class Answers:
    """Gives one answer, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def reset(self, spec, seed):
        """Raise only what is wrong with the answer."""

    def decide(self, view):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def decide(answer):
    system = make_system(SHORT, 0)
    return decision(Answers(answer), system.view(), system.spec)


@pytest.mark.parametrize(
    ("answer", "reason"), [(None, "must return an Allocation, not NoneType"),
     ((4, 4), "must return an Allocation, not tuple"),
     (Allocation(17, 4), "allocation.cores must be a whole number between 1 and 16, not 17"),
     (Allocation(4, 0), "allocation.batch must be a whole number between 1 and 16, not 0"),
     (Allocation(4.0, 4), "allocation.cores must be a whole number .* not 4.0"),
     (Allocation(4, 4, 99), "allocation.replicas must be a whole number"),
     (Allocation(4, 4, feasible=None), "feasible and guarded must be true or false"),
     (Allocation(4, 4, variant=1), "allocation.variant must be 0: there is only one, not 1"),
     (ZeroDivisionError("by\nzero"), r"failed in test_controllers.py, line \d+: .*Error: by$"),
     (RuntimeError(), r"failed in test_controllers.py, line \d+: RuntimeError$"),
     (StopIteration(), r"line \d+: StopIteration$"), (SilentError(), r"line \d+: SilentError$")],
)  # fmt: skip
def test_a_bad_answer_is_named(answer, reason):
    with pytest.raises(ControllerError, match=rf"test_controllers:Answers\.decide\(\).* ?{reason}"):
        decide(answer)


def test_numbers_of_numpy_become_pythons():
    answer = decide(Allocation(np.int64(3), np.uint8(2), np.int32(1), feasible=False))
    assert answer == Allocation(3, 2)
    assert not answer.feasible
    assert [type(number) for number in (answer.cores, answer.batch, answer.replicas)] == [int] * 3


def test_what_a_controller_says_in_a_sentence_is_left_alone():
    with pytest.raises(ConfigError, match=r"^no model$"):
        decide(ConfigError("no model"))


class Unready(Scripted):
    def reset(self, spec, seed):
        raise KeyError("weights")


def test_a_failing_reset_is_named():
    with pytest.raises(ControllerError, match=r"Unready\.reset\(\) failed in .*KeyError: 'weights"):
        start(Unready(), make_system(SHORT, 0).spec, 0)


class FailsLater:
    """Decides three times."""

    def reset(self, spec, seed):
        self.left = 3

    def decide(self, view):
        self.left -= 1
        return Allocation(0 if self.left < 0 else 4, 4)


def test_an_episode_up_to_the_failure_is_summed_up():
    sink = Mock()
    with pytest.raises(ControllerError, match=r"FailsLater\.decide\(\)"):
        run_episode(make_system(SHORT, 0), FailsLater(), Run.of("x", SHORT, "sim", 0), [sink])
    ((summary,), _) = sink.episode.call_args
    assert sink.episode.call_count == 1
    assert summary.partial
    assert summary.duration_s == 3.0
    with pytest.raises(ControllerError, match=r"FailsLater\.decide\(\)"):
        settled(SHORT, FailsLater(), scenario_profile(SHORT))


MADE = "class C:\n    reset = decide = print\n    def __init__(self): {}"


@pytest.mark.parametrize(
    ("code", "reason"), [("x = 1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
     ("def x(:", "cannot be imported: SyntaxError: "),
     ("import nothing_here", "cannot be imported: No module named 'nothing_here'"),
     ("raise SystemExit(0)", "cannot be imported: SystemExit: 0"),
     (MADE.format("{}['model']"), "cannot be made: KeyError"),
     (MADE.format("raise GeneratorExit"), "cannot be made: GeneratorExit"),
     (MADE.format("import os; os.chdir('/')"), "cannot be made: it changes the working folder"),
     ("class C:\n    def decide(self, view): ...", "no class with reset() and decide()")],
)  # fmt: skip
def test_a_module_that_does_not_work_is_named(code, reason, tmp_path, monkeypatch):
    module = tmp_path.name  # another one for each case, for Python imports a name once
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpongeError) as caught:
        make_controller(f"{module}:C", {})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


class Ends(Scripted):
    """Does at its first decision what only a program may."""

    def __init__(self, how):
        super().__init__(Allocation(4, 4))
        self.how = how

    def decide(self, view):
        if self.how == "exit":
            sys.exit(0)
        os.chdir("/")
        return super().decide(view)


@pytest.mark.parametrize(
    ("agent", "sentence"), [("FailsLater", r"FailsLater\.decide\(\): allocation\.cores must be"),
     ("Ends --option {}.how=exit", r"decide\(\) failed in .*, line \d+: SystemExit: 0$"),
     ("Ends --option {}.how=chdir", "ValueError: it changes the working folder$")],
)  # fmt: skip
@pytest.mark.usefixtures("own_folder")
def test_a_command_ends_with_the_sentence(agent, sentence, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name, *options = agent.format("test_controllers:Ends").split()
    agents = f"test_controllers:{name}", "static-8"
    assert evaluate.main(["--agent", *agents, *options, "--duration", "5", "--run-dir", "run"]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith(f"error: test_controllers:{name}.decide()")
    assert re.search(sentence, last)
    assert "\nstatic-8 " in captured.out


def test_a_live_decision_has_a_time_limit(monkeypatch):
    class Hangs(Scripted):
        def decide(self, view):
            while True:
                pass

    monkeypatch.setattr(rollout, "DECISION_LIMIT_S", 0.05)
    monkeypatch.setattr(SimulatedSystem, "counterpart", lambda *_: make_system(SHORT, 0))
    system = make_system(SHORT, 0)
    monkeypatch.setattr(system, "limiter", "fake")
    with pytest.raises(ControllerError, match=r"TimeoutError: it took longer than 0\.05 s"):
        run_episode(system, Hangs(Allocation(4, 4)), Run.of("x", SHORT, "live", 0))
