# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Vectors of 64 bytes in compiled code: 16 float32 or 8 float64, which LLVM splits as the machine needs.

LLVM turns a loop into vector instructions by itself, unless the loop contains a sum, whose order it may not change.
With these vectors the order is written down: lane by lane, then the lanes in pairs. The bits of a result therefore do
not depend on the machine or on the variant of the kernel.
"""

import math
import operator

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable

from .math import INLINED, round_to_float32

BYTES = 64


class Vector(types.Type):
    """The type of a vector of float32 or float64."""

    def __init__(self, number) -> None:
        self.number = number
        super().__init__(name=f"Vector({number})")

    @property
    def lanes(self):
        return BYTES * 8 // self.number.bitwidth


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector) -> None:
        number = manager.lookup(vector.number).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.lanes))


def _address(context, builder, array_type, array, index):
    """Return the address of the vector that begins at an element of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = context.get_value_type(Vector(array_type.dtype))
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(context, array, index):
    """Return the vector that begins at an element of a contiguous array."""

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, array, *arguments)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(context, array, index, vector):
    """Write a vector to the elements of a contiguous array that begin at one."""

    def generate(context, builder, signature, arguments):
        values, first, value = arguments
        builder.store(value, _address(context, builder, array, values, first), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def fill(context, number):
    """Return a vector with one number in every lane."""
    vector = Vector(number)

    def generate(context, builder, signature, arguments):
        return repeat(builder, arguments[0], context.get_value_type(vector))

    return vector(number), generate


def repeat(builder, number, vector):
    """Return a vector of a type of LLVM with one number in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, one, undefined, [0] * vector.count)


def _shuffle(builder, one, other, lanes):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(one, other, mask)


def _define(build):
    """Return an operation on two vectors: `build(builder, one, other)` generates its code."""

    @intrinsic
    def operation(context, one, other):
        def generate(context, builder, signature, arguments):
            return build(builder, *arguments)

        return one(one, other), generate

    return operation


def _build_larger(builder, one, other):
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def _build_smaller(builder, one, other):
    return builder.select(builder.fcmp_ordered("<", one, other), one, other)


larger = _define(_build_larger)  # in each lane; the second one if one of them is NaN
smaller = _define(_build_smaller)


def _define_operator(symbol, instruction):
    """Let an operator of Python, between two vectors, be an instruction."""

    @type_callable(symbol)
    def infer(context):
        return lambda one, other: one if isinstance(one, Vector) and one == other else None

    @lower_builtin(symbol, Vector, Vector)
    def generate(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")


def _define_reduction(build):
    """Return an operation that combines all lanes to a number, in pairs: first half with second, and so on."""

    @intrinsic
    def reduction(context, vector):
        def generate(context, builder, signature, arguments):
            (value,), lanes = arguments, vector.lanes
            while lanes > 1:
                lanes //= 2
                low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
                value = build(builder, _shuffle(builder, value, value, low), _shuffle(builder, value, value, high))
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return vector.number(vector), generate

    return reduction


sum_lanes = _define_reduction(lambda builder, one, other: builder.fadd(one, other))
largest_lane = _define_reduction(_build_larger)


@intrinsic
def _shift_bits(context, vector, places):
    """Return the floats whose bits are those of a vector shifted to the left."""

    def generate(context, builder, signature, arguments):
        integers = ir.VectorType(ir.IntType(vector.number.bitwidth), vector.lanes)
        bits = builder.bitcast(arguments[0], integers)
        shift = ir.Constant(integers, [places.literal_value] * vector.lanes)
        return builder.bitcast(builder.shl(bits, shift), arguments[0].type)

    if not isinstance(places, types.IntegerLiteral):
        return None
    return vector(vector, places), generate


# 2^f = 1 + f P(f) for |f| <= 1/2. In float32 it errs by 9e-8.
_EXP2_32 = round_to_float32(0.6931469775985, 0.2402224208429, 0.05550733743742, 0.009671512710404, 0.001326472726229)
_EXP2_64 = tuple(math.log(2) ** n / math.factorial(n) for n in range(1, 14))

# A float from 1.5 * 2^23 on has steps of 1. Therefore the sum of it and x rounds x, and its last bits are those of the
# exponent of 2^x.
_STEPS_32, _STEPS_64 = np.float32(1.5 * 2**23 + 127), 1.5 * 2**52 + 1023


@numba.njit(**INLINED)
def _polynomial(x, coefficients):
    value = fill(coefficients[-1])
    for n in range(len(coefficients) - 2, -1, -1):
        value = value * x + fill(coefficients[n])
    return value


@numba.njit(**INLINED)
def _exp2_32(x):
    y = smaller(fill(np.float32(128)), larger(fill(np.float32(-127)), x))
    steps = fill(_STEPS_32)
    rounded = y + steps
    f = y - (rounded - steps)
    return (_polynomial(f, _EXP2_32) * f + fill(np.float32(1))) * _shift_bits(rounded, 23)


@numba.njit(**INLINED)
def _exp2_64(x):
    y = smaller(fill(1024.0), larger(fill(-1023.0), x))
    steps = fill(_STEPS_64)
    rounded = y + steps
    f = y - (rounded - steps)
    return (_polynomial(f, _EXP2_64) * f + fill(1.0)) * _shift_bits(rounded, 52)


def exp2(x):
    """Return 2^x in each lane: 0 instead of a subnormal number, and NaN for NaN."""
    raise NotImplementedError("for compiled code")


@overload(exp2, jit_options=INLINED)
def _exp2(x):
    return (lambda x: _exp2_32(x)) if x.number == types.float32 else (lambda x: _exp2_64(x))


def lanes_of(number):
    """Return how many numbers of this type a vector has."""
    raise NotImplementedError("for compiled code")


@overload(lanes_of, jit_options=INLINED)
def _lanes_of(number):
    lanes = Vector(number).lanes
    return lambda number: lanes


def lowest(number):
    """Return the lowest finite number of a type."""
    raise NotImplementedError("for compiled code")


@overload(lowest, jit_options=INLINED)
def _lowest(number):
    value = np.finfo(np.float32 if number == types.float32 else np.float64).min
    return lambda number: value
