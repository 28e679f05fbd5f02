"""``tuned.json``: the best options of each agent in each cell, and the run that found them.

    {"runs": {RUN: {"command", "suite", "seeds", "objective", "searches", "versions"}},
     "agents": {AGENT: {"cells": {CELL: {"options", ..., "run": RUN}}}}}

A run is named after its date. Cells that are tuned again take the place of the old ones; the
others stay, and so does every run that a cell still names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sponge_env.errors import ConfigError
from sponge_env.files import replacing

Data = dict[str, dict[str, Any]]
"""What is in the file."""


def read(path: Path) -> Data:
    """Return what is in a file; nothing is, if there is none.

    Raises:
        ConfigError: It is no such file.
    """
    if not path.is_file():
        return {"runs": {}, "agents": {}}
    try:
        data = json.loads(path.read_text())
        return {"runs": dict(data["runs"]), "agents": dict(data["agents"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is not what python -m baselines.tune writes; remove it or choose another file"
        ) from None


def write(
    path: Path, run: str, about: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put tuned cells in the place of their old entries.

    Args:
        path: The file.
        run: Name of the run that found them.
        about: What is to be known of the run.
        found: Entries by agent and cell.

    Raises:
        ConfigError: The file is there but something else.
        RunDirectoryError: It cannot be written.
    """
    data = merged(read(path), run, about, found)
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n")


def merged(
    data: Data, run: str, about: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]
) -> Data:
    """Return what is in a file once a run's entries are; see :func:`write`."""
    agents = dict(data["agents"])
    for agent, entries in found.items():
        old = agents.get(agent, {}).get("cells", {})
        new = {cell: {**entry, "run": run} for cell, entry in entries.items()}
        agents[agent] = {"cells": dict(sorted({**old, **new}.items()))}
    runs = {**data["runs"], run: dict(about)}
    named = {entry["run"] for agent in agents.values() for entry in agent["cells"].values()}
    return {
        "runs": {name: runs[name] for name in sorted(runs) if name in named},
        "agents": dict(sorted(agents.items())),
    }
