"""Any tree of images, cut to one size: decoded once into one file, which is mapped and not read."""

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vaebench.vae.config.run import Data
from vaebench.vae.data import decoded
from vaebench.vae.data.decoded import as_text
from vaebench.vae.data.images import SUFFIXES
from vaebench.vae.data.mapped import FileSplit, Rows
from vaebench.vae.data.splits import NAMES, Splits
from vaebench.vae.errors import InputError

LEVELS = 256
NAMED = 5

_log = logging.getLogger(__name__)


def load(config: Data) -> Splits:
    """Return the images of a tree as uint8 `(channels, side, side)`, split by the seed into 80 %, 10 % and 10 %.

    `vae.data.images` says how an image is cut and coloured. Where every image lies in one of at least two sub-folders
    of the top these are its classes, numbered by name. Names that begin with a dot are left out, links are followed.
    A file that cannot be read is named and left out.
    """
    tree = Path(config.dir).expanduser()
    paths = find_images(tree)
    rows, digest, skipped = decoded.open_or_decode(config, tree, paths)
    if skipped:
        warn_once(_left_out(tree, skipped, len(paths)))
    kept = [path for path in paths if path not in skipped]
    known = classes(kept)
    parts = {name: _split(rows, digest, numbers, known) for name, numbers in split(kept, config.seed).items()}
    label_names = () if known is None else ("class",)
    return Splits("folder", parts["train"], parts["valid"], parts["test"], LEVELS, label_names)


@cache
def warn_once(message: str) -> None:
    """Log a warning, and nothing when a command loads the same data again."""
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
            inside = os.path.relpath(folder, tree)
            found += [Path(inside, name).as_posix() for name in files if _is_image(name)]
        seen.add(real)
    if not found:
        raise InputError(f"there is no image in {tree}; files end in one of {', '.join(sorted(SUFFIXES))}.")
    return sorted(found)


def split(paths: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return the numbers of the paths of each split: a tenth to test, a tenth to valid, in the order of a hash.

    A path keeps its place in that order whatever else is in the tree, so that few files change sides when one is added.
    """
    keys = [hashlib.sha256(f"{seed} {path}".encode(errors="surrogateescape")).digest() for path in paths]
    order = torch.tensor(sorted(range(len(paths)), key=keys.__getitem__), dtype=torch.int64)
    tenth = max(len(paths) // 10, 1)
    test, valid, train = order.tensor_split([tenth, 2 * tenth])
    return dict(zip(NAMES, (train, valid, test), strict=True))


def classes(paths: Sequence[str]) -> Tensor | None:
    """Return the number of each path's sub-folder, `(N, 1)`, where all lie in one of at least two, else None."""
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    names = sorted(set(tops))
    if len(names) < 2 or "" in names:
        return None
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([[numbers[top]] for top in tops])


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _split(rows: Rows, digest: str, numbers: Tensor, known: Tensor | None) -> FileSplit:
    labels = None if known is None else known[numbers]
    return FileSplit(numbers, LEVELS - 1, render=rows, labels=labels, source=digest)


def _left_out(tree: Path, skipped: dict[str, str], count: int) -> str:
    named = ", ".join(f"{as_text(path)} ({reason})" for path, reason in list(skipped.items())[:NAMED])
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"{len(skipped)} of {count} images in {tree} cannot be read and are left out: {named}{more}."
