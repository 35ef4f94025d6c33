"""One step of many models: their weights, one row for each model, and their optimizer.

Axes: M models, P parameters of the largest, B rows of each model's batch. Latent sizes may differ: the stack has the
largest, and in a smaller model's row the parameters of the latents that it lacks are zero and stay zero.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vaebench import kernels
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Run
from vaebench.vae.ensemble.layers import StackedLikelihood, stack
from vaebench.vae.ensemble.objective import StackedObjective, Weights, group_key
from vaebench.vae.model import VAE, GenerativeModel
from vaebench.vae.prob.terms import Terms
from vaebench.vae.training.epoch import autocast
from vaebench.vae.training.state import State

QUANTITIES = ("objective", "log_px", "kl", "grad_norm", "divergence")


@dataclass(eq=False)
class Member:
    """One of the models that train side by side.

    Attributes:
        config: the run, every automatic choice made.
        state: its own, as in `fit`; while the model is in a stack, weights and moments are in the stack.
        layers: holds the state of the generator, on the model's device, from which its layers draw, such as dropout.
        host: the same for the generator of the CPU.
        folder: holds the checkpoints.
        error: the exception that ended the training early.
    """

    config: Run
    state: State
    layers: torch.Generator
    host: Tensor
    folder: Path | None = None
    error: Exception | None = None

    @classmethod
    def start(cls, config: Run, state: State, device: torch.device, folder: Path | None = None) -> "Member":
        """Return a model whose layers draw from torch's own generators as they are now."""
        member = cls(config, state, torch.Generator(device), torch.get_rng_state(), folder)
        member._keep_random_state()
        return member

    @property
    def model(self) -> GenerativeModel:
        """Return the model of the state."""
        return self.state.model

    @property
    def vae(self) -> VAE:
        """Return the model of a member that is stacked: no other models are."""
        assert isinstance(self.model, VAE)
        return self.model

    @property
    def has_ended(self) -> bool:
        """Whether the model takes no more steps."""
        return self.error is not None or self.state.is_finished(self.config)

    @contextlib.contextmanager
    def own_random_state(self) -> Iterator[None]:
        """Let torch's own generators be, inside the block, where they would be if this model had trained alone."""
        is_cuda = self.layers.device.type == "cuda"
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if is_cuda else []):
            torch.set_rng_state(self.host)
            (torch.cuda.set_rng_state if is_cuda else torch.set_rng_state)(self.layers.get_state())
            yield
            self._keep_random_state()

    def _keep_random_state(self) -> None:
        self.host = torch.get_rng_state()
        self.layers.set_state(torch.cuda.get_rng_state() if self.layers.device.type == "cuda" else self.host)


