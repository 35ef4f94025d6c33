"""Everything that changes while a model trains, written to a checkpoint and read back.

The tensors of a checkpoint are named `group.name`. The groups are `model` and `best` (weights), `own` (raw weights, in
the order of the parameters, where `model` is an average), `optimizer`, `critic`, `critic_optimizer` and `rng`.
"""

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.config.run import SETTINGS, Run, Train, restore
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError
from vaebench.vae.model import GenerativeModel
from vaebench.vae.model.build import build
from vaebench.vae.model.own import digest_source
from vaebench.vae.objective.critics import Adversary
from vaebench.vae.training import checkpoint
from vaebench.vae.training.averaging import Average
from vaebench.vae.training.distributed import Apply, distribute
from vaebench.vae.training.streams import generator, streams

STREAMS = 1  # raised where the seeds of a run's streams change, since a checkpoint then goes on with other noise


@dataclass
class State:
    """The training state after `epoch` epochs.

    Attributes:
        order: draws the order of the examples, on the CPU.
        codes: draws the seeds of the codes' noise, on the CPU, so that every device has the same.
        noise: draws everything else, such as prior samples and dynamic binarisation, on the model's device.
        apply: applies a function to the model on all processes that train it, see `vae.training.distributed`.
        average: the average of the weights, where it is wanted.
        adversary: the critic, where the objective uses one.
        best: the weights, or their average, of the epoch with the highest validation ELBO, or bound of `iwae`.
    """

    model: GenerativeModel
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    codes: torch.Generator
    noise: torch.Generator
    apply: Apply[Any]
    average: Average | None = None
    adversary: Adversary | None = None
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_elbo: float = -math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, model: GenerativeModel, config: Run, device: torch.device) -> "State":
        """Return the state before the first epoch."""
        train, own = config.train, streams(config.train.seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        state = cls(
            model,
            optimizer,
            order=generator(own.order),
            codes=generator(own.codes),
            noise=generator(own.noise, device),
            apply=distribute(model, config.objective.draws),
        )
        if train.ema:
            state.average = Average.start(state.parameters, train.ema)
        if config.objective.critic is not None:
            state.adversary = Adversary.start(config.objective.critic, model.latent, device)
        return state

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer moves."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    @contextlib.contextmanager
    def hold_raw_weights(self) -> Iterator[None]:
        """Let the model hold its raw weights inside the block, and their average, where there is one, outside it."""
        swap = self.average.swap if self.average is not None else lambda: None
        swap()
        try:
            yield
        finally:
            swap()

    def is_checkpoint_due(self, config: Run) -> bool:
        """Whether a checkpoint is written after this epoch."""
        return self.is_finished(config) or self.epoch % config.train.checkpoint_epochs == 0

    def is_finished(self, config: Run) -> bool:
        """Whether the last epoch is done, or patience, which starts with the final objective, is used up."""
        waited = self.epoch - max(self.best_epoch, config.ramp_epochs)
        return self.epoch >= config.train.epochs or bool(config.train.patience and waited >= config.train.patience)

    def remember(self, metrics: dict[str, float], config: Run) -> None:
        """Append an epoch's metrics, and keep its weights if they are the best under the final objective."""
        self.history.append(metrics)
        final = self.epoch >= min(config.ramp_epochs, config.train.epochs)
        score = metrics.get("valid/bound", metrics["valid/elbo"])
        if score > self.best_elbo and final:
            self.best_elbo, self.best_epoch = score, self.epoch
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def save(self, config: Run, splits: Splits, folder: Path) -> Path:
        """Write the folder's checkpoint."""
        groups = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": _moments(self.optimizer),
            "rng": self._random_states(),
        }
        if self.average is not None:
            groups["own"] = {str(i): tensor for i, tensor in enumerate(self.average.stored)}
        if self.adversary is not None:
            groups["critic"] = self.adversary.critic.state_dict()
            groups["critic_optimizer"] = _moments(self.adversary.optimizer)
        return _write(
            folder,
            groups,
            config,
            splits,
            epoch=self.epoch,
            averaged_steps=self.average.steps if self.average is not None else 0,
            best_elbo=self.best_elbo,
            best_epoch=self.best_epoch,
            history=self.history,
        )

    def resume(self, config: Run, splits: Splits, folder: Path) -> None:
        """Load the folder's checkpoint, if there is one, after checking that it belongs to this run."""
        found = checkpoint.read_latest(folder)
        if found is None:
            return
        groups, meta = _group(found[0]), found[1]
        require_same_run(config, splits, meta, folder)
        if not groups["rng"]:
            raise InputError(f"{folder} holds weights without the state of a training; choose another folder.")
        if meta.get("streams") != STREAMS:
            raise InputError(f"{folder} is of an earlier version, whose noise was another; choose another folder.")
        _load_weights(self.model, groups["model"], folder)
        self.best = {name: tensor.to(self.noise.device) for name, tensor in groups["best"].items()}
        _load_moments(self.optimizer, groups["optimizer"])
        if self.average is not None:
            self.average.steps = meta["averaged_steps"]
            for i, tensor in groups["own"].items():
                self.average.stored[int(i)].copy_(tensor)
        if self.adversary is not None:
            self.adversary.critic.load_state_dict(groups["critic"])
            _load_moments(self.adversary.optimizer, groups["critic_optimizer"])
        self._set_random_states(groups["rng"])
        self.epoch, self.history = meta["epoch"], meta["history"]
        self.best_elbo, self.best_epoch = meta["best_elbo"], meta["best_epoch"]

    def _random_states(self) -> dict[str, Tensor]:
        states = {name: getattr(self, name).get_state() for name in ("order", "codes", "noise")}
        states["torch"] = torch.get_rng_state()
        return states | ({"cuda": torch.cuda.get_rng_state()} if self.noise.device.type == "cuda" else {})

    def _set_random_states(self, states: dict[str, Tensor]) -> None:
        for name in ("order", "codes", "noise"):
            getattr(self, name).set_state(states[name])
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def learning_rate(config: Train, epochs_done: float) -> float:
    """Return the rate of the step after `epochs_done`: lr * (1 + cos(pi t)) / 2 with t from 0 to 1, or constant."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * epochs_done / config.epochs)))


def save_model(model: GenerativeModel, config: Run, splits: Splits, folder: Path) -> Path:
    """Write the weights of a trained model as `load_model` reads them, without the state of its training."""
    group = "best" if config.train.patience else "model"
    return _write(folder, {group: model.state_dict()}, config, splits)


def load_model(path: str | os.PathLike[str], model: GenerativeModel | None = None) -> tuple[GenerativeModel, Run]:
    """Return the model of a run in eval mode, with the best weights if early stopping was on, and its configuration.

    Give your own `model` if `fit` was given one; its weights are replaced. A model that `model.build` names is built
    by that function again.

    Args:
        path: the folder of a run of `train.py`, of `fit` or of a trial, or a checkpoint file.
    """
    origin = Path(path)
    tensors, meta = checkpoint.read(origin) if origin.is_file() else _read_folder(origin)
    groups, config = _group(tensors), _restore_config(meta, origin)
    if model is None:
        _require_same_source(config, meta, origin)
    built = model or build(config.model, tuple(meta["shape"]), meta["levels"])
    best = groups["best"] if config.train.patience else {}  # empty before the first epoch of the final objective
    _load_weights(built, best or groups["model"], origin)
    return built.eval(), config


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the checkpoint of a run's folder; where there is none, raise with a folder below that has one."""
    found = checkpoint.read_latest(folder)
    if found is None:
        below = next(folder.rglob(checkpoint.CURRENT), None)
        advice = f", such as {below.parent}" if below is not None else " that train.py printed, or of a sweep's trial"
        raise InputError(f"there is no run in {folder}: it has no {checkpoint.CURRENT}; give the folder{advice}.")
    return found


