# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The noise stream of shared/noise.py in compiled code: four standard normals for each Philox call.

With t = 1/2 - v and w = |t| - 1/4:   cos 2 pi v = sin 2 pi w   and   sin 2 pi v = sign(t) cos 2 pi w, so that w covers
half a turn and both polynomials are in w^2. They err by 4e-9 (sine) and 4e-8 (cosine).

Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
"""

import numba
import numpy as np

from ..shared.noise import MULTIPLIERS, ROUNDS, UNIFORM_FLOOR, UNIFORM_SCALE, WEYL
from .math import INLINED, JIT, log_normal_range, polynomial, round_to_float32, use_widest_vectors

_MULTIPLY_0, _MULTIPLY_1 = map(np.uint64, MULTIPLIERS)
_WEYL_0, _WEYL_1 = map(np.uint32, WEYL)
_SCALE, _FLOOR = np.float32(UNIFORM_SCALE), np.float32(UNIFORM_FLOOR)
_HALF, _QUARTER = np.float32(0.5), np.float32(0.25)
_SIN = round_to_float32(6.283185280368, -41.34168072263, 81.60248510921, -76.58139635804, 39.76161658082)
_COS = round_to_float32(0.9999999534666, -19.73917143464, 64.93459062188, -85.24033019713, 56.2423794596)


@numba.njit(forceinline=True, error_model="numpy")
def philox(counter, key):
    """Return the four words of Philox4x32-10, uint32, for a 64-bit counter and a 64-bit key."""
    c0, c1 = np.uint32(counter), np.uint32(counter >> np.uint64(32))
    c2, c3 = np.uint32(0), np.uint32(0)
    k0, k1 = np.uint32(key), np.uint32(key >> np.uint64(32))
    for _ in range(ROUNDS):
        low, high = np.uint64(c0) * _MULTIPLY_0, np.uint64(c2) * _MULTIPLY_1
        c0, c1 = np.uint32(np.uint32(high >> np.uint64(32)) ^ c1 ^ k0), np.uint32(high)
        c2, c3 = np.uint32(np.uint32(low >> np.uint64(32)) ^ c3 ^ k1), np.uint32(low)
        k0, k1 = np.uint32(k0 + _WEYL_0), np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@numba.njit(**INLINED)
def _uniform(word):
    """Read a word as int32, turn a negative x into -x - 1, and return the result in [0, 1)."""
    x = np.int32(word)
    return np.float32(np.int32(x ^ np.int32(x >> 31))) * _SCALE


@numba.njit(**INLINED)
def _box_muller(radius_word, angle_word):
    """Return r cos 2 pi v and r sin 2 pi v with r = sqrt(-2 log max(u, 1e-7))."""
    r = np.sqrt(np.float32(-2) * log_normal_range(max(_uniform(radius_word), _FLOOR)))
    t = _HALF - _uniform(angle_word)
    w = abs(t) - _QUARTER
    cosine = r * polynomial(w * w, _COS)
    return r * w * polynomial(w * w, _SIN), cosine if t >= 0 else -cosine


@numba.njit(**JIT)
def fill_normals(normals, counters, first_counter, key):
    """Write the normals of `counters` counters, four for each: `normals` has at least `4 * counters` float32."""
    use_widest_vectors()
    for j in range(counters):
        a, b, c, d = philox(np.uint64(first_counter + j), np.uint64(key))
        normals[4 * j], normals[4 * j + 1] = _box_muller(a, b)
        normals[4 * j + 2], normals[4 * j + 3] = _box_muller(c, d)
