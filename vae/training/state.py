"""Everything that changes while a model trains, and its way to a checkpoint and back."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.config.run import Run, Train, from_flat
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError
from vaebench.vae.model import VAE
from vaebench.vae.model.build import build
from vaebench.vae.objective.critics import Adversary
from vaebench.vae.training import checkpoint
from vaebench.vae.training.averaging import Average
from vaebench.vae.training.distributed import Through, through


@dataclass
class State:
    """The training state after `epoch` epochs.

    Attributes:
        order: draws the order of the examples, on the CPU.
        noise: draws codes, prior samples and dynamic binarisation, on the model's device.
        average: of the weights, where it is wanted; between epochs the model holds the average, else its weights.
        adversary: the critic, where the objective uses one.
        best: the weights, or their average, of the epoch with the highest validation ELBO.
        through: runs a function of the model on all processes that train it, see `vae.training.distributed`.
    """

    model: VAE
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    noise: torch.Generator
    average: Average | None = None
    adversary: Adversary | None = None
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_elbo: float = -math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    through: Through[Any] = field(init=False, repr=False)

    @classmethod
    def start(cls, model: VAE, config: Run, device: torch.device) -> "State":
        """Return the state before the first epoch."""
        train = config.train
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        state = cls(
            model,
            optimizer,
            order=torch.Generator().manual_seed(train.seed),
            noise=torch.Generator(device).manual_seed(train.seed + 1),
        )
        if train.ema:
            state.average = Average.start(state.parameters, train.ema)
        if config.objective.uses_critic:
            state.adversary = Adversary.start(config.objective, model.latent, device)
        return state

    def __post_init__(self) -> None:
        self.through = through(self.model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer moves."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    @contextlib.contextmanager
    def own_weights(self) -> Iterator[None]:
        """Let the model hold its own weights inside the block, and their average after it, where there is one."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def due(self, config: Run) -> bool:
        """Whether a checkpoint is written after this epoch."""
        return self.finished(config) or self.epoch % config.train.checkpoint_epochs == 0

    def finished(self, config: Run) -> bool:
        """Whether the last epoch is done, or patience, which begins when the objective has settled, is at its end."""
        waited = self.epoch - max(self.best_epoch, config.settled_after)
        return self.epoch >= config.train.epochs or bool(config.train.patience and waited >= config.train.patience)

    def remember(self, metrics: dict[str, float], config: Run) -> None:
        """Append an epoch's metrics, and keep its weights if they are the best since the objective has settled."""
        self.history.append(metrics)
        settling = self.epoch < min(config.settled_after, config.train.epochs)
        if metrics["valid/elbo"] > self.best_elbo and not settling:
            self.best_elbo, self.best_epoch = metrics["valid/elbo"], self.epoch
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def set_learning_rate(self, config: Train, epochs_done: float) -> None:
        """Set the rate of the next step."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(config, epochs_done)

    def save(self, config: Run, splits: Splits, folder: Path) -> Path:
        """Write the folder's checkpoint."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= _moments("optimizer.", self.optimizer)
        if self.average is not None:
            tensors |= {f"own.{i}": tensor for i, tensor in enumerate(self.average.aside)}
        if self.adversary is not None:
            tensors |= {f"critic.{name}": tensor for name, tensor in self.adversary.critic.state_dict().items()}
            tensors |= _moments("critic_optimizer.", self.adversary.optimizer)
        tensors |= {f"rng.{name}": state for name, state in self._random_states().items()}
        meta = {
            "config": config.flat(),
            "data": splits.digest,
            "shape": splits.shape,
            "levels": splits.levels,
            "epoch": self.epoch,
            "averaged_steps": self.average.steps if self.average is not None else 0,
            "best_elbo": self.best_elbo,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        return checkpoint.write(folder, tensors, meta)

    def resume(self, config: Run, splits: Splits, folder: Path) -> None:
        """Take over the folder's checkpoint, if there is one, after checking that it belongs to this run."""
        found = checkpoint.read_latest(folder)
        if found is None:
            return
        tensors, meta = found
        _require_same_run(config, splits, meta, folder)
        _load_weights(self.model, _under("model.", tensors), folder)
        self.best = _under("best.", tensors, self.noise.device)
        _load_moments(self.optimizer, _under("optimizer.", tensors))
        if self.average is not None:
            self.average.steps = meta["averaged_steps"]
            for i, tensor in _under("own.", tensors).items():
                self.average.aside[int(i)].copy_(tensor)
        if self.adversary is not None:
            self.adversary.critic.load_state_dict(_under("critic.", tensors))
            _load_moments(self.adversary.optimizer, _under("critic_optimizer.", tensors))
        self._set_random_states(_under("rng.", tensors))
        self.epoch, self.history = meta["epoch"], meta["history"]
        self.best_elbo, self.best_epoch = meta["best_elbo"], meta["best_epoch"]

    def _random_states(self) -> dict[str, Tensor]:
        states = {"order": self.order.get_state(), "noise": self.noise.get_state(), "torch": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state()} if self.noise.device.type == "cuda" else {})

    def _set_random_states(self, states: dict[str, Tensor]) -> None:
        self.order.set_state(states["order"])
        self.noise.set_state(states["noise"])
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def learning_rate(config: Train, epochs_done: float) -> float:
    """Return the rate of the step after `epochs_done`: lr * (1 + cos(pi t)) / 2 with t from 0 to 1, or constant."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * epochs_done / config.epochs)))


def load_model(path: Path, model: VAE | None = None) -> tuple[VAE, Run]:
    """Return the model of a checkpoint, the best weights where early stopping was on, and what was run.

    Give your own `model` where `fit` was given one; its weights are replaced.
    """
    tensors, meta = checkpoint.read(path)
    config = from_flat(meta["config"])
    built = model or build(config.model, tuple(meta["shape"]), meta["levels"])
    best = _under("best.", tensors) if config.train.patience else {}  # none yet while the objective still rises
    _load_weights(built, best or _under("model.", tensors), path)
    return built.eval(), config


def _load_weights(model: VAE, weights: dict[str, Tensor], origin: Path) -> None:
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(
            f"{origin} was written by a model of other layers or sizes; give the model that `fit` was given."
        )
    model.load_state_dict(weights)


def _moments(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of each parameter, by the parameter's number and its own name for it."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{name}": tensor for i, moments in state.items() for name, tensor in moments.items()}


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer its memory back, laid out in memory as the parameters are."""
    parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        i, key = name.split(".")
        laid_out = torch.empty_like(parameters[int(i)]).copy_(tensor) if tensor.ndim else tensor
        moments.setdefault(int(i), {})[key] = laid_out
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor], device: torch.device | None = None) -> dict[str, Tensor]:
    """Return the tensors whose name starts with the prefix, without it."""
    return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}


def _require_same_run(config: Run, splits: Splits, meta: dict[str, Any], folder: Path) -> None:
    """Raise unless the checkpoint was written by this configuration (evaluation apart) on these data, wherever kept."""
    found = Run().flat() | meta["config"]
    for name, value in config.identity().items():
        if found[name] != value and not name.startswith("eval."):
            raise InputError(f"{folder} holds a run with {name} = {found[name]}, not {value}; choose another folder.")
    if meta["data"] != splits.digest:
        raise InputError(f"{folder} holds a run on other data; choose another folder.")
