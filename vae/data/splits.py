"""Train, valid and test: three disjoint, named, hashed tensors from which batches are index selects."""

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
    """One tensor of examples: levels 0 ... top in uint8, or floats (top 0), and how a batch is made of them.

    Where `render` is given, `stored` holds what it makes levels of, a batch at a time: data that would not fit.

    Attributes:
        source: names what `render` reads, such as the SHA-256 of a file: a part of the digest.
        labels: what is known of each example, `(N, F)` in int64: its class, or the value of each of its factors.
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
        """Return a copy of the indexed examples (all without an index) as floats, `(B, *shape)`; levels become k / top.

        A dynamically binarised split draws each element anew from Bernoulli(k / top).
        """
        x = self._seen(self._kept(index), generator)
        return x.clone() if x is self.stored else x

    def batches(self, indices: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Return `batch` of each index in turn."""
        return (self.batch(index, generator) for index in indices)

    @property
    def device(self) -> torch.device:
        """Return where batches are."""
        return self.stored.device

    def _kept(self, index: Tensor | None) -> Tensor:
        """Return the indexed examples as they are kept: levels, or floats."""
        rows = self.stored if index is None else self.stored.index_select(0, index)
        return self.render(rows) if self.render else rows

    def _seen(self, kept: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what a model sees of kept examples."""
        x = kept.float().div_(self.top) if self.top else kept
        return torch.bernoulli(x, generator=generator) if self.dynamic else x

    def binarised(self, generator: torch.Generator) -> "Split":
        """Return the split with each element drawn once from Bernoulli(k / top)."""
        return Split(torch.bernoulli(self.batch(), generator=generator).to(torch.uint8), 1, labels=self.labels)

    def spread(self, count: int) -> "Split":
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
class World:
    """Data that can be made of any combination of their factors.

    Attributes:
        sizes: how many values each factor has.
        find: what a split stores of the example with given factors, `(B, F) -> (B,)`, below `count`; look-alikes share
            it.
    """

    sizes: tuple[int, ...]
    find: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """Return the number of combinations."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Splits:
    """A data set ready for training: what a model sees has `levels` values an element (0: continuous).

    Attributes:
        label_names: one for each column of the splits' labels: `class`, or the names of the factors.
        world: where examples are rendered, how to come by others than those in the splits.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    levels: int
    label_names: tuple[str, ...] = ()
    world: World | None = None

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
) -> Splits:
    """Make splits of your own tensors: uint8 levels 0 ... levels - 1, or float32 with `levels=0`.

    Args:
        labels: classes `(N,)` or factors `(N, F)` of train, valid and test, in any integer type.
        label_names: `class`, or the name of each factor.

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
    return Splits(name, splits[0], splits[1], splits[2], levels, tuple(label_names) if labels is not None else ())


def require_levels(levels: int, name: str) -> None:
    """Raise unless there are so many levels in a byte, or none."""
    if levels == 1 or not 0 <= levels <= 256:
        raise InputError(f"{name}: levels must be 0, for floats, or 2 to 256, got {levels}.")


def label_columns(labels: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    """Return the labels of each split, `(N,)` or `(N, F)`, as `(N, F)` in int64."""
    return [None] * len(NAMES) if labels is None else [known.reshape(len(known), -1).long() for known in labels]


def shuffled(x: Tensor, *, levels: int, name: str, seed: int, classes: Tensor | None = None) -> Splits:
    """Split `(N, ...)`, and its classes `(N,)`, at random into 80 % train, 10 % valid, 10 % test."""
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(seed))
    tenth = max(x.shape[0] // 10, 1)
    test, valid, train = order.split([tenth, tenth, x.shape[0] - 2 * tenth])
    labels = None if classes is None else [classes[rows] for rows in (train, valid, test)]
    return from_tensors(x[train], x[valid], x[test], levels=levels, name=name, labels=labels)


def binarised(splits: Splits, mode: str, seed: int) -> Splits:
    """Draw each element from Bernoulli(level / top): once for valid and test; train once, or a batch at a time.

    Valid and test are drawn once in either mode, so that figures of one seed compare. Binary data stay as they are.
    """
    if splits.levels == 2:
        return splits
    if splits.levels == 0:
        raise InputError(f"data.binarise = {mode} needs data with levels; {splits.name} is continuous.")
    generator = torch.Generator().manual_seed(seed)
    train, valid, test = (split.binarised(generator) for split in (splits.train, splits.valid, splits.test))
    if mode == "dynamic":
        train = dataclasses.replace(splits.train, dynamic=True)
    return dataclasses.replace(splits, name=f"{splits.name}-{mode}", train=train, valid=valid, test=test, levels=2)
