"""Train, valid and test splits: disjoint, hashed sets of examples from which batches are selected by index."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vaebench.vae.errors import InputError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Examples as levels 0 ... top in uint8, or as floats with top = 0.

    Attributes:
        stored: the examples, `(N, *shape)`; with `render` a key for each, `(N,)`.
        dynamic: whether each batch is binarised anew, each element drawn from Bernoulli(k / top).
        render: makes the examples of a batch from their keys, for data that would not fit into memory.
        labels: the class of each example or the values of its factors, `(N, F)` in int64.
        source: names the data that `render` reads, such as the SHA-256 of a file; part of the digest.
    """

    stored: Tensor
    top: int
    dynamic: bool = False
    render: Callable[[Tensor], Tensor] | None = None
    labels: Tensor | None = None
    source: str = ""

    def __len__(self) -> int:
        return self.stored.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        first = self.stored[:1]
        return tuple((self.render(first) if self.render else first).shape[1:])

    def batch(self, index: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return a copy of the indexed examples, or of all, as floats `(B, *shape)`; levels become k / top."""
        x = self._as_input(self._read(index), generator)
        return x.clone() if x is self.stored else x

    def batches(self, indices: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Return the batch of each index in turn."""
        return (self.batch(index, generator) for index in indices)

    @property
    def device(self) -> torch.device:
        """Return the device of the batches."""
        return self.stored.device

    def _read(self, index: Tensor | None) -> Tensor:
        """Return the indexed examples as levels or floats."""
        rows = self.stored if index is None else self.stored.index_select(0, index)
        return self.render(rows) if self.render else rows

    def _as_input(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """Scale levels to floats k / top and, in a dynamic split, binarise them: the input of a model."""
        x = rows.float().div_(self.top) if self.top else rows
        return torch.bernoulli(x, generator=generator) if self.dynamic else x

    def binarise(self, generator: torch.Generator) -> "Split":
        """Return the split with each element drawn once from Bernoulli(k / top)."""
        return Split(torch.bernoulli(self.batch(), generator=generator).to(torch.uint8), 1, labels=self.labels)

    def subsample(self, count: int) -> "Split":
        """Return at most `count` examples, evenly spaced over the split."""
        if count >= len(self):
            return self
        index = torch.arange(count, device=self.stored.device) * len(self) // count
        labels = None if self.labels is None else self.labels[index.to(self.labels.device)]
        return dataclasses.replace(self, stored=self.stored[index], labels=labels)

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, stored=self.stored.to(device), labels=labels)


@dataclass(frozen=True)
class FactorGrid:
    """All combinations of the generative factors of data that are rendered from them.

    Attributes:
        sizes: the number of values of each factor.
        find: maps factors to the keys that a split stores, `(B, F) -> (B,)`, from 0 to `count` - 1; combinations that
            look alike share a key.
    """

    sizes: tuple[int, ...]
    find: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """Return the number of combinations."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Attributes:
        levels: the number of values that an element of a model's input can take; 0 where it is continuous.
        label_names: one for each column of the splits' labels: `class`, or the names of the factors.
        factor_grid: for rendered data, all combinations of their factors, beyond those in the splits.
        class_names: the names of the classes 0, 1, ..., where they have names.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    levels: int
    label_names: tuple[str, ...] = ()
    factor_grid: FactorGrid | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in NAMES:
            split: Split = getattr(self, name)
            fewest = 2 if name == "train" else 1
            if len(split) < fewest or split.shape != self.shape:
                raise InputError(
                    f"{self.name}: split {name} must hold at least {fewest} examples of shape {self.shape}, "
                    f"got {tuple(split.stored.shape)}."
                )
            found = () if split.labels is None else tuple(split.labels.shape)
            required = (len(split), len(self.label_names)) if self.label_names else ()
            if found != required:
                raise InputError(f"{self.name}: split {name} must have labels of shape {required}, got {found}.")
            if self.class_names:
                require_names(split.labels, self.class_names, f"{self.name}: split {name}")
            bad = split.stored.numel() - int(split.stored.isfinite().sum()) if split.stored.is_floating_point() else 0
            if bad:
                raise InputError(f"{self.name}: split {name} holds {bad} values that are not finite; clean the data.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        return self.train.shape

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of names, types, shapes and bytes of the three splits."""
        digest = hashlib.sha256(f"{self.name} {self.levels}".encode())
        for name in NAMES:
            split: Split = getattr(self, name)
            stored = split.stored.cpu().contiguous()
            digest.update(f"{name} {stored.dtype} {tuple(stored.shape)} {split.top} {split.dynamic}".encode())
            digest.update(split.source.encode())
            digest.update(stored.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Splits":
        """Return the splits on a device."""
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in NAMES})


