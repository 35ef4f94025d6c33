"""Scores of codes and samples against classes: the measurements of InfoVAE that need labels."""

import math

import torch
from torch import Tensor

DRAWS = 100


def class_mismatch(found: Tensor, expected: Tensor) -> float:
    """Return the total variation distance between the class frequencies of two sets, 0 to 1.

        1/2 sum_c | P(c | found) - P(c | expected) |

    Shapes: found `(M,)`, expected `(N,)`, both int64 from 0.

    Example:
        >>> class_mismatch(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
        0.25
    """
    count = int(max(found.max(), expected.max())) + 1
    shares = [classes.bincount(minlength=count).double() / len(classes) for classes in (found, expected)]
    return 0.5 * (shares[0] - shares[1]).abs().sum().item()


def sampling_mismatch(expected: Tensor, samples: int, *, generator: torch.Generator | None = None) -> float:
    """Return the mean `class_mismatch` of `samples` classes drawn from the expected frequencies."""
    shares = expected.bincount().double() / len(expected)
    drawn = torch.multinomial(shares.expand(DRAWS, -1), samples, replacement=True, generator=generator)
    counts = torch.zeros(DRAWS, len(shares), dtype=torch.float64, device=drawn.device)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return 0.5 * (counts / samples - shares).abs().sum(1).mean().item()


def svm_error(
    train_codes: Tensor,
    train_classes: Tensor,
    test_codes: Tensor,
    test_classes: Tensor,
    *,
    labels: int,
    repeats: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Return the test error of a support vector machine trained on few labels, and its standard error over the repeats.

    Each repeat draws `labels` training points, with an equal number of each class as far as they suffice.

    Shapes: codes `(N, K)`, classes `(N,)`.

    Reference: Zhao et al., InfoVAE, 2019, section 5; 1 000 labels there.
    """
    from sklearn.svm import SVC  # the import takes a second, and only labels need it

    errors = torch.zeros(repeats, dtype=torch.float64)
    for i in range(repeats):
        rows = draw_balanced(train_classes, labels, generator)
        model = SVC().fit(train_codes[rows.to(train_codes.device)].cpu().numpy(), train_classes[rows].cpu().numpy())
        errors[i] = 1 - model.score(test_codes.cpu().numpy(), test_classes.cpu().numpy())
    return errors.mean().item(), errors.std().item() / math.sqrt(repeats)


def draw_balanced(classes: Tensor, labels: int, generator: torch.Generator | None) -> Tensor:
    """Return `labels` random rows, an equal number of each class as far as they suffice."""
    order = torch.randperm(len(classes), generator=generator, device=classes.device)
    rank = torch.zeros_like(classes)
    for value in classes.unique():
        own = order[classes[order] == value]
        rank[own] = torch.arange(len(own), device=classes.device)
    return order[rank[order].argsort(stable=True)][:labels]
