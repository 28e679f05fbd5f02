"""Run all benchmarks and write docs/benchmarks.md: ``python -m benchmarks``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sponge_env.installation import describe_host, describe_versions

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
SCRIPTS = ("throughput.py", "decisions.py")
GREETINGS = ("Running HiGHS", "Includes third-party")
"""What HiGHS prints even when told to be quiet."""


def run(script: str) -> str:
    """Run one benchmark in a process of its own, so that none warms up another."""
    print(f"== {script}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)], check=True, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(GREETINGS)]
    return "\n".join(["```text", *lines, "```", ""])


def main() -> None:
    """Write the page."""
    host, versions = describe_host(), describe_versions()
    packages = ("python", "numpy", "numba", "stable-baselines3", "torch", "pulp")
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`. Every ratio compares two measurements of the same run.\n",
        f"Host: {host['cpu_model']}, {host['cpus_allowed']} CPUs, {host['kernel']}; "
        + ", ".join(f"{name} {versions[name]}" for name in packages)
        + ".\n",
    ]
    parts += [f"## `benchmarks/{script}`\n\n{run(script)}" for script in SCRIPTS]
    PAGE.write_text("\n".join(parts))
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
