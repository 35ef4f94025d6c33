"""Everything that happens before the first step: device, automatic choices, folder, initial model and state."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vaebench.kernels import backends
from vaebench.vae import model as models
from vaebench.vae.config.run import Run, Train
from vaebench.vae.data import Split, Splits
from vaebench.vae.errors import InputError
from vaebench.vae.training import checkpoint
from vaebench.vae.training.state import State, require_same_run
from vaebench.vae.training.streams import streams

INITIAL_ROWS = 1024


def pick_device(config: Train) -> torch.device:
    """Return the device that a configuration names; `auto` is the GPU where there is one."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InputError("train.device = cuda needs a GPU that torch can see, and there is none; use auto or cpu.")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def resolve(config: Run, device: torch.device, model: models.GenerativeModel | None, shape: Sequence[int]) -> Run:
    """Return the run with every automatic choice made for data of a shape, and with the settings of a given model."""
    if model is not None:
        config = config.replace(model.settings)
    backend = backends.choose("reparam_kl", config.train.backend, device)
    reason = backends.why_not("reparam_kl", backend, device)
    if reason is not None:
        raise InputError(f"train.backend = {backend} cannot run here: {reason}.")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    chosen = {"train.device": device.type, "train.precision": precision, "train.backend": backend}
    return config.replace(chosen).resolve(shape)


def open_folder(folder: Path, advice: str = "give another folder") -> Path:
    """Create a folder where there is none, and raise with the advice unless files can be written to it."""
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may have removed it
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); {advice}.") from error
    return folder


def require_match(model: models.GenerativeModel, splits: Splits) -> None:
    """Raise unless the model's likelihood describes data of this shape and these levels."""
    likelihood = model.likelihood
    if likelihood.shape != splits.shape:
        raise InputError(f"the likelihood is of data of shape {likelihood.shape}, {splits.name} has {splits.shape}.")
    if likelihood.discrete and likelihood.levels != splits.levels:
        raise InputError(
            f"likelihood {likelihood.name} is of {likelihood.levels} levels, {splits.name} has "
            f"{splits.levels or 'continuous data'}."
        )


def start(config: Run, splits: Splits, model: models.GenerativeModel | None, folder: Path | None) -> State:
    """Return the state of a run before its first step, or as the checkpoint in its folder holds it.

    To be called inside `own_random_state`, which then holds the state from which critics and dropout draw.
    """
    device = splits.train.device
    built = initial_model(config, splits, device) if model is None else models.move_to_device(model, device)
    require_match(built, splits)
    torch.manual_seed(streams(config.train.seed).layers)  # the same one, whoever built the model
    state = State.start(built, config, device)
    if folder is not None:
        state.resume(config, splits, folder)
    if not state.epoch:
        built.initialise(partial(first_examples, splits.train, state.noise), state.noise)
    return state


def require_own_folder(config: Run, splits: Splits, model: models.GenerativeModel, folder: Path) -> None:
    """Raise where the folder holds the checkpoint of another run, as `start` does, for callers that act before it."""
    meta = checkpoint.read_latest_meta(folder)
    if meta is not None:
        require_same_run(resolve(config, pick_device(config.train), model, splits.shape), splits, meta, folder)


def initial_model(config: Run, splits: Splits, device: torch.device) -> models.GenerativeModel:
    """Return the model that `fit` starts from, for callers whose report looks at it while it trains."""
    models.require_memory(config.model, splits.shape, splits.levels)
    with own_random_state(config.train.seed, device):
        return models.move_to_device(models.build(config.model, splits.shape, splits.levels), device)


@contextlib.contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Start torch's own generators at the stream of initial weights inside the block, and restore them after it.

    Initial weights, and layers such as dropout, cannot draw from another generator.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(streams(seed).weights)
        yield


def first_examples(split: Split, generator: torch.Generator) -> Tensor:
    """Return at most `INITIAL_ROWS` examples spread over a split, from which layers are initialised."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), INITIAL_ROWS), device=split.stored.device).long()
    return split.batch(rows, generator)