def _restore_config(meta: dict[str, Any], origin: Path) -> Run:
    """Return the configuration of a checkpoint; settings that are not known here were written by another version."""
    strange = [name for name in meta["config"] if name not in SETTINGS and not name.startswith("objective.")]
    if strange:
        raise InputError(
            f"{origin} was written by another version of vaebench, whose setting {strange[0]} is unknown here; load it "
            "with that version, or train again."
        )
    return restore(meta["config"])


def _write(folder: Path, groups: dict[str, dict[str, Tensor]], config: Run, splits: Splits, **progress: object) -> Path:
    """Write groups of tensors, the settings and facts that `load_model` builds the model from, and more facts."""
    tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    facts = {"config": config.flat(), "data": splits.digest, "shape": splits.shape, "levels": splits.levels}
    facts |= {"streams": STREAMS, "source": digest_source(config.model.build)}
    return checkpoint.write(folder, tensors, {**facts, **progress})


def _group(tensors: dict[str, Tensor]) -> defaultdict[str, dict[str, Tensor]]:
    """Return the tensors of a checkpoint by group; a group that it lacks is empty."""
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition(".")
        groups[group][name] = tensor
    return groups


def _load_weights(model: GenerativeModel, weights: dict[str, Tensor], origin: Path) -> None:
    required = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if required != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(
            f"{origin} was written by a model of other layers or sizes; give the model that `fit` was given, or load "
            "it with the version of vaebench that wrote it."
        )
    model.load_state_dict(weights)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as `{"0.exp_avg": ...}`, by the parameter's number and the optimizer's own name."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor for i, moments in state.items() for name, tensor in moments.items()}


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load an optimizer's state, in the memory layout of the parameters."""
    parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        i, key = name.split(".")
        state[int(i)][key] = torch.empty_like(parameters[int(i)]).copy_(tensor) if tensor.ndim else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def require_same_run(config: Run, splits: Splits, meta: dict[str, Any], folder: Path) -> None:
    """Raise unless the checkpoint was written by this configuration (evaluation apart) on these data, wherever kept."""
    found = Run().flat() | meta["config"]
    for name, value in config.identity().items():
        if found[name] != value and not name.startswith("eval."):
            raise InputError(f"{folder} holds a run with {name} = {found[name]}, not {value}; choose another folder.")
    _require_same_source(config, meta, folder)
    if meta["data"] != splits.digest:
        raise InputError(f"{folder} holds a run on other data; choose another folder.")


def _require_same_source(config: Run, meta: dict[str, Any], origin: Path) -> None:
    """Raise where the file that `model.build` names is not the one that the run was trained with."""
    if meta.get("source", "") != digest_source(config.model.build):
        raise InputError(
            f"{origin} was trained with another source of model.build = {config.model.build}; put that file back, or "
            "choose another folder."
        )
