"""Episodes of a system: what adds up, what a controller is shown, how an episode ends."""

import math

import pytest
from fake_worker import FakeWorker
from reference import worker_settings
from scenarios import SHORT, Scripted, short

from sponge_env import Allocation, make_system
from sponge_env.errors import ConfigError
from sponge_env.live.system import LiveSystem
from sponge_env.run.rollout import REHEARSED, Run, play, run_episode
from sponge_env.scenario.config import Arrivals
from sponge_env.scenario.profile import load_profile
from sponge_env.simulation.system import SimulatedSystem

RUN = Run("scripted", "short", "sim", 0)


@pytest.mark.parametrize(
    "allocation", [Allocation(0, 1), Allocation(17, 1), Allocation(1, 17), Allocation(2.5, 1)]
)
def test_allocations_outside_the_limits_are_refused(allocation):
    system = make_system(SHORT, seed=0)
    with pytest.raises(ValueError, match=r"allocation\.(cores|batch) must be .* between 1 and 16"):
        system.step(allocation)


def test_an_episode_ends_with_its_duration():
    system = make_system(short(duration_s=2.0), seed=0)
    for _ in range(2):
        assert not system.done
        system.step(Allocation(1, 1))
    assert system.done
    with pytest.raises(RuntimeError, match="the episode is over"):
        system.step(Allocation(1, 1))
    with pytest.raises(ConfigError, match="the seed must be at least 0, not -1"):
        SimulatedSystem(SHORT, -1)


class Interrupted(Scripted):
    """Is interrupted at its sixth decision."""

    def decide(self, view):
        if len(self.views) == 5:
            raise KeyboardInterrupt
        return super().decide(view)


def test_an_interrupted_episode_is_summed_up_over_what_has_ended():
    system = SimulatedSystem(short(arrivals=Arrivals(rate_rps=30.0)), 0)
    episode = play(system, Interrupted(Allocation(1, 1)), RUN)
    summary = episode.summary
    ended = summary.on_time + summary.late + summary.dropped
    assert summary.partial
    assert summary.duration_s == len(episode.intervals) == 5
    assert summary.queued > 10
    assert summary.offered == ended + summary.queued + summary.running
    assert summary.violation_rate == (summary.late + summary.dropped) / ended
    assert summary.effective_accuracy == summary.on_time / ended
    assert math.isinf(summary.latency_p99_s) == (summary.dropped > 0)


def test_time_stands_still_while_a_controller_prepares():
    """It may compile something, which on a real worker would take seconds of the episode."""
    happened = []

    class Preparing(Scripted):
        def reset(self, spec, seed):
            happened.append("reset")
            super().reset(spec, seed)

        def decide(self, view):
            happened.append("decide")
            return super().decide(view)

    profile = load_profile("yolov5s")

    def make_worker(spec):
        worker = FakeWorker(**worker_settings(SHORT, profile, spec, 0))
        worker.diary = happened
        return worker

    run_episode(LiveSystem(SHORT, 0, make_worker, profile), Preparing(Allocation(8, 8)), RUN)
    still = ["hold", "reset", *["decide"] * REHEARSED, "reset", "release"]
    assert happened[: len(still) + 2] == [*still, "decide", "resize 8 x 1"]
    assert "hold" not in happened[1:]
