"""Hashes of columns of numbers or text that do not depend on how the columns are held."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Columns = Mapping[str, NDArray[Any]]
"""Values by name."""


def canonical(values: ArrayLike) -> bytes:
    """Return values as float64, int64 or text; all NaNs are one."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        numbers = array.astype(np.float64)
        numbers[np.isnan(numbers)] = math.nan
        return numbers.tobytes()
    if array.dtype.kind in "iub":
        return array.astype(np.int64).tobytes()
    return "\n".join(map(str, array.ravel().tolist())).encode()


def digest(columns: Columns, names: Iterable[str]) -> str:
    """Hash the named columns; whatever else there is does not count."""
    sha = hashlib.sha256()
    for name in names:
        data = canonical(columns[name])
        sha.update(f"{name}:{len(data)}:".encode())
        sha.update(data)
    return sha.hexdigest()[:16]
