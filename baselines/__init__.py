"""Controllers to compare with, and the options that they were tuned to, cell by cell."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Start
from sponge_env.utils.files import parsed, read_text

_KNOWN = {
    "fa2": ("fa2:FA2", "horizontal with one-core replicas"),
    "grandslam": ("rules:GrandSLAm", "batch sizes by the slack of each stage's share of the SLO"),
    "hpa": ("kubernetes:HPA", "Kubernetes: replicas for a target utilisation"),
    "hpa-fast": ("kubernetes:hpa_fast", "hpa that decides every second and scales in soon"),
    "ipa": ("ipa:IPA", "replicas, variants and batches of all stages by one latency budget"),
    "ipa-scale": ("ipa:ipa_scale", "ipa with the most accurate variants"),
    "ipa-switch": ("ipa:ipa_switch", "ipa with the replicas that there are"),
    "queue-rule": ("rules:QueueRule", "queue threshold with hysteresis"),
    "slackfit": ("rules:SlackFit", "each batch's model by the slack of its most urgent request"),
    "static": ("rules:Static", "all cores, or those of --option static.cores=N"),
    "static-8": ("rules:static_8", "8 cores"),
    "static-16": ("rules:static_16", "16 cores"),
    "static-tuned": ("rules:Static", "smallest fixed allocation that did on training seeds"),
    "themis": ("themis:Themis", "two stages: vertical at once, horizontal when stable"),
    "throttle": ("throttle:Throttle", "Autothrottle's local loop over CPU throttling"),
    "vpa": ("kubernetes:VPA", "Kubernetes: cores by a percentile of past use"),
}
CONTROLLERS = {name: f"{__name__}.{place}" for name, (place, _) in _KNOWN.items()}
"""Name -> ``module:callable``, imported only when asked for. ``static-tuned`` is ``static`` with
the smallest allocation that does on training seeds, see ``tune.py``."""
ABOUT = {name: about for name, (_, about) in _KNOWN.items()}
"""Name -> what it does, in one line."""

LOG = logging.getLogger("baselines")

TUNED_FILE = Path(__file__).parent / "tuned.json"
"""The results of ``python -m baselines.tune``, and how it was run."""


def tuned_options(
    agent: str,
    scenario: str,
    profile: str,
    start: str,
    conditions: Callable[..., str],
    required: bool = False,
) -> dict[str, Any]:
    """Return a controller's tuned options for a scenario with a profile, by name or file.

    They are those for a scenario of this name and, asked for only then, fingerprint of its
    conditions; or of any name and these conditions, with a rate ``as_load``. Where it was tuned
    with the other start only, those options are used, with a warning; where it was not at all, the
    controller has its defaults, with a warning as well, or a ConfigError is raised if there have to
    be some.
    """
    cells, cell = _tuned().get(agent, {}).get("cells", {}), cell_key(scenario, profile, start)
    keys = {s: cell_key(scenario, profile, s) for s in (start, *get_args(Start))}
    named = [s for s, key in keys.items() if key in cells]
    there = [s for s in named if cells[keys[s]].get("conditions") == conditions()]
    alike = [key for key in cells if key.split("/")[1] == Path(profile).stem]
    if alike and not named:
        own = conditions(as_load=True)
        twins = {k.rpartition("/")[2]: k for k in alike if cells[k].get("conditions") == own}
        keys, there = keys | twins, [s for s in keys if s in twins]
    if there:
        if there[0] != start:
            _warn(agent, f"a {start} start", f"those for a {there[0]} one")
        return dict(cells[keys[there[0]]]["options"])
    where = f"{cell} as it is here" if named else cell
    if not required:
        _warn(agent, where, "its defaults")
        return {}
    scenarios, profiles = (sorted({each.split("/")[k] for each in cells}) for k in (0, 1))
    others = f"; it was for {', '.join(scenarios)} with {', '.join(profiles)}"
    raise ConfigError(
        f"{agent} was not tuned for {where}{others if cells and not named else ''}; leave out the "
        "agent or what changes the scenario, or tune it "
        f"(python -m {__name__}.tune --agents {agent} --suite FILE, a suite with this cell)"
    )


def cell_key(scenario: str, profile: str, start: str) -> str:
    """Return how ``tuned.json`` names a cell, whose profile is a name or a file's path."""
    return f"{scenario}/{Path(profile).stem}/{start}"


@cache
def _warn(agent: str, where: str, used: str) -> None:
    """Warn, once per process."""
    text = (
        "no tuned options of %s for %s: %s are used (python -m %s.tune --agents %s --suite SUITE "
    )
    text += "tunes it, for the cells of a suite's name or file)"
    LOG.warning(text, agent, where, used, __name__, agent)


def load_tuned(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``runs`` and ``agents``, as tune.py has them; ConfigError if it cannot be."""
    try:
        data = parsed(json.loads, read_text(path))
        runs, agents = dict(data["runs"]), dict(data["agents"])
        entries = [entry for agent in agents.values() for entry in agent["cells"].values()]
        good = all(isinstance(e.get("options", {}), dict) and e["run"] in runs for e in entries)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        good = False
    if not good:
        raise ConfigError(
            f"{path} is not what python -m {__name__}.tune writes; remove it or choose another file"
        )
    return {"runs": runs, "agents": agents}


@cache
def _tuned() -> dict[str, Any]:
    return load_tuned(TUNED_FILE)["agents"]
