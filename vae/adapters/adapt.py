"""Find the adapter of a trained model, from whatever library it is, and load models that a library has saved."""

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.adapters import scvi
from vaebench.vae.adapters.diffusers import DiffusersMeans
from vaebench.vae.adapters.gaussian import BernoulliSource, GaussianSource, Means, fit_sigma
from vaebench.vae.adapters.pythae import PythaeMeans
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model import GenerativeModel
from vaebench.vae.model.adapted import AdaptedModel, ConditionalSource, Source

TRIED = 4
PYTHAE_SIGMA = 1.0
FIT = "fit"


@dataclass(frozen=True)
class Adapted:
    """A model that can be measured, with the data in the form that it takes.

    Attributes:
        notes: sentences on what the adapter has chosen.
        sigma: the standard deviation of a Gaussian p(x|z) that the adapter has chosen.
        fitted_sigma: the one that the validation data prefer.
    """

    model: GenerativeModel
    splits: Splits
    notes: tuple[str, ...] = ()
    sigma: float | None = None
    fitted_sigma: float | None = None


def adapt(model: Any, splits: Splits | None, *, sigma: str | float | None = None, seed: int = 0) -> Adapted:
    """Return a trained model as a `GenerativeModel`, tried on a few of the data.

    Served are a `GenerativeModel`, a model of pythae, an autoencoder of diffusers, a model or module of scvi-tools, and
    any object with `encode` and `decode`: see `vae.model.adapted.Source`.

    Args:
        splits: the data; a model of scvi-tools knows its own.
        sigma: for decoders that return means: the standard deviation of a Gaussian p(x|z), or `fit`, by which it is
            fitted to the validation split. By default pythae's is 1, as its own `get_nll` has it; others are fitted.
            A model with a p(x|z) of its own takes none.
    """
    libraries = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    for module in find_modules(model):
        module.eval()
        if splits is not None:
            module.to(splits.train.device)
    if sigma is not None and not _takes_sigma(model, libraries):
        raise InputError(
            f"sigma is for decoders that return means alone, and p(x|z) of {type(model).__name__} has its own; leave "
            "--sigma out."
        )
    if "scvi" in libraries:
        return _adapt_scvi(model, splits, seed)
    if splits is None:
        raise InputError("this model does not know its data: name them with --data.")
    if isinstance(model, GenerativeModel):
        return Adapted(model, splits)
    if "pythae" in libraries:
        return _adapt_pythae(model, splits, sigma, seed)
    if "diffusers" in libraries:
        means = DiffusersMeans(model, centred=splits.levels > 0)
        range_note = "images are given to the autoencoder in [-1, 1], and measured in [0, 1]" if splits.levels else ""
        return _with_sigma(means, splits, FIT if sigma is None else sigma, seed, range_note)
    lacking = [name for name in ("encode", "decode") if not callable(getattr(model, name, None))]
    if lacking:
        raise InputError(
            f"a model must have encode(x) and decode(z), or be one of vaebench, pythae, diffusers or scvi-tools; "
            f"{type(model).__name__} has no {lacking[0]}."
        )
    return Adapted(_build(model, splits), splits)


