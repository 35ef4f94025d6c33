"""Log-determinant and solve of linear flow layers, forward and backward, against slogdet and inverse of the matrix."""

from functools import partial

import pytest
import torch

from bench.harness import Contest
from vae.flows import LU, QR

D = 1024
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
    log_det = torch.linalg.slogdet(weight.double()).logabsdet

    def check(result):
        """Refuse a result that is wrong: W takes the solution back to z, and slogdet agrees in float64."""
        x, found = result
        torch.testing.assert_close(x @ weight.mT, z, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(found.double(), log_det, rtol=1e-4, atol=1e-2)

    leaf = weight.clone().requires_grad_()
    providers = {DENSE: partial(forward_backward, dense, leaf, leaf, z, upstream)}
    for name, kind in LAYERS.items():
        layer = kind(weight)
        providers[name] = partial(forward_backward, factored, layer, layer.factors, z, upstream)
    return Contest(providers, check)


def dense(weight, z):
    """Return z W^-T and log |det W|, as written by hand."""
    return z @ torch.linalg.inv(weight).mT, torch.linalg.slogdet(weight).logabsdet


def factored(layer, z):
    """Return z W^-T and log |det W| of a layer."""
    x, log_det = layer.inverse_and_log_det(z)
    return x, -log_det[0]


def forward_backward(solve, weight, leaf, z, upstream):
    """Solve and differentiate with respect to the weights and z, which is made anew; return the solution."""
    z = z.detach().requires_grad_()
    x, log_det = solve(weight, z)
    torch.autograd.grad((x, log_det), (leaf, z), upstream)
    return x.detach(), log_det.detach()
