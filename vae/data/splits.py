"""Train, valid and test: three disjoint, named, hashed tensors from which batches are index selects."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vae.errors import InputError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """One tensor of examples: levels 0 ... top in uint8, or floats (top 0), and how a batch is made of them.

    Where `render` is given, `stored` holds what it makes levels of, a batch at a time: data that would not fit.
    """

    stored: Tensor
    top: int
    dynamic: bool = False
    render: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return self.stored.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        first = self.stored[:1]
        return tuple((self.render(first) if self.render else first).shape[1:])

    def batch(self, index: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return the indexed examples (all without an index) as floats, `(B, *shape)`; levels become k / top.

        A dynamically binarised split draws each element anew from Bernoulli(k / top).
        """
        rows = self.stored if index is None else self.stored.index_select(0, index)
        rows = self.render(rows) if self.render else rows
        x = rows.float().div_(self.top) if self.top else rows
        return torch.bernoulli(x, generator=generator) if self.dynamic else x

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device."""
        return dataclasses.replace(self, stored=self.stored.to(device))


@dataclass(frozen=True)
class Splits:
    """A data set ready for training: what a model sees has `levels` values an element (0: continuous)."""

    name: str
    train: Split
    valid: Split
    test: Split
    levels: int

    def __post_init__(self) -> None:
        for name in NAMES:
            split: Split = getattr(self, name)
            fewest = 2 if name == "train" else 1
            if len(split) < fewest or split.shape != self.shape:
                raise InputError(
                    f"{self.name}: split {name} must hold at least {fewest} examples of shape {self.shape}, "
                    f"got {tuple(split.stored.shape)}."
                )
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
            digest.update(stored.numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Splits":
        """Return the splits on a device."""
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in NAMES})


def from_tensors(train: Tensor, valid: Tensor, test: Tensor, *, levels: int = 0, name: str = "yours") -> Splits:
    """Make splits of your own tensors: uint8 levels 0 ... levels - 1, or float32 with `levels=0`.

    Example:
        >>> images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
        >>> from_tensors(images[:80], images[80:90], images[90:], levels=256).shape
        (1, 8, 8)
    """
    if levels == 1 or not 0 <= levels <= 256:
        raise InputError(f"{name}: levels must be 0, for floats, or 2 to 256, got {levels}.")
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
    top = max(levels - 1, 0)
    return Splits(name, Split(train, top), Split(valid, top), Split(test, top), levels)


def dequantise(x: Tensor, levels: int, u: Tensor | float) -> Tensor:
    """Return (k + u) / levels for elements k / (levels - 1): cells of one width side by side, u in [0, 1) the place.

    The volume of a cell is levels^-D. With u uniform, the density p that a continuous model gives to the result bounds
    the probability that it gives to the cells:

        E_u log p((k + u) / levels) - D log levels <= log P(k)

    with equality where p is constant in each cell, as that of a model of the levels themselves is.

    Reference: Theis et al., A Note on the Evaluation of Generative Models, 2016, section 3.1.

    Example:
        >>> dequantise(torch.tensor([0.0, 0.5, 1.0]), levels=3, u=0.75)
        tensor([0.2500, 0.5833, 0.9167])
    """
    return (x * (levels - 1) + u) / levels


def quantise(y: Tensor, levels: int) -> Tensor:
    """Return k / (levels - 1) of the cell k that y lies in, those outside [0, 1] in the outermost: see `dequantise`."""
    return (y * levels).floor().clamp(0, levels - 1) / (levels - 1)


def shuffled(x: Tensor, *, levels: int, name: str, seed: int) -> Splits:
    """Split `(N, ...)` at random into 80 % train, 10 % valid, 10 % test."""
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(seed))
    tenth = max(x.shape[0] // 10, 1)
    test, valid, train = order.split([tenth, tenth, x.shape[0] - 2 * tenth])
    return from_tensors(x[train], x[valid], x[test], levels=levels, name=name)


def binarised(splits: Splits, mode: str, seed: int) -> Splits:
    """Draw each element from Bernoulli(level / top): once for valid and test; train once, or a batch at a time.

    Valid and test are drawn once in either mode, so that figures of one seed compare. Binary data stay as they are.
    """
    if splits.levels == 2:
        return splits
    if splits.levels == 0:
        raise InputError(f"data.binarise = {mode} needs data with levels; {splits.name} is continuous.")
    generator = torch.Generator().manual_seed(seed)
    train, valid, test = (
        Split(torch.bernoulli(getattr(splits, name).batch(), generator=generator).to(torch.uint8), 1) for name in NAMES
    )
    if mode == "dynamic":
        train = dataclasses.replace(splits.train, dynamic=True)
    return Splits(f"{splits.name}-{mode}", train, valid, test, levels=2)
