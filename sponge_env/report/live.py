"""The targets of the real worker: what the simulator says of it, and who wins on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean

from sponge_env.report.agents import FA2, LEARNED, LOOKING_AHEAD, PUBLISHED_HORIZONTAL
from sponge_env.report.fidelity import Fidelity
from sponge_env.report.judging import Target, Verdict
from sponge_env.report.rates import percent

FEWEST_TIMES = 15.0


def live_targets(fidelity: Fidelity) -> list[Target]:
    """Return the targets that the runs on the real worker say something about."""
    return [*_simulator(fidelity), *_winners(fidelity)]


def _simulator(fidelity: Fidelity) -> Iterator[Target]:
    judged = [row for row in fidelity.rows if row.verdict]
    if judged:
        missed = [row for row in judged if row.verdict == "missed"]
        yield Target(
            "simulator against the real worker",
            "all differences within their targets, or within the spread of live runs",
            f"{len(judged) - len(missed)} of {len(judged)}",
            "missed" if missed else "met",
        )


def _winners(fidelity: Fidelity) -> Iterator[Target]:
    """The horizontal scaler's violations beside those of who looks ahead or has learned."""
    for scenario in dict.fromkeys(run.scenario for run in fidelity.live):
        for horizontal in (*FA2, *PUBLISHED_HORIZONTAL):
            theirs = _rates(fidelity, horizontal, scenario)
            for agent in (*LOOKING_AHEAD, *LEARNED):
                ours = _rates(fidelity, agent, scenario)
                if ours and ours.keys() == theirs.keys():
                    yield _winner((agent, horizontal), scenario, ours, theirs)


def _rates(fidelity: Fidelity, agent: str, scenario: str) -> dict[int, float]:
    """Return avoidable violations per request of each repetition."""
    runs = [run for run in fidelity.live if (run.agent, run.scenario) == (agent, scenario)]
    return {run.repetition: run.avoidable_violation_rate for run in runs}


def _winner(
    agents: tuple[str, str], scenario: str, ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Target:
    each = [_times(ours[n], theirs[n]) for n in ours]
    mean_ours, mean_theirs = fmean(ours.values()), fmean(theirs.values())
    many = sum(times >= FEWEST_TIMES for times in each)
    return Target(
        f"{agents[1]} / {agents[0]}, {scenario} live: avoidable violations",
        f"at least {FEWEST_TIMES:g} times, in every repetition",
        f"{percent(mean_theirs, 3)} against {percent(mean_ours, 3)}; in {many} of {len(each)} "
        "repetitions",
        _verdict(_times(mean_ours, mean_theirs), many == len(each)),
    )


def _times(ours: float, theirs: float) -> float:
    """Return how many times as many they have; NaN if nobody has any."""
    if ours:
        return theirs / ours
    return math.inf if theirs else math.nan


def _verdict(times: float, always: bool) -> Verdict:
    if times < FEWEST_TIMES:
        return "missed"
    return "met" if always else "not decidable"
