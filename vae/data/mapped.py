"""Data that stay on disk: `.npy` files mapped into memory, from which a batch reads its rows and nothing else.

What is read lies in the system's page cache, which gives it up when memory is short; the process itself holds a few
batches. A file is asked for all rows of a batch before any is touched, since a disk serves many requests at once: of a
file of which nothing was in memory, twenty times as many rows a second came so as by touching one after the other.
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

AHEAD = 4
BLOCK_BYTES = 2**24
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a mapped file as a function of their numbers, `(B,) -> (B, *shape)`.

    Attributes:
        array: the whole file, `(N, *shape)`, of which nothing is in memory until it is touched.
        offset: where in the file its first row begins.
        path: of the file, which another process maps for itself.
    """

    array: Array
    mapping: mmap.mmap
    offset: int
    path: Path

    def __reduce__(self) -> tuple[Callable[[Path], "Rows"], tuple[Path]]:
        return open_rows, (self.path,)

    def __call__(self, numbers: Tensor) -> Tensor:
        self._ask_for(numbers)
        return torch.from_numpy(np.take(self.array, numbers.numpy(), axis=0))

    def _ask_for(self, numbers: Tensor) -> None:
        """Let the system read rows while this process does something else."""
        size = self.array[:1].nbytes
        for first in (numbers * size + self.offset).tolist():
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_WILLNEED, start, first + size - start)

    def blocks(self) -> Iterator[Array]:
        """Return all rows in their order, a few megabytes at a time."""
        count = max(1, BLOCK_BYTES // max(1, self.array[:1].nbytes))
        return (self.array[start : start + count] for start in range(0, len(self.array), count))


@dataclass(frozen=True, eq=False)
class Tossed:
    """Rows with each element drawn from Bernoulli(k / top), the same whenever a row is read: seed and number decide."""

    rows: Callable[[Tensor], Tensor]
    top: int
    seed: int

    def __call__(self, numbers: Tensor) -> Tensor:
        levels = self.rows(numbers)
        pairs = zip(numbers.tolist(), levels.numpy(), strict=True)
        return torch.stack([torch.from_numpy(self._toss(number, row)) for number, row in pairs])

    def _toss(self, number: int, row: Array) -> Array:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        return (generator.random(row.shape, dtype=np.float32) * self.top < row).astype(np.uint8)


@dataclass(frozen=True)
class FileSplit(Split):
    """A split whose examples stay in a file: `stored` numbers its rows, and `render` reads them.

    A background thread reads a few batches ahead; what is drawn at random is drawn when a batch is asked for, so that
    batches are the same bits as without it.
    """

    target: torch.device = dataclasses.field(default=torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        return self.target

    def batches(self, indices: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for index in indices:
                waiting.append(reader.submit(self._kept, index))
                if len(waiting) > AHEAD:
                    yield self._seen(waiting.popleft().result(), generator)
            while waiting:
                yield self._seen(waiting.popleft().result(), generator)

    def binarised(self, generator: torch.Generator) -> Split:
        assert self.render is not None
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        source = f"{self.source} tossed {seed}"
        return dataclasses.replace(self, render=Tossed(self.render, self.top, seed), top=1, source=source)

    def to(self, device: torch.device) -> "FileSplit":
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, target=device, labels=labels)

    def _kept(self, index: Tensor | None) -> Tensor:
        kept = super()._kept(index)
        return kept.pin_memory().to(self.target, non_blocking=True) if self.target.type == "cuda" else kept


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
    """Make splits of your own `.npy` files, as large as the disk: uint8 levels, or float32 with `levels=0`.

    Each is read once here, a block at a time, to be hashed and checked; from then on it is mapped, and must not change.

    Args:
        labels: classes `(N,)` or factors `(N, F)` of train, valid and test, in any integer type.
        label_names: `class`, or the name of each factor.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.npy"
        >>> np.save(path, np.zeros((20, 1, 8, 8), dtype=np.uint8))
        >>> from_files(path, path, path, levels=256).shape
        (1, 8, 8)
    """
    require_levels(levels, name)
    rows = [_opened(Path(path), levels, name) for path in (train, valid, test)]
    digests = [_vetted(one, levels, f"{name}: split {split}") for one, split in zip(rows, NAMES, strict=True)]
    splits = [
        FileSplit(torch.arange(len(one.array)), max(levels - 1, 0), render=one, labels=known, source=digest)
        for one, known, digest in zip(rows, label_columns(labels), digests, strict=True)
    ]
    return Splits(name, splits[0], splits[1], splits[2], levels, tuple(label_names) if labels is not None else ())


def open_rows(path: Path) -> Rows:
    """Map a `.npy` file; raise OSError where it cannot be read, ValueError where it is not a whole one."""
    found = np.lib.format.open_memmap(path, mode="r")
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array: Array = np.ndarray(found.shape, found.dtype, mapping, found.offset, found.strides)
    return Rows(array, mapping, found.offset, path.resolve())


def _opened(path: Path, levels: int, name: str) -> Rows:
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


def _vetted(rows: Rows, levels: int, what: str) -> str:
    """Return the SHA-256 of a file's rows, after looking for what is no level, or not finite."""
    digest = hashlib.sha256(f"{rows.array.dtype} {rows.array.shape}".encode())
    bad = 0
    for block in rows.blocks():
        digest.update(block.reshape(-1).data)
        if 0 < levels < 2**8:
            top = int(block.max(initial=0))
            if top >= levels:
                raise InputError(f"{what} must hold levels 0 to {levels - 1}, got {top}.")
        elif not levels:
            bad += block.size - int(np.isfinite(block).sum())
    if bad:
        raise InputError(f"{what} holds {bad} values that are not finite; clean the data.")
    return digest.hexdigest()
