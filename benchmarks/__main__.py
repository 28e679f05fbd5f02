"""Run all benchmarks and write docs/benchmarks.md: ``python -m benchmarks [--triton PYTHON]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli
from sponge_env.utils.installation import describe_host, describe_versions

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
SCRIPTS = ("throughput", "decisions", "serving")


def run(script: str, *arguments: str) -> str:
    """Run one benchmark in a process of its own, so that none warms up another."""
    print(f"== {script}", file=sys.stderr)
    command = [sys.executable, "-m", f"benchmarks.{script}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent)
    print(done.stdout)
    return f"```text\n{done.stdout.rstrip()}\n```\n"


def write_page(argv: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    text = "interpreter whose environment has nvidia-pytriton, to compare the server with"
    parser.add_argument("--triton", metavar="PYTHON", help=text)
    triton = parser.parse_args(argv).triton
    host, versions = describe_host(), describe_versions()
    packages = ("python", "numpy", "numba", "stable-baselines3", "torch", "onnxruntime")
    used = ", ".join(f"{name} {versions[name]}" for name in packages)
    more = {"serving": ["--triton", triton]} if triton else {}
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`. Every ratio compares two measurements of the same run.\n",
        f"Host: {host['cpu_model']}, {host['cpus_allowed']} CPUs, {host['kernel']}; {used}.\n",
        *(
            f"## `benchmarks/{script}.py`\n\n{run(script, *more.get(script, ()))}"
            for script in SCRIPTS
        ),
    ]
    PAGE.write_text("\n".join(parts))
    print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_script(write_page, None))
