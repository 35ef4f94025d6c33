"""reparam_kl on a GPU: operators, autograd, vmap, and shapes for the compiler.

A forward and a backward operator, both pure and opaque to the compiler, have this package's name as their namespace, so
that a copy of the folder under another name defines operators of its own. A `torch.autograd.Function` combines them,
because operators with their own autograd formula do not work under `torch.func`.
"""

from typing import Any

import torch
from torch import Tensor
from torch._functorch import config

from ..shared import torch_library
from ..shared.accumulate import accumulator, reduce_kl
from ..shared.autograd import cache_signature, move_to_front, refuse_second_derivative
from ..shared.noise import Generators, as_generators
from .reparam_kl_launch import kl_shape, new_gradients, plan_backward, plan_forward


def reparam_kl(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, generator: Generators | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return z and the KL from one kernel. Without a seed, torch's generators draw one on the device."""
    if seed is None:
        seed = _draw_seed(mu.device, generator)
    z, kl = _ReparamKL.apply(mu, logvar, seed, reduction)
    return z, kl


def _draw_seed(device: torch.device, generator: Generators | None) -> Tensor:
    """Draw one seed from each generator. Refuse if the compiler may draw it again in backward, with other noise."""
    if torch.compiler.is_compiling() and (config.aggressive_recomputation or config.activation_memory_budget < 1):
        raise ValueError(
            "with aggressive_recomputation or an activation_memory_budget below 1, draw the seed outside the compiled "
            "function and pass it as seed: backward would draw another one."
        )
    generators = [None] if generator is None else as_generators(generator)
    seeds = [torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=one) for one in generators]
    return seeds[0] if len(seeds) == 1 else torch.cat(seeds)


class _ReparamKL(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @cache_signature
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        z, kl = _forward_operator(mu, logvar, seed, reduction)
        return z, kl

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        mu, logvar, seed, ctx.reduction = inputs
        ctx.save_for_backward(mu, logvar, seed)

    @staticmethod
    @refuse_second_derivative
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


def _fake_forward(mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(kl_shape(mu.shape, reduction), dtype=accumulator(mu))


def _vmap_forward(
    info: Any, in_dims: tuple[int | None, ...], mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Fold the vmapped axis into the rows, and average over the batch of each member afterwards."""
    tensors = zip((mu, logvar, seed), in_dims[:3], strict=True)
    mu, logvar, seed = (move_to_front(x, dim, info.batch_size) for x, dim in tensors)
    unaveraged = _UNAVERAGED.get(reduction, reduction)
    outputs = _forward_operator(mu.flatten(0, 1), logvar.flatten(0, 1), seed.flatten(), unaveraged)
    z, kl = (x.unflatten(0, mu.shape[:2]) for x in outputs)
    return (z, kl if unaveraged == reduction else kl.mean(1)), (0, 0)


def _backward(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> Tensor:
    gradients = new_gradients(mu, logvar)
    if mu.numel() > 0:
        plan_backward(dz, dkl, mu, logvar, seed, gradients, reduction).run()
    return gradients


def _fake_backward(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, reduction: str) -> Tensor:
    return new_gradients(mu, logvar)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """Fold the vmapped axis into the rows, and divide the gradient of an average among the rows beforehand."""
    *tensors, reduction = inputs
    pairs = zip(tensors, in_dims[:5], strict=True)
    dz, dkl, mu, logvar, seed = (move_to_front(x, dim, info.batch_size) for x, dim in pairs)
    unaveraged = _UNAVERAGED.get(reduction, reduction)
    if unaveraged != reduction:
        batch = mu.shape[1]
        dkl = (dkl / batch).unsqueeze(1).expand(-1, batch, *dkl.shape[1:])
    folded = (x.flatten(0, 1) for x in (dz, dkl, mu, logvar))
    gradients = _backward_operator(*folded, seed.flatten(), unaveraged)
    return gradients.unflatten(1, (info.batch_size, -1)), 1


_UNAVERAGED = {"batch": "sample", "dim": "none"}

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
