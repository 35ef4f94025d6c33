"""What classes and examples say without a model: the same for all models of a study, so it is measured once."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vae import metrics

PENALTY, COMPONENTS = 10.0, 64


@dataclass(frozen=True)
class Yardstick:
    """What codes and samples are held against.

    Attributes:
        examples: of the training set and of the split to be measured, flattened, `(N, D)`, not on a GPU.
        classes: of both, `(N,)`, counted from 0.
        shown: how many labels a classifier of few labels is shown.
        seed: which.
    """

    examples: tuple[Tensor, Tensor]
    classes: tuple[Tensor, Tensor]
    shown: int
    seed: int

    @property
    def chance(self) -> float:
        """Return the error of naming the commonest class."""
        return 1 - self.classes[1].bincount().max().item() / len(self.classes[1])

    @cached_property
    def pixels_error(self) -> float:
        """Return the error of a classifier of the examples that was shown few labels."""
        return self.error(self._seen)[0]

    @cached_property
    def accuracy(self) -> float:
        """Return the share of the split that `name` names right."""
        return float(self._classifier.score(self._seen[1].numpy(), self.classes[1].numpy()))

    def error(self, codes: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Return the error of a classifier of codes that was shown few labels, and its standard error."""
        draws = torch.Generator().manual_seed(self.seed)
        (train, test), (known, asked) = codes, self.classes
        return metrics.svm_error(train, known, test, asked, labels=self.shown, generator=draws)

    def name(self, samples: Tensor) -> Tensor:
        """Return the classes that a classifier of all examples names samples `(M, D)` by, `(M,)`."""
        return torch.from_numpy(self._classifier.predict(self._look(samples.cpu()).numpy()))

    @cached_property
    def _look(self) -> Callable[[Tensor], Tensor]:
        return components(self.examples[0])

    @cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        train, test = self.examples
        return self._look(train), self._look(test)

    @cached_property
    def _classifier(self) -> Any:
        from sklearn.svm import SVC  # takes a second, and only labels need it

        return SVC(C=PENALTY).fit(self._seen[0].numpy(), self.classes[0].numpy())


_last: dict[str, Yardstick] = {}


def remembered(yardstick: Yardstick) -> Yardstick:
    """Return the last one, with all that it has measured, where it is of the same examples and classes."""
    digest = hashlib.sha256(f"{yardstick.shown} {yardstick.seed}".encode())
    for tensor in (*yardstick.examples, *yardstick.classes):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    key = digest.hexdigest()
    if key not in _last:
        _last.clear()
        _last[key] = yardstick
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
