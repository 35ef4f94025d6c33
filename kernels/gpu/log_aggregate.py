"""log_aggregate on a GPU: plans of the kernel launches, and operators."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..shared import log2_aggregate
from ..shared.accumulate import accumulator
from ..shared.log2_aggregate import LOG2_E, Inputs, base2_parameters, convert_to_nats
from .launch import Launch, cut
from .log_aggregate_kernels import code_gradient_kernel, forward_kernel, posterior_gradient_kernel

# From counts of instructions: a program has one warp, because sums over a row shared by several warps go through shared
# memory. 16 elements a thread would need a tenth fewer instructions than 8, but twice the registers. Smaller chunks
# spill registers, and so do more than 16 rows in the forward pass, where a chunk of joints is kept for each row.
TILE, CHUNK, WIDEST, MOST_ROWS, MOST_ROWS_FORWARD = 256, 64, 8192, 64, 16


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """logsumexp over n of w_bn + log N(z_b; mu_n, exp(logvar_n)), jointly and per latent, in the direct form."""
    if z.shape[1] > WIDEST:
        raise ValueError(
            f"backend 'triton' of log_aggregate takes at most {WIDEST} columns, got {z.shape[1]}: choose 'eager'."
        )
    return _evaluate_in_strips(z, mu, logvar, log_weights)


def plan_forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> Launch:
    """Return the launch that fills `joint_ptr` and `marginals_ptr` with exponents and sums for each strip."""
    arguments, constants = _shared_arguments(z, mu, logvar, log_weights)
    (B, K), N = z.shape, mu.shape[0]
    tiles, warps, constants["ROWS"] = _tiling(B, constants["COLUMNS"], MOST_ROWS_FORWARD)
    strip_length, strips = cut(N, tiles * warps, CHUNK)
    arguments |= {
        "joint_ptr": z.new_empty(2, strips, B, dtype=accumulator(z)),
        "marginals_ptr": z.new_empty(2, strips, B, K, dtype=accumulator(z)),
        "strip_length": strip_length,
    }
    return Launch(forward_kernel, (tiles, strips), arguments, constants, warps)


def plan_backward(
    g_joint: Tensor | None, g_marginals: Tensor | None, joint: Tensor, marginals: Tensor, *inputs: *Inputs
) -> tuple[Launch, Launch]:
    """Return the launch that fills `dz_ptr`, and the one that fills `dmu_ptr` and `dlogvar_ptr`, for each strip."""
    z, mu, _, _ = inputs
    shared, constants = _shared_arguments(*inputs)
    (B, K), N, dtype = z.shape, mu.shape[0], accumulator(z)
    high = joint.to(dtype)
    shared |= {
        "g_joint_ptr": None if g_joint is None else g_joint.to(dtype).contiguous(),
        "g_marginals_ptr": None if g_marginals is None else g_marginals.to(dtype).contiguous(),
        "joint_ptr": high,
        "rest_ptr": torch.where(high.isfinite(), joint - high, 0).to(dtype),
        "marginals_ptr": marginals.to(dtype),
    }
    constants |= {"GRAD_JOINT": g_joint is not None, "GRAD_MARGINALS": g_marginals is not None}
    launches = []
    for kernel, owned, walked, names in (
        (code_gradient_kernel, B, N, ["dz_ptr"]),
        (posterior_gradient_kernel, N, B, ["dmu_ptr", "dlogvar_ptr"]),
    ):
        tiles, warps, rows = _tiling(owned, constants["COLUMNS"], MOST_ROWS)
        strip_length, strips = cut(walked, tiles * warps, CHUNK)
        results = {name: high.new_empty(strips, owned, K) for name in names}
        arguments = {**shared, **results, "strip_length": strip_length}
        launches.append(Launch(kernel, (tiles, strips), arguments, {**constants, "ROWS": rows}, warps))
    return launches[0], launches[1]


def _shared_arguments(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the constants that all kernels have."""
    (B, K), N, dtype = z.shape, mu.shape[0], accumulator(z)
    mu, s, peak = (x.contiguous() for x in base2_parameters(mu, logvar))
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
        "weights_stride": N if weights is not None and weights.ndim == 2 else 0,
    }
    return arguments, {"WEIGHTED": weights is not None, "CHUNK": CHUNK, "COLUMNS": triton.next_power_of_2(max(K, 2))}


def _tiling(owned: int, columns: int, most_rows: int) -> tuple[int, int, int]:
    """Return the number of tiles for `owned` rows, the warps of a program, and the rows of its tile."""
    rows = min(max(1, TILE // columns), most_rows, triton.next_power_of_2(owned))
    return triton.cdiv(owned, rows), max(1, columns // TILE), rows


def _forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if z.numel() == 0:
        return _evaluate_empty(z, mu, log_weights)
    launch = plan_forward(z, mu, logvar, log_weights)
    launch.run()
    joint, marginals = launch.arguments["joint_ptr"], launch.arguments["marginals_ptr"]
    return _sum_strips(joint), _sum_strips(marginals)


def _sum_strips(sums: Tensor) -> Tensor:
    """Return log2 of the total over all strips in float64, from exponents and relative sums `(2, strips, ...)`."""
    exponents, relative = sums.double()
    logarithms = exponents + relative.log2()
    return logarithms[0] if len(logarithms) == 1 else torch.logsumexp(logarithms / LOG2_E, 0) * LOG2_E


def _evaluate_empty(z: Tensor, mu: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the results without codes, or without columns: then every density is 1."""
    weights = z.new_zeros(mu.shape[0], dtype=torch.float64) if log_weights is None else log_weights.double()
    joint = torch.logsumexp(weights.expand(z.shape[0], -1), 1) * LOG2_E
    return joint, z.new_empty(z.shape, dtype=torch.float64)


def _backward(
    g_joint: Tensor | None, g_marginals: Tensor | None, joint: Tensor, marginals: Tensor, *inputs: *Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, _, _ = inputs
    if z.numel() == 0:
        return z.new_zeros(z.shape), mu.new_zeros(mu.shape), mu.new_zeros(mu.shape)
    results: dict[str, Any] = {}
    for launch in plan_backward(g_joint, g_marginals, joint, marginals, *inputs):
        launch.run()
        results |= launch.arguments
    dz, dmu, dlogvar = (results[name].sum(0) for name in ("dz_ptr", "dmu_ptr", "dlogvar_ptr"))
    return dz.to(z.dtype), dmu.to(mu.dtype), dlogvar.to(mu.dtype)


_evaluate_in_strips = log2_aggregate.define("log_aggregate", *convert_to_nats(_forward, _backward))
