"""What the analytic and the fused log_aggregate share: posteriors in bits, operators, autograd, and the way to nats.

In bits, since powers of two are what processors have: log2 N_bnk = peak_nk - v_bnk^2 with v_bnk = (z_bk - mu_nk) s_nk,
s_nk = sqrt(log2(e) / 2) / sigma_nk. 1 / sigma^2, which float32 cannot hold below logvar = -88, appears nowhere.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import torch_library
from .accumulate import accumulator
from .autograd import first_order, inspected_once

LOG2_E = 1 / math.log(2)

Evaluation = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def define(name: str, forward: Evaluation, backward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Evaluation:
    """Return log_aggregate in nats, differentiable once, from its two passes, which become operators of that name.

    Args:
        forward: from z, mu, logvar and log weights, which are zero where absent, both results in bits and in float64.
        backward: from the gradients of the results, either absent, the results and the inputs, dz, dmu and dlogvar.
    """
    inputs = "Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights"
    given = "Tensor? g_joint, Tensor? g_marginals, Tensor joint, Tensor marginals"
    forward_operator = torch_library.define(f"{name}({inputs}) -> (Tensor, Tensor)", forward, _forward_fake)
    backward_operator = torch_library.define(
        f"{name}_backward({given}, {inputs}) -> (Tensor, Tensor, Tensor)", backward, _backward_fake
    )

    class InBits(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        @inspected_once
        def forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
            joint, marginals = forward_operator(z, mu, logvar, log_weights)
            return joint, marginals

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*output, *inputs)

        @staticmethod
        @first_order
        def backward(
            ctx: Any, saved: tuple[Tensor, ...], g_joint: Tensor | None, g_marginals: Tensor | None
        ) -> tuple[Tensor | None, ...]:
            dz, dmu, dlogvar = backward_operator(g_joint, g_marginals, *saved)
            return dz, dmu, dlogvar, None

    def in_nats(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        log_N = math.log(mu.shape[0]) if log_weights is None else 0.0
        joint, marginals = InBits.apply(z, mu, logvar, log_weights)
        return (joint / LOG2_E - log_N).to(accumulator(z)), (marginals / LOG2_E - log_N).to(accumulator(z))

    return in_nats


def posteriors_in_bits(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu, s and peak, `(N, K)`, in the dtype that sums are kept in, each rounded once."""
    dtype = accumulator(mu)
    s = math.sqrt(LOG2_E / 2) * torch.exp(-0.5 * capped(logvar.double(), dtype))
    peak = -0.5 * LOG2_E * (logvar.double() + math.log(2 * math.pi))
    return mu.to(dtype), s.to(dtype), peak.to(dtype)


def capped(logvar: Tensor, dtype: torch.dtype) -> Tensor:
    """Return logvar with 1 / sigma capped, in float32 at 1e30, so that v is finite, and v^2 is not unless z is mu."""
    least = -2 * 0.78 * math.log(torch.finfo(dtype).max)
    return torch.where(logvar.isinf(), logvar, logvar.clamp_min(least))


def _forward_fake(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=torch.float64), z.new_empty(z.shape, dtype=torch.float64)


def _backward_fake(*given_and_inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, _, _ = given_and_inputs[4:]
    return z.new_empty(z.shape), mu.new_empty(mu.shape), mu.new_empty(mu.shape)
