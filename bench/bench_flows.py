"""Log-determinant and solve of linear flow layers, forward and backward, against slogdet and inverse of the matrix."""

import copy
from functools import partial

import pytest
import torch

from vaebench.bench.timing.harness import Contest
from vaebench.vae.flows import LU, QR

D = 1024
STEP, TOLERANCE = 1e-6, 1e-4
DENSE = "slogdet and inverse"
LAYERS = {"LU": LU, "QR": QR}


@pytest.mark.parametrize("provider", [DENSE, *LAYERS])
@pytest.mark.parametrize(
    "B", [1, pytest.param(128, marks=pytest.mark.session), pytest.param(1024, marks=pytest.mark.full)]
)
def bench_linear_flow(interleaved, B, provider):
    interleaved(f"linear flow, D {D}, B {B}", provider, partial(contest, B))


def contest(B):
    """Return dense algebra and each layer, on the same matrix and the same z."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, D, generator=generator) / D**0.5 + torch.eye(D)
    z, upstream = torch.randn(B, D, generator=generator), [torch.randn(B, D, generator=generator), torch.tensor(1.0)]
    direction = torch.randn(D, D, generator=generator)
    leaf, layers = weight.clone().requires_grad_(), {name: kind(weight) for name, kind in LAYERS.items()}
    providers = {DENSE: partial(forward_backward, DENSE, dense, leaf, leaf, z, upstream)}
    for name, layer in layers.items():
        providers[name] = partial(forward_backward, name, factored, layer, layer.factors, z, upstream)
    moved = {DENSE: direction.double()} | {name: moves(layer, direction) for name, layer in layers.items()}
    return Contest(providers, partial(require_exact, exact(weight, z, upstream[0]), direction, moved))


def exact(weight, z, upstream):
    """Return x = z W^-T, log |det W| and the gradients of <upstream, x> + log |det W| by z and W, in float64.

    dz = upstream W^-1,    dW = W^-T (I - upstream^T x)
    """
    weight, z, upstream = weight.double(), z.double(), upstream.double()
    inverse = torch.linalg.inv(weight)
    x = z @ inverse.mT
    dW = inverse.mT @ (torch.eye(D) - upstream.mT @ x)
    return x, torch.linalg.slogdet(weight).logabsdet, upstream @ inverse, dW


def moves(layer, direction):
    """Return dW of a layer whose factors move in a direction: the central difference of W, in float64."""
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    ends = []
    for step in (STEP, -STEP):
        moved = copy.deepcopy(layer)
        moved.factors += step * direction
        ends.append(moved(torch.eye(D, dtype=torch.float64))[0].mT)
    return (ends[0] - ends[1]) / (2 * STEP)


def require_exact(expected, direction, moved, result):
    """Refuse a wrong solution or log-determinant, and a wrong gradient: by z, and of the weights along a direction."""
    name, *found, weights = result
    x, log_det, dz, dW = expected
    torch.testing.assert_close(found[1].double(), log_det, rtol=1e-4, atol=1e-2)
    pairs = {
        "the solution": (found[0], x),
        "the gradient of z": (found[2], dz),
        "the gradient of the weights": ((weights.double() * direction).sum(), (dW * moved[name]).sum()),
    }
    for what, (one, right) in pairs.items():
        error = (one.double() - right).norm() / right.norm()
        assert error <= TOLERANCE, f"{what} is off by {error:.1e}, {TOLERANCE:.1e} is allowed"


def dense(weight, z):
    """Return z W^-T and log |det W|, as written by hand."""
    return z @ torch.linalg.inv(weight).mT, torch.linalg.slogdet(weight).logabsdet


def factored(layer, z):
    """Return z W^-T and log |det W| of a layer."""
    x, log_det = layer.inverse_and_log_det(z)
    return x, -log_det[0]


def forward_backward(name, solve, weight, leaf, z, upstream):
    """Solve and differentiate with respect to the weights and z, which is made anew; return all of it."""
    z = z.detach().requires_grad_()
    x, log_det = solve(weight, z)
    d_leaf, dz = torch.autograd.grad((x, log_det), (leaf, z), upstream)
    return name, x.detach(), log_det.detach(), dz, d_leaf
