"""Controllers to compare with, and the options that they were tuned to."""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from sponge_env.errors import ConfigError
from sponge_env.scenario.scenario import Scenario
from sponge_env.utils.files import parsed, read_text

_KNOWN = {
    "fa2": ("fa2:FA2", "horizontal with one-core replicas"),
    "grandslam": ("rules:GrandSLAm", "batch sizes by the slack of each stage's share of the SLO"),
    "hpa": ("kubernetes:HPA", "Kubernetes: replicas for a target utilisation"),
    "ipa": ("ipa:IPA", "replicas, variants and batches of all stages by one latency budget"),
    "ipa-scale": ("ipa:ipa_scale", "ipa with the most accurate variants"),
    "ipa-switch": ("ipa:ipa_switch", "ipa with the replicas that there are"),
    "queue-rule": ("rules:QueueRule", "queue threshold with hysteresis"),
    "slackfit": ("rules:SlackFit", "each batch's model by the slack of its most urgent request"),
    "static": ("rules:Static", "all cores, or those of --option static.cores=N"),
    "static-8": ("rules:static_8", "8 cores"),
    "static-16": ("rules:static_16", "16 cores"),
    "themis": ("themis:Themis", "two stages: vertical at once, horizontal when stable"),
}
CONTROLLERS = {name: f"{__name__}.{place}" for name, (place, _) in _KNOWN.items()}
"""Name -> ``module:callable``, imported only when asked for."""
ABOUT = {name: about for name, (_, about) in _KNOWN.items()}  # Name -> what it does, in one line

LOG = logging.getLogger("baselines")

TUNED_FILE = Path(__file__).parent / "tuned.json"  # The results of ``python -m baselines.tune``


def tuned_options(agent: str, scenario: Scenario) -> dict[str, Any]:
    """Return a controller's tuned options for the profile of a scenario, or for its stages.

    If it was not tuned for that, warn and return none, so that it has its defaults.
    """
    found, key = _tuned().get(agent, {}), scenario.cell[1]
    if key not in found:
        _warn(agent, key)
    return dict(found.get(key, {}).get("options", {}))


@cache
def _warn(agent: str, key: str) -> None:
    """Warn, once per process."""
    text = "%s was not tuned for %s: its defaults are used (python -m %s.tune --agents %s --suite "
    LOG.warning(text + "SUITE tunes it, for a suite's name or file)", agent, key, __name__, agent)


def load_tuned(path: Path) -> dict[str, dict[str, Any]]:
    """Read what ``tune.py`` writes, by agent, if there is a file; ConfigError if it cannot be."""
    try:
        agents = dict(parsed(json.loads, read_text(path))["agents"]) if path.exists() else {}
        good = all(isinstance(e["options"], dict) for own in agents.values() for e in own.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        good = False
    if not good:
        raise ConfigError(
            f"{path} is not what python -m {__name__}.tune writes; remove it or choose another file"
        )
    return agents


@cache
def _tuned() -> dict[str, Any]:
    return load_tuned(TUNED_FILE)
