"""Names of array types, whose shapes stand in the docstrings, and a sum."""

import operator
from collections.abc import Iterable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def total(values: Iterable[float]) -> float:
    """Add numbers one after the other."""
    # From Python 3.12 on :func:`sum` compensates for rounding, which compiled code does not.
    return reduce(operator.add, values, 0.0)
