"""Many arrays in one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Pool:
    """Arrays one after the other in one array; equal ones are kept once."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._begins: dict[bytes, int] = {}
        self._parts: list[NDArray[Any]] = [np.zeros(1, dtype)]
        self._size = 1

    @property
    def array(self) -> NDArray[Any]:
        """(rows,) all of them, after one empty row."""
        return np.concatenate(self._parts)

    def add(self, values: ArrayLike) -> int:
        """Add an array; return where it begins."""
        part = np.ravel(np.asarray(values, self._dtype))
        key = part.tobytes()
        if key not in self._begins:
            self._begins[key] = self._size
            self._parts.append(part)
            self._size += part.size
        return self._begins[key]