def from_tensors(
    train: Tensor,
    valid: Tensor,
    test: Tensor,
    *,
    levels: int = 0,
    name: str = "yours",
    labels: Sequence[Tensor] | None = None,
    label_names: Sequence[str] = ("class",),
    class_names: Sequence[str] = (),
) -> Splits:
    """Make splits from your own tensors: uint8 levels 0 ... levels - 1, or float32 with `levels=0`.

    Args:
        labels: classes `(N,)` or factors `(N, F)` of train, valid and test, in any integer type.
        label_names: `class`, or the name of each factor.
        class_names: the names of the classes 0, 1, ..., which pictures show.

    Example:
        >>> images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
        >>> from_tensors(images[:80], images[80:90], images[90:], levels=256).shape
        (1, 8, 8)
    """
    require_levels(levels, name)
    for split, values in zip(NAMES, (train, valid, test), strict=True):
        if not isinstance(values, Tensor):
            raise InputError(f"{name}: split {split} must be a tensor, got {type(values).__name__}.")
        required = torch.uint8 if levels else torch.float32
        if values.dtype != required or values.ndim < 2:
            raise InputError(
                f"{name}: split {split} must be {required} of shape (N, ...) when levels = {levels}, "
                f"got {values.dtype} of shape {tuple(values.shape)}."
            )
        if levels and values.numel() and int(values.max()) >= levels:
            raise InputError(f"{name}: split {split} must hold levels 0 to {levels - 1}, got {int(values.max())}.")
    splits = [
        Split(x, max(levels - 1, 0), labels=known)
        for x, known in zip((train, valid, test), label_columns(labels), strict=True)
    ]
    columns = tuple(label_names) if labels is not None else ()
    return Splits(name, splits[0], splits[1], splits[2], levels, columns, class_names=tuple(class_names))


def require_names(labels: Tensor | None, class_names: Sequence[str], where: str) -> None:
    """Raise unless the labels are numbers of classes that all have names."""
    last = len(class_names) - 1
    if labels is None or labels.shape[1] != 1 or bool(((labels < 0) | (labels > last)).any()):
        raise InputError(f"{where} must have one class for each example, 0 to {last}, as class_names has names for.")


def require_levels(levels: int, name: str) -> None:
    """Raise unless `levels` is 0 or a number of levels that fit into a byte."""
    if levels == 1 or not 0 <= levels <= 256:
        raise InputError(f"{name}: levels must be 0, for floats, or 2 to 256, got {levels}.")


def label_columns(labels: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    """Return the labels of each split, `(N,)` or `(N, F)`, as `(N, F)` in int64."""
    return [None] * len(NAMES) if labels is None else [known.reshape(len(known), -1).long() for known in labels]


def shuffle_and_split(x: Tensor, *, levels: int, name: str, seed: int, classes: Tensor | None = None) -> Splits:
    """Split examples `(N, ...)` and their classes `(N,)` at random into 80 % train, 10 % valid, 10 % test."""
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(seed))
    tenth = max(x.shape[0] // 10, 1)
    test, valid, train = order.split([tenth, tenth, x.shape[0] - 2 * tenth])
    labels = None if classes is None else [classes[rows] for rows in (train, valid, test)]
    return from_tensors(x[train], x[valid], x[test], levels=levels, name=name, labels=labels)


def binarise(splits: Splits, mode: str, seed: int) -> Splits:
    """Draw each element from Bernoulli(k / top): train once (`static`) or anew in each batch (`dynamic`).

    Valid and test are drawn once in both modes, so that their figures can be compared. Binary data are not changed.
    """
    if splits.levels == 2:
        return splits
    if splits.levels == 0:
        raise InputError(f"data.binarise = {mode} needs data with levels; {splits.name} is continuous.")
    generator = torch.Generator().manual_seed(seed)
    train, valid, test = (split.binarise(generator) for split in (splits.train, splits.valid, splits.test))
    if mode == "dynamic":
        train = dataclasses.replace(splits.train, dynamic=True)
    return dataclasses.replace(splits, name=f"{splits.name}-{mode}", train=train, valid=valid, test=test, levels=2)
