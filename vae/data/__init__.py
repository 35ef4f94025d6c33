"""Data sets by name: `load(config) -> Splits`."""

from vaebench.vae.config.run import Data
from vaebench.vae.data import binarized_mnist, digits, folder, linear, sprites, torchvision_sets
from vaebench.vae.data.memory_mapped import from_files
from vaebench.vae.data.splits import FactorGrid, Split, Splits, binarise, from_tensors
from vaebench.vae.data.torchvision_sets import download
from vaebench.vae.errors import InputError

__all__ = ["LOADERS", "FactorGrid", "Split", "Splits", "download", "from_files", "from_tensors", "load"]

LOADERS = {
    "digits": digits.load,
    "linear": linear.load,
    "sprites": sprites.load,
    "mnist": torchvision_sets.load,
    "binarized_mnist": binarized_mnist.load,
    "fashion_mnist": torchvision_sets.load,
    "cifar10": torchvision_sets.load,
    "folder": folder.load,
}


def load(config: Data, data: Splits | None = None) -> Splits:
    """Return the data set that the configuration names, or `data` instead, binarised as the configuration says."""
    if data is None and config.name not in LOADERS:
        raise InputError(f"there is no data set {config.name!r}; choose from {', '.join(LOADERS)}.")
    splits = data or LOADERS[config.name](config)
    return splits if config.binarise == "none" else binarise(splits, config.binarise, config.seed)
