"""reparam_kl as an operation: operators, autograd, vmap and shapes, for the backends `numba` and `triton`.

A forward and a backward operator, both pure and opaque to the compiler, have this package's name as their namespace, so
that a copy of the folder under another name defines operators of its own. A `torch.autograd.Function` combines them,
because operators with their own autograd formula do not work under `torch.func`. Only inputs are saved for backward.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import torch_library
from .accumulate import accumulator, reduce_kl
from .autograd import cache_signature, is_plain, move_to_front, refuse_second_derivative, without_rules

# (mu, spread, prior mu or None, prior logvar or None, seed, scale, reduction) -> (z, kl)
Forward = Callable[..., tuple[Tensor, Tensor]]

_UNAVERAGED = {"batch": "sample", "dim": "none"}


def define(name: str, forward: Forward, backward: Callable[..., list[Tensor]]) -> Forward:
    """Register two passes as operators, and return reparam_kl, differentiable once.

    Args:
        name: name of the forward operator; the backward operator is called `{name}_backward`.
        forward: (mu, spread, prior mu or None, prior logvar or None, seed, scale, reduction) -> (z, kl), where tensors
            of the prior have the shape of mu, and at least one element.
        backward: (dz, dkl, *inputs of forward) -> `[(dmu, dspread)]`, and with a prior
            `[(dmu, dspread), (dmu of the prior, dlogvar of the prior)]`, each pair in one tensor `(2, B, ...)`.
    """

    def forward_or_empty(mu: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        if mu.numel() == 0:
            return mu.new_empty(mu.shape), reduce_kl(mu.new_zeros(mu.shape, dtype=accumulator(mu)), others[-1])
        return forward(mu, *others)

    def backward_or_empty(dz: Tensor, *others: Any) -> list[Tensor]:
        return fake_backward(dz, *others) if dz.numel() == 0 else backward(dz, *others)

    def vmap_forward(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, int]]:
        """Fold the vmapped axis into the rows, and average over the batch of each member afterwards."""
        *tensors, scale, reduction = inputs
        front = _move_to_front(info.batch_size, in_dims, tensors)
        unaveraged = _UNAVERAGED.get(reduction, reduction)
        outputs = forward_operator(*map(_fold, front), scale, unaveraged)
        z, kl = (x.unflatten(0, front[0].shape[:2]) for x in outputs)
        return (z, kl if unaveraged == reduction else kl.mean(1)), (0, 0)

    def vmap_backward(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, int | None]]:
        """Fold the vmapped axis into the rows, and divide the gradient of an average among the rows beforehand."""
        *tensors, scale, reduction = inputs
        dz, dkl, *rest = _move_to_front(info.batch_size, in_dims, tensors)
        unaveraged = _UNAVERAGED.get(reduction, reduction)
        if unaveraged != reduction:
            batch = dz.shape[1]
            dkl = (dkl / batch).unsqueeze(1).expand(-1, batch, *dkl.shape[1:])
        own, of_prior = (
            pair.unflatten(1, (info.batch_size, -1)) if pair.ndim > 1 else pair
            for pair in backward_operator(*map(_fold, (dz, dkl, *rest)), scale, unaveraged)
        )
        return (own, of_prior), (1, 1 if of_prior.ndim > 1 else None)

    inputs = "Tensor mu, Tensor spread, Tensor? prior_mu, Tensor? prior_logvar, Tensor seed, str scale, str reduction"
    forward_operator = torch_library.define(
        f"{name}({inputs}) -> (Tensor, Tensor)", forward_or_empty, fake_forward, vmap_forward
    )
    backward_operator = torch_library.define(
        f"{name}_backward(Tensor dz, Tensor dkl, {inputs}) -> (Tensor, Tensor)",
        lambda *inputs: _fill(backward_or_empty(*inputs)),
        lambda *inputs: _fill(fake_backward(*inputs)),
        vmap_backward,
    )

    class ReparamKL(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        @cache_signature
        def forward(
            mu: Tensor,
            spread: Tensor,
            prior_mu: Tensor | None,
            prior_logvar: Tensor | None,
            seed: Tensor,
            scale: str,
            reduction: str,
        ) -> tuple[Tensor, Tensor]:
            z, kl = forward_operator(mu, spread, prior_mu, prior_logvar, seed, scale, reduction)
            return z, kl

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            *tensors, ctx.scale, ctx.reduction = inputs
            ctx.save_for_backward(*tensors)

        @staticmethod
        @refuse_second_derivative
        def backward(ctx: Any, saved: tuple[Tensor, ...], dz: Tensor, dkl: Tensor) -> tuple[Tensor | None, ...]:
            run = backward_or_empty if is_plain(dz, dkl, *saved) else backward_operator
            own, *others = run(dz, dkl, *saved, ctx.scale, ctx.reduction)
            of_prior = others[0].unbind() if saved[2] is not None else (None, None)
            return *own.unbind(), *of_prior, None, None, None

    PlainReparamKL = without_rules(ReparamKL, forward_or_empty)

    def evaluate(*inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, _, _ = inputs
        z, kl = (PlainReparamKL if is_plain(*tensors) else ReparamKL).apply(*inputs)
        return z, kl

    return evaluate


def kl_shape(shape: torch.Size, reduction: str) -> torch.Size:
    """Return the shape of the KL of a `(B, ...)` tensor."""
    return {"none": shape, "sample": shape[:1], "dim": shape[1:], "batch": shape[:0]}[reduction]


def new_gradients(mu: Tensor, spread: Tensor, prior_mu: Tensor | None) -> list[Tensor]:
    """Return an empty `(2, B, ...)` for dmu and dspread, and with a prior another for its two gradients.

    The first pair is interleaved like mu and spread if these are halves of rows.
    """
    columns = math.prod(mu.shape[1:])
    halves = mu.stride(0) == spread.stride(0) == 2 * columns and mu[:1].is_contiguous() and spread[:1].is_contiguous()
    own = mu.new_empty((mu.shape[0], 2, *mu.shape[1:])).movedim(1, 0) if halves else mu.new_empty((2, *mu.shape))
    return [own] if prior_mu is None else [own, mu.new_empty((2, *mu.shape))]


def fake_forward(mu: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(kl_shape(mu.shape, others[-1]), dtype=accumulator(mu))


def fake_backward(dz: Tensor, dkl: Tensor, mu: Tensor, spread: Tensor, *others: Any) -> list[Tensor]:
    return new_gradients(mu, spread, others[0])


def _fill(gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return two tensors, the second empty without a prior: torch batches only a fixed number of results."""
    own, *of_prior = gradients
    return own, of_prior[0] if of_prior else own.new_empty(0)


def _move_to_front(size: int, in_dims: tuple[int | None, ...], tensors: list[Any]) -> list[Any]:
    pairs = zip(tensors, in_dims, strict=False)
    return [None if x is None else move_to_front(x, dim, size) for x, dim in pairs]


def _fold(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.flatten(0, 1)
