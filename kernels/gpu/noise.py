# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The noise stream of shared/noise.py as device functions: four standard normals for each Philox call.

Philox4x32-10 uses 64-bit products, each one machine instruction. The radius and the angle of Box and Muller need no
library call, only short polynomials, because of three facts:

    radius   -log2 u = y - log2(1 + d) with u 2^y = 1 + d, where y is a multiple of 1/16 read off the bits of u, so that
             -0.016 < d < 0.085; close to u = 1, where digits could be lost, y = 0 and d = u - 1 is exact
    angle    with t = 1/2 - v and w = |t| - 1/4:   cos 2 pi v = sin 2 pi w   and   sin 2 pi v = sign(t) cos 2 pi w,
             so that w covers half a turn and both polynomials are in w^2
    scale    sqrt(-2 ln u) = sqrt(2 ln 2) sqrt(-log2 u); the coefficients of the angle's polynomials contain the factor

Fused multiply-adds are explicit and the compiler may add none (`enable_fp_fusion=False`). Therefore the forward kernel,
the backward kernel and every tiling produce the same bits.

Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
"""

import triton
import triton.language as tl

from ..shared.noise import MULTIPLIERS, ROUNDS, UNIFORM_FLOOR, UNIFORM_SCALE, WEYL

_ROUNDS = tl.constexpr(ROUNDS)
_MULTIPLY_0, _MULTIPLY_1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_WEYL_0, _WEYL_1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])
_SCALE, _FLOOR = tl.constexpr(UNIFORM_SCALE), tl.constexpr(UNIFORM_FLOOR)
_SIGN_BIT = tl.constexpr(-(2**31))

_ROUND_TO_16TH = tl.constexpr(1.5 * 2**23 / 16)


@triton.jit
def normal_tile(
    key,  # Philox key, scalar or (ROWS, 1), int64
    first_counter,  # counter of each row's first column, (ROWS, 1), int64
    COLUMNS: tl.constexpr,  # columns of the tile; a multiple of 4
    VECTOR: tl.constexpr,  # neighbouring columns that one thread holds
):
    """Return the normals of a tile, `(ROWS, COLUMNS)`, float32."""
    if VECTOR == 8:
        # A thread needs two counters. Drawing the even and the odd counters apart keeps both in one thread.
        even = first_counter + 2 * tl.arange(0, COLUMNS // 8)[None, :]
        normals = tl.permute(tl.join(_four_normals(key, even), _four_normals(key, even + 1)), (0, 1, 4, 2, 3))
    else:
        normals = _four_normals(key, first_counter + tl.arange(0, COLUMNS // 4)[None, :])
    return tl.reshape(normals, (first_counter.shape[0], COLUMNS))


@triton.jit
def polynomial(x, C: tl.constexpr):  # x: any shape; C: at least two coefficients, the constant term first
    """Return C[0] + C[1] x + C[2] x^2 + ..., by Horner's rule."""
    value = tl.fma(x, C[len(C) - 1], C[len(C) - 2])
    for n in tl.static_range(len(C) - 3, -1, -1):
        value = tl.fma(value, x, C[n])
    return value


@triton.jit
def _four_normals(key, counter):  # scalar or (ROWS, 1), and (ROWS, n); int64
    """Return the four normals of each counter, `(ROWS, n, 2, 2)`, float32."""
    a, b, c, d = _philox(key, counter)
    n0, n1 = _box_muller(a, b)
    n2, n3 = _box_muller(c, d)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3))


@triton.jit
def _philox(key, counter):  # scalar or (ROWS, 1), and (ROWS, n); int64
    """Return the four words of Philox4x32-10 for each 64-bit counter, uint32."""
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = c2
    for _ in tl.static_range(_ROUNDS):
        low, high = c0.to(tl.uint64) * _MULTIPLY_0, c2.to(tl.uint64) * _MULTIPLY_1
        c0, c1 = (high >> 32).to(tl.uint32) ^ c1 ^ k0, high.to(tl.uint32)
        c2, c3 = (low >> 32).to(tl.uint32) ^ c3 ^ k1, low.to(tl.uint32)
        k0, k1 = k0 + _WEYL_0, k1 + _WEYL_1
    return c0, c1, c2, c3


@triton.jit
def _box_muller(radius_word, angle_word):  # any shape, uint32
    """Return r cos 2 pi v and r sin 2 pi v. The minimax polynomials err by 4e-9 r (sine) and 5e-8 r (cosine)."""
    r = _radius(_fold(radius_word) * _SCALE)
    t = tl.fma(_fold(angle_word), -_SCALE, 0.5)
    w = tl.abs(t) - 0.25
    sine_over_w = polynomial(w * w, (7.397885203834, -48.67608277669, 96.07802731436, -90.13408297369, 46.57469405942))
    cosine = polynomial(w * w, (1.177409967914, -23.24109831859, 76.45463950794, -100.3628503060, 66.22053746717))
    unsigned = (r * cosine).to(tl.int32, bitcast=True)
    signed = unsigned ^ (t.to(tl.int32, bitcast=True) & _SIGN_BIT)
    return (r * w) * sine_over_w, signed.to(tl.float32, bitcast=True)


@triton.jit
def _fold(word):  # any shape, 32 bits
    """Read a word as int32, turn a negative x into -x - 1, and return the result as float32."""
    x = word.to(tl.int32, bitcast=True)
    return (x ^ (x >> 31)).to(tl.float32)


@triton.jit
def _radius(u):  # uniform in [0, 1), any shape, float32
    """Return sqrt(-log2 max(u, 1e-7)). The bits of a float, read as an integer, are about 2^23 (log2 u + 127)."""
    u = tl.maximum(u, _FLOOR)
    bits = u.to(tl.int32, bitcast=True).to(tl.float32)
    y = _ROUND_TO_16TH - tl.fma(bits, 2.0**-23, _ROUND_TO_16TH - 127)
    d = tl.fma(u, tl.exp2(y), -1.0)
    logarithm_over_d = polynomial(d, (-1.4426952380704, 0.7213505049887, -0.4797309080665, 0.3242956927874))
    return tl.sqrt(tl.fma(d, logarithm_over_d, y))
