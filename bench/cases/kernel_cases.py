"""What each operation of kernels/ is given, must return, and must at least move and compute.

Model bytes: each input and output of a pass once, nothing in between; backward reads its inputs and the gradients that
come in, and writes gradients. Flops: the arithmetic of the equations, one for each operation or function of a number;
the generator of the noise is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaebench import kernels

TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 3e-2}
STANDARD_ERRORS = 6
WHOLE = 2**24  # elements up to which the reference may hold every pair

Result = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # outputs; gradients, none of a forward pass


@dataclass(frozen=True)
class Case:
    """One operation on one set of inputs.

    Attributes:
        upstream: gradients of the outputs, for the backward pass.
        moved: model bytes of the forward pass, and of the backward pass.
        flops: of both passes.
    """

    op: str
    size: tuple[int, ...]
    inputs: Sequence[Tensor]
    upstream: Sequence[Tensor]
    moved: tuple[int, int]
    flops: int

    @cached_property
    def expected(self) -> Result:
        """Return what the definition gives in float64."""
        pairs = torch.broadcast_shapes(self.inputs[0][:, None].shape, self.inputs[-1].shape).numel()
        backend = "reference" if pairs <= WHOLE else "analytic"
        function = _call(self.op, backend)
        return forward_backward(function, [x.double() for x in self.inputs], [g.double() for g in self.upstream])

    def check(self, result: Result) -> None:
        """Raise AssertionError unless every output and gradient agrees with the definition."""
        outputs, gradients = result
        expected = self._of_the_draw(outputs[0]) if self.op == "reparam_kl" else self.expected
        pairs = [*zip(outputs, expected[0], strict=True), *zip(gradients, expected[1][: len(gradients)], strict=True)]
        for found, right in pairs:
            error = (found.double() - right).abs().max() / right.abs().max()
            allowed = TOLERANCE[self.inputs[0].dtype]
            assert error <= allowed, f"{self.op} {size_id(self.size)} is off by {error:.1e}, {allowed:.1e} is allowed"

    def _of_the_draw(self, z: Tensor) -> Result:
        """Return what the definition gives for the noise that z was made with, which must be standard normal."""
        mu, logvar = (x.double().requires_grad_() for x in self.inputs)
        eps = ((z.double() - mu) / torch.exp(logvar / 2)).detach()
        bound = STANDARD_ERRORS / eps.numel() ** 0.5 + TOLERANCE[self.inputs[0].dtype]
        assert eps.mean().abs() <= bound, f"the noise has mean {eps.mean():.2e}"
        assert (eps.square().mean() - 1).abs() <= 2 * bound, f"the noise has mean square {eps.square().mean():.4f}"
        outputs = mu + torch.exp(logvar / 2) * eps, ((mu**2 + torch.expm1(logvar) - logvar) / 2).flatten(1).sum(1)
        gradients = torch.autograd.grad(outputs, (mu, logvar), [g.double() for g in self.upstream])
        return tuple(x.detach() for x in outputs), gradients


def forward_backward(function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> Result:
    """Evaluate function and the gradients of all inputs; leaves are made anew, so that nothing accumulates."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = _as_tuple(function(*leaves))
    return tuple(x.detach() for x in outputs), torch.autograd.grad(outputs, leaves, upstream)


def forward(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Result:
    """Evaluate function without a gradient."""
    with torch.no_grad():
        return _as_tuple(function(*inputs)), ()


def reparam_kl(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """mu, logvar `(B, ...)`; forward reads two and writes one of that size, backward reads three and writes two."""
    shapes = (size, size, size, size[:1])
    mu, logvar, dz, dkl = _normals(shapes, dtype, device)
    elements, rows = mu.numel(), 4 * size[0]
    moved = 3 * mu.nbytes + rows, 5 * mu.nbytes + rows
    return Case("reparam_kl", size, (mu, logvar), (dz, dkl.float()), moved, 20 * elements)


def mmd2(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """x `(N, K)`, y `(M, K)`; a distance is 3K flops, and so is finding it again, a gradient 4K."""
    N, M, K = size
    x, y = _normals(((N, K), (M, K)), dtype, device)
    pairs = (N * (N - 1) + M * (M - 1)) // 2 + N * M
    data = x.nbytes + y.nbytes
    upstream = torch.ones((), device=device)
    return Case("mmd2", size, (x, y + 0.5), (upstream,), (data, 2 * data), pairs * (10 * K + 6))


def log_aggregate(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """z `(B, K)` under N posteriors `(N, K)`; 9 flops forward and 15 backward for each code, posterior and column."""
    B, N, K = size
    shapes = ((B, K), (N, K), (N, K), (B,), (B, K))
    z, mu, logvar, dz_joint, dz_marginals = _normals(shapes, dtype, device)
    read, written = z.nbytes + mu.nbytes + logvar.nbytes, 4 * (B + B * K)
    upstream = (dz_joint.float(), dz_marginals.float())
    moved = (read + written, 2 * read + 2 * written)
    return Case("log_aggregate", size, (z, mu, logvar), upstream, moved, 24 * B * N * K)


CASES = {"reparam_kl": reparam_kl, "mmd2": mmd2, "log_aggregate": log_aggregate}


def size_id(size: Sequence[int]) -> str:
    """Return a size as it stands in the name of a benchmark."""
    return "_".join(map(str, size))


def _call(op: str, backend: str) -> Callable[..., Any]:
    function = getattr(kernels, op)
    return lambda *inputs: function(*inputs, backend=backend)


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _normals(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
