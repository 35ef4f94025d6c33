"""The operations of kernels/, forward and backward in float32, each backend against eager on the same inputs."""

from functools import partial

import pytest
import torch

import kernels

BACKENDS = ["eager", "analytic"]
ROWS_CHECKED = 300


def size_id(size):
    return "_".join(map(str, size))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(64, 8), (128, 32), (512, 128), (4096, 512), (16384, 1024)], ids=size_id)
def bench_reparam_kl(interleaved, size, backend):
    mu, logvar = normals(size, size)
    upstream = [*normals(size, size[:1])]
    check(partial(kernels.reparam_kl, seed=1), (mu, logvar), backend)
    providers = {
        name: partial(forward_backward, partial(kernels.reparam_kl, backend=name), (mu, logvar), upstream)
        for name in BACKENDS
    }
    interleaved(f"reparam_kl {size_id(size)}", backend, providers, rounds=31 if size[0] < 4096 else 9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(64, 64, 8), (4096, 4096, 64)], ids=size_id)
def bench_mmd2(interleaved, size, backend):
    N, M, K = size
    x, y = normals((N, K), (M, K))
    check(kernels.mmd2, (x, y), backend)
    providers = {
        name: partial(forward_backward, partial(kernels.mmd2, backend=name), (x, y), [torch.tensor(1.0)])
        for name in BACKENDS
    }
    interleaved(f"mmd2 {size_id(size)}", backend, providers, rounds=31 if N < 4096 else 9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(64, 64, 8), (1024, 4096, 32)], ids=size_id)
def bench_log_aggregate(interleaved, size, backend):
    B, N, K = size
    z, mu, logvar = normals((B, K), (N, K), (N, K))
    upstream = [*normals((B,), (B, K))]
    check(kernels.log_aggregate, (z, mu, logvar), backend)
    providers = {
        name: partial(forward_backward, partial(kernels.log_aggregate, backend=name), (z, mu, logvar), upstream)
        for name in BACKENDS
    }
    interleaved(f"log_aggregate {size_id(size)}", backend, providers, rounds=31 if N < 4096 else 9)


def normals(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def forward_backward(op, inputs, upstream):
    """Evaluate op and the gradients of all inputs; leaves are made anew, so that nothing accumulates."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = op(*leaves)
    torch.autograd.grad(outputs, leaves, upstream)


def check(op, inputs, backend):
    """Refuse to time a result that is wrong, judged on the first rows of the inputs: a red check gives no figure."""
    few = [x[:ROWS_CHECKED] for x in inputs]
    for found, expected in zip(outputs(op, few, backend), outputs(op, few, "reference"), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def outputs(op, inputs, backend):
    result = op(*inputs, backend=backend)
    return result if isinstance(result, tuple) else (result,)
