"""MNIST in one published binarisation: three text files with a row of 784 bits, apart by blanks, for each image.

Reference: Larochelle and Murray, The Neural Autoregressive Distribution Estimator, 2011.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaebench.vae.config.run import Data
from vaebench.vae.data.splits import NAMES, Splits, from_tensors
from vaebench.vae.errors import InputError

SIDE = 28
ZERO, ONE = b"01"
BLANKS = b" \t\r\n"


def load(config: Data) -> Splits:
    """Return the published splits, `(1, 28, 28)` bits, of 50 000, 10 000 and 10 000 images."""
    train, valid, test = (read(path) for path in files(config))
    return from_tensors(train, valid, test, levels=2, name=config.name)


def files(config: Data) -> list[Path]:
    """Return where the files of train, valid and test are looked for."""
    folder = Path(config.dir).expanduser() / "BinarizedMNIST"
    return [folder / f"binarized_mnist_{name}.amat" for name in NAMES]


def list_missing(config: Data) -> list[Path]:
    """Return the files that are not there; an archive stands for its file."""
    return [path for path in files(config) if not path.exists() and not _archive(path).exists()]


def read(path: Path) -> Tensor:
    """Read one file, or its archive `.gz` where there is no file, `(N, 1, 28, 28)` in uint8."""
    archive = _archive(path)
    try:
        packed = archive.exists() and not path.exists()
        text = np.frombuffer(gzip.decompress(archive.read_bytes()) if packed else path.read_bytes(), np.uint8)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is damaged or no archive of gzip.") from error
    except OSError as error:
        raise InputError(
            f"data set binarized_mnist needs {path} ({error.strerror}); put it there, or give a folder by --data-dir."
        ) from error
    bits = text[(text == ZERO) | (text == ONE)] == ONE
    blanks = np.isin(text, np.frombuffer(BLANKS, np.uint8)).sum()
    if not len(bits) or len(bits) % SIDE**2 or len(bits) + blanks < len(text):
        raise InputError(f"{path} must hold rows of {SIDE**2} bits apart by blanks; it is damaged or another file.")
    return torch.from_numpy(bits.reshape(-1, 1, SIDE, SIDE).astype(np.uint8))


def _archive(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")
