"""Decode the images of a tree once into a `.npy` file of bytes, with a `.json` manifest of its hash and skipped files.

The names of both files hold side, channels and a fingerprint of the tree (paths, sizes, modification times, rights to
read), so that a changed tree is decoded again. Both are written under a temporary name and renamed, the `.json` last.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from vaebench.vae.config.run import Data
from vaebench.vae.data import images
from vaebench.vae.data.images import Pixels
from vaebench.vae.data.memory_mapped import MappedRows, open_rows
from vaebench.vae.errors import InputError

FILES_AT_ONCE = 256
FOLDER, LOCK = ".vaebench", "lock"
VERSION = 1  # of the decoder: a change of it decodes every tree again


@dataclass(frozen=True)
class Manifest:
    """The content of the `.json` file.

    Attributes:
        digest: SHA-256 of shape and bytes.
        count: the number of decoded images.
        skipped: the files that could not be read, each with the reason.
    """

    digest: str
    count: int
    skipped: dict[str, str]


def open_or_decode(config: Data, tree: Path, paths: Sequence[str]) -> tuple[MappedRows, Manifest]:
    """Return the mapped pixels of a tree in the order of the paths, with their manifest."""
    folder = tree / FOLDER if config.cache == "auto" else _cache_folder(Path(config.cache).expanduser(), tree)
    stem = f"{config.side}x{config.side}x{config.channels}"
    target = folder / f"{stem}-{fingerprint(tree, paths)[:16]}.npy"
    found = _open_decoded(target)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another process may have decoded the tree while this one waited
                found = _open_decoded(target) or _decode(config, tree, paths, target)
                for path in folder.glob(f"{stem}-*"):  # of the tree before it changed, or unfinished
                    if path.name.partition(".")[0] != target.stem:
                        path.unlink()
        except OSError as error:
            megabytes = len(paths) * config.channels * config.side**2 // 2**20
            raise InputError(
                f"cannot write the decoded images to {folder} ({error.strerror}), {megabytes} MB; "
                "name a folder with room for them with --set data.cache=DIR."
            ) from error
    return found


def fingerprint(tree: Path, paths: Sequence[str]) -> str:
    """Return a hash of the decoder's version and of all names, sizes, modification times and rights to read.

    No file is read.
    """
    digest = hashlib.sha256(str(VERSION).encode())
    for path in paths:
        try:
            status = os.stat(tree / path)
            refused = "" if os.access(tree / path, os.R_OK) else " refused"
            entry = f"\0{path}\0{status.st_size} {status.st_mtime_ns}{refused}"
        except OSError:
            entry = f"\0{path}\0unreadable"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_text(path: str) -> str:
    """Return a path that can be printed: bytes that are not text are written as escapes."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _cache_folder(cache: Path, tree: Path) -> Path:
    """Return the folder of a tree in a cache that many trees share."""
    real = os.path.realpath(tree)
    return cache / f"{Path(real).name}-{hashlib.sha256(real.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _open_decoded(target: Path) -> tuple[MappedRows, Manifest] | None:
    """Return the images that were decoded before, or None where a file is missing or incomplete."""
    try:
        return open_rows(target), Manifest(**json.loads(target.with_suffix(".json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _decode(config: Data, tree: Path, paths: Sequence[str], target: Path) -> tuple[MappedRows, Manifest]:
    """Decode every image, in order, into a file and write its manifest."""
    temporary = target.with_suffix(".npy.tmp")
    try:
        with temporary.open("wb") as file:
            manifest = _write_images(file, config, tree, paths)
            file.flush()
            os.fsync(file.fileno())
        if not manifest.count:
            path, reason = next(iter(manifest.skipped.items()))
            raise InputError(f"none of the {len(paths)} images in {tree} can be read; {as_text(path)}: {reason}.")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    unfinished = target.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(dataclasses.asdict(manifest)))
    unfinished.replace(target.with_suffix(".json"))
    return open_rows(target), manifest


def _write_images(file: BinaryIO, config: Data, tree: Path, paths: Sequence[str]) -> Manifest:
    """Append each image as it is decoded; then write the header again, with the number of images that were read."""
    shape = (config.channels, config.side, config.side)
    _write_header(file, (len(paths), *shape))
    start, count = file.tell(), 0
    digest, skipped = hashlib.sha256(f"uint8 {shape}".encode()), {}
    for path, pixels in zip(paths, _decode_pixels(config, tree, paths), strict=True):
        if isinstance(pixels, str):
            skipped[path] = pixels
            continue
        file.write(pixels.data)
        digest.update(pixels.data)
        count += 1
    file.seek(0)
    _write_header(file, (count, *shape))
    assert file.tell() == start, "a header leaves room for its first axis to grow"
    return Manifest(digest.hexdigest(), count, skipped)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_pixels(config: Data, tree: Path, paths: Sequence[str]) -> Iterator[Pixels | str]:
    """Decode the paths on every core: yield the pixels of each in order, or the reason why it cannot be read."""

    def read(path: str) -> Pixels | str:
        try:
            return images.read(tree / path, config.side, config.channels)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # Pillow's decoders raise a dozen kinds
            return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__

    with (
        ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=len(paths), desc="decoding", unit="image", leave=False, disable=None) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # odd metadata do not matter: a file is read or left out
        for start in range(0, len(paths), FILES_AT_ONCE):
            for pixels in pool.map(read, paths[start : start + FILES_AT_ONCE]):
                bar.update()
                yield pixels
