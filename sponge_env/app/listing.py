"""What there is to choose from: agents, scenarios, profiles and policies, a line each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sponge_env import cli
from sponge_env.run.registry import described_controllers, imported
from sponge_env.run.suite import BOUND_AGENTS, SUITE_DIR, AgentEntry, load_suite, named_agents
from sponge_env.scenario.profile import PROFILE_DIR, load_profile, local_profile_path
from sponge_env.scenario.scenario import SCENARIO_DIR, load_scenario
from sponge_env.utils.installation import bundled

POLICIES = "agents"
"""Package whose ``learned.policies`` tells of the policies that there are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(_show, argv)


def _show(argv: Sequence[str]) -> int:
    cli.Parser(prog=cli.program("list"), description=__doc__).parse_args(argv)
    sys.stdout.write(f"{listing()}\n")
    return 0


def listing() -> str:
    """Return everything, in a section for each kind."""
    policies = imported(f"{bundled(POLICIES)}.learned:policies")
    kinds = {"agents": agents(), "scenarios": _scenarios(), "suites": _suites()}
    kinds |= {"profiles": _profiles(), "policies": policies()}
    return "\n\n".join(_section(name, lines) for name, lines in kinds.items())


def agents() -> dict[str, str]:
    """Return what each name that ``--agent`` takes stands for."""
    described = described_controllers()
    defined = {name: definition(name, entry) for name, entry in named_agents().items()}
    bounds = {name: f"clairvoyant bound, {kind} scaling" for kind, name in BOUND_AGENTS.items()}
    texts = {name: (described.get(name), defined.get(name)) for name in {**described, **defined}}
    return {name: "; ".join(filter(None, parts)) for name, parts in texts.items()} | bounds


def definition(name: str, entry: AgentEntry, options: Mapping[str, Any] | None = None) -> str:
    """Say what a name stands for; nothing if it is that of a controller with its defaults.

    The options are those that hold in one cell, tuned ones included.
    """
    changes = {**(entry.options if options is None else options), **entry.changes}
    parts = [entry.controller] if entry.controller not in ("", name) else []
    parts += [f"{key}={value}" for key, value in changes.items()]
    if entry.tuned and options is None:
        parts.append("tuned scenario by scenario")
    elif entry.tuned and changes.keys() - {**entry.options, **entry.changes}.keys():
        parts.append("tuned for this scenario")
    return ", ".join(parts)


def _scenarios() -> dict[str, str]:
    names = sorted(path.stem for path in SCENARIO_DIR.glob("*.toml"))
    return {name: load_scenario(name).description for name in names}


def _suites() -> dict[str, str]:
    names = sorted(path.stem for path in SUITE_DIR.glob("*.toml"))
    return {name: load_suite(name).description for name in names}


def _profiles() -> dict[str, str]:
    paths = sorted(PROFILE_DIR.glob("*.json"))
    loaded = [load_profile(path) for path in paths]
    found = {p.name: f"{p.model}; {p.source.partition(';')[0]}" for p in loaded}
    local = local_profile_path()
    message = f"{load_profile(local).model}; measured here" if local.exists() else "to be measured"
    return found | {local.stem: f"{message} by python -m sponge_env calibrate"}


def _section(name: str, lines: Mapping[str, str]) -> str:
    width = max(map(len, lines), default=0)
    return "\n".join([name, *(f"  {key:{width}}  {text}" for key, text in lines.items())])
