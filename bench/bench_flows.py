"""Log-determinant and solve of linear flow layers, forward and backward, against slogdet and inverse of the matrix."""

from functools import partial

import pytest
import torch

from vae.flows import LU, QR

D = 1024
LAYERS = {"LU": LU, "QR": QR}


def dense(weight, z):
    """Return z W^-T and log |det W|, as written by hand."""
    return z @ torch.linalg.inv(weight).mT, torch.linalg.slogdet(weight).logabsdet


def factored(layer, z):
    """Return z W^-T and log |det W| of a layer."""
    x, log_det = layer.inverse_and_log_det(z)
    return x, -log_det[0]


def forward_backward(solve, weight, leaf, z, upstream):
    """Solve and differentiate with respect to the weights and z, which is made anew."""
    z = z.detach().requires_grad_()
    torch.autograd.grad(solve(weight, z), (leaf, z), upstream)


@pytest.mark.parametrize("provider", ["slogdet and inverse", *LAYERS])
@pytest.mark.parametrize("B", [1, 16, 128, 1024])
def bench_linear_flow(interleaved, B, provider):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, D, generator=generator) / D**0.5 + torch.eye(D)
    z, upstream = torch.randn(B, D, generator=generator), [torch.randn(B, D, generator=generator), torch.tensor(1.0)]
    layers = {name: layer(weight) for name, layer in LAYERS.items()}
    for layer in layers.values():
        check(layer, weight, z)
    leaf = weight.clone().requires_grad_()
    providers = {"slogdet and inverse": partial(forward_backward, dense, leaf, leaf, z, upstream)}
    providers |= {
        name: partial(forward_backward, factored, layer, layer.factors, z, upstream) for name, layer in layers.items()
    }
    interleaved(f"linear flow, D {D}, B {B}", provider, providers, rounds=15)


def check(layer, weight, z):
    """Refuse to time a result that is wrong: W takes the solution back to z, and slogdet agrees in float64."""
    x, log_det = factored(layer, z)
    torch.testing.assert_close(x @ weight.mT, z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(log_det.double(), torch.linalg.slogdet(weight.double()).logabsdet, rtol=1e-4, atol=1e-2)
