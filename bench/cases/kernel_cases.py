"""For each operation of kernels/: inputs, the expected result, and the least bytes and flops that it takes.

Model bytes count each input and output of a pass once, and no intermediate values; backward reads the inputs and the
gradients of the outputs, and writes gradients. Flops count each operation or function of a number in the equations
once, without the generator of the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from vaebench import kernels

TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 3e-2}
STANDARD_ERRORS = 6
MOST_PAIRS = 2**24  # elements; above, the reference would take too much memory

Function = Callable[..., Tensor | tuple[Tensor, ...]]
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
        """Return the result of the definition in float64; of many pairs, that of kernels' own eager, in blocks."""
        pairs = torch.broadcast_shapes(self.inputs[0][:, None].shape, self.inputs[-1].shape).numel()
        backend = "reference" if pairs <= MOST_PAIRS else "eager"
        function = partial(getattr(kernels, self.op), backend=backend)
        return forward_backward(function, [x.double() for x in self.inputs], [g.double() for g in self.upstream])

    def check(self, result: Result) -> None:
        """Raise AssertionError unless every output and gradient agrees with the definition."""
        outputs, gradients = result
        expected = self._expect_from_draw(outputs[0]) if self.op == "reparam_kl" else self.expected
        pairs = [*zip(outputs, expected[0], strict=True), *zip(gradients, expected[1][: len(gradients)], strict=True)]
        for found, right in pairs:
            error = (found.double() - right).abs().max() / right.abs().max()
            allowed = TOLERANCE[self.inputs[0].dtype]
            assert error <= allowed, (
                f"{self.op} {format_size(self.size)} is off by {error:.1e}, {allowed:.1e} is allowed"
            )

    def take_inputs(self, other: "Case") -> None:
        """Write inputs and upstream gradients of another case over those of this one, where providers read them."""
        for own, new in zip((*self.inputs, *self.upstream), (*other.inputs, *other.upstream), strict=True):
            own.copy_(new)

    def _expect_from_draw(self, z: Tensor) -> Result:
        """Return the result of the definition with the noise that gives z; this noise must be standard normal."""
        mu, logvar = (x.double().requires_grad_() for x in self.inputs)
        eps = ((z.double() - mu) / torch.exp(logvar / 2)).detach()
        bound = STANDARD_ERRORS / eps.numel() ** 0.5 + TOLERANCE[self.inputs[0].dtype]
        assert eps.mean().abs() <= bound, f"the noise has mean {eps.mean():.2e}"
        assert (eps.square().mean() - 1).abs() <= 2 * bound, f"the noise has mean square {eps.square().mean():.4f}"
        outputs = mu + torch.exp(logvar / 2) * eps, ((mu**2 + torch.expm1(logvar) - logvar) / 2).flatten(1).sum(1)
        gradients = torch.autograd.grad(outputs, (mu, logvar), [g.double() for g in self.upstream])
        return tuple(x.detach() for x in outputs), gradients


def forward_backward(function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> Result:
    """Evaluate function and the gradients of all inputs, as new leaves, so that no gradient accumulates."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = _to_tuple(function(*leaves))
    return tuple(x.detach() for x in outputs), torch.autograd.grad(outputs, leaves, upstream)


def forward(function: Function, inputs: Sequence[Tensor]) -> Result:
    """Evaluate function without a gradient."""
    with torch.no_grad():
        return _to_tuple(function(*inputs)), ()


def reparam_kl(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Case:
    """mu, logvar `(B, ...)`; forward reads two and writes one of that size, backward reads three and writes two."""
    shapes = (size, size, size, size[:1])
    mu, logvar, dz, dkl = _draw_normals(shapes, dtype, device, seed)
    elements, rows = mu.numel(), 4 * size[0]
    moved = 3 * mu.nbytes + rows, 5 * mu.nbytes + rows
    return Case("reparam_kl", size, (mu, logvar), (dz, dkl.float()), moved, 20 * elements)


def mmd2(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Case:
    """x `(N, K)`, y `(M, K)`; a distance takes 3K flops, in forward and in backward, a gradient 4K."""
    N, M, K = size
    x, y = _draw_normals(((N, K), (M, K)), dtype, device, seed)
    pairs = (N * (N - 1) + M * (M - 1)) // 2 + N * M
    data = x.nbytes + y.nbytes
    upstream = torch.ones((), device=device)
    return Case("mmd2", size, (x, y + 0.5), (upstream,), (data, 2 * data), pairs * (10 * K + 6))


def log_aggregate(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Case:
    """z `(B, K)` under N posteriors `(N, K)`; 9 flops forward and 15 backward for each code, posterior and column."""
    B, N, K = size
    shapes = ((B, K), (N, K), (N, K), (B,), (B, K))
    z, mu, logvar, dz_joint, dz_marginals = _draw_normals(shapes, dtype, device, seed)
    read, written = z.nbytes + mu.nbytes + logvar.nbytes, 4 * (B + B * K)
    upstream = (dz_joint.float(), dz_marginals.float())
    moved = (read + written, 2 * read + 2 * written)
    return Case("log_aggregate", size, (z, mu, logvar), upstream, moved, 24 * B * N * K)


CASES = {"reparam_kl": reparam_kl, "mmd2": mmd2, "log_aggregate": log_aggregate}


def format_size(size: Sequence[int]) -> str:
    """Return a size as part of a benchmark's name."""
    return "_".join(map(str, size))


def _to_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _draw_normals(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device, seed: int
) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]
