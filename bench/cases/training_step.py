"""One training step of a reference VAE, to be timed or profiled with each backend of the latent head."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench.kernels import Backend, backends
from vaebench.vae import data
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import Splits
from vaebench.vae.training.setup import own_random_state

BACKENDS: tuple[Backend, ...] = ("eager", "numba", "triton")
TOLERANCE = 1e-3

DIGITS = Run(
    model=Model(latent=8, hidden=(128,)),
    train=Train(epochs=10, batch_size=64, patience=0, schedule="constant", clip_norm=100.0),
)
IMAGES = Run(model=Model(network="conv", latent=32, hidden=(32, 64, 128)), train=Train(batch_size=64))
CONFIGS = {"digits-mlp": DIGITS, "32x32-conv": IMAGES}


def load_splits(name: str) -> Splits:
    """Return the digits, or noise of the shape of CIFAR-10: a step costs the same for any pixels."""
    if name == "digits-mlp":
        return data.load(DIGITS.data)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return data.from_tensors(images[:128], images[128:192], images[192:], levels=256, name=name)


def list_backends(device: torch.device) -> list[Backend]:
    """Return the backends of the latent head that are worth timing on a device: no interpreted kernels."""
    runnable = backends.runnable("reparam_kl", device)
    return [name for name in BACKENDS if name in runnable and not (name == "triton" and device.type == "cpu")]


@dataclass(frozen=True)
class TrainingStep:
    """A model, its optimizer, a batch on a device, and another batch."""

    model: models.GenerativeModel
    optimizer: torch.optim.Optimizer
    x: Tensor
    other_x: Tensor

    @classmethod
    def prepare(cls, name: str, device: torch.device) -> "TrainingStep":
        """Initialise a reference VAE and load its first two batches."""
        config, splits = CONFIGS[name], load_splits(name).to(device)
        with own_random_state(config.train.seed, device):
            model = models.build(config.model, splits.shape, splits.levels).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.train.learning_rate, fused=True)
        places = torch.arange(2 * config.train.batch_size, device=device)
        x, other_x = (splits.train.batch(batch) for batch in places.chunk(2))
        return cls(model, optimizer, x, other_x)

    def with_backend(self, backend: Backend) -> Callable[[], Tensor]:
        """Return a function that ascends the ELBO of the batch by one step, without waiting for the device."""

        def step() -> Tensor:
            return self.descend(self.loss(backend))

        return step

    def loss(self, backend: Backend, seed: int | None = None) -> Tensor:
        """Return minus the ELBO of the batch, from the noise of a seed if one is given."""
        return -objectives.elbo(objectives.terms(self.model, self.x, seed=seed, backend=backend)).mean()

    def descend(self, loss: Tensor) -> Tensor:
        """Take the optimizer's step, and return the loss without its graph."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def take_other_batch(self) -> None:
        """Write the other batch over the one that the steps read."""
        self.x.copy_(self.other_x)

    def require_agreement(self, backend: Backend) -> None:
        """Raise AssertionError unless loss and gradients with a backend, from given noise, equal those with eager."""
        found, expected = self._loss_and_gradients(backend), self._loss_and_gradients("eager")
        for one, other in zip(found, expected, strict=True):
            error = (one - other).norm() / other.norm()
            assert error <= TOLERANCE, f"a step with {backend} is off eager's by {error:.1e}"

    def _loss_and_gradients(self, backend: Backend) -> list[Tensor]:
        loss = self.loss(backend, seed=1)
        return [loss.detach(), *torch.autograd.grad(loss, list(self.model.parameters()))]
