"""Data that stay on disk: memory-mapped `.npy` files, of which a batch reads only its own rows.

The pages that were read lie in the system's page cache, which frees them when memory is short; the process itself holds
a few batches. All rows of a batch are requested before the first is read, since a disk serves many requests at once:
for a file that is not in memory this reads twenty times as many rows a second as one request after the other.
"""

import dataclasses
import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaebench.vae.data.splits import NAMES, Split, Splits, label_columns, require_levels
from vaebench.vae.errors import InputError

BATCHES_AHEAD = 4
BLOCK_BYTES = 2**24
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class MappedRows:
    """The rows of a memory-mapped file as a function of their numbers, `(B,) -> (B, *shape)`.

    Attributes:
        array: the whole file, `(N, *shape)`, whose pages are read when they are first used.
        offset: the position of the first row in the file, in bytes.
        path: the file; a pickled copy maps it again.
    """

    array: Array
    mapping: mmap.mmap
    offset: int
    path: Path

    def __reduce__(self) -> tuple[Callable[[Path], "MappedRows"], tuple[Path]]:
        return open_rows, (self.path,)

    def __call__(self, numbers: Tensor) -> Tensor:
        size = self.array[:1].nbytes
        for first in (numbers * size + self.offset).tolist():
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_WILLNEED, start, first + size - start)
        return torch.from_numpy(np.take(self.array, numbers.numpy(), axis=0))

    def blocks(self) -> Iterator[Array]:
        """Return all rows in order, in blocks of a few megabytes."""
        count = max(1, BLOCK_BYTES // max(1, self.array[:1].nbytes))
        return (self.array[start : start + count] for start in range(0, len(self.array), count))


@dataclass(frozen=True, eq=False)
class BinarisedRows:
    """Rows with each element drawn from Bernoulli(k / top); seed and row number fix the draw, whenever it is read."""

    rows: Callable[[Tensor], Tensor]
    top: int
    seed: int

    def __call__(self, numbers: Tensor) -> Tensor:
        pairs = zip(numbers.tolist(), self.rows(numbers).numpy(), strict=True)
        return torch.stack([torch.from_numpy(self._draw(number, row)) for number, row in pairs])

    def _draw(self, number: int, row: Array) -> Array:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        return (generator.random(row.shape, dtype=np.float32) * self.top < row).astype(np.uint8)


@dataclass(frozen=True)
class FileSplit(Split):
    """A split whose examples stay in a file: `stored` holds row numbers, and `render` reads the rows.

    A background thread reads a few batches ahead. Random draws are made when a batch is requested, so that batches have
    the same bits as without the thread.
    """

    target: torch.device = dataclasses.field(default=torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        return self.target

    def batches(self, indices: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for index in indices:
                waiting.append(reader.submit(self._read, index))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._as_input(waiting.popleft().result(), generator)
            while waiting:
                yield self._as_input(waiting.popleft().result(), generator)

    def binarise(self, generator: torch.Generator) -> Split:
        assert self.render is not None
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        source = f"{self.source} tossed {seed}"
        return dataclasses.replace(self, render=BinarisedRows(self.render, self.top, seed), top=1, source=source)

    def to(self, device: torch.device) -> "FileSplit":
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, target=device, labels=labels)

    def _read(self, index: Tensor | None) -> Tensor:
        rows = super()._read(index)
        return rows.pin_memory().to(self.target, non_blocking=True) if self.target.type == "cuda" else rows


def from_files(
    train: Path | str,
    valid: Path | str,
    test: Path | str,
    *,
    levels: int = 0,
    name: str = "yours",
    labels: Sequence[Tensor] | None = None,
    label_names: Sequence[str] = ("class",),
) -> Splits:
    """Make splits from your own `.npy` files, as large as the disk: uint8 levels, or float32 with `levels=0`.

    Each file is read once, block by block, to hash and check it; after that it is mapped and must not change. For the
    other arguments see `from_tensors`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.npy"
        >>> np.save(path, np.zeros((20, 1, 8, 8), dtype=np.uint8))
        >>> from_files(path, path, path, levels=256).shape
        (1, 8, 8)
    """
    require_levels(levels, name)
    rows = [_open_checked(Path(path), levels, name) for path in (train, valid, test)]
    digests = [_check_and_hash(one, levels, f"{name}: split {split}") for one, split in zip(rows, NAMES, strict=True)]
    splits = [
        FileSplit(torch.arange(len(one.array)), max(levels - 1, 0), render=one, labels=known, source=digest)
        for one, known, digest in zip(rows, label_columns(labels), digests, strict=True)
    ]
    return Splits(name, splits[0], splits[1], splits[2], levels, tuple(label_names) if labels is not None else ())


def open_rows(path: Path) -> MappedRows:
    """Map a `.npy` file; raise OSError if it cannot be read, ValueError if it is incomplete or no .npy file."""
    found = np.lib.format.open_memmap(path, mode="r")
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array: Array = np.ndarray(found.shape, found.dtype, mapping, found.offset, found.strides)
    return MappedRows(array, mapping, found.offset, path.resolve())


def _open_checked(path: Path, levels: int, name: str) -> MappedRows:
    required = "uint8" if levels else "float32"
    try:
        rows = open_rows(path)
    except OSError as error:
        raise InputError(f"{name}: cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{name}: {path} must be a whole .npy file of {required} rows: {error}.") from error
    array = rows.array
    if array.dtype != required or array.ndim < 2 or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran order"
        raise InputError(
            f"{name}: {path} must hold {required} of shape (N, ...) in C order when levels = {levels}, "
            f"got {array.dtype} of shape {array.shape}{order}."
        )
    return rows


def _check_and_hash(rows: MappedRows, levels: int, split: str) -> str:
    """Return the SHA-256 of a file's rows; refuse values that are no level, or not finite."""
    digest = hashlib.sha256(f"{rows.array.dtype} {rows.array.shape}".encode())
    bad = 0
    for block in rows.blocks():
        digest.update(block.reshape(-1).data)
        if 0 < levels < 2**8:
            top = int(block.max(initial=0))
            if top >= levels:
                raise InputError(f"{split} must hold levels 0 to {levels - 1}, got {top}.")
        elif not levels:
            bad += block.size - int(np.isfinite(block).sum())
    if bad:
        raise InputError(f"{split} holds {bad} values that are not finite; clean the data.")
    return digest.hexdigest()
