"""Where this server and Triton answer the corpus differently, and why ours is meant so.

    python -m tests.conformance.differential --triton PYTHON

Both serve the corpus' model; every request goes to both. A case is listed if only one of the two
answers as the corpus says. The reasons stand in ``differences.toml``; the exit code is 1 if one
is missing, or is not needed. ``PYTHON`` is the interpreter of an environment that has
``nvidia-pytriton``, which this project does not need.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from served import running  # noqa: E402
from test_serve_conformance import asked, check  # noqa: E402

from benchmarks.triton_server import HOW_TO_MAKE, TritonModel, triton  # noqa: E402
from sponge_env.models.model import TensorSpec  # noqa: E402

SHOWN = 110
"""Characters of an answer."""


@dataclass(frozen=True)
class Answer:
    """What came back, and whether it is what the corpus says."""

    text: str
    right: bool


def case_answer(address: Any, case: dict[str, Any]) -> Answer:
    """Send the request of a case."""
    try:
        status, headers, body = asked(address, case["request"])
    except (OSError, http.client.HTTPException) as error:
        return Answer(f"no answer: {type(error).__name__}", False)
    text = f"{status} {body.decode('latin-1')}".strip().replace("\n", " ")[:SHOWN]
    expected = {key: value for key, value in case["answer"].items() if key != "headers"}
    try:
        check(expected, status, headers, body)
    except (AssertionError, ValueError):
        return Answer(text, False)
    return Answer(text, True)


def tiny() -> TritonModel:
    """Return the corpus' model for Triton."""
    tensors = ("input", TensorSpec((4,))), ("output", TensorSpec((2,)))
    return TritonModel("tiny", *tensors, script=HERE / "triton_tiny.py", batch_max=8)


def corpus() -> dict[str, dict[str, Any]]:
    """Return all cases by file and name."""
    return {
        f"{file.stem}: {case['name']}": case
        for file in sorted(HERE.glob("*.json"))
        for case in json.loads(file.read_text())
    }


def compare(python: Path) -> dict[str, tuple[Answer, Answer]]:
    """Return the answers of both, ours first, where only one is right."""
    found = {}
    with running() as ours, triton(python, tiny()) as theirs:
        addresses = ours, SimpleNamespace(http=f"127.0.0.1:{theirs.port}")
        for name, case in corpus().items():
            one, other = (case_answer(each, case) for each in addresses)
            if one.right != other.right:
                found[name] = one, other
    return found


def report(differences: Mapping[str, tuple[Answer, Answer]]) -> tuple[list[str], bool]:
    """Return lines about the differences, and whether each has its reason."""
    reasons = tomllib.loads((HERE / "differences.toml").read_text())
    lines = []
    for name, (one, other) in differences.items():
        lines += [name, f"  ours    {one.text}", f"  Triton  {other.text}"]
        lines += [f"  why     {reasons.get(name, '?')}", ""]
    unexplained, idle = differences.keys() - reasons.keys(), reasons.keys() - differences.keys()
    said = f"{len(corpus())} cases, {len(differences)} differ, {len(unexplained)} unexplained"
    lines += [said, *(f"does not differ any more: {name}" for name in sorted(idle))]
    return lines, not (unexplained or idle)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the differences with their reasons."""
    parser = argparse.ArgumentParser(description="Compare this server's answers with Triton's.")
    said = f"interpreter whose environment has nvidia-pytriton; {HOW_TO_MAKE}"
    parser.add_argument("--triton", type=Path, required=True, metavar="PYTHON", help=said)
    lines, explained = report(compare(parser.parse_args(argv).triton))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0 if explained else 1


if __name__ == "__main__":
    sys.exit(main())