class Layout:
    """The places of the parameters of a model, and of models with fewer latents, in a row of P numbers.

    Weights of a Linear are stored as (in, out): products with few latents then take half the time, the others the same.
    """

    def __init__(self, model: VAE) -> None:
        self.latent = model.latent
        owned = [(module, own.shape) for module in model.modules() for own in module.parameters(recurse=False)]
        self.transposed = [isinstance(owner, nn.Linear) and len(shape) == 2 for owner, shape in owned]
        pairs = zip(owned, self.transposed, strict=True)
        self.shapes = [shape[::-1] if transposed else shape for (_, shape), transposed in pairs]
        self.sizes = [shape.numel() for _, shape in owned]
        self.size = sum(self.sizes)

    def view_all(self, matrix: Tensor) -> list[Tensor]:
        """Return views of a matrix `(M, P)`, one for each parameter, `(M, ...)`."""
        pairs = zip(matrix.split(self.sizes, dim=1), self.shapes, strict=True)
        return [part.unflatten(1, shape) if shape else part[:, 0] for part, shape in pairs]

    def view_one(self, row: Tensor, model: VAE) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter of a model with its view of a row `(P,)`, which may have one more axis."""
        pairs = zip(self.view_all(row[None]), self.transposed, strict=True)
        views = [view[0].mT if transposed else view[0] for view, transposed in pairs]
        return [(one, self._crop(view, one.shape)) for one, view in zip(model.parameters(), views, strict=True)]

    def _crop(self, view: Tensor, shape: torch.Size) -> Tensor:
        """Return the part of the largest model's parameter that a model with fewer latents has."""
        for axis, (largest, size) in enumerate(zip(view.shape, shape, strict=True)):
            if size == largest:
                continue
            if largest == 2 * self.latent:
                return view.unflatten(axis, (2, self.latent)).narrow(axis + 1, 0, size // 2)
            return view.narrow(axis, 0, size)
        return view


class RowAdamW:
    """AdamW for each row of a matrix, with its own learning rate and weight decay.

        theta_m <- (1 - rate_m decay_m) theta_m + rate_m step_m

    where step_m is that of torch's AdamW at weights of zero and rate 1. All rows move in one fused call, whatever their
    rates and their numbers of steps.
    """

    def __init__(self, values: Tensor, gradients: Tensor) -> None:
        self.values, self.steps = values, torch.zeros_like(values)
        self.rows = [nn.Parameter(row) for row in self.steps]
        for row, gradient in zip(self.rows, gradients, strict=True):
            row.grad = gradient
        self.torch = torch.optim.AdamW(self.rows, lr=1.0, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, rates: Tensor, decays: Tensor) -> None:
        """Move all rows; rates and decays are `(M, 1)`."""
        self.torch.step()
        self.values.mul_(1 - rates * decays).addcmul_(self.steps, rates)
        self.steps.zero_()


class Stack:
    """The models of some members, trained together from the weights and moments in their states.

    Attributes:
        members: sorted by `group_key`; row m of every matrix belongs to the m-th.
        values: the weights, `(M, P)`; the parameters of `model` are views of it.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, data_size: int) -> None:
        self.members = sorted(members, key=lambda one: (group_key(one.config), one.config.model.latent))
        self.data_size, self.train = data_size, self.members[0].config.train
        widest = max((one.vae for one in self.members), key=lambda model: model.latent)
        self.layout = Layout(widest)
        self.values, self.gradients = (torch.zeros(len(members), self.layout.size, device=device) for _ in range(2))
        self.optimizer = RowAdamW(self.values, self.gradients)
        for m in range(len(members)):
            self._read_state(m)
        configs = [one.config for one in self.members]
        self.codes, self.noise = ([getattr(one.state, name) for one in self.members] for name in ("codes", "noise"))
        self.objective = StackedObjective(configs, self.noise, device)
        column = partial(torch.tensor, dtype=torch.float32, device=device)
        self.clip = column([config.train.clip_norm for config in configs])
        self.decays = column([[config.train.weight_decay] for config in configs])
        self.model, self.parameters = self._build_model(widest)

    def terms(self, x: Tensor, generators: Sequence[torch.Generator], backend: kernels.Backend = "auto") -> Terms:
        """Return the terms of the batches of all models, `(M * B, *shape)`; each model draws from its generator."""
        draw = partial(self.objective.draw, generators, backend)
        return objectives.terms(self.model, x, draw=draw)

    def step(self, x: Tensor, rates: Tensor, weights: Weights) -> Tensor:
        """Ascend every model's objective on its batch, and return `QUANTITIES`, `(5, M)`, as means over each batch.

        x is `(M * B, *shape)`; the rates, and each of the weights by name, are `(M,)`.
        The gradient of each model is clipped by itself, as `clip_grad_norm_` does.
        """
        with autocast(self.train, x.device):
            terms = self.terms(x, self.codes, self.train.backend)
            objective, divergence = self.objective.value(terms, weights, self.data_size)
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
        """Copy the weights of all members into their own models."""
        for member, row in zip(self.members, self.values, strict=True):
            for parameter, view in self.layout.view_one(row, member.vae):
                parameter.copy_(view.reshape(parameter.shape))

    def write_moments(self) -> None:
        """Copy the optimizer's moments of all members into their own optimizers."""
        for member, row in zip(self.members, self.optimizer.rows, strict=True):
            self._write_moments(member, self.optimizer.torch.state[row])

    def _write_moments(self, member: Member, row: dict[str, Tensor]) -> None:
        moments = member.state.optimizer.state
        for parameter in member.state.parameters:
            moments[parameter] = {"step": row["step"].clone()}
        for name in ("exp_avg", "exp_avg_sq"):
            for parameter, view in self.layout.view_one(row[name], member.vae):
                moments[parameter][name] = view.reshape(parameter.shape).clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _read_state(self, m: int) -> None:
        """Copy the weights and moments of a member into row m."""
        state = self.members[m].state
        for parameter, view in self.layout.view_one(self.values[m], self.members[m].vae):
            view.copy_(parameter.view(view.shape))
        moments = state.optimizer.state
        if not moments:
            return
        row = self.optimizer.torch.state[self.optimizer.rows[m]]
        row["step"] = moments[state.parameters[0]]["step"].clone()
        for name in ("exp_avg", "exp_avg_sq"):
            row[name] = torch.zeros_like(self.values[m])
            for parameter, view in self.layout.view_one(row[name], self.members[m].vae):
                view.copy_(moments[parameter][name].view(view.shape))

    def _build_model(self, widest: VAE) -> tuple[VAE, list[nn.Parameter]]:
        """Return the VAE of all members, built like the widest, and its parameters in the order of the layout."""
        parameters = [nn.Parameter(view) for view in self.layout.view_all(self.values)]
        remaining, generators = iter(parameters), [one.layers for one in self.members]
        encoder = stack(widest.encoder, remaining, generators)
        decoder = stack(widest.decoder, remaining, generators)
        fixed = torch.stack([one.vae.likelihood.log_sigma.detach() for one in self.members])
        likelihood = StackedLikelihood(widest.likelihood, next(remaining, fixed))
        return VAE(encoder, decoder, likelihood, widest.latent), parameters
