"""M models of one architecture as one VAE that steps all of them: their weights, a row each, and their optimizer.

Axes: M models, P parameters of the largest, B rows of each model's batch. Latent sizes may differ: the stack has the
largest, and in a smaller model's row the parameters of the latents that it lacks are zero and stay zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vaebench.kernels import Backend
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Run
from vaebench.vae.ensemble import layers as stacked_layers
from vaebench.vae.ensemble.objective import StackedObjective, kinship
from vaebench.vae.model import VAE
from vaebench.vae.objective.terms import Terms
from vaebench.vae.training.epoch import autocast
from vaebench.vae.training.fit import Report
from vaebench.vae.training.state import State

STEP = ("objective", "log_px", "kl", "grad_norm", "divergence")


@dataclass(eq=False)
class Member:
    """One of the models that train together.

    Attributes:
        config: what is run, every automatic choice settled.
        state: its own, as in `fit`; what only a step reads lies in the stack in between.
        layers: what torch's own generator on the device is to it alone: dropout draws from it.
        host: the state of torch's own generator of the CPU, which nothing draws from if that is another.
        report: called after each of its epochs; what it raises ends this model alone.
        folder: keeps its checkpoints.
        error: what has ended it before its time.
    """

    config: Run
    state: State
    layers: torch.Generator
    host: Tensor
    report: Report | None = None
    folder: Path | None = None
    error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether it takes no more steps."""
        return self.error is not None or self.state.finished(self.config)

    def restore_random_state(self) -> None:
        """Put torch's own generators where they would be if it had trained alone."""
        torch.set_rng_state(self.host)
        restore = torch.cuda.set_rng_state if self.layers.device.type == "cuda" else torch.set_rng_state
        restore(self.layers.get_state())


