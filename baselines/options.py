"""Options of controllers that were tuned for a scenario and a profile.

``python -m baselines.tune`` finds them and writes ``tuned.json``, which says how.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, cast

LOG = logging.getLogger("baselines")

TUNED_FILE = Path(__file__).parent / "tuned.json"
"""What was tuned: by controller and by ``scenario/profile``, with how it was found."""


def tuned_options(agent: str, scenario: str, profile: str) -> dict[str, Any]:
    """Return a controller's tuned options for a scenario with a profile.

    A warning says so where none were found; the controller then has its defaults.

    Args:
        agent: Registered name.
        scenario: Name of the scenario.
        profile: Name of the profile, or the path of its file.
    """
    cell = cell_key(scenario, profile)
    found = _tuned().get(agent, {}).get("cells", {}).get(cell)
    if found is None:
        _say_untuned(agent, cell)
        return {}
    return dict(found["options"])


@cache
def _say_untuned(agent: str, cell: str) -> None:
    """Warn, once per process, though a cell is asked for with each of its starts."""
    LOG.warning(
        "no tuned options of %s for %s: its defaults are used (python -m baselines.tune "
        "--agents %s --suite SUITE tunes it, for the cells of a suite's name or file)",
        agent,
        cell,
        agent,
    )


def cell_key(scenario: str, profile: str) -> str:
    """Return how ``tuned.json`` names a scenario with a profile (a name, or a file's path)."""
    return f"{scenario}/{Path(profile).stem}"


@cache
def _tuned() -> dict[str, Any]:
    """Return the tuned agents; read once."""
    return cast(dict[str, Any], json.loads(TUNED_FILE.read_text())["agents"])
