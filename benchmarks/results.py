"""Write docs/results.md and the README's results: ``python -m benchmarks.results RUN``.

As ``python -m sponge_env.results``, and says in the Markdown what the run shows about this
project's controllers and which of its targets it meets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.findings import findings
from benchmarks.targets import NOTE, declared, target_table, targets
from sponge_env import cli
from sponge_env.results.__main__ import run
from sponge_env.results.layout import markdown
from sponge_env.results.page import Remarks, Section

MACHINE = (
    "The run was made before replicas shared one machine (`limits.total_cores`): all 16 replicas "
    "may have 16 cores each, which is what the standard suite still asks for."
)
"""What sets the run in docs/results.md apart from what scenarios do by default."""


def remarks(section: Section) -> Remarks:
    """Return what this project says about a run."""
    found = targets(section.comparison, section.fidelity)
    text = f"## Targets\n\n{markdown(target_table(found))}\n\n{NOTE}" if found else ""
    return Remarks(findings(section.comparison, declared("finding")), text, MACHINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(partial(run, remark=remarks), argv)


if __name__ == "__main__":
    sys.exit(main())
