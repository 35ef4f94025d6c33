"""What happens before the first step: device, automatic choices, folder, initial model."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vaebench.kernels import backends
from vaebench.vae import model as models
from vaebench.vae.config.run import Run, Train
from vaebench.vae.data import Split, Splits
from vaebench.vae.errors import InputError
from vaebench.vae.prob.draws import uniform_like

INITIAL_ROWS = 1024


def pick_device(config: Train) -> torch.device:
    """Return the device that a configuration names; `auto` is the GPU where there is one."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InputError("train.device = cuda needs a GPU that torch can see, and there is none; use auto or cpu.")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def resolve(config: Run, device: torch.device, model: models.VAE | None, shape: Sequence[int] = ()) -> Run:
    """Return what will be run on data of a shape: automatic choices settled, the facts of a given model filled in."""
    if model is not None:
        config = config.replace(model.facts)
    backend = backends.choose("reparam_kl", config.train.backend, device)
    reason = backends.why_not("reparam_kl", backend, device)
    if reason is not None:
        raise InputError(f"train.backend = {backend} cannot run here: {reason}.")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    chosen = {"train.device": device.type, "train.precision": precision, "train.backend": backend}
    return config.replace(chosen).resolved(shape)


def open_folder(folder: Path) -> Path:
    """Create the folder of a run and make sure that it can be written to."""
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may have been faster
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); give another folder.") from error
    return folder


def require_match(model: models.VAE, splits: Splits) -> None:
    """Raise unless the model's likelihood describes data of this shape and these levels."""
    likelihood = model.likelihood
    if likelihood.shape != splits.shape:
        raise InputError(f"the likelihood is of data of shape {likelihood.shape}, {splits.name} has {splits.shape}.")
    if likelihood.discrete and likelihood.levels != splits.levels:
        raise InputError(
            f"likelihood {likelihood.name} is of {likelihood.levels} levels, {splits.name} has "
            f"{splits.levels or 'continuous data'}."
        )


def initial_model(config: Run, splits: Splits, device: torch.device) -> models.VAE:
    """Return the model that `fit` starts from, for a report that looks at it while it trains."""
    with own_random_state(config.train.seed, device):
        return models.place(models.build(config.model, splits.shape, splits.levels), device)


@contextlib.contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators inside the block and restore them after it.

    Initial weights, and layers such as dropout, can draw from nothing else.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def initialise(model: models.FlowModel, split: Split, generator: torch.Generator) -> None:
    """Let the layers of a flow that start from data do so, from at most `INITIAL_ROWS` examples spread over a split."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), INITIAL_ROWS), device=split.stored.device).long()
    x = split.batch(rows, generator)
    model.initialise(model.dequantise(x, uniform_like(x, generator)))
