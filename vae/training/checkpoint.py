"""Checkpoints without pickle: tensors in one safetensors file, everything else as JSON in its header.

A checkpoint is written to a temporary file and renamed. The previous one is kept. A damaged one is refused by name.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vaebench.vae.errors import InputError

CURRENT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"

_log = logging.getLogger(__name__)


def write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write the checkpoint of a folder and keep the previous one; after a crash at any moment one of them is whole."""
    current, temporary = folder / CURRENT, folder / f"{CURRENT}.tmp"
    separate = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    blob = save(separate, {"meta": json.dumps(meta)})
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    if current.exists():
        current.replace(folder / PREVIOUS)
    temporary.replace(current)
    return current


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and meta of one checkpoint file; a damaged one is refused by name."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be used ({error}); delete it or give another.") from error


def read_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the newest whole checkpoint of a folder, or None where there is none; damaged ones are logged."""
    found = [folder / name for name in (CURRENT, PREVIOUS) if (folder / name).exists()]
    for path in found:
        try:
            return read(path)
        except InputError as error:
            _log.warning("%s Trying the previous one.", error)
    if found:
        raise InputError(f"no checkpoint in {folder} can be used; delete {', '.join(path.name for path in found)}.")
    return None
