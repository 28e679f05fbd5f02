"""Controllers to compare with, and the options that they were tuned to, cell by cell."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from sponge_env.config import Start

CONTROLLERS = {
    name: f"{__name__}.{place}"
    for name, place in {
        "fa2": "fa2:FA2",
        "hpa": "kubernetes:HPA",
        "hpa-fast": "kubernetes:hpa_fast",
        "queue-rule": "rules:QueueRule",
        "static": "rules:Static",
        "static-8": "rules:static_8",
        "static-16": "rules:static_16",
        "static-tuned": "rules:Static",
        "themis": "themis:Themis",
        "throttle": "throttle:Throttle",
        "vpa": "kubernetes:VPA",
    }.items()
}
"""Name -> ``module:callable``, imported only when asked for. ``static-tuned`` is ``static`` with
the smallest allocation that does on training seeds, see ``tune.py``."""

LOG = logging.getLogger("baselines")

TUNED_FILE = Path(__file__).parent / "tuned.json"
"""What ``python -m baselines.tune`` found, and how."""


def tuned_options(agent: str, scenario: str, profile: str, start: str) -> dict[str, Any]:
    """Return a controller's tuned options for a scenario with a profile, by name or file.

    Those of another start are no good: what pays for cold starts is not tuned where there are
    none. A warning says so where none were found; the controller then has its defaults.
    """
    cells = _tuned().get(agent, {}).get("cells", {})
    found = cells.get(cell_key(scenario, profile, start))
    if found is None:
        other = [s for s in get_args(Start) if cell_key(scenario, profile, s) in cells]
        # One warning for all cells that were tuned with another start only.
        where = f"a {start} start" if other else cell_key(scenario, profile, start)
        _say_untuned(agent, where, *other)
    return dict(found["options"]) if found else {}


def cell_key(scenario: str, profile: str, start: str) -> str:
    """Return how ``tuned.json`` names a cell, whose profile is a name or a file's path."""
    return f"{scenario}/{Path(profile).stem}/{start}"


@cache
def _say_untuned(agent: str, where: str, other: str = "") -> None:
    """Warn, once per process; ``other`` is the start that was tuned instead."""
    LOG.warning(
        "no tuned options of %s for %s%s: its defaults are used (python -m %s.tune "
        "--agents %s --suite SUITE tunes it, for the cells of a suite's name or file)",
        agent,
        where,
        f", only for a {other} one" if other else "",
        __name__,
        agent,
    )


@cache
def _tuned() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(TUNED_FILE.read_text())["agents"])
