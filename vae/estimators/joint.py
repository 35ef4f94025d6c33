"""log p(x, z) of chosen data: values, gradients and Hessians in blocks, and a count of what they cost.

The unit of cost is one evaluation of log p(x, z) at one code. A gradient in z counts as two, one pass forward and one
backward: the gradients of the model's weights are not computed. Each row of a Hessian counts as two more, one pass back
through either of them. Axes: S samples, b data out of B, K latent size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaebench.vae.prob.densities import IndexedLogDensity

GRADIENT_COST = 2


class CountedJoint:
    """log p(x_b, z) of data chosen by index, which counts its evaluations.

    Args:
        log_joint: maps codes `(S, b, K)` and indices `(b,)` to log p(x_b, z_sb), `(S, b)`.
        like: any tensor of B rows with the dtype and device of the codes.
        codes_at_once: codes in one call of log_joint; a quarter of them where it is differentiated, since the graph
            keeps the activations of every layer.

    Attributes:
        spent: evaluations so far for each datum, `(B,)`.
    """

    def __init__(self, log_joint: IndexedLogDensity, like: Tensor, codes_at_once: int) -> None:
        self.log_joint, self.codes_at_once = log_joint, codes_at_once
        self.rows = torch.arange(len(like), device=like.device)
        self.spent = torch.zeros(len(like), dtype=torch.float64, device=like.device)

    @torch.no_grad()
    def __call__(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return log p(x, z), `(S, b, K) -> (S, b)`."""
        self.spent[rows] += len(z)
        blocks = []
        for part in _split(len(rows), self.codes_at_once):
            samples = z[:, part].split(max(1, self.codes_at_once // len(rows[part])))
            blocks.append(torch.cat([self.log_joint(some, rows[part]) for some in samples]))
        return torch.cat(blocks, dim=1)

    def gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x, z) and its gradient, `(b, K) -> (b,), (b, K)`; rows may repeat."""
        # Not `spent[rows] +=`: a datum may stand among the rows several times.
        self.spent.index_add_(0, rows, torch.full_like(self.spent[rows], GRADIENT_COST))
        blocks = [self._differentiate(z[part], rows[part]) for part in self._graphs(len(rows))]
        values, gradients = zip(*blocks, strict=True)
        return torch.cat(values), torch.cat(gradients)

    def curvature(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x, z), its gradient and minus its Hessian, `(b, K) -> (b,), (b, K), (b, K, K)`."""
        self.spent[rows] += GRADIENT_COST * (1 + z.shape[-1])
        blocks = [self._differentiate_twice(z[part], rows[part]) for part in self._graphs(len(rows))]
        values, gradients, hessians = zip(*blocks, strict=True)
        return torch.cat(values), torch.cat(gradients), torch.cat(hessians)

    def differentiable(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return log p(x, z) as part of a graph, `(S, b, K) -> (S, b)`; counts the gradient that is to follow."""
        self.spent[rows] += GRADIENT_COST * len(z)
        return self.log_joint(z, rows)

    def data_at_once(self, draws: int) -> int:
        """Return of how many data so many codes each fit into one graph, at least 1."""
        return max(1, self.codes_in_graph // draws)

    @property
    def codes_in_graph(self) -> int:
        """Return the number of codes in one call that is differentiated."""
        return max(1, self.codes_at_once // 4)

    def _graphs(self, count: int) -> Iterator[slice]:
        return _split(count, self.codes_in_graph)

    @torch.enable_grad()
    def _differentiate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = self.log_joint(z[None], rows)[0]
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    @torch.enable_grad()
    def _differentiate_twice(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = self.log_joint(z[None], rows)[0]
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        # A density that is linear in z has a gradient without z in its graph, or without a graph: no curvature.
        columns = [
            torch.autograd.grad(gradient[:, k].sum(), z, retain_graph=True, materialize_grads=True)[0]
            if gradient.requires_grad
            else torch.zeros_like(z)
            for k in range(z.shape[-1])
        ]
        hessian = torch.stack(columns, dim=1)
        return value.detach(), gradient.detach(), -0.5 * (hessian + hessian.mT)


def _split(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
