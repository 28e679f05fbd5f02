"""Random streams: one seed, one stream for each purpose.

They are those of ``numpy.random.Generator(SFC64(SeedSequence([seed, crc32(purpose)])))``,
seeded and continued bit for bit: the state is four 64-bit words and a step a few additions.
"""

import math
import zlib

import numpy as np

from sponge_env.core.compiled import Words, compiled, inlined

_U64 = np.uint64
_MASK = _U64(0xFFFFFFFF)

# Constants of numpy.random.SeedSequence, after M. E. O'Neill's seed_seq.
_INIT_A, _MULT_A = _U64(0x43B0D7E5), _U64(0x931E8875)
_INIT_B, _MULT_B = _U64(0x8B51F9DD), _U64(0x58F38DED)
_MIX_LEFT, _MIX_RIGHT = _U64(0xCA01F9DD), _U64(0x4973F715)
_SHIFT = _U64(16)
_GOLDEN = _U64(0x9E3779B97F4A7C15)

_NAMES = (b"arrivals", b"network", b"fades", b"noise", b"fan-out")
ARRIVALS, NETWORK, FADES, NOISE, FAN_OUT = (_U64(zlib.crc32(name)) for name in _NAMES)  # Purposes


@compiled
def next_uint64(state: Words) -> np.uint64:
    """Return the next 64 bits of a stream."""
    word = state[0] + state[1] + state[3]
    state[3] += _U64(1)
    state[0] = state[1] ^ (state[1] >> _U64(11))
    state[1] = state[2] + (state[2] << _U64(3))
    state[2] = ((state[2] << _U64(24)) | (state[2] >> _U64(40))) + word
    return word


@compiled
def uniform(state: Words) -> float:
    """Return the next uniform number in [0, 1), as ``Generator.random`` does."""
    return (next_uint64(state) >> _U64(11)) * (1.0 / 9007199254740992.0)


@inlined
def mixed_uniform(key: int, row: int, stage: int, task: int) -> float:
    """Return the uniform number in [0, 1) of a task, whatever was drawn before."""
    # The finaliser of MurmurHash3, as SplitMix64 uses it (Steele et al., OOPSLA 2014), over the
    # request's row, the stage and how many tasks of the request it has done before.
    word = _U64(key) + _U64(row + 1) * _GOLDEN
    word = _finalised(word) + _U64(stage * 65536 + task + 1) * _GOLDEN
    return (_finalised(word) >> _U64(11)) * (1.0 / 9007199254740992.0)


@inlined
def _finalised(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> _U64(27))) * _U64(0x94D049BB133111EB)
    return word ^ (word >> _U64(31))


@inlined
def normal(state: Words) -> float:
    """Return a standard normal number, by Box and Muller's transform of two uniforms."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(state)))
    return radius * math.cos(2.0 * math.pi * uniform(state))


@compiled
def seed_stream(state: Words, seed: int, purpose: np.uint64) -> None:
    """Start the (4,) stream of one purpose; a seed is at least 0 and below 2**63."""
    _mix_pool(state, _U64(seed), purpose)
    hash_const = _INIT_B
    first, hash_const = _generated(state[0], state[1], hash_const)
    second, hash_const = _generated(state[2], state[3], hash_const)
    third, hash_const = _generated(state[0], state[1], hash_const)
    state[0], state[1], state[2], state[3] = first, second, third, _U64(1)
    for _ in range(12):
        next_uint64(state)


@inlined
def _mix_pool(pool: Words, seed: np.uint64, purpose: np.uint64) -> None:
    """Mix the seed's 32-bit words and the purpose into a (4,) pool of 32-bit words."""
    high = seed >> _U64(32)
    pool[0] = seed & _MASK
    pool[1] = high if high else purpose
    pool[2] = purpose if high else _U64(0)
    pool[3] = _U64(0)
    hash_const = _INIT_A
    for i in range(4):
        pool[i], hash_const = _hashed(pool[i], hash_const, _MULT_A)
    for source in range(4):
        for target in range(4):
            if source != target:
                value, hash_const = _hashed(pool[source], hash_const, _MULT_A)
                mixed = (_MIX_LEFT * pool[target] - _MIX_RIGHT * value) & _MASK
                pool[target] = mixed ^ (mixed >> _SHIFT)


@compiled
def _generated(low: _U64, high: _U64, hash_const: _U64) -> tuple[_U64, _U64]:
    low, hash_const = _hashed(low, hash_const, _MULT_B)
    high, hash_const = _hashed(high, hash_const, _MULT_B)
    return low | (high << _U64(32)), hash_const


@compiled
def _hashed(value: _U64, hash_const: _U64, factor: _U64) -> tuple[_U64, _U64]:
    value = value ^ hash_const
    hash_const = (hash_const * factor) & _MASK
    value = (value * hash_const) & _MASK
    return value ^ (value >> _SHIFT), hash_const
