"""Train one VAE with a library, an epoch at a time, in a process of its own: vaebench and pythae.

Both get the same networks, initial weights, data, optimizer and batch size, and keep the weights of the epoch with the
best validation. Each process waits for its turn before every epoch, so that no other trains while it is timed.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits
from vaebench.vae.evaluation.evaluate import peak_memory_mb
from vaebench.vae.model import VAE
from vaebench.vae.training.epoch import VALIDATION_ROWS, Metrics
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import initial_model

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        seconds: of each epoch, its validation included.
        peak_mb: the most memory of the process, in MiB; on a GPU the most that torch held there.
        weights: of encoder and decoder, named as those of a `VAE`.
    """

    seconds: list[float]
    peak_mb: float
    weights: Weights


class Turns:
    """The turns of a training: `begin` waits for the next one, `end` gives it back and notes its seconds."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.connection, self.seconds, self._started = connection, list[float](), 0.0

    def begin(self) -> None:
        """Wait until the other process sends something."""
        self.connection.recv()
        self._started = time.perf_counter()

    def end(self) -> None:
        """Tell the other process that the epoch is over."""
        self.seconds.append(time.perf_counter() - self._started)
        self.connection.send(None)


def initial_vae(config: Run, splits: Splits) -> VAE:
    """Return the VAE that trainings of a configuration start from, on the CPU."""
    model = initial_model(config, splits, torch.device("cpu"))
    assert isinstance(model, VAE)
    return model


def train_vaebench(config: Run, splits: Splits, turns: Turns) -> Weights:
    """Train with `fit` and return the weights of the best epoch."""

    def report(epoch: int, metrics: Metrics) -> None:
        turns.end()
        if epoch < config.train.epochs:
            turns.begin()

    turns.begin()
    return fit(config, data=splits, model=initial_vae(config, splits), report=report).model.state_dict()


def train_pythae(config: Run, splits: Splits, turns: Turns) -> Weights:
    """Train with pythae's pipeline and return the weights of the best epoch, which it writes into a folder.

    Its loss is that of `gradient = plain`. By its loss on the validation split it chooses the best epoch; of IWAE that
    is a mean of log weights, weighted by the weights, and not the bound.
    """
    from pythae import models
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Wait(TrainingCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            turns.end()

    k, train, shape = config.objective.draws, config.train, splits.shape
    settings = {"input_dim": shape, "latent_dim": config.model.latent, "reconstruction_loss": "bce"}
    networks = wrap_networks(initial_vae(config, splits))
    if k == 1:
        model = models.VAE(models.VAEConfig(**settings), *networks)
    else:
        model = models.IWAE(models.IWAEConfig(number_samples=k, **settings), *networks)
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=train.epochs,
            learning_rate=train.learning_rate,
            per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=max(1, VALIDATION_ROWS // k),
            seed=train.seed,
        )
        pipeline = TrainingPipeline(model, settings)
        pipeline(splits.train.batch(), splits.valid.batch(), callbacks=[Wait()])
        path = Path(pipeline.trainer.training_dir) / "final_model" / "model.pt"
        stored = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    return {name.replace(".network.", "."): tensor for name, tensor in stored.items()}


def wrap_networks(vae: VAE) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder of a VAE of bits with the interface of pythae: moments apart, and probabilities."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.network(x).chunk(2, dim=1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    return Encoder(vae.encoder), Decoder(vae.decoder)


LIBRARIES: dict[str, Callable[[Run, Splits, Turns], Weights]] = {"vaebench": train_vaebench, "pythae": train_pythae}


def train_in_turns(
    library: str, config: Run, splits: Splits, threads: int, connection: "Connection[Any, Any]", file: Path
) -> None:
    """Train in this process, in turns, and write a `Trained` to a file; send it `None`, or an error's sentence."""
    torch.set_num_threads(threads)
    turns = Turns(connection)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            weights = LIBRARIES[library](config, splits, turns)
        torch.save(vars(Trained(turns.seconds, peak_memory_mb(splits.train.device), weights)), file)
        connection.send(None)
    except Exception as error:  # whatever a library raises is told where the trainings are led
        connection.send(f"{library}: {type(error).__name__}: {error}")
