# ruff: noqa: ANN001, ANN002, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Functions of one number that LLVM turns into vector instructions: bit casts, exp, log, and the series of expm1.

A call into a mathematical library would keep a loop scalar. Therefore exp and log of float32 are polynomials:

    exp(x) = 2^n (1 + r + r^2 P(r)),    n = round(x log2 e),    r = x - n log 2,    |r| <= log(2) / 2
    log(x) = e log 2 + d + d^2 Q(d),    x = 2^e (1 + d),    sqrt(1/2) <= 1 + d < sqrt(2)

P errs by 6e-8, and d Q by 4e-9. In float64 exp has the Taylor series, and log is that of the mathematical library. NaN
and infinities come out as from `math`.
"""

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

LOG2_E = 1 / math.log(2)
# Fused multiply-adds, but no other order of operations; NaN and infinities stay, and a division by 0 gives them.
JIT = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}
INLINED = {"forceinline": True, **JIT}

# Their sum is log 2, and the product of the first with n is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LN2_HIGH_64, _LN2_LOW_64 = 0.693145751953125, 1.42860682030941723212e-6
_TAYLOR = tuple(1 / math.factorial(n) for n in range(2, 15))


def round_to_float32(*coefficients):
    """Return the coefficients of a polynomial in float32."""
    return tuple(map(np.float32, coefficients))


_EXP = round_to_float32(0.5000000027089, 0.1666657664635, 0.04166637412972, 0.00836323507362, 0.001394121424618)
_LOG = round_to_float32(
    *(-0.4999998913109, 0.3333330815916, -0.2500152499284, 0.200030262515, -0.1661107791563, 0.1416321187851),
    *(-0.1320920136788, 0.1300671383436, -0.07824624607108),
)
_EXPM1 = round_to_float32(
    *(0.500000000565, 0.166666667277, 0.0416665541164, 0.00833329423183, 0.00139223556857, 0.000199019919192)
)


@intrinsic
def float_bits(context, x):
    """Return the bits of a float as a signed integer of the same size."""
    integer = {types.float32: types.int32, types.float64: types.int64}[x]

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(integer.bitwidth))

    return integer(x), generate


@intrinsic
def bits_float(context, x):
    """Return the float that has the bits of a signed integer of the same size."""
    number = {types.int32: types.float32, types.int64: types.float64}[x]

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType() if number == types.float32 else ir.DoubleType())

    return number(x), generate


@intrinsic
def use_widest_vectors(context):
    """Let LLVM use vectors of 512 bits in the function that calls this, where the processor has them.

    By default it keeps to 256 bits, since a few wide instructions in other code lower the clock of older processors.
    """

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add refuses it
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _pointer(context, address, like):
    """Return an address as a pointer to numbers of the type of `like`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@numba.njit(forceinline=True, error_model="numpy")
def array_at(address, size, like):
    """Return the array of `size` numbers of the type of `like` that begins at an address."""
    return numba.carray(_pointer(address, like), (size,))


@numba.njit(**INLINED)
def polynomial(x, coefficients):
    """Return c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule."""
    value = coefficients[-1]
    for n in range(len(coefficients) - 2, -1, -1):
        value = value * x + coefficients[n]
    return value


@numba.njit(**INLINED)
def _exp_32(x):
    y = min(max(x, np.float32(-104)), np.float32(89))
    n = np.floor(y * np.float32(LOG2_E) + np.float32(0.5))
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    value = polynomial(r, _EXP) * r * r + r + np.float32(1)
    half = np.int32(n) >> 1  # 2^n may be outside the range of float32 where the result is inside
    rest = np.int32(n) - half
    value *= bits_float(np.int32((half + 127) << 23))  # numba computes int32 with int32 in int64
    value *= bits_float(np.int32((rest + 127) << 23))
    return value if x == x else x  # min and max lose NaN


@numba.njit(**INLINED)
def _exp_64(x):
    y = min(max(x, -746.0), 710.0)
    n = np.floor(y * LOG2_E + 0.5)
    r = (y - n * _LN2_HIGH_64) - n * _LN2_LOW_64
    value = polynomial(r, _TAYLOR) * r * r + r + 1.0
    half = np.int64(n) >> 1
    rest = np.int64(n) - half
    value *= bits_float((half + 1023) << 52)
    value *= bits_float((rest + 1023) << 52)
    return value if x == x else x


def exp(x):
    """Return e^x."""
    raise NotImplementedError("for compiled code")


@overload(exp, jit_options=INLINED)
def _exp(x):
    return (lambda x: _exp_32(x)) if x == types.float32 else (lambda x: _exp_64(x))


@numba.njit(**INLINED)
def log_normal_range(x):
    """Return log x of a float32 that is neither subnormal, nor negative, nor infinite, nor NaN."""
    bits = np.int32(float_bits(x) - 0x3F3504F3)  # the bits of sqrt(1/2)
    d = bits_float(np.int32((bits & 0x007FFFFF) + 0x3F3504F3)) - np.float32(1)
    e = np.float32(np.int32(bits >> 23))
    return e * _LN2_HIGH + (d + (polynomial(d, _LOG) * d * d + e * _LN2_LOW))


@numba.njit(**INLINED)
def _log_32(x):
    tiny = x < np.float32(1.17549435e-38)
    value = log_normal_range(x * np.float32(8388608.0) if tiny else x)
    value -= np.float32(15.942385) if tiny else np.float32(0)
    value = value if x < np.float32(np.inf) else x  # infinity and NaN as they are
    value = value if x != 0 else np.float32(-np.inf)
    return value if not x < 0 else np.float32(np.nan)


def log(x):
    """Return the natural logarithm."""
    raise NotImplementedError("for compiled code")


@overload(log, jit_options=INLINED)
def _log(x):
    return (lambda x: _log_32(x)) if x == types.float32 else (lambda x: math.log(x))


def expm1_series(x):
    """Return (expm1(x) - x) / x^2 for |x| < 0.3."""
    raise NotImplementedError("for compiled code")


@overload(expm1_series, jit_options=INLINED)
def _expm1_series(x):
    return (lambda x: polynomial(x, _EXPM1)) if x == types.float32 else (lambda x: polynomial(x, _TAYLOR))
