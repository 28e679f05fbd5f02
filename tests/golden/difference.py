"""Says where two dumps of ``record.py --dump`` part: ``python -m tests.golden.difference A B``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .hashing import canonical


def first_difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> str:
    """Describe the first place in which two columns are not the same to the bit."""
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return f"{one.shape} {one.dtype} / {other.shape} {other.dtype}"
    for place in np.ndindex(one.shape):
        if canonical(one[place]) != canonical(other[place]):
            return f"first at {list(place)}: {one[place].item()!r} / {other[place].item()!r}"
    return "the same values"


def main() -> int:
    """Run the command; return its exit code."""
    a, b = map(Path, sys.argv[1:3])
    parted = 0
    for path in sorted(a.rglob("*.npz")):
        with np.load(path) as one, np.load(b / path.relative_to(a)) as other:
            for name in sorted(set(one) & set(other)):
                if canonical(one[name]) != canonical(other[name]):
                    parted += 1
                    where = path.relative_to(a).with_suffix("")
                    sys.stdout.write(
                        f"{where} {name}: {first_difference(one[name], other[name])}\n"
                    )
            if missing := set(one) ^ set(other):
                sys.stdout.write(f"{path.relative_to(a)}: only in one: {sorted(missing)}\n")
    return min(1, parted)


if __name__ == "__main__":
    sys.exit(main())
