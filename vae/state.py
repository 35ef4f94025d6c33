"""Everything that changes while a model trains, and its way to a checkpoint and back."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae import checkpoint
from vae.config import Run, Train, from_flat
from vae.data import Splits
from vae.errors import InputError
from vae.model import VAE, build


@dataclass
class State:
    """The training state after `epoch` epochs.

    Attributes:
        order: draws the order of the examples, on the CPU.
        noise: draws codes, prior samples and dynamic binarisation, on the model's device.
        best: the weights of the epoch with the highest validation ELBO.
    """

    model: VAE
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    noise: torch.Generator
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_elbo: float = -math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, model: VAE, config: Train, device: torch.device) -> "State":
        """Return the state before the first epoch."""
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        order = torch.Generator().manual_seed(config.seed)
        return cls(model, optimizer, order, torch.Generator(device).manual_seed(config.seed + 1))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer moves."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    def finished(self, config: Train) -> bool:
        """Whether the last epoch is done, or patience, which begins after the warm-up, is at its end."""
        waited = self.epoch - max(self.best_epoch, config.warmup_epochs)
        return self.epoch >= config.epochs or bool(config.patience and waited >= config.patience)

    def due(self, config: Train) -> bool:
        """Whether a checkpoint is written after this epoch."""
        return self.finished(config) or self.epoch % config.checkpoint_epochs == 0

    def remember(self, metrics: dict[str, float], config: Train) -> None:
        """Append an epoch's metrics, and keep its weights if they are the best since the warm-up."""
        self.history.append(metrics)
        warming = self.epoch < min(config.warmup_epochs, config.epochs)
        if metrics["valid/elbo"] > self.best_elbo and not warming:
            self.best_elbo, self.best_epoch = metrics["valid/elbo"], self.epoch
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def set_learning_rate(self, config: Train, epochs_done: float) -> None:
        """Set the rate of the next step."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(config, epochs_done)

    def save(self, config: Run, splits: Splits, folder: Path) -> Path:
        """Write the folder's checkpoint."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"rng.{name}": state for name, state in self._random_states().items()}
        meta = {
            "config": config.flat(),
            "data": splits.digest,
            "shape": splits.shape,
            "levels": splits.levels,
            "epoch": self.epoch,
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
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
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
    _load_weights(built, _under("best." if config.train.patience else "model.", tensors), path)
    return built.eval(), config


def _load_weights(model: VAE, weights: dict[str, Tensor], origin: Path) -> None:
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(
            f"{origin} was written by a model of other layers or sizes; give the model that `fit` was given."
        )
    model.load_state_dict(weights)


def _under(prefix: str, tensors: dict[str, Tensor], device: torch.device | None = None) -> dict[str, Tensor]:
    """Return the tensors whose name starts with the prefix, without it."""
    return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}


def _require_same_run(config: Run, splits: Splits, meta: dict[str, Any], folder: Path) -> None:
    """Raise unless the checkpoint was written by this configuration (evaluation apart) on these data."""
    found = Run().flat() | meta["config"]
    for name, value in config.flat().items():
        if found[name] != value and not name.startswith("eval."):
            raise InputError(f"{folder} holds a run with {name} = {found[name]}, not {value}; choose another folder.")
    if meta["data"] != splits.digest:
        raise InputError(f"{folder} holds a run on other data; choose another folder.")
