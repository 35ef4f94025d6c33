"""log_aggregate in base-2 logarithms, for the backends `numba` and `triton`: formulas, operators and autograd.

Processors compute powers of two faster than powers of e. Therefore these backends work with

    log2 N_bnk = peak_nk - v_bnk^2,    v_bnk = (z_bk - mu_nk) s_nk,    s_nk = sqrt(log2(e) / 2) / sigma_nk.

With g the gradients of the two results and h_bnk the gradient of log2 N_bnk,

    h_bnk      = g_b 2^(w_bn + sum_k log2 N_bnk - joint_b) + g_bk 2^(w_bn + log2 N_bnk - marginal_bk)
    dz_bk      = -2 sum_n h_bnk v_bnk s_nk
    dmu_nk     =  2 s_nk sum_b h_bnk v_bnk
    dlogvar_nk = sum_b h_bnk (v_bnk^2 - log2(e) / 2),

so the backward pass needs only the inputs and the two results. No formula contains 1 / sigma^2, because float32 cannot
represent it for logvar below -88.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import torch_library
from .accumulate import accumulator
from .autograd import cache_signature, is_plain, refuse_second_derivative, without_rules

LOG2_E = 1 / math.log(2)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # z, mu, logvar, log weights
Evaluation = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def define(name: str, forward: Forward, backward: Backward) -> Evaluation:
    """Register two passes as operators, and return log_aggregate, differentiable once.

    Args:
        name: name of the forward operator; the backward operator is called `{name}_backward`.
        forward: (z, mu, logvar, log weights) -> (joint, marginals, log2 joint, log2 marginals). The first two are the
            results in the dtype of sums. The other two are in base 2 and in float64; without log weights every weight
            is 1 in them.
        backward: (gradient of joint or None, gradient of marginals or None, log2 joint, log2 marginals, z, mu, logvar,
            log weights) -> (dz, dmu, dlogvar).
    """
    inputs = "Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights"
    given = "Tensor? g_joint, Tensor? g_marginals, Tensor log2_joint, Tensor log2_marginals"
    forward_operator = torch_library.define(
        f"{name}({inputs}) -> (Tensor, Tensor, Tensor, Tensor)", forward, _forward_fake
    )
    backward_operator = torch_library.define(
        f"{name}_backward({given}, {inputs}) -> (Tensor, Tensor, Tensor)", backward, _backward_fake
    )

    class Log2Aggregate(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        @cache_signature
        def forward(
            z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            joint, marginals, log2_joint, log2_marginals = forward_operator(z, mu, logvar, log_weights)
            return joint, marginals, log2_joint, log2_marginals

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*output[2:])
            ctx.save_for_backward(*output[2:], *inputs)

        @staticmethod
        @refuse_second_derivative
        def backward(
            ctx: Any, saved: tuple[Tensor, ...], g_joint: Tensor | None, g_marginals: Tensor | None, *_: None
        ) -> tuple[Tensor | None, ...]:
            run = backward if is_plain(g_joint, g_marginals, *saved) else backward_operator
            dz, dmu, dlogvar = run(g_joint, g_marginals, *saved)
            return dz, dmu, dlogvar, None

    PlainLog2Aggregate = without_rules(Log2Aggregate, forward)

    def evaluate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        function = PlainLog2Aggregate if is_plain(z, mu, logvar, log_weights) else Log2Aggregate
        joint, marginals, *_ = function.apply(z, mu, logvar, log_weights)
        return joint, marginals

    return evaluate


def convert_to_nats(forward: Evaluation, backward: Backward) -> tuple[Forward, Backward]:
    """Return two passes as `define` takes them, from two whose results and gradients are in base 2 and in float64."""

    def forward_in_nats(
        z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log2_results = forward(z, mu, logvar, log_weights)
        log_N = math.log(mu.shape[0]) if log_weights is None else 0.0
        joint, marginals = ((x / LOG2_E - log_N).to(accumulator(z), copy=True) for x in log2_results)
        return joint, marginals, *log2_results

    def backward_in_nats(g_joint: Tensor | None, g_marginals: Tensor | None, *others: Any) -> Any:
        return backward(*(None if g is None else g.double() / LOG2_E for g in (g_joint, g_marginals)), *others)

    return forward_in_nats, backward_in_nats


def base2_parameters(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu, s and peak, `(N, K)`, computed in float64 and then rounded to the dtype of sums."""
    dtype = accumulator(mu)
    s = math.sqrt(LOG2_E / 2) * torch.exp(-0.5 * clamp_logvar(logvar.double(), dtype))
    peak = -0.5 * LOG2_E * (logvar.double() + math.log(2 * math.pi))
    return mu.to(dtype), s.to(dtype), peak.to(dtype)


def clamp_logvar(logvar: Tensor, dtype: torch.dtype) -> Tensor:
    """Limit 1 / sigma, to 1e30 in float32: then v is finite, and v^2 overflows unless z equals mu."""
    least = -2 * 0.78 * math.log(torch.finfo(dtype).max)
    return torch.where(logvar.isinf(), logvar, logvar.clamp_min(least))


def _forward_fake(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joint, marginals = (z.new_empty(shape, dtype=accumulator(z)) for shape in (z.shape[:1], z.shape))
    return (
        joint,
        marginals,
        joint.new_empty(joint.shape, dtype=torch.float64),
        joint.new_empty(z.shape, dtype=torch.float64),
    )


def _backward_fake(*gradients_results_inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, _, _ = gradients_results_inputs[4:]
    return z.new_empty(z.shape), mu.new_empty(mu.shape), mu.new_empty(mu.shape)
