"""Draw the evaluation seeds of a release from a hash of the controllers that they judge.

    python -m benchmarks.freeze

The seeds are known only once the last file of ``agents`` and ``baselines`` is final, so that no
controller can be chosen by its results on them. Suites of a version have the first as
``first_seed``; docs/fairness.md has the hash.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli

SUFFIXES = {".py", ".json", ".safetensors"}  # Of code, tuned options and policies


def digest(root: Path) -> str:
    """Return the hash of the names and contents of all files that controllers are made of."""
    paths = [path for name in ("agents", "baselines") for path in (root / name).rglob("*")]
    found = hashlib.sha256()
    for path in sorted(path for path in paths if path.suffix in SUFFIXES):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def first_seed(frozen: str) -> int:
    """Return the first of the seeds that follow from a hash, from 100 to 989."""
    return 100 + int(frozen, 16) % 890


@cli.command
def main(argv: Sequence[str]) -> int:
    """Print the hash and the first seed."""
    cli.Parser(prog="python -m benchmarks.freeze", description=__doc__).parse_args(argv)
    frozen = digest(Path(__file__).parent.parent)
    print(f"{frozen}: seeds from {first_seed(frozen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
