"""Preloaded by processes that compile, so that each need not get numba ready by itself."""

from sponge_env.core.compiled import numba

numba.njit(lambda value: value + 1.0)(1.0)
