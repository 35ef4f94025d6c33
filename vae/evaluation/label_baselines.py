"""What classes and examples say without a model: the same for all models of a study, so it is measured once."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaebench.vae import metrics

PENALTY, COMPONENTS = 10.0, 64

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Yardstick:
    """What codes and samples are held against.

    Attributes:
        look: shows examples `(N, D)` to a classifier.
        seen: what it shows of the training set and of the split to be measured.
        classes: of both, `(N,)`, counted from 0.
        shown: how many labels a classifier of few labels is shown.
        seed: which.
    """

    look: Callable[[Tensor], Tensor]
    seen: Pair
    classes: Pair
    shown: int
    seed: int

    @property
    def chance(self) -> float:
        """Return the error of naming the commonest class."""
        return 1 - self.classes[1].bincount().max().item() / len(self.classes[1])

    @cached_property
    def pixels_error(self) -> float:
        """Return the error of a classifier of the examples that was shown few labels."""
        return self.error(self.seen)[0]

    @cached_property
    def accuracy(self) -> float:
        """Return the share of the split that `name` names right."""
        return float(self._classifier.score(self.seen[1].numpy(), self.classes[1].numpy()))

    def error(self, codes: Pair) -> tuple[float, float]:
        """Return the error of a classifier of codes that was shown few labels, and its standard error."""
        draws = torch.Generator().manual_seed(self.seed)
        (train, test), (known, asked) = codes, self.classes
        return metrics.svm_error(train, known, test, asked, labels=self.shown, generator=draws)

    def name(self, samples: Tensor) -> Tensor:
        """Return the classes that a classifier of all examples names samples `(M, D)` by, `(M,)`."""
        return torch.from_numpy(self._classifier.predict(self.look(samples.cpu()).numpy()))

    @cached_property
    def _classifier(self) -> Any:
        from sklearn.svm import SVC  # takes a second, and only labels need it

        return SVC(C=PENALTY).fit(self.seen[0].numpy(), self.classes[0].numpy())


_last: dict[str, Yardstick] = {}


def yardstick(examples: Pair, classes: Pair, shown: int, seed: int) -> Yardstick:
    """Return that of a training set and another split, `(N, D)`, not on a GPU: the last one where it is the same."""
    digest = hashlib.sha256(f"{shown} {seed}".encode())
    for tensor in (*examples, *classes):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    key = digest.hexdigest()
    if key not in _last:
        _last.clear()
        look = components(examples[0])
        _last[key] = Yardstick(look, (look(examples[0]), look(examples[1])), classes, shown, seed)
    return _last[key]


def components(examples: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what shows examples `(N, D)` to a classifier: their first principal components, all of few elements.

    A support vector machine names as many of Fashion-MNIST by 64 of them as by 784 pixels, 87 %, in an eighth of the
    time.
    """
    if examples.shape[1] <= COMPONENTS:
        return lambda x: x
    from sklearn.decomposition import PCA  # takes a second, and only labels need it

    kept = min(COMPONENTS, len(examples))
    found = PCA(kept, svd_solver="randomized", random_state=0).fit(examples.numpy())
    return lambda x: torch.from_numpy(found.transform(x.numpy()))
