"""What there is to choose from: agents, scenarios, profiles and policies, a line each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sponge_env import cli
from sponge_env.run.registry import described_controllers, imported
from sponge_env.run.suite import BOUND_AGENTS, SUITE_DIR, load_suite, named_agents, stands_for
from sponge_env.scenario.profile import PROFILE_DIR, load_profile, local_profile_path
from sponge_env.scenario.scenario import SCENARIO_DIR, load_scenario
from sponge_env.utils.installation import bundled


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(_show, argv)


def _show(argv: Sequence[str]) -> int:
    cli.Parser(prog=cli.program("list"), description=__doc__).parse_args(argv)
    sys.stdout.write(f"{listing()}\n")
    return 0


def listing() -> str:
    """Return everything, in a section for each kind."""
    kinds = {
        "agents": _agents(),
        "scenarios": _described(SCENARIO_DIR, load_scenario),
        "suites": _described(SUITE_DIR, load_suite),
        "profiles": _profiles(),
        "policies": imported(f"{bundled('agents')}.learned:policies")(),
    }
    return "\n\n".join(_section(name, lines) for name, lines in kinds.items())


def _agents() -> dict[str, str]:
    """Return what each name that ``--agent`` takes stands for."""
    described = described_controllers()
    defined = {name: stands_for(name, entry) for name, entry in named_agents().items()}
    texts = {name: (described.get(name), defined.get(name)) for name in {**described, **defined}}
    bounds = {name: f"clairvoyant bound, {kind} scaling" for kind, name in BOUND_AGENTS.items()}
    return {name: "; ".join(filter(None, parts)) for name, parts in texts.items()} | bounds


def _described(folder: Path, load: Callable[[str], Any]) -> dict[str, str]:
    """Return the descriptions of the TOML files in a folder."""
    return {name: load(name).description for name in sorted(p.stem for p in folder.glob("*.toml"))}


def _profiles() -> dict[str, str]:
    loaded = [load_profile(path) for path in sorted(PROFILE_DIR.glob("*.json"))]
    found = {p.name: f"{p.model}; {p.source.partition(';')[0]}" for p in loaded}
    local = local_profile_path()
    message = f"{load_profile(local).model}; measured here" if local.exists() else "to be measured"
    return found | {local.stem: f"{message} by python -m sponge_env calibrate"}


def _section(name: str, lines: Mapping[str, str]) -> str:
    width = max(map(len, lines), default=0)
    return "\n".join([name, *(f"  {key:{width}}  {text}" for key, text in lines.items())])
