"""Arrays in `.npy` and `.npz` files as splits: bytes are levels, bools are bits, other numbers are continuous."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaebench.vae.data.splits import Splits, from_tensors, shuffle_and_split
from vaebench.vae.errors import InputError

LEVELS, FEWEST = 256, 10
Array = npt.NDArray[Any]


def load(path: Path, seed: int = 0) -> Splits:
    """Return the splits of a file: one array `(N, ...)` is split by the seed into 80 %, 10 % and 10 %.

    An `.npz` file may instead hold `train` and `test`, and `valid`; without it the last tenth of `train` is held out.
    """
    arrays = _read(path)
    if "train" in arrays and "test" in arrays:
        train = arrays["train"]
        held_out = max(1, len(train) // 10)
        valid = arrays.get("valid", train[len(train) - held_out :])
        kept = train if "valid" in arrays else train[: len(train) - held_out]
        parts = [_to_tensor(array, path) for array in (kept, valid, arrays["test"])]
        levels = max(found for _, found in parts)
        return from_tensors(*(x for x, _ in parts), levels=levels, name=path.stem)
    if len(arrays) != 1:
        raise InputError(
            f"{path} must hold one array, or train and test, and perhaps valid; got {', '.join(sorted(arrays))}."
        )
    x, levels = _to_tensor(next(iter(arrays.values())), path)
    if len(x) < FEWEST:
        raise InputError(f"{path} must hold at least {FEWEST} examples, got {len(x)}.")
    return shuffle_and_split(x, levels=levels, name=path.stem, seed=seed)


def _read(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by name; that of an `.npy` file is called x."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return {"x": found} if isinstance(found, np.ndarray) else dict(found)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} holds no plain arrays of numbers: {error}.") from error


def _to_tensor(array: Array, path: Path) -> tuple[Tensor, int]:
    """Return an array as levels and their number, or as float32 and 0; zeros and ones alone are bits."""
    if array.ndim < 2 or not array.size or array.dtype.kind not in "buif":
        raise InputError(f"{path} must hold numbers (N, ...), got {array.dtype} of shape {array.shape}.")
    if array.dtype.kind == "b" or (array.dtype == np.uint8 and array.max() <= 1):
        return torch.from_numpy(array.astype(np.uint8)), 2
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)), LEVELS
    return torch.from_numpy(array.astype(np.float32)), 0