def load_saved(folder: Path) -> Any:
    """Return the model that pythae, diffusers or scvi-tools has saved in a folder, by the files that lie there."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if {"model_config.json", "model.pt"} <= names:
        return _load("pythae", folder, lambda: _library("pythae.models").AutoModel.load_from_folder(str(folder)))
    if "config.json" in names and (kind := _class_name(folder / "config.json")):
        return _load("diffusers", folder, lambda: getattr(_library("diffusers"), kind).from_pretrained(str(folder)))
    if "model.pt" in names:
        return _load("scvi-tools", folder, lambda: _load_scvi(folder))
    raise InputError(
        f"{folder} holds no model: there is neither a checkpoint of vaebench, nor model_config.json and model.pt of "
        "pythae, nor config.json of diffusers, nor model.pt of scvi-tools."
    )


def find_modules(model: Any) -> Iterator[nn.Module]:
    """Yield a module, and those in the attributes of an object and of its class, and in lists and dicts there."""
    if isinstance(model, nn.Module):
        yield model
    for owner in (model, *type(model).__mro__):
        for value in list(getattr(owner, "__dict__", {}).values()):
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from (one for one in inner if isinstance(one, nn.Module))


def _takes_sigma(model: Any, libraries: set[str]) -> bool:
    """Return whether the decoder of a model returns means, around which p(x|z) is a Gaussian."""
    loss = getattr(getattr(model, "model_config", None), "reconstruction_loss", None)
    return "diffusers" in libraries or ("pythae" in libraries and loss != "bce")


def _build(source: Source | ConditionalSource, splits: Splits, covariates: Tensor | None = None) -> AdaptedModel:
    examples = splits.train.batch(torch.arange(min(TRIED, len(splits.train)), device=splits.train.device))
    return AdaptedModel(source, examples, splits.levels, covariates=covariates)


def _with_sigma(means: Means, splits: Splits, sigma: str | float, seed: int, note: str = "") -> Adapted:
    _build(GaussianSource(means, 1.0), splits)  # tells what is wrong with the model before the whole split is encoded
    fitted = fit_sigma(means, splits.valid, seed=seed)
    chosen = fitted if sigma == FIT else float(sigma)
    origin = "fitted to the validation split" if sigma == FIT else f"while the validation split prefers {fitted:.4g}"
    notes = (f"p(x|z) is Gaussian with sigma {chosen:.4g}, {origin}", *([note] if note else []))
    return Adapted(_build(GaussianSource(means, chosen), splits), splits, notes, chosen, fitted)


def _adapt_pythae(model: Any, splits: Splits, sigma: str | float | None, seed: int) -> Adapted:
    means = PythaeMeans(model)
    if means.loss == "bce":
        return Adapted(_build(BernoulliSource(means), splits), splits, ("p(x|z) is Bernoulli, as the loss bce has it",))
    note = "sigma 1 is what the loss mse of pythae stands for"
    note += "" if sigma in (None, PYTHAE_SIGMA) else ", so that q was trained for another posterior than this one"
    return _with_sigma(means, splits, PYTHAE_SIGMA if sigma is None else sigma, seed, note)


def _adapt_scvi(model: Any, splits: Splits | None, seed: int) -> Adapted:
    continuous = categorical = 0
    if splits is None:
        if not hasattr(model, "adata_manager"):
            raise InputError("a module of scvi-tools does not know its data: name an array of counts with --data.")
        loader = _library("scvi.dataloaders").AnnDataLoader
        splits, continuous, categorical = scvi.registered_splits(model, loader, seed)
    else:
        splits = _map_splits(splits)
    source = scvi.ScviSource(getattr(model, "module", model), continuous, categorical)
    source.eval()
    given = splits.valid.batch()[:, splits.shape[0] - scvi.GIVEN - continuous - categorical :]
    note = "log p(x) is of the counts, given the library size, batch, label and covariates of each cell"
    return Adapted(_build(source, splits, given), splits, (note,))


def _map_splits(splits: Splits) -> Splits:
    """Return splits of counts `(N, G)` with their covariates."""
    if len(splits.shape) != 1 or splits.levels:
        raise InputError(f"a module of scvi-tools takes counts (N, G) as floats, got data of shape {splits.shape}.")
    parts = {name: getattr(splits, name) for name in ("train", "valid", "test")}
    extended = {name: dataclasses.replace(one, stored=scvi.add_covariates(one.stored)) for name, one in parts.items()}
    return dataclasses.replace(splits, **extended)


def _load(library: str, folder: Path, load: Any) -> Any:
    """Call what loads a model of a library; an error becomes a sentence with the folder."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{library} cannot load {folder}: {type(error).__name__}: {sentence(error)}.") from error


def _load_scvi(folder: Path) -> Any:
    stored = torch.load(folder / "model.pt", map_location="cpu", weights_only=False)
    name = stored["attr_dict"]["registry_"]["model_name"]
    return getattr(_library("scvi.model"), name).load(str(folder), accelerator="cpu")


def _library(name: str) -> Any:
    """Import a module of a library that only people who have its models have installed."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"this model needs the package {package}, which is not installed here.")
    return importlib.import_module(name)


def _class_name(path: Path) -> str:
    """Return the class that a config.json of diffusers names; empty for another file."""
    try:
        return str(json.loads(path.read_text()).get("_class_name", ""))
    except (ValueError, AttributeError):
        return ""
