"""The images of a tree, decoded once: one `.npy` of bytes, and beside it a `.json` with its hash and what was left out.

The name of both holds side, channels and a fingerprint of the tree (paths, sizes, times of the last change), so that
another tree is never mistaken for this one. A file is written under another name and renamed, the `.json` last.
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
from vaebench.vae.data.mapped import Rows, open_rows
from vaebench.vae.errors import InputError

AT_ONCE = 256
FOLDER, LOCK = ".vaebench", "lock"
VERSION = 1  # of the way from a file to pixels


@dataclass(frozen=True)
class Record:
    """What the `.json` holds.

    Attributes:
        digest: SHA-256 of shape and bytes.
        count: how many images there are.
        skipped: files that could not be read, and why.
    """

    digest: str
    count: int
    skipped: dict[str, str]


def open_or_decode(config: Data, tree: Path, paths: Sequence[str]) -> tuple[Rows, str, dict[str, str]]:
    """Return the mapped pixels of a tree in the order of the paths, their digest, and what was left out and why."""
    folder = tree / FOLDER if config.cache == "auto" else _in_cache(Path(config.cache).expanduser(), tree)
    stem = f"{config.side}x{config.side}x{config.channels}"
    place = folder / f"{stem}-{fingerprint(tree, paths)[:16]}.npy"
    found = _known(place)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # who waited finds what the other has decoded
                found = _known(place) or _decode(config, tree, paths, place)
                _clear(folder, stem, place)
        except OSError as error:
            raise InputError(
                f"cannot write the decoded images to {folder} ({error.strerror}), {_megabytes(config, paths)} MB; "
                "name a folder with room for them with --set data.cache=DIR."
            ) from error
    rows, record = found
    return rows, record.digest, record.skipped


def fingerprint(tree: Path, paths: Sequence[str]) -> str:
    """Return a hash of all that decides what is decoded, without reading it: names, sizes, times of the last change."""
    digest = hashlib.sha256(str(VERSION).encode())
    for path in paths:
        try:
            state = os.stat(tree / path)
            known = f"\0{path}\0{state.st_size} {state.st_mtime_ns}"
        except OSError:
            known = f"\0{path}\0unreadable"
        digest.update(known.encode(errors="surrogateescape"))
    return digest.hexdigest()


def as_text(path: str) -> str:
    """Return a path with the bytes that are no text written as such: a name can hold any, a message cannot."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _in_cache(cache: Path, tree: Path) -> Path:
    """Return the folder of a tree in a cache that serves many."""
    real = os.path.realpath(tree)
    return cache / f"{Path(real).name}-{hashlib.sha256(real.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _known(place: Path) -> tuple[Rows, Record] | None:
    """Return what was decoded before, or None where it is not there or not whole."""
    try:
        return open_rows(place), Record(**json.loads(place.with_suffix(".json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _decode(config: Data, tree: Path, paths: Sequence[str], place: Path) -> tuple[Rows, Record]:
    """Decode every image into a file, in order, and record what it is."""
    temporary = place.with_suffix(".npy.tmp")
    try:
        with temporary.open("wb") as file:
            record = _written(file, config, tree, paths)
            file.flush()
            os.fsync(file.fileno())
        if not record.count:
            path, reason = next(iter(record.skipped.items()))
            raise InputError(f"none of the {len(paths)} images in {tree} can be read; {as_text(path)}: {reason}.")
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    beside = place.with_suffix(".json.tmp")
    beside.write_text(json.dumps(dataclasses.asdict(record)))
    beside.replace(place.with_suffix(".json"))
    return open_rows(place), record


def _written(file: BinaryIO, config: Data, tree: Path, paths: Sequence[str]) -> Record:
    """Append each image as it comes; how many there are is known at the end, and written into the header then."""
    shape = (config.channels, config.side, config.side)
    _write_header(file, (len(paths), *shape))
    start, count = file.tell(), 0
    digest, skipped = hashlib.sha256(f"uint8 {shape}".encode()), {}
    for path, pixels in zip(paths, _pixels(config, tree, paths), strict=True):
        if isinstance(pixels, str):
            skipped[path] = pixels
            continue
        file.write(pixels.data)
        digest.update(pixels.data)
        count += 1
    file.seek(0)
    _write_header(file, (count, *shape))
    assert file.tell() == start, "a header leaves room for its first axis to grow"
    return Record(digest.hexdigest(), count, skipped)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _pixels(config: Data, tree: Path, paths: Sequence[str]) -> Iterator[Pixels | str]:
    """Return the pixels of each path in order, or why it cannot be read, decoded on every core."""

    def read(path: str) -> Pixels | str:
        try:
            return images.read(tree / path, config.side, config.channels)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # Pillow raises what its decoders do, of a dozen kinds
            return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__

    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        tqdm(total=len(paths), desc="decoding", unit="image", leave=False, disable=None) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # a file is read or left out, whatever its metadata are like
        for start in range(0, len(paths), AT_ONCE):
            for pixels in pool.map(read, paths[start : start + AT_ONCE]):
                bar.update()
                yield pixels


def _clear(folder: Path, stem: str, kept: Path) -> None:
    """Remove what was decoded of the same tree before it changed, and what was never finished."""
    for path in folder.glob(f"{stem}-*"):
        if path.name.partition(".")[0] != kept.stem:
            path.unlink()


def _megabytes(config: Data, paths: Sequence[str]) -> int:
    return len(paths) * config.channels * config.side**2 // 2**20
