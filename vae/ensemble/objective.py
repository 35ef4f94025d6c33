"""The draw and the objectives of M models at once: the functions that `fit` uses, with each model's own weights.

Axes: M models, B rows of each, K latent size of the largest. The codes of a smaller model are the first columns of z,
and its other columns are zero. Models of the same latent size draw together. Models whose objectives differ only in
their weights form a group, and `objectives.value` runs once for each group, under vmap.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench import kernels
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Objective, Run
from vaebench.vae.flows import FlowDistribution
from vaebench.vae.objective.terms import Terms
from vaebench.vae.prob.densities import DiagonalGaussian

WEIGHTS = ("w_kl", "w_d", "w_mi", "w_tc", "w_dim", "gamma", "capacity")
Key = tuple[str, bool, int, str, str, tuple[float, ...], str]


def group_key(config: Run) -> Key:
    """Return the key that two models share if their objectives are evaluated together; stacks are sorted by it.

    It contains the latent size where the objective looks at each latent of a code. MMD depends only on distances
    between codes in units of the bandwidth, so columns of zeros do not count and latent sizes may differ.
    """
    objective = config.objective
    if objective.name != "tc_vae" and not objective.uses_divergence:
        return objective.name, False, 0, "", "", (), ""
    if objective.divergence == "mmd" and objective.uses_divergence:
        widths = tuple(width / objective.bandwidth[0] for width in objective.bandwidth)
        return objective.name, True, 0, "mmd", objective.kernel, widths, objective.estimator
    return objective.name, objective.uses_divergence, config.model.latent, objective.divergence, "", (), ""


class Group:
    """G neighbours in a stack whose objectives differ only in their weights.

    Attributes:
        models: the slice of the stack.
        latents: their latent sizes.
        noise: their generators, from which prior samples are drawn.
        objective: of the first model, with bandwidths as multiples of its first bandwidth.
        weights: `(G,)` each, by name.
        units: the lengths in which codes are measured, `(G, 1, 1)`: the root of each first bandwidth.
    """

    def __init__(
        self, models: slice, configs: Sequence[Run], noise: Sequence[torch.Generator], device: torch.device
    ) -> None:
        each = [config.objective for config in configs]
        first = each[0].bandwidth
        self.models, self.noise, self.latents = models, noise, [config.model.latent for config in configs]
        self.objective = dataclasses.replace(each[0], bandwidth=tuple(width / first[0] for width in first))
        self.weights = {name: torch.tensor([getattr(one, name) for one in each], device=device) for name in WEIGHTS}
        widths = torch.tensor([one.bandwidth[0] if one.bandwidth else 1.0 for one in each], device=device)
        self.units = widths.sqrt()[:, None, None]

    def value(self, stacked: Terms, warmup: Tensor, capacity: Tensor, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each model, `(G,)`, D zero where it is not used, from terms `(M, B, ...)`."""
        columns = self.models, slice(None), slice(max(self.latents))
        tensors = {
            "log_px": stacked.log_px[self.models],
            "kl": stacked.kl[self.models],
            "z": stacked.z[columns],
            "mu": stacked.q.mu[columns],
            "logvar": stacked.q.logvar[columns],
        }
        if self.objective.uses_divergence and self.objective.divergence == "mmd":
            prior = self._draw_prior(tensors["z"])
            tensors |= {"z": tensors["z"] / self.units, "prior": prior / self.units}

        def value_of_one(
            weights: dict[str, Tensor], warmup: Tensor, capacity: Tensor, own: dict[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            prior = cast(FlowDistribution, _FixedSamples(own["prior"])) if "prior" in own else None
            terms = Terms(own["log_px"], own["kl"], own["z"], DiagonalGaussian(own["mu"], own["logvar"]), prior)
            objective = cast(Objective, _WeightedObjective(self.objective, weights))
            value, divergence = objectives.value(
                objective, terms, data_size=data_size, warmup=cast(float, warmup), capacity=cast(float, capacity)
            )
            return value, divergence if divergence is not None else torch.zeros_like(value)

        value, divergence = torch.vmap(value_of_one)(self.weights, warmup[self.models], capacity[self.models], tensors)
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

    def value(self, terms: Terms, warmup: Tensor, capacity: Tensor, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each model, `(M,)`, from the terms of all rows and two ramps, `(M,)` each."""
        split: Callable[[Tensor], Tensor] = partial(torch.unflatten, dim=0, sizes=(len(warmup), -1))
        q = DiagonalGaussian(split(terms.q.mu), split(terms.q.logvar))
        stacked = Terms(split(terms.log_px), split(terms.kl), split(terms.z), q)
        parts = [group.value(stacked, warmup, capacity, data_size) for group in self.groups]
        values, divergences = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(divergences)


class _WeightedObjective:
    """An objective with other weights, which are zero-dimensional tensors."""

    def __init__(self, objective: Objective, weights: dict[str, Tensor]) -> None:
        self._objective, self._weights = objective, weights

    def __getattr__(self, name: str) -> Any:
        return self._weights[name] if name in self._weights else getattr(self._objective, name)


@dataclass(frozen=True)
class _FixedSamples:
    """A prior whose samples are drawn beforehand: under vmap each model cannot draw from its own generator."""

    samples: Tensor

    def rsample(self, generator: torch.Generator | None) -> Tensor:
        return self.samples


def _slices_of_equals(keys: Iterable[object]) -> Iterator[slice]:
    """Yield the slices of equal neighbours."""
    start = 0
    for _, group in groupby(keys):
        stop = start + len(list(group))
        yield slice(start, stop)
        start = stop
