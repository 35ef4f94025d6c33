"""The model and the data of an audit, from the words of its command line."""

import argparse
import contextlib
import hashlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.adapters.adapt import Adapted, adapt, load_saved
from vaebench.vae.config.run import Run
from vaebench.vae.data import LOADERS, Splits, arrays, load
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model.own import digest_source, load_function
from vaebench.vae.training import checkpoint
from vaebench.vae.training.setup import own_random_state, pick_device, require_match, resolve
from vaebench.vae.training.state import load_model
from vaebench.vae.training.streams import evaluation_generator

ARRAYS = (".npy", ".npz")
SETTABLE = ("data.", "eval.", "train.device")
TRIED = 4


@dataclass(frozen=True)
class Subject:
    """A model, its data and the settings of its evaluation.

    Attributes:
        name: of the model, for titles and folders.
        config: the settings of data and evaluation are those of the audit.
        digest: SHA-256 of the model, of what it says of a few examples, and of its data.
    """

    name: str
    adapted: Adapted
    config: Run
    digest: str


def load_subject(options: argparse.Namespace) -> Subject:
    """Load the model and the data that the command line names, and try one on the other."""
    config, own = read_config(options), find_own(options)
    if own is not None:
        model, trained = load_model(own)
        config, source = trained.replace(read_overrides(options)), ""
    else:
        with own_random_state(config.eval.seed, torch.device("cpu")):
            model, source = load_foreign(options.model)
    splits = load_data(options, config, known=own is not None)
    if own is not None and splits is not None and options.data is None:
        require_trained_on(own, splits)
    device = pick_device(config.train)
    splits = None if splits is None else splits.to(device)
    adapted = adapt(model, splits, sigma=options.sigma, seed=config.eval.seed)
    adapted.model.to(device).eval()
    adapted = replace(adapted, splits=adapted.splits.to(device))
    require_match(adapted.model, adapted.splits)
    if not adapted.model.has_codes:
        raise InputError("an audit needs a model with codes; log p(x) of a flow as a model of its own is exact.")
    config = resolve(config, device, adapted.model, adapted.splits.shape).replace({"train.precision": "float32"})
    parts = (options.model, source, adapted.splits.digest, digest_of(adapted.model), *fingerprint(adapted))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Subject(name_of(options.model), adapted, config, digest)


def find_own(options: argparse.Namespace) -> Path | None:
    """Return the checkpoint if the model is a folder of a run of ours."""
    path = Path(options.model) / checkpoint.CURRENT
    return path if path.exists() else None


def require_trained_on(path: Path, splits: Splits) -> None:
    """Refuse data that a run of ours was not trained on."""
    if checkpoint.read(path)[1]["data"] != splits.digest:
        raise InputError(
            f"{path.parent} was trained on other data than {splits.name}; name the data of the audit with --data."
        )


def read_config(options: argparse.Namespace) -> Run:
    """Return the default run with the overrides of the command line."""
    return Run().replace(read_overrides(options))


def read_overrides(options: argparse.Namespace) -> dict[str, object]:
    """Return the settings that the command line names; labels are left alone unless it says otherwise."""
    chosen = dict(options.set)
    strange = [name for name in chosen if not name.startswith(SETTABLE)]
    if strange:
        raise InputError(f"an audit changes settings of data and eval, and train.device; got {strange[0]}.")
    given = {"eval.examples": options.examples, "eval.seed": options.seed, "data.dir": options.data_dir}
    return {"eval.labels": "none", **{name: value for name, value in given.items() if value is not None}, **chosen}


def load_data(options: argparse.Namespace, config: Run, *, known: bool) -> Splits | None:
    """Return the data that `--data` names, else those of a run of ours; None where the model has to know them."""
    name = options.data
    if name is None:
        return load(config.data) if known else None
    path = Path(name).expanduser()
    if path.suffix in ARRAYS:
        return load(config.data, arrays.load(path, config.data.seed))
    if name in LOADERS and name != "folder":
        chosen = {"data.name": name}
    elif path.is_dir():
        chosen = {"data.name": "folder", "data.dir": str(path)}
    else:
        known_sets = ", ".join(one for one in LOADERS if one != "folder")
        raise InputError(
            f"--data takes a folder of images, an .npy or .npz file, or one of {known_sets}; got {name!r}."
        )
    return load(config.replace(chosen).data)


def load_foreign(text: str) -> tuple[Any, str]:
    """Return the model of `FILE.py:FUNCTION` or of a saved folder, and the digest of that file's source."""
    file, sign, function = text.rpartition(":")
    if sign and file.endswith(".py"):
        return call_function(Path(file), function), digest_source(text)
    if text.endswith(".py"):
        raise InputError(f"--model takes FILE.py:FUNCTION, where the function returns the model; got {text!r}.")
    path = Path(text)
    if not path.is_dir():
        raise InputError(f"--model takes FILE.py:FUNCTION or the folder of a saved model; there is no folder {text}.")
    return load_saved(path), ""


def call_function(path: Path, name: str) -> Any:
    """Return the result of a function of a Python file, which may import what lies beside it."""
    try:
        with _importing_beside(path):
            return load_function(path.resolve(), name)()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{_place(error, path)}: {type(error).__name__}: {sentence(error)}.") from error


@contextlib.contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let imports find the files in a file's folder first, before those in studies/."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def name_of(text: str) -> str:
    """Return a short name of a model: its function and file, or its folder."""
    file, sign, function = text.rpartition(":")
    return f"{Path(file).stem}-{function}" if sign and file.endswith(".py") else Path(text).resolve().name


def digest_of(model: nn.Module) -> str:
    """Return the SHA-256 of a model's class names, parameters and buffers, also of those that a plain object holds."""
    digest = hashlib.sha256()
    for name, value in _tensors(model):
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__}".encode())
    return digest.hexdigest()


@torch.no_grad()
def fingerprint(adapted: Adapted) -> list[str]:
    """Return what a model says of a few examples, to five digits: sums over mu and over logvar, and log p(x|z).

    It differs between models whose difference is in no parameter, such as a number or a function that the model uses.
    """
    model, test = adapted.model, adapted.splits.test
    x = test.subsample(TRIED).batch(generator=evaluation_generator(0, test.device))
    q = model.encode(x)
    weights = torch.cos(torch.arange(q.mu.numel(), device=x.device)).reshape(q.mu.shape)
    codes = (q.mu, weights, -weights) if model.posterior_flow is None else (weights, -weights)
    values = [(weights * part).sum().reshape(1) for part in (q.mu, q.logvar)]
    values += [model.decode(z).log_prob(x) for z in codes]
    return [f"{value:.5g}" for value in torch.cat(values).tolist()]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()
    source = getattr(model, "source", None)
    if source is not None and not isinstance(source, nn.Module):
        for name, value in sorted(getattr(source, "__dict__", {}).items()):
            if isinstance(value, nn.Module):
                yield from value.state_dict(prefix=f"{name}.").items()
            elif isinstance(value, Tensor):
                yield name, value


def _place(error: BaseException, path: Path) -> str:
    """Return the file and the line of it that raised."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.resolve()
    ]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    return f"{path}, line {line}" if line else str(path)
