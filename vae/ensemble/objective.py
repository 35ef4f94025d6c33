"""The draw and the objectives of M models at once: the functions that `fit` uses, with each model's own weights.

Axes: M models, B rows of each, K latent size of the largest. The codes of a smaller model are the first columns of z,
and its other columns are zero. Models of the same latent size draw together. Models whose objectives differ only in
their weights form a group, and the value is computed once for each group, under vmap.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench import kernels
from vaebench.vae.config.objective import Batch, Stacking
from vaebench.vae.config.run import Run
from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.prob.terms import Terms

Weights = dict[str, Tensor]


def group_key(config: Run) -> tuple[Any, ...]:
    """Return the key that two models share if their objectives are evaluated together; stacks are sorted by it."""
    return _stacking(config).key


def _stacking(config: Run) -> Stacking:
    found = config.objective.stacking(config.model.latent)
    assert found is not None, "can_stack refuses this run"
    return found


class Group:
    """G neighbours in a stack whose objectives differ only in their weights.

    Attributes:
        models: the slice of the stack.
        latents: their latent sizes.
        noise: their generators, from which prior samples are drawn.
        stacking: how the objective of the first model, and so of all, is computed.
        units: the lengths in which codes are measured, `(G, 1, 1)`: the root of each bandwidth.
    """

    def __init__(
        self, models: slice, configs: Sequence[Run], noise: Sequence[torch.Generator], device: torch.device
    ) -> None:
        each = [_stacking(config) for config in configs]
        self.models, self.noise, self.stacking = models, noise, each[0]
        self.latents = [config.model.latent for config in configs]
        self.names = list(configs[0].objective.weights(0.0))
        self.units = torch.tensor([one.bandwidth for one in each], device=device).sqrt()[:, None, None]

    def value(self, stacked: Terms, weights: Weights, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each model, `(G,)`, D zero where it is not used, from terms `(M, B, ...)`."""
        columns = self.models, slice(None), slice(max(self.latents))
        tensors = {
            "log_px": stacked.log_px[self.models],
            "kl": stacked.kl[self.models],
            "z": stacked.z[columns] / self.units,
            "mu": stacked.q.mu[columns],
            "logvar": stacked.q.logvar[columns],
        }
        if self.stacking.draws_prior:
            tensors["prior"] = self._draw_prior(stacked.z[columns]) / self.units
        own_weights = {name: weights[name][self.models] for name in ("warmup", *self.names)}

        def value_of_one(weights: Weights, own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            terms = Terms(own["log_px"], own["kl"], own["z"], DiagonalGaussian(own["mu"], own["logvar"]))
            batch = Batch(data_size, prior_samples=own.get("prior"))
            value, divergence = self.stacking.objective.value(terms, weights, batch)
            return value, divergence if divergence is not None else torch.zeros_like(value)

        value, divergence = torch.vmap(value_of_one)(own_weights, tensors)
        return value, divergence

    def _draw_prior(self, z: Tensor) -> Tensor:
        """Draw as many prior samples as there are codes `(G, B, K)`, zero in the latents that a model lacks."""
        drawn = torch.zeros_like(z)
        for samples, latent, generator in zip(drawn, self.latents, self.noise, strict=True):
            samples[:, :latent] = torch.randn(len(samples), latent, generator=generator, dtype=z.dtype, device=z.device)
        return drawn


class StackedObjective:
    """The draws and the objectives of models that are sorted by `group_key` and, within a group, by latent size."""

    def __init__(self, configs: Sequence[Run], noise: Sequence[torch.Generator], device: torch.device) -> None:
        latents = [config.model.latent for config in configs]
        self.blocks = [(models, latents[models.start]) for models in _slices_of_equals(latents)]
        keys = map(group_key, configs)
        self.groups = [Group(models, configs[models], noise[models], device) for models in _slices_of_equals(keys)]

    def draw(
        self, noise: Sequence[torch.Generator], backend: kernels.Backend, mu: Tensor, logvar: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return z and the KL of all rows, `(M * B, K)` and `(M * B,)`: models of one latent size in one call.

        The columns of mu and logvar for latents that a model lacks are ignored.
        """
        rows, (codes, divergences) = mu.shape[0] // len(noise), ([], [])
        for models, latent in self.blocks:
            block = slice(models.start * rows, models.stop * rows), slice(latent)
            z, kl = kernels.reparam_kl(mu[block], logvar[block], generator=noise[models], backend=backend)
            codes.append(F.pad(z, (0, mu.shape[1] - latent)) if latent < mu.shape[1] else z)
            divergences.append(kl)
        return torch.cat(codes), torch.cat(divergences)

    def value(self, terms: Terms, weights: Weights, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each model, `(M,)`, from the terms of all rows and the weights, `(M,)` each."""
        split: Callable[[Tensor], Tensor] = partial(torch.unflatten, dim=0, sizes=(len(weights["warmup"]), -1))
        q = DiagonalGaussian(split(terms.q.mu), split(terms.q.logvar))
        stacked = Terms(split(terms.log_px), split(terms.kl), split(terms.z), q)
        parts = [group.value(stacked, weights, data_size) for group in self.groups]
        values, divergences = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(divergences)


def _slices_of_equals(keys: Iterable[object]) -> Iterator[slice]:
    """Yield the slices of equal neighbours."""
    start = 0
    for _, group in groupby(keys):
        stop = start + len(list(group))
        yield slice(start, stop)
        start = stop
