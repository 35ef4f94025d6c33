"""Log-determinant and solve of linear flow layers, forward and backward, against slogdet and inverse of the matrix."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from vaebench.bench.timing.harness import Call, Check, TimeInterleaved, Workload
from vaebench.vae.flows import LU, QR

D = 1024
STEP, TOLERANCE = 1e-6, 1e-4
DENSE = "slogdet and inverse"
LAYERS: dict[str, type[LU] | type[QR]] = {"LU": LU, "QR": QR}

Result = tuple[str, Tensor, Tensor, Tensor, Tensor]  # provider, x, log |det W|, dz, gradient of the weights


@pytest.mark.parametrize("provider", [DENSE, *LAYERS])
@pytest.mark.parametrize(
    "B", [1, pytest.param(128, marks=pytest.mark.session), pytest.param(1024, marks=pytest.mark.full)]
)
def bench_linear_flow(time_interleaved: TimeInterleaved, B: int, provider: str) -> None:
    time_interleaved(f"linear flow, D {D}, B {B}", provider, partial(prepare, B))


def prepare(B: int) -> Workload:
    """Return dense algebra and each layer, on the same matrix and the same z."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, D, generator=generator) / D**0.5 + torch.eye(D)
    z, upstream = torch.randn(B, D, generator=generator), [torch.randn(B, D, generator=generator), torch.tensor(1.0)]
    direction = torch.randn(D, D, generator=generator)
    leaf, layers = weight.clone().requires_grad_(), {name: kind(weight) for name, kind in LAYERS.items()}
    providers: dict[str, Call] = {
        DENSE: partial(forward_backward, DENSE, partial(solve_dense, leaf), leaf, z, upstream)
    }
    for name, layer in layers.items():
        solve = partial(solve_factored, layer)
        providers[name] = partial(forward_backward, name, solve, layer.factors, z, upstream)
    changes = {DENSE: direction.double()} | {name: differentiate(layer, direction) for name, layer in layers.items()}

    def check_current() -> Check:
        return partial(require_exact, solve_exactly(weight, z, upstream[0]), direction, changes)

    def renew(_: str) -> Check:
        for tensor in (z, upstream[0]):
            tensor.copy_(torch.randn(B, D, generator=generator))
        return check_current()

    return Workload(providers, check_current(), renew=renew)


def solve_exactly(weight: Tensor, z: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x = z W^-T, log |det W| and the gradients of <upstream, x> + log |det W| by z and W, in float64.

    dz = upstream W^-1,    dW = W^-T (I - upstream^T x)
    """
    weight, z, upstream = weight.double(), z.double(), upstream.double()
    inverse = torch.linalg.inv(weight)
    x = z @ inverse.mT
    dW = inverse.mT @ (torch.eye(D) - upstream.mT @ x)
    return x, torch.linalg.slogdet(weight).logabsdet, upstream @ inverse, dW


def differentiate(layer: LU | QR, direction: Tensor) -> Tensor:
    """Return the derivative of W where a layer's factors move in a direction: central differences, in float64."""
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    ends = []
    for step in (STEP, -STEP):
        moved = copy.deepcopy(layer)
        moved.factors.add_(step * direction)
        ends.append(moved(torch.eye(D, dtype=torch.float64))[0].mT)
    return (ends[0] - ends[1]) / (2 * STEP)


def require_exact(
    expected: tuple[Tensor, Tensor, Tensor, Tensor], direction: Tensor, changes: Mapping[str, Tensor], result: Result
) -> None:
    """Require the right solution, log-determinant, gradient of z, and gradient of the weights along a direction."""
    name, x, log_det, dz, d_weights = result
    right_x, right_log_det, right_dz, dW = expected
    torch.testing.assert_close(log_det.double(), right_log_det, rtol=1e-4, atol=1e-2)
    pairs = {
        "the solution": (x, right_x),
        "the gradient of z": (dz, right_dz),
        "the gradient of the weights": ((d_weights.double() * direction).sum(), (dW * changes[name]).sum()),
    }
    for what, (found, right) in pairs.items():
        error = (found.double() - right).norm() / right.norm()
        assert error <= TOLERANCE, f"{what} is off by {error:.1e}, {TOLERANCE:.1e} is allowed"


def solve_dense(weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z W^-T and log |det W|, as written by hand."""
    return z @ torch.linalg.inv(weight).mT, torch.linalg.slogdet(weight).logabsdet


def solve_factored(layer: LU | QR, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z W^-T and log |det W| of a layer."""
    x, log_det = layer.inverse_and_log_det(z)
    return x, -log_det[0]


def forward_backward(
    name: str,
    solve: Callable[[Tensor], tuple[Tensor, Tensor]],
    weights: Tensor,
    z: Tensor,
    upstream: Sequence[Tensor],
) -> Result:
    """Solve, differentiate by the weights and by a new leaf of z, and return all results."""
    z = z.detach().requires_grad_()
    x, log_det = solve(z)
    d_weights, dz = torch.autograd.grad((x, log_det), (weights, z), upstream)
    return name, x.detach(), log_det.detach(), dz, d_weights
