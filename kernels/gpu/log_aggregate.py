"""log_aggregate by the kernels of fused_aggregate.py: launches, autograd, and shapes for the compiler."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..shared import log2_aggregate
from ..shared.accumulate import accumulator
from ..shared.log2_aggregate import LOG2_E, posteriors_in_bits
from .launch import Launch, cut
from .log_aggregate_kernels import codes_kernel, forward_kernel, posteriors_kernel

# By static counts: sums over a row that several warps share pass through shared memory, so a program has one; with 16
# elements in a thread it takes a tenth fewer instructions than with 8, but twice the registers; smaller chunks spill.
# So do, in the forward pass, more rows than 16, since a chunk of joints waits for each.
TILE, CHUNK, WIDEST, MOST_ROWS, MOST_ROWS_FORWARD = 256, 64, 8192, 64, 16


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """logsumexp over n of w_bn + log N(z_b; mu_n, exp(logvar_n)), jointly and per latent, in the direct form."""
    if z.shape[1] > WIDEST:
        raise ValueError(
            f"backend 'triton' of log_aggregate takes at most {WIDEST} columns, got {z.shape[1]}: choose 'analytic'."
        )
    return _in_strips(z, mu, logvar, log_weights)


def plan_forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> Launch:
    """Return the launch that fills `joint_ptr` and `marginals_ptr`: exponents and sums, for each strip."""
    arguments, constants = _shared(z, mu, logvar, log_weights)
    (B, K), N = z.shape, mu.shape[0]
    tiles, warps, constants["ROWS"] = _tiling(B, constants["COLUMNS"], MOST_ROWS_FORWARD)
    steps, strips = cut(N, tiles * warps, CHUNK)
    arguments |= {
        "joint_ptr": z.new_empty(2, strips, B, dtype=accumulator(z)),
        "marginals_ptr": z.new_empty(2, strips, B, K, dtype=accumulator(z)),
        "steps": steps,
    }
    return Launch(forward_kernel, (tiles, strips), arguments, constants, warps)


def plan_backward(
    g_joint: Tensor | None,
    g_marginals: Tensor | None,
    joint: Tensor,
    marginals: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
) -> tuple[Launch, Launch]:
    """Return the launches that fill `dz_ptr`, and `dmu_ptr` and `dlogvar_ptr`, one matrix for each strip."""
    shared, constants = _shared(z, mu, logvar, log_weights)
    (B, K), N, dtype = z.shape, mu.shape[0], accumulator(z)
    high = joint.to(dtype)
    shared |= {
        "g_joint_ptr": None if g_joint is None else g_joint.to(dtype).contiguous(),
        "g_marginals_ptr": None if g_marginals is None else g_marginals.to(dtype).contiguous(),
        "joint_ptr": high,
        "rest_ptr": torch.where(high.isfinite(), joint - high, 0).to(dtype),
        "marginals_ptr": marginals.to(dtype),
    }
    constants |= {"OF_JOINT": g_joint is not None, "OF_MARGINALS": g_marginals is not None}
    launches = []
    for kernel, owned, walked, names in (
        (codes_kernel, B, N, ["dz_ptr"]),
        (posteriors_kernel, N, B, ["dmu_ptr", "dlogvar_ptr"]),
    ):
        tiles, warps, rows = _tiling(owned, constants["COLUMNS"], MOST_ROWS)
        steps, strips = cut(walked, tiles * warps, CHUNK)
        results = {name: high.new_empty(strips, owned, K) for name in names}
        arguments = {**shared, **results, "steps": steps}
        launches.append(Launch(kernel, (tiles, strips), arguments, {**constants, "ROWS": rows}, warps))
    return launches[0], launches[1]


def _shared(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the constants that all launches have."""
    (B, K), N, dtype = z.shape, mu.shape[0], accumulator(z)
    mu, s, peak = (x.contiguous() for x in posteriors_in_bits(mu, logvar))
    weights = None if log_weights is None else (LOG2_E * log_weights.double()).to(dtype).contiguous()
    arguments = {
        "z_ptr": z.to(dtype).contiguous(),
        "mu_ptr": mu,
        "s_ptr": s,
        "peak_ptr": peak,
        "weights_ptr": weights,
        "codes": B,
        "posteriors": N,
        "columns": K,
        "weight_pitch": N if weights is not None and weights.ndim == 2 else 0,
    }
    return arguments, {"WEIGHTED": weights is not None, "CHUNK": CHUNK, "COLUMNS": triton.next_power_of_2(max(K, 2))}


def _tiling(owned: int, columns: int, most_rows: int) -> tuple[int, int, int]:
    """Return how many tiles cover so many rows, the warps of a program, and the rows of its tile."""
    rows = min(max(1, TILE // columns), most_rows, triton.next_power_of_2(owned))
    return triton.cdiv(owned, rows), max(1, columns // TILE), rows


def _forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if z.numel() == 0:
        return _nothing_to_evaluate(z, mu, log_weights)
    launch = plan_forward(z, mu, logvar, log_weights)
    launch.run()
    joint, marginals = launch.arguments["joint_ptr"], launch.arguments["marginals_ptr"]
    return _over_strips(joint), _over_strips(marginals)


def _over_strips(sums: Tensor) -> Tensor:
    """Return the logarithm, in bits and in float64, of sums `(2, strips, ...)` over all strips."""
    exponents, relative = sums.double()
    bits = exponents + relative.log2()
    return bits[0] if len(bits) == 1 else torch.logsumexp(bits / LOG2_E, 0) * LOG2_E


def _nothing_to_evaluate(z: Tensor, mu: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the results without codes, or without columns, where every density is 1."""
    weights = z.new_zeros(mu.shape[0], dtype=torch.float64) if log_weights is None else log_weights.double()
    joint = torch.logsumexp(weights.expand(z.shape[0], -1), 1) * LOG2_E
    return joint, z.new_empty(z.shape, dtype=torch.float64)


def _backward(
    g_joint: Tensor | None,
    g_marginals: Tensor | None,
    joint: Tensor,
    marginals: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if z.numel() == 0:
        return z.new_zeros(z.shape), mu.new_zeros(mu.shape), mu.new_zeros(mu.shape)
    of_codes, of_posteriors = plan_backward(g_joint, g_marginals, joint, marginals, z, mu, logvar, log_weights)
    of_codes.run()
    of_posteriors.run()
    dz = of_codes.arguments["dz_ptr"]
    dmu, dlogvar = of_posteriors.arguments["dmu_ptr"], of_posteriors.arguments["dlogvar_ptr"]
    return dz.sum(0).to(z.dtype), dmu.sum(0).to(mu.dtype), dlogvar.sum(0).to(mu.dtype)


_in_strips = log2_aggregate.define("log_aggregate", _forward, _backward)
