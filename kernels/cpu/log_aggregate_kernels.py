# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The aggregated posterior, jointly and each marginal, and its gradients, in tiles of codes by chunks of posteriors.

All logarithms are in base 2, with v, s, peak and h as in shared/log2_aggregate.py. The lanes of a vector are
posteriors. Therefore sums over posteriors are sums of vectors, and a code is one number for all lanes.

    forward    A task owns a tile of codes, and walks a strip of the chunks. A sum of powers of two is relative to the
               largest exponent so far. Then the strips are added up.
    backward   A task owns a group of tiles, and walks a strip of the chunks. It writes its shares of dz, dmu and
               dlogvar. Then the shares are added up.

The numbers of strips and groups depend on the sizes alone. A chunk has a sum of its own in `number`, the dtype of sums:
float32, or float64 for float64. Sums of chunks and of tiles are in float64. The lanes behind the last posterior repeat
it with a density of 0. In the comments, a matrix is a tuple (address, row stride, column stride), and
sizes = (codes, posteriors, columns, posteriors of a chunk).
"""

import math

import numba
import numpy as np

from .math import INLINED, JIT, LOG2_E, array_at, bits_float, exp, float_bits, log
from .threads import compile_kernel
from .vectors import exp2, fill, lanes_of, larger, largest_lane, load, lowest, store, sum_lanes

CODES = 16  # of a tile
ABSENT, SINGLE, WIDE = range(3)  # dtypes of weights: none, float32, float64
ADDENDS = 16  # columns whose sum is in `number`, so that errors of a joint do not grow with the columns

_LN_2, _LOG_2_PI = math.log(2), math.log(2 * math.pi)
_DOUBLE, _SINGLE = 0.0, np.float32(0)


@numba.njit(forceinline=True, error_model="numpy")
def read(matrix, row, column, like):
    """Return an element of a matrix, of the type of `like`."""
    return array_at(matrix[0], 1, like)[row * matrix[1] + column * matrix[2]]


@numba.njit(forceinline=True, error_model="numpy")
def span(chunk, sizes, zero):
    """Return the number of posteriors in a chunk, and the same rounded up to whole vectors."""
    count = min(sizes[3], sizes[1] - chunk * sizes[3])
    lanes = lanes_of(zero)
    return count, -(-count // lanes) * lanes


@numba.njit(**JIT)
def prepare(chunk, mu, logvar, prepared, sizes, zero):
    """Write mu, s and peak of a chunk in three rows for each column, computed in float64 and then rounded."""
    count, padded = span(chunk, sizes, zero)
    columns, length = sizes[2], sizes[3]
    least = -1.56 * math.log(-np.float64(lowest(zero)))  # as clamp_logvar has it
    exponents, powers = np.zeros(length), np.empty(length)
    for k in range(columns):
        first = (chunk * columns + k) * 3 * length
        for i in range(padded):
            n = chunk * length + min(i, count - 1)
            x = np.float64(read(logvar, n, k, zero))
            exponents[i] = -0.5 * LOG2_E * (least if x < least and x > -np.inf else x)
            prepared[first + i] = read(mu, n, k, zero)
            prepared[first + 2 * length + i] = -0.5 * LOG2_E * (x + _LOG_2_PI) if i < count else -np.inf
        for i in range(0, padded, lanes_of(_DOUBLE)):
            store(powers, i, exp2(load(exponents, i)))
        for i in range(padded):
            prepared[first + length + i] = math.sqrt(LOG2_E / 2) * powers[i]


@numba.njit(**JIT)
def read_weights(weights, tile, chunk, sizes, log_weights, log_joints, zero):
    """Write base-2 log weights of a tile by a chunk, once to add to each marginal and once to begin each joint with."""
    count, padded = span(chunk, sizes, zero)
    length = sizes[3]
    for r in range(min(CODES, sizes[0] - tile * CODES)):
        for i in range(padded):
            log_weights[r * length + i] = 0
        for i in range(count if weights[3] != ABSENT else 0):
            b, n = tile * CODES + r, chunk * length + i
            wide = weights[3] == WIDE
            weight = read(weights, b, n, _DOUBLE) if wide else np.float64(read(weights, b, n, _SINGLE))
            log_weights[r * length + i] = LOG2_E * weight
        for i in range(padded):
            log_joints[r * length + i] = log_weights[r * length + i]


@numba.njit(**INLINED)
def standardise(z, prepared, first, length):
    """Return v and log2 N of a vector of posteriors for one element of a code."""
    v = (z - load(prepared, first)) * load(prepared, first + length)
    return v, load(prepared, first + 2 * length) - v * v


@numba.njit(**JIT)
def carry(log_joints, totals, done, columns):
    """Move sums over the last columns to totals in float64, and the totals back after the last column."""
    if columns <= ADDENDS or (done % ADDENDS != 0 and done != columns):
        return
    if done <= ADDENDS:
        totals[:] = 0
    for i in range(log_joints.size):
        totals[i] += log_joints[i]
        log_joints[i] = 0
    if done == columns:
        for i in range(log_joints.size):
            log_joints[i] = totals[i]


@numba.njit(**JIT)
def _add_powers(exponents, first, padded, largest, sums, place, zero):
    """Add powers of two, whose largest exponent is given, to the sum at a place: (largest exponent, relative sum)."""
    if largest > sums[place]:
        if sums[place + 1] != 0:
            sums[place + 1] *= exp(type(zero)(_LN_2 * (sums[place] - largest)))
        sums[place] = largest
    reference = fill(type(zero)(0 if sums[place] == np.inf else sums[place]))
    total = fill(zero)
    for i in range(0, padded, lanes_of(zero)):
        total = total + exp2(load(exponents, first + i) - reference)
    sums[place + 1] += sum_lanes(total)


@numba.njit(**JIT)
def _sum_strip(tile, strip, strip_length, z, weights, prepared, sums, sizes, zero):
    """Write the sums of a tile over a strip, with the sum of the joint behind those of the marginals."""
    codes, posteriors, columns, length = sizes
    rows, weighted = min(CODES, codes - tile * CODES), weights[3] != ABSENT
    log_weights, log_joints = np.zeros(CODES * length, type(zero)), np.zeros(CODES * length, type(zero))
    log_marginals, totals = np.empty(length, type(zero)), np.empty(CODES * length)
    first_place = (strip * codes + tile * CODES) * (columns + 1) * 2
    for j in range(rows * (columns + 1)):
        sums[first_place + 2 * j], sums[first_place + 2 * j + 1] = lowest(zero), 0.0
    for chunk in range(strip * strip_length, min((strip + 1) * strip_length, -(-posteriors // length))):
        _, padded = span(chunk, sizes, zero)
        read_weights(weights, tile, chunk, sizes, log_weights, log_joints, zero)
        for k in range(columns):
            first = (chunk * columns + k) * 3 * length
            for r in range(rows):
                z_bk, largest = fill(read(z, tile * CODES + r, k, zero)), fill(type(zero)(lowest(zero)))
                for i in range(0, padded, lanes_of(zero)):
                    _, log_q = standardise(z_bk, prepared, first + i, length)
                    store(log_joints, r * length + i, load(log_joints, r * length + i) + log_q)
                    if weighted:
                        log_q = log_q + load(log_weights, r * length + i)
                    store(log_marginals, i, log_q)
                    largest = larger(log_q, largest)
                place = first_place + 2 * (r * (columns + 1) + k)
                _add_powers(log_marginals, 0, padded, largest_lane(largest), sums, place, zero)
            carry(log_joints, totals, k + 1, columns)
        for r in range(rows):
            largest = fill(type(zero)(lowest(zero)))
            for i in range(0, padded, lanes_of(zero)):
                largest = larger(load(log_joints, r * length + i), largest)
            place = first_place + 2 * (r * (columns + 1) + columns)
            _add_powers(log_joints, r * length, padded, largest_lane(largest), sums, place, zero)


@numba.njit(**INLINED)
def _log_of_sum(total, zero):
    """Return log of a float64: the multiple of log 2 in float64, and the rest, which is below 1, in `number`."""
    if not 1e-300 < total < np.inf:
        return math.log(total)
    bits = float_bits(total)
    mantissa = bits_float((bits & 0xFFFFFFFFFFFFF) | (1023 << 52))
    return _LN_2 * ((bits >> 52) - 1023) + np.float64(log(type(zero)(mantissa)))


@numba.njit(**JIT)
def _add_strips(tile, strips, sums, log_count, results, logarithms, sizes, zero):
    """Write the results of a tile in nats, and their base-2 logarithms with the logarithm of the count."""
    codes, _, columns, _ = sizes
    for b in range(tile * CODES, min((tile + 1) * CODES, codes)):
        for k in range(columns + 1):
            exponent, total = sums[2 * (b * (columns + 1) + k)], sums[2 * (b * (columns + 1) + k) + 1]
            for strip in range(1, strips):
                place = 2 * ((strip * codes + b) * (columns + 1) + k)
                rise = _LN_2 * (sums[place] - exponent) if sums[place] != exponent else 0.0
                shrunk = exp(type(zero)(-abs(rise)))
                total = total * shrunk + sums[place + 1] if rise > 0 else total + sums[place + 1] * shrunk
                exponent = max(exponent, sums[place])
            logarithm = _log_of_sum(total, zero)
            nats = _LN_2 * exponent + logarithm - log_count
            if k == columns:
                results[0][b], logarithms[0][b] = nats, exponent + LOG2_E * logarithm
            else:
                results[1][b * columns + k], logarithms[1][b * columns + k] = nats, exponent + LOG2_E * logarithm


@compile_kernel
def forward(
    z,  # (codes, columns) of number
    mu,  # (posteriors, columns) of number
    logvar,  # (posteriors, columns) of number
    weights,  # natural log weights, (codes, posteriors), and a number for their dtype: WIDE, SINGLE or ABSENT
    prepared,  # scratch: mu, s and peak, (chunks, columns, 3, posteriors of a chunk) of number
    sums,  # scratch: exponents and relative sums, (strips, codes, columns + 1, 2) of float64
    results,  # written: joint (codes,) and marginals (codes, columns) of number, in nats
    logarithms,  # written: the same of float64, in base 2 and for weights of 1 without weights
    sizes,  # codes, posteriors, columns, posteriors of a chunk
    strip_length,  # chunks of a strip
    zero,  # of number
):
    """Write the joints and the marginals."""
    codes, posteriors, columns, length = sizes
    chunks, tiles = -(-posteriors // length), -(-codes // CODES)
    strips = -(-chunks // strip_length)
    prepared = array_at(prepared, chunks * columns * 3 * length, zero)
    sums = array_at(sums, strips * codes * (columns + 1) * 2, _DOUBLE)
    results = array_at(results[0], codes, zero), array_at(results[1], codes * columns, zero)
    logarithms = array_at(logarithms[0], codes, _DOUBLE), array_at(logarithms[1], codes * columns, _DOUBLE)
    log_count = math.log(posteriors) if weights[3] == ABSENT else 0.0
    for chunk in numba.prange(chunks):
        prepare(chunk, mu, logvar, prepared, sizes, zero)
    for task in numba.prange(tiles * strips):
        _sum_strip(task // strips, task % strips, strip_length, z, weights, prepared, sums, sizes, zero)
    for tile in numba.prange(tiles):
        _add_strips(tile, strips, sums, log_count, results, logarithms, sizes, zero)
