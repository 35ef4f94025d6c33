"""The 1 797 scanned digits of scikit-learn, 8x8 pixels of 17 levels: no download."""

import torch

from vaebench.vae.config.run import Data
from vaebench.vae.data.splits import Splits, shuffle_and_split
from vaebench.vae.errors import InputError

LEVELS = 17


def load(config: Data) -> Splits:
    """Return the digits as uint8 levels 0 ... 16 of shape (1, 8, 8), split by the seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "data set digits is read from scikit-learn; install it with: pip install scikit-learn."
        ) from None
    digits = load_digits()
    images, classes = torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target)
    return shuffle_and_split(images[:, None], levels=LEVELS, name="digits", seed=config.seed, classes=classes)
