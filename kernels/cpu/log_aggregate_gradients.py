# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The gradients of the aggregated posterior, as numba kernels: the backward pass to log_aggregate_kernels.py.

A task owns a group of tiles of codes, and walks a strip of the chunks of posteriors. It writes its shares of dz, dmu
and dlogvar. Then the shares are added up. The symbols and the comments are as in log_aggregate_kernels.py.
"""

import math

import numba
import numpy as np

from .log_aggregate_kernels import CODES, carry, prepare, read, read_weights, span, standardise
from .math import JIT, LOG2_E, array_at
from .threads import compile_kernel
from .vectors import exp2, fill, lanes_of, load, store, sum_lanes

_LN_2 = math.log(2)
_DOUBLE = 0.0


@numba.njit(**JIT)
def _weigh_joints(tile, chunk, z, upstream, prepared, log_joints, totals, sizes, zero):
    """Turn the weights of joints of a tile by a chunk into the gradient of the sum over k of log2 N."""
    codes, _, columns, length = sizes
    _, padded = span(chunk, sizes, zero)
    rows = min(CODES, codes - tile * CODES)
    for k in range(columns):
        first = (chunk * columns + k) * 3 * length
        for r in range(rows):
            z_bk = fill(read(z, tile * CODES + r, k, zero))
            for i in range(0, padded, lanes_of(zero)):
                _, log_q = standardise(z_bk, prepared, first + i, length)
                store(log_joints, r * length + i, load(log_joints, r * length + i) + log_q)
        carry(log_joints, totals, k + 1, columns)
    for r in range(rows):
        joint = read(upstream[2], tile * CODES + r, 0, _DOUBLE)
        high = type(zero)(joint)
        rest = type(zero)(joint - high if abs(high) < np.inf else 0)
        gradient = fill(read(upstream[0], tile * CODES + r, 0, zero))
        for i in range(r * length, r * length + padded, lanes_of(zero)):
            store(log_joints, i, gradient * exp2((load(log_joints, i) - fill(high)) - fill(rest)))


@numba.njit(**JIT)
def _add_gradients(tile, chunk, z, upstream, wanted, prepared, log_weights, h_joints, dz, shares, sizes, zero):
    """Add the gradients of a tile by a chunk to dz, and to the shares in dmu and dlogvar."""
    codes, _, columns, length = sizes
    _, padded = span(chunk, sizes, zero)
    _, with_marginals, weighted = wanted
    dmu, dlogvar = np.empty(length, type(zero)), np.empty(length, type(zero))
    half = fill(type(zero)(-0.5 * LOG2_E))
    for k in range(columns):
        first = (chunk * columns + k) * 3 * length
        dmu[:padded], dlogvar[:padded] = 0, 0
        for b in range(tile * CODES, min((tile + 1) * CODES, codes)):
            z_bk, total = fill(read(z, b, k, zero)), fill(zero)
            gradient, marginal = fill(zero), fill(zero)
            if with_marginals:
                gradient = fill(read(upstream[1], b, k, zero))
                marginal = fill(type(zero)(read(upstream[3], b, k, _DOUBLE)))
            row = (b - tile * CODES) * length
            for i in range(0, padded, lanes_of(zero)):
                v, log_q = standardise(z_bk, prepared, first + i, length)
                h = load(h_joints, row + i)
                if with_marginals:
                    if weighted:
                        log_q = log_q + load(log_weights, row + i)
                    h = gradient * exp2(log_q - marginal) + h
                hv = h * v
                total = hv * load(prepared, first + length + i) + total
                store(dmu, i, load(dmu, i) + hv)
                store(dlogvar, i, hv * v + (half * h + load(dlogvar, i)))
            dz[b * columns + k] += sum_lanes(total)
        for i in range(padded):
            shares[2 * k * length + i] += dmu[i]
            shares[(2 * k + 1) * length + i] += dlogvar[i]


@numba.njit(**JIT)
def _walk_strip(tiles, chunks, z, weights, upstream, wanted, prepared, dz, shares, sizes, zero):
    """Write the shares of tiles from one to another, by chunks from one to another, in dz, dmu and dlogvar."""
    codes, _, columns, length = sizes
    with_joint, _, weighted = wanted
    log_weights, h_joints = np.zeros(CODES * length, type(zero)), np.zeros(CODES * length, type(zero))
    totals, size = np.empty(CODES * length), columns * 2 * length
    dz[tiles[0] * CODES * columns : min(tiles[1] * CODES, codes) * columns] = 0
    for chunk in range(chunks[0], chunks[1]):
        chunk_shares = shares[chunk * size : (chunk + 1) * size]
        chunk_shares[:] = 0
        for tile in range(tiles[0], tiles[1]):
            if with_joint or weighted:
                read_weights(weights, tile, chunk, sizes, log_weights, h_joints, zero)
            if with_joint:
                _weigh_joints(tile, chunk, z, upstream, prepared, h_joints, totals, sizes, zero)
            else:
                h_joints[:] = 0
            _add_gradients(
                tile, chunk, z, upstream, wanted, prepared, log_weights, h_joints, dz, chunk_shares, sizes, zero
            )


@numba.njit(**JIT)
def _add_code_shares(tile, strips, shares, dz, sizes):
    """Write dz of a tile."""
    codes, _, columns, _ = sizes
    for j in range(tile * CODES * columns, min((tile + 1) * CODES, codes) * columns):
        total = 0.0
        for strip in range(strips):
            total += shares[strip * codes * columns + j]
        dz[j] = -2 * _LN_2 * total


@numba.njit(**JIT)
def _add_posterior_shares(chunk, groups, shares, prepared, gradients, sizes, zero):
    """Write dmu and dlogvar of a chunk."""
    _, posteriors, columns, length = sizes
    count, _ = span(chunk, sizes, zero)
    chunks = -(-posteriors // length)
    for k in range(columns):
        for i in range(count):
            dmu, dlogvar = 0.0, 0.0
            for group in range(groups):
                first = ((group * chunks + chunk) * columns + k) * 2 * length
                dmu += shares[first + i]
                dlogvar += shares[first + length + i]
            s = np.float64(prepared[(3 * (chunk * columns + k) + 1) * length + i])
            place = (chunk * length + i) * columns + k
            gradients[0][place], gradients[1][place] = 2 * _LN_2 * s * dmu, _LN_2 * dlogvar


@compile_kernel
def backward(
    g_joint,  # gradient of the joint, a matrix (codes, 1) of number; not read without one
    g_marginals,  # gradient of the marginals, (codes, columns) of number; not read without one
    log2_joint,  # (codes, 1) of float64
    log2_marginals,  # (codes, columns) of float64
    wanted,  # whether there are a gradient of the joint, a gradient of the marginals, and weights
    z,  # (codes, columns) of number
    mu,  # (posteriors, columns) of number
    logvar,  # (posteriors, columns) of number
    weights,  # natural log weights, (codes, posteriors), and a number for their dtype: WIDE, SINGLE or ABSENT
    prepared,  # scratch: mu, s and peak, (chunks, columns, 3, posteriors of a chunk) of number
    code_shares,  # scratch: shares in dz, (strips, codes, columns) of float64
    posterior_shares,  # scratch: in dmu and dlogvar, (groups, chunks, columns, 2, posteriors of a chunk) of float64
    dz,  # written: (codes, columns) of number
    posterior_gradients,  # written: dmu and dlogvar, each (posteriors, columns) of number
    sizes,  # codes, posteriors, columns, posteriors of a chunk
    strip_length,  # chunks of a strip
    group_length,  # tiles of a group
    zero,  # of number
):
    """Write the gradients of the codes and of the posteriors."""
    codes, posteriors, columns, length = sizes
    chunks, tiles = -(-posteriors // length), -(-codes // CODES)
    strips, groups = -(-chunks // strip_length), -(-tiles // group_length)
    prepared = array_at(prepared, chunks * columns * 3 * length, zero)
    code_shares = array_at(code_shares, strips * codes * columns, _DOUBLE)
    posterior_shares = array_at(posterior_shares, groups * chunks * columns * 2 * length, _DOUBLE)
    dz = array_at(dz, codes * columns, zero)
    dmu = array_at(posterior_gradients[0], posteriors * columns, zero)
    dlogvar = array_at(posterior_gradients[1], posteriors * columns, zero)
    for chunk in numba.prange(chunks):
        prepare(chunk, mu, logvar, prepared, sizes, zero)
    for task in numba.prange(groups * strips):
        group, strip = task // strips, task % strips
        own_tiles = group * group_length, min((group + 1) * group_length, tiles)
        own_chunks = strip * strip_length, min((strip + 1) * strip_length, chunks)
        dz_share = code_shares[strip * codes * columns : (strip + 1) * codes * columns]
        size = chunks * columns * 2 * length
        share = posterior_shares[group * size : (group + 1) * size]
        upstream = g_joint, g_marginals, log2_joint, log2_marginals
        _walk_strip(own_tiles, own_chunks, z, weights, upstream, wanted, prepared, dz_share, share, sizes, zero)
    for tile in numba.prange(tiles):
        _add_code_shares(tile, strips, code_shares, dz, sizes)
    for chunk in numba.prange(chunks):
        _add_posterior_shares(chunk, groups, posterior_shares, prepared, (dmu, dlogvar), sizes, zero)
