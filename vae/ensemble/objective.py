"""The draw and the objectives of M models at once: the same functions as for one, and each model's own weights.

Axes: M models, B rows of each, K latent size of the largest; a smaller model's codes are the first columns of z, whose
rest is zero. Models of one latent size draw together. Models whose objectives differ in their weights alone are kin,
and `objectives.value` runs once for all of them, under vmap.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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


def kinship(config: Run) -> Key:
    """Return what two models must share to have their objectives evaluated together; stacks are sorted by it.

    The latent size is part of it where the objective looks at each latent of a code. MMD looks at distances between
    codes in units of the bandwidth, in which columns of zeros do not count, and models differ as they like.
    """
    objective = config.objective
    if objective.name != "tc_vae" and not objective.uses_divergence:
        return objective.name, False, 0, "", "", (), ""
    if objective.divergence == "mmd" and objective.uses_divergence:
        widths = tuple(width / objective.bandwidth[0] for width in objective.bandwidth)
        return objective.name, True, 0, "mmd", objective.kernel, widths, objective.estimator
    return objective.name, objective.uses_divergence, config.model.latent, objective.divergence, "", (), ""


@dataclass(frozen=True)
class Kin:
    """Neighbours in a stack whose objectives differ in their weights alone.

    Attributes:
        models: which of the stack they are.
        latents: their latent sizes.
        objective: that of the first, with bandwidths as multiples of the first one, where there is any.
        weights: `(G,)` each, by name.
        units: the lengths in which codes are measured, `(G, 1, 1)`: the root of the first bandwidth.
        noise: their generators, from which prior samples are drawn.
    """

    models: slice
    latents: Sequence[int]
    objective: Objective
    weights: dict[str, Tensor]
    units: Tensor
    noise: Sequence[torch.Generator]

    def value(self, stacked: Terms, warmup: Tensor, reach: Tensor, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each, `(G,)`, D zero where it is not used, from terms `(M, B, ...)`."""
        columns = self.models, slice(None), slice(max(self.latents))
        own = {
            "log_px": stacked.log_px[self.models],
            "kl": stacked.kl[self.models],
            "z": stacked.z[columns],
            "mu": stacked.q.mu[columns],
            "logvar": stacked.q.logvar[columns],
        }
        if self.objective.uses_divergence and self.objective.divergence == "mmd":
            own |= {"z": own["z"] / self.units, "prior": self._prior_samples(own["z"]) / self.units}
        one = partial(_value, self.objective, data_size)
        value, divergence = torch.vmap(one)(self.weights, warmup[self.models], reach[self.models], own)
        return value, divergence

    def _prior_samples(self, z: Tensor) -> Tensor:
        """Draw as many prior samples as there are codes `(G, B, K)`, zero in the latents that a model lacks."""
        drawn = torch.zeros_like(z)
        for samples, latent, generator in zip(drawn, self.latents, self.noise, strict=True):
            samples[:, :latent] = torch.randn(len(samples), latent, generator=generator, dtype=z.dtype, device=z.device)
        return drawn


class StackedObjective:
    """The draws and the objectives of models that are sorted by `kinship` and, within it, by latent size."""

    def __init__(self, configs: Sequence[Run], noise: Sequence[torch.Generator], device: torch.device) -> None:
        latents = [config.model.latent for config in configs]
        self.blocks = [(models, latents[models.start]) for models in _runs(latents)]
        self.kin = [_kin(configs[models], models, noise[models], device) for models in _runs(map(kinship, configs))]

    def draw(
        self, noise: Sequence[torch.Generator], backend: kernels.Backend, mu: Tensor, logvar: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return z and the KL of all rows, `(M * B, K)` and `(M * B,)`: models of one latent size in one call.

        What a smaller model's networks compute for latents that it lacks is not looked at.
        """
        rows, (codes, divergences) = mu.shape[0] // len(noise), ([], [])
        for models, latent in self.blocks:
            own = slice(models.start * rows, models.stop * rows), slice(latent)
            z, kl = kernels.reparam_kl(mu[own], logvar[own], generator=noise[models], backend=backend)
            codes.append(F.pad(z, (0, mu.shape[1] - latent)) if latent < mu.shape[1] else z)
            divergences.append(kl)
        return torch.cat(codes), torch.cat(divergences)

    def value(self, terms: Terms, warmup: Tensor, reach: Tensor, data_size: int) -> tuple[Tensor, Tensor]:
        """Return objective and D of each model, `(M,)`, from terms of all rows and what rises to 1, `(M,)`."""
        split: Callable[[Tensor], Tensor] = partial(torch.unflatten, dim=0, sizes=(len(warmup), -1))
        q = DiagonalGaussian(split(terms.q.mu), split(terms.q.logvar))
        stacked = Terms(split(terms.log_px), split(terms.kl), split(terms.z), q)
        parts = [kin.value(stacked, warmup, reach, data_size) for kin in self.kin]
        values, divergences = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(divergences)


class _Weighted:
    """The objective of one of the kin: the weights are its own, and zero-dimensional tensors."""

    def __init__(self, objective: Objective, weights: dict[str, Tensor]) -> None:
        self._objective, self._weights = objective, weights

    def __getattr__(self, name: str) -> Any:
        return self._weights[name] if name in self._weights else getattr(self._objective, name)


@dataclass(frozen=True)
class _Drawn:
    """Prior samples that are there already: vmap cannot draw from a generator of each model."""

    samples: Tensor

    def rsample(self, generator: torch.Generator | None) -> Tensor:
        return self.samples


def _value(
    objective: Objective,
    data_size: int,
    weights: dict[str, Tensor],
    warmup: Tensor,
    reach: Tensor,
    own: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return objective and D of one model, in the terms of one model."""
    prior = cast(FlowDistribution, _Drawn(own["prior"])) if "prior" in own else None
    terms = Terms(own["log_px"], own["kl"], own["z"], DiagonalGaussian(own["mu"], own["logvar"]), prior)
    weighted = cast(Objective, _Weighted(objective, weights))
    value, divergence = objectives.value(
        weighted, terms, data_size=data_size, warmup=cast(float, warmup), capacity=cast(float, reach)
    )
    return value, divergence if divergence is not None else torch.zeros_like(value)


def _kin(configs: Sequence[Run], models: slice, noise: Sequence[torch.Generator], device: torch.device) -> Kin:
    each = [config.objective for config in configs]
    weights = {name: torch.tensor([getattr(one, name) for one in each], device=device) for name in WEIGHTS}
    units = torch.tensor([one.bandwidth[0] if one.bandwidth else 1.0 for one in each], device=device).sqrt()
    first = dataclasses.replace(each[0], bandwidth=tuple(b / each[0].bandwidth[0] for b in each[0].bandwidth))
    return Kin(models, [config.model.latent for config in configs], first, weights, units[:, None, None], noise)


def _runs(keys: Any) -> Iterator[slice]:
    """Yield the slices of equal neighbours."""
    start = 0
    for _, group in groupby(keys):
        stop = start + len(list(group))
        yield slice(start, stop)
        start = stop
