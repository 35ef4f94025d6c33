"""Any tree of images, cropped to one size: decoded once into one file, which is then memory-mapped."""

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vaebench.vae.config.run import Data
from vaebench.vae.data import decoding
from vaebench.vae.data.decoding import as_text
from vaebench.vae.data.images import SUFFIXES
from vaebench.vae.data.memory_mapped import FileSplit
from vaebench.vae.data.splits import Splits
from vaebench.vae.errors import InputError

LEVELS = 256
SKIPPED_SHOWN = 5

_log = logging.getLogger(__name__)


def load(config: Data) -> Splits:
    """Return the images of a tree as uint8 `(channels, side, side)`, split by the seed into 80 %, 10 % and 10 %.

    `vae.data.images` describes how an image is cropped and converted. Where every image lies in one of at least two
    sub-folders of the top, these are the classes, numbered by name. Names that begin with a dot are left out, links are
    followed. A file that cannot be read is named in a warning and left out.
    """
    tree = Path(config.dir).expanduser()
    paths = find_images(tree)
    rows, manifest = decoding.open_or_decode(config, tree, paths)
    if manifest.skipped:
        warn_once(_describe_skipped(tree, manifest.skipped, len(paths)))
    kept = [path for path in paths if path not in manifest.skipped]
    classes, names = find_classes(kept)
    splits = []
    for numbers in split(kept, config.seed):
        labels = None if classes is None else classes[numbers]
        splits.append(FileSplit(numbers, LEVELS - 1, render=rows, labels=labels, source=manifest.digest))
    label_names = ("class",) if names else ()
    return Splits("folder", splits[0], splits[1], splits[2], LEVELS, label_names, class_names=names)


@cache
def warn_once(message: str) -> None:
    """Log a warning, once for each message: a command may load the same data several times."""
    _log.warning(message)


def find_images(tree: Path) -> list[str]:
    """Return the paths of all images in a tree, relative to it and sorted; a folder linked twice counts once."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"cannot read the folder {error.filename}: {error.strerror}; give the tree of images with --data-dir."
        )

    found: list[str] = []
    seen: set[str] = set()
    for folder, below, files in os.walk(tree, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real not in seen:
            relative = os.path.relpath(folder, tree)
            found += [Path(relative, name).as_posix() for name in files if _is_image(name)]
        seen.add(real)
    if not found:
        raise InputError(f"there is no image in {tree}; files end in one of {', '.join(sorted(SUFFIXES))}.")
    return sorted(found)


def split(paths: Sequence[str], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the paths of train, valid and test, in the order of a hash: a tenth each to the last two.

    The hash of a path depends on nothing else in the tree, so that few files change splits when one is added.
    """
    keys = [hashlib.sha256(f"{seed} {path}".encode(errors="surrogateescape")).digest() for path in paths]
    order = torch.tensor(sorted(range(len(paths)), key=keys.__getitem__), dtype=torch.int64)
    tenth = max(len(paths) // 10, 1)
    test, valid, train = order.tensor_split([tenth, 2 * tenth])
    return train, valid, test


def find_classes(paths: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the number of each path's top sub-folder, `(N, 1)`, and their names, if all lie in one of at least two."""
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    names = sorted(set(tops))
    if len(names) < 2 or "" in names:
        return None, ()
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([[numbers[top]] for top in tops]), tuple(map(as_text, names))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _describe_skipped(tree: Path, skipped: dict[str, str], count: int) -> str:
    shown = ", ".join(f"{as_text(path)} ({reason})" for path, reason in list(skipped.items())[:SKIPPED_SHOWN])
    more = f" and {len(skipped) - SKIPPED_SHOWN} more" if len(skipped) > SKIPPED_SHOWN else ""
    return f"{len(skipped)} of {count} images in {tree} cannot be read and are left out: {shown}{more}."
