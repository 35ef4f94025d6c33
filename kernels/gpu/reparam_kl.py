"""The fused kernels as PyTorch operators: autograd, vmap, and shapes for the compiler.

Two pure operators, opaque to the compiler, are defined under the name of this package, so that a copy of the folder
under another name defines its own. A `torch.autograd.Function` ties them together: operators that register their own
autograd cannot be used under `torch.func`.
"""

from typing import Any

import torch
from torch import Tensor
from torch._functorch import config

from ..shared import torch_library
from ..shared.accumulate import accumulator, reduce_kl
from ..shared.autograd import first_order, inspected_once
from ..shared.noise import Generators, as_generators
from .reparam_kl_launch import kl_shape, new_gradients, plan_backward, plan_forward


def reparam_kl(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, generator: Generators | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return z and the KL from one kernel; without a seed, torch's generators draw it on the device."""
    if seed is None:
        seed = _draw_seed(mu.device, generator)
    z, kl = _ReparamKL.apply(mu, logvar, seed, reduction)
    return z, kl


def _draw_seed(device: torch.device, generator: Generators | None) -> Tensor:
    """Draw a seed, one from each generator, where that will be done only once: recomputed in backward, it would give
    gradients of other noise.
    """
    if torch.compiler.is_compiling() and (config.aggressive_recomputation or config.activation_memory_budget < 1):
        raise ValueError(
            "with aggressive_recomputation or an activation_memory_budget below 1, draw the seed outside the compiled "
            "function and pass it as seed: backward would draw another one."
        )
    several = [None] if generator is None else as_generators(generator)
    seeds = [torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=one) for one in several]
    return seeds[0] if len(seeds) == 1 else torch.cat(seeds)


class _ReparamKL(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @inspected_once
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        z, kl = _forward_operator(mu, logvar, seed, reduction)
        return z, kl

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        mu, logvar, seed, ctx.reduction = inputs
        ctx.save_for_backward(mu, logvar, seed)

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], dz: Tensor, dkl: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradients = _backward_operator(dz, dkl, *saved, ctx.reduction)
        return gradients[0], gradients[1], None, None


def _forward(mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    z = mu.new_empty(mu.shape)
    if mu.numel() == 0:
        return z, reduce_kl(mu.new_zeros(mu.shape, dtype=accumulator(mu)), reduction)
    launch, sums = plan_forward(mu, logvar, seed, z, reduction)
    launch.run()
    if reduction == "batch":
        return z, sums.sum() if sums.numel() > 1 else sums.view(())
    if sums.shape[0] > 1 and reduction != "none":
        sums = sums.sum(0)
    return z, sums.view(kl_shape(mu.shape, reduction))


def _backward(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> Tensor:
    gradients = new_gradients(mu, logvar)
    if mu.numel() > 0:
        plan_backward(dz, dkl, mu, logvar, seed, gradients, reduction).run()
    return gradients


def _fake_forward(mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(kl_shape(mu.shape, reduction), dtype=accumulator(mu))


def _fake_backward(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> Tensor:
    return new_gradients(mu, logvar)


def _vmap_forward(
    info: Any, in_dims: tuple[int | None, ...], mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Fold the vmapped axis into the rows; averages over the batch are taken outside, instance by instance."""
    mu, logvar, seed = (_lead(x, dim, info.batch_size) for x, dim in zip((mu, logvar, seed), in_dims[:3], strict=True))
    folded = mu.shape[:2]
    unaveraged = _UNAVERAGED.get(reduction, reduction)
    z, kl = _forward_operator(mu.flatten(0, 1), logvar.flatten(0, 1), seed.flatten(), unaveraged)
    z, kl = z.unflatten(0, folded), kl.unflatten(0, folded)
    return (z, kl if unaveraged == reduction else kl.mean(1)), (0, 0)


def _vmap_backward(
    info: Any,
    in_dims: tuple[int | None, ...],
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    reduction: str,
) -> tuple[Tensor, int]:
    tensors = zip((dz, dkl, mu, logvar, seed), in_dims[:5], strict=True)
    dz, dkl, mu, logvar, seed = (_lead(x, dim, info.batch_size) for x, dim in tensors)
    unaveraged = _UNAVERAGED.get(reduction, reduction)
    if unaveraged != reduction:
        batch = mu.shape[1]
        dkl = (dkl / batch).unsqueeze(1).expand(-1, batch, *dkl.shape[1:])
    dz, dkl, mu, logvar = (x.flatten(0, 1) for x in (dz, dkl, mu, logvar))
    gradients = _backward_operator(dz, dkl, mu, logvar, seed.flatten(), unaveraged)
    return gradients.unflatten(1, (info.batch_size, -1)), 1


_UNAVERAGED = {"batch": "sample", "dim": "none"}


def _lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """Return x with its vmapped axis, or a broadcast one, in front."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


_forward_operator = torch_library.define(
    "reparam_kl(Tensor mu, Tensor logvar, Tensor seed, str reduction) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _vmap_forward,
)
_backward_operator = torch_library.define(
    "reparam_kl_backward(Tensor dz, Tensor dkl, Tensor mu, Tensor logvar, Tensor seed, str reduction) -> Tensor",
    _backward,
    _fake_backward,
    _vmap_backward,
)
