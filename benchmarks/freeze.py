"""Draw the evaluation seeds of a release from a hash of the controllers that they judge.

    python -m benchmarks.freeze

They are known only once the last file of ``agents`` and ``baselines`` is final, so nobody picks
them by hand. Suites have the first as ``first_seed``; docs/fairness.md has the hash.
"""

import hashlib
from pathlib import Path

SUFFIXES = {".py", ".json", ".safetensors"}  # Of code, tuned options and policies


def digest(root: Path) -> str:
    """Return the hash of the names and contents of all files of controllers."""
    paths = [path for name in ("agents", "baselines") for path in (root / name).rglob("*")]
    found = hashlib.sha256()
    for path in sorted(path for path in paths if path.suffix in SUFFIXES):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def first_seed(frozen: str) -> int:
    """Return the first of the seeds that follow from a hash, from 100 to 989."""
    return 100 + int(frozen, 16) % 890


if __name__ == "__main__":
    frozen = digest(Path(__file__).parent.parent)
    print(f"{frozen}: seeds from {first_seed(frozen)}")
