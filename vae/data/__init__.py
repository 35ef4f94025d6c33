"""`load(config) -> Splits`: data sets by name."""

from vaebench.vae.config.run import Data
from vaebench.vae.data import digits, folder, linear, published, sprites
from vaebench.vae.data.mapped import from_files
from vaebench.vae.data.published import download
from vaebench.vae.data.splits import Split, Splits, World, binarised, from_tensors
from vaebench.vae.errors import InputError
from vaebench.vae.prob.levels import dequantise, quantise

__all__ = [
    "LOADERS",
    "Split",
    "Splits",
    "World",
    "dequantise",
    "download",
    "from_files",
    "from_tensors",
    "load",
    "quantise",
]

LOADERS = {
    "digits": digits.load,
    "linear": linear.load,
    "sprites": sprites.load,
    "mnist": published.load,
    "fashion_mnist": published.load,
    "cifar10": published.load,
    "folder": folder.load,
}


def load(config: Data, given: Splits | None = None) -> Splits:
    """Return the named data set, or the one given, binarised where the configuration says so."""
    if given is None and config.name not in LOADERS:
        raise InputError(f"there is no data set {config.name!r}; choose from {', '.join(LOADERS)}.")
    splits = given or LOADERS[config.name](config)
    return splits if config.binarise == "none" else binarised(splits, config.binarise, config.seed)
