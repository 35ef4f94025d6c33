# ruff: noqa: ANN001, ANN002, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""A small matrix product whose sums stay in vector registers: matrices of any size are made of its tiles.

Loops over arrays leave the sums in memory, where each addition waits for the one before. Measured with float32 and
AVX-512: 200 Gflop/s a core, as the matrix product of torch.
"""

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import repeat

# The sums of a tile take half of the registers: 16 of 32 with AVX-512, 8 of 16 with AVX2.
_WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
VECTOR_BYTES, ROWS = (64, 8) if _WIDE else (32, 4)
VECTORS = 2


@numba.njit(forceinline=True, error_model="numpy")
def columns_per_tile(numbers):
    """Return how many numbers of the type of an array are in a row of a tile."""
    return VECTORS * VECTOR_BYTES // numbers.itemsize


@intrinsic(prefer_literal=True)
def add_product(
    context,
    vectors,  # a literal: vectors of columns, at most VECTORS
    out,  # the sums: element (r, c) is at out_start + r * out_row + c
    out_start,
    out_row,
    left,  # element (r, d) is at left_start + r * left_row + d * left_step
    left_start,
    left_row,
    left_step,
    right,  # element (d, c) is at right_start + d * right_step + c
    right_start,
    right_step,
    depth,
):
    """Add sum_d left(r, d) right(d, c) to out(r, c), for ROWS rows and a few vectors of columns.

    The sum starts at zero, because a long one loses digits: the caller makes it of several with less depth.
    """
    width = vectors.literal_value

    def generate(context, builder, signature, arguments):
        _, _, out_start, out_row, _, left_start, left_row, left_step, _, right_start, right_step, depth = arguments
        number = context.get_value_type(out.dtype)
        number_bytes = context.get_abi_sizeof(number)
        vector = ir.VectorType(number, VECTOR_BYTES // number_bytes)

        def index(value):
            return ir.Constant(depth.type, value)

        def data(place):
            return context.make_array(signature.args[place])(context, builder, arguments[place]).data

        def at(pointer, start, *steps):
            for count, stride in steps:
                start = builder.add(start, builder.mul(count, stride))
            return builder.gep(pointer, [start])

        def vectors_at(pointer):
            places = (builder.gep(pointer, [index(v * vector.count)]) for v in range(width))
            return [builder.bitcast(place, vector.as_pointer()) for place in places]

        out_data, left_data, right_data = data(1), data(4), data(8)
        places = [vectors_at(at(out_data, out_start, (index(r), out_row))) for r in range(ROWS)]
        zero = ir.Constant(vector, [0.0] * vector.count)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in row] for row in places]
        with cgutils.for_range(builder, depth) as loop:
            right_places = vectors_at(at(right_data, right_start, (loop.index, right_step)))
            columns = [builder.load(place, align=number_bytes) for place in right_places]
            for r in range(ROWS):
                place = at(left_data, left_start, (loop.index, left_step), (index(r), left_row))
                factor = repeat(builder, builder.load(place), vector)
                for total, column in zip(sums[r], columns, strict=True):
                    product = builder.fmul(factor, column, flags=("contract",))
                    builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)
        for totals, row in zip(sums, places, strict=True):
            for total, place in zip(totals, row, strict=True):
                result = builder.fadd(builder.load(place, align=number_bytes), builder.load(total))
                builder.store(result, place, align=number_bytes)
        return context.get_dummy_value()

    places = out, out_start, out_row, left, left_start, left_row, left_step, right, right_start, right_step, depth
    return numba.void(vectors, *places), generate
