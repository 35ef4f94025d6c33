"""Checkpoints without pickle: tensors in one safetensors file, everything else as JSON in its header.

A checkpoint is written to a temporary file and renamed. The previous one is kept. A damaged one is refused by name:
its header holds a checksum of all values, since a flipped bit of a weight is a number like any other.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from vaebench.vae.errors import InputError

CURRENT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
META, CHECKSUM = "meta", "sha256"

_log = logging.getLogger(__name__)


def write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write the checkpoint of a folder and keep the previous one; after a crash at any moment one of them is whole."""
    current, temporary = folder / CURRENT, folder / f"{CURRENT}.tmp"
    separate = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    facts = json.dumps(meta)
    blob = save(separate, {META: facts, CHECKSUM: checksum(separate, facts)})
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            held = file.metadata() or {}
        if held.get(CHECKSUM) not in (None, checksum(tensors, held[META])):  # earlier versions wrote none
            raise ValueError("its values are not those that were written: the checksum differs")
        return tensors, json.loads(held[META])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be used ({error}); delete it or give another.") from error


def checksum(tensors: dict[str, Tensor], facts: str) -> str:
    """Return the SHA-256 of facts and of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def read_latest_meta(folder: Path) -> dict[str, Any] | None:
    """Return the meta of a folder's newest checkpoint whose header can be read; None where there is none.

    The tensors are not read, so that a checkpoint may still be damaged: `read_latest` finds that out.
    """
    for name in (CURRENT, PREVIOUS):
        with contextlib.suppress(SafetensorError, OSError, KeyError, TypeError, ValueError):
            with safe_open(folder / name, framework="pt") as file:
                meta: dict[str, Any] = json.loads(file.metadata()[META])
            return meta
    return None


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
