"""Philox4x32-10 and Box-Muller in NumPy: the oracle for the noise of every backend."""

import numpy as np

WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85


def rounds(x, key):
    """Turn four counter words, each uint64 below 2^32, into four words by the ten rounds of the paper."""
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = MULTIPLIERS[0] * x[0], MULTIPLIERS[1] * x[2]
        x = [(p1 >> HALF) ^ x[1] ^ np.uint64(k0), p1 & WORD, (p0 >> HALF) ^ x[3] ^ np.uint64(k1), p0 & WORD]
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return x


def philox(counters, key):
    """Return the four words `(n, 4)`, uint32, of 64-bit counters `(n,)` and one 64-bit key."""
    counters = np.asarray(counters, np.uint64)
    zero = np.zeros_like(counters)
    return np.stack(rounds([counters & WORD, counters >> HALF, zero, zero], key), 1).astype(np.uint32)


def uniforms(words):
    """Return float32 uniforms of uint32 words: read as int32, a negative x becomes -x - 1, times about 2^-31."""
    x = words.view(np.int32)
    return np.where(x < 0, ~x, x).astype(np.float32) * np.float32(4.6566127342e-10)


def box_muller(words):
    """Return the normals `(n, 4)` of words `(n, 4)`, in float64 from float32 uniforms."""
    u = uniforms(words).astype(np.float64)
    radius = np.sqrt(-2 * np.log(np.maximum(u[:, 0::2], float(np.float32(1e-7)))))
    angle = 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(-1, 4)