class Layout:
    """Where the parameters of a model, and of smaller ones, lie in a row of P numbers, those of a Linear as (in, out).

    That way round products with few latents take half the time, and the others the same.
    """

    def __init__(self, model: VAE) -> None:
        self.latent = model.latent
        self.shapes = [parameter.shape for parameter in model.parameters()]
        owners = [module for module in model.modules() for _ in module.parameters(recurse=False)]
        self.turned = [
            isinstance(owner, nn.Linear) and len(s) == 2 for owner, s in zip(owners, self.shapes, strict=True)
        ]
        self.size = sum(shape.numel() for shape in self.shapes)

    def stacked(self, matrix: Tensor) -> list[Tensor]:
        """Return views of a matrix `(M, P)`, one for each parameter, `(M, ...)`."""
        parts = matrix.split([shape.numel() for shape in self.shapes], dim=1)
        shapes = [shape[::-1] if turned else shape for shape, turned in zip(self.shapes, self.turned, strict=True)]
        return [part.unflatten(1, shape) if shape else part[:, 0] for part, shape in zip(parts, shapes, strict=True)]

    def of_model(self, row: Tensor, model: VAE) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter of a model, and the view of a row `(P,)` that it fills, which may have an axis more."""
        views = [view[0] for view in self.stacked(row[None])]
        upright = [view.mT if turned else view for view, turned in zip(views, self.turned, strict=True)]
        return [(one, self._corner(view, one.shape)) for one, view in zip(model.parameters(), upright, strict=True)]

    def _corner(self, view: Tensor, shape: torch.Size) -> Tensor:
        """Return the part of the largest model's parameter that a model of fewer latents has."""
        for axis, (most, some) in enumerate(zip(view.shape, shape, strict=True)):
            if some == most:
                continue
            if most == 2 * self.latent:
                return view.unflatten(axis, (2, self.latent)).narrow(axis + 1, 0, some // 2)
            return view.narrow(axis, 0, some)
        return view


class RowAdamW:
    """AdamW for each row of a matrix, at rates and weight decays of its own.

        theta_m <- (1 - rate_m decay_m) theta_m + rate_m step_m

    with the step of torch's AdamW from zero at rate 1: all rows in one fused call, whatever their rates and ages.
    """

    def __init__(self, values: Tensor, gradients: Tensor) -> None:
        self.values, self.steps = values, torch.zeros_like(values)
        self.rows = [nn.Parameter(row) for row in self.steps]
        for row, gradient in zip(self.rows, gradients, strict=True):
            row.grad = gradient
        self.torch = torch.optim.AdamW(self.rows, lr=1.0, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, rates: Tensor, decays: Tensor) -> None:
        """Move all rows, rates and decays `(M, 1)`."""
        self.torch.step()
        self.values.mul_(1 - rates * decays).addcmul_(self.steps, rates)
        self.steps.zero_()


class Stack:
    """The models of some members, moved together from the weights and the moments that their states hold.

    Attributes:
        members: sorted by their objectives' kinship; row m of every matrix is of the m-th.
        values: the weights, `(M, P)`, of which the parameters of `model` are views.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, data_size: int) -> None:
        self.members = sorted(members, key=lambda one: (kinship(one.config), one.config.model.latent))
        self.data_size, self.train = data_size, self.members[0].config.train
        widest = max((one.state.model for one in self.members), key=lambda model: model.latent)
        self.layout = Layout(widest)
        self.values, self.gradients = (torch.zeros(len(members), self.layout.size, device=device) for _ in range(2))
        self.optimizer = RowAdamW(self.values, self.gradients)
        for m in range(len(members)):
            self._take_over(m)
        configs = [one.config for one in self.members]
        self.noise = [one.state.noise for one in self.members]
        self.objective = StackedObjective(configs, self.noise, device)
        column = partial(torch.tensor, dtype=torch.float32, device=device)
        self.clip = column([config.train.clip_norm for config in configs])
        self.decays = column([[config.train.weight_decay] for config in configs])
        self.model, self.parameters = self._assemble(widest)

    def terms(self, x: Tensor, noise: Sequence[torch.Generator]) -> Terms:
        """Return the terms of batches `(M * B, *shape)`, one model's after another's, drawn from a generator each."""
        draw = partial(self.objective.draw, noise, cast(Backend, self.train.backend))
        return objectives.terms(self.model, x, draw=draw)

    def step(self, x: Tensor, warmup: Tensor, reach: Tensor, rates: Tensor) -> Tensor:
        """Ascend every model's objective on its batch, and return what `STEP` names, `(5, M)`, as means of each batch.

        x is `(M * B, *shape)`; warmup, reach (the share of its capacity that C has come to) and rates are `(M,)`.
        Gradients are clipped as `clip_grad_norm_` does, by model.
        """
        with autocast(self.train, x.device):
            terms = self.terms(x, self.noise)
            objective, divergence = self.objective.value(terms, warmup, reach, self.data_size)
        gradients = torch.autograd.grad(-objective.sum(), self.parameters)
        M = len(self.members)
        torch.cat([gradient.reshape(M, -1) for gradient in gradients], dim=1, out=self.gradients)
        norms = torch.linalg.vector_norm(self.gradients, dim=1)
        self.gradients.mul_((self.clip / (norms + 1e-6)).clamp(max=1)[:, None])
        self.optimizer.step(rates[:, None], self.decays)
        means = [terms.log_px.view(M, -1).mean(1), terms.kl.view(M, -1).mean(1)]
        return torch.stack([objective, *means, norms, divergence]).detach()

    @torch.no_grad()
    def write_weights(self) -> None:
        """Put the weights of all members into their own models."""
        for member, row in zip(self.members, self.values, strict=True):
            for parameter, view in self.layout.of_model(row, member.state.model):
                parameter.copy_(view.reshape(parameter.shape))

    def write_moments(self, member: Member) -> None:
        """Put what the optimizer remembers of a member into its own optimizer."""
        found = self.optimizer.torch.state[self.optimizer.rows[self.members.index(member)]]
        own = member.state.optimizer.state
        for parameter in member.state.parameters:
            own[parameter] = {"step": found["step"].clone()}
        for name in ("exp_avg", "exp_avg_sq"):
            for parameter, view in self.layout.of_model(found[name], member.state.model):
                own[parameter][name] = view.reshape(parameter.shape).clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _take_over(self, m: int) -> None:
        """Fill row m with the weights and moments of its member."""
        state = self.members[m].state
        for parameter, view in self.layout.of_model(self.values[m], state.model):
            view.copy_(parameter.view(view.shape))
        moments = state.optimizer.state
        if not moments:
            return
        row = self.optimizer.torch.state[self.optimizer.rows[m]]
        row["step"] = moments[state.parameters[0]]["step"].clone()
        for name in ("exp_avg", "exp_avg_sq"):
            row[name] = torch.zeros_like(self.values[m])
            for parameter, view in self.layout.of_model(row[name], state.model):
                view.copy_(moments[parameter][name].view(view.shape))

    def _assemble(self, widest: VAE) -> tuple[VAE, list[nn.Parameter]]:
        """Return the VAE of all members, formed like the widest, and its parameters in the order of the layout."""
        parameters = [nn.Parameter(view) for view in self.layout.stacked(self.values)]
        left, layers = iter(parameters), [one.layers for one in self.members]
        encoder, decoder = (
            stacked_layers.stack(network, lambda: next(left), layers) for network in (widest.encoder, widest.decoder)
        )
        fixed = torch.stack([one.state.model.likelihood.log_sigma.detach() for one in self.members])
        likelihood = stacked_layers.StackedLikelihood(widest.likelihood, next(left, fixed))
        return VAE(encoder, decoder, likelihood, widest.latent), parameters
