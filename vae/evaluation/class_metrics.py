"""What the classes of the data say of a trained model: the measurements of InfoVAE that need labels."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae import metrics
from vaebench.vae.config.run import Eval
from vaebench.vae.data import Split, Splits
from vaebench.vae.evaluation.codes import represent_all
from vaebench.vae.evaluation.label_baselines import Pair, Yardstick, yardstick
from vaebench.vae.metrics.labels import ranked
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.training.epoch import Metrics

CLASS = ("class",)
SHOWN_LABELS, LABELS_OF_SMALL_SETS, SMALL_SET = 1000, 100, 10_000
LEARNED, TESTED, FEWEST, ELEMENTS = 10_000, 5_000, 1000, 2**26
SAMPLES, SAMPLES_AT_ONCE, MOST_PASSES, LARGE = 2000, 500, 512, 1e6


@torch.no_grad()
def class_metrics(model: VAE, splits: Splits, split: Split, config: Eval, *, progress: bool = False) -> Metrics:
    """Measure codes and samples against a single label, `class`: nothing without one.

    `latent/svm_error`: of a classifier of the codes that is shown 1 000 labels, 100 where there are fewer than 10 000
    examples. `samples/class_mismatch`: how far the classes of samples are from those of the data, by a classifier of
    the examples whose own accuracy on this split stands beside it.
    """
    if config.labels == "none" or splits.label_names != CLASS:
        return {}
    train, test = _counted(splits.train, split)
    most = max(FEWEST, ELEMENTS // math.prod(splits.shape))
    parts = train.spread(min(LEARNED, most)), test.spread(min(TESTED, most))
    if len(_classes(parts[0]).unique()) < 2:
        return {}
    generator = torch.Generator(train.device).manual_seed(config.seed)
    labels = SHOWN_LABELS if len(train) >= SMALL_SET else LABELS_OF_SMALL_SETS
    examples, classes = _of_both(lambda part: _examples(part, generator), parts), _of_both(_classes, parts)
    known = yardstick(examples, classes, labels, config.seed)
    with tqdm(total=2, desc="classes", leave=False, disable=not progress) as bar:
        found: Metrics = {}
        if not isinstance(model, FlowModel):
            codes = _of_both(lambda part: represent_all(model, part, generator), parts)
            found |= _few_labels(codes, known)
            bar.update()
        if model.passes <= MOST_PASSES:
            found |= _mismatch(_samples(model, generator), _classes(train).cpu(), known)
            bar.update()
    return found


def _few_labels(codes: Pair, known: Yardstick) -> Metrics:
    """Return the error of a classifier that was shown few labels: of codes, of the examples, of the commonest class."""
    error, stderr = known.error(codes)
    return {
        "latent/svm_error": error,
        "latent/svm_error_stderr": stderr,
        "latent/svm_error_pixels": known.pixels_error,
        "latent/svm_error_chance": known.chance,
    }


def _mismatch(samples: Tensor, classes: Tensor, known: Yardstick) -> Metrics:
    """Return how far the classes of samples are from those of the data, and how far as many draws would be."""
    drawn = torch.Generator().manual_seed(known.seed)
    return {
        "samples/class_mismatch": metrics.class_mismatch(known.name(samples), classes),
        "samples/class_mismatch_floor": metrics.sampling_mismatch(classes, SAMPLES, generator=drawn),
        "samples/classifier_accuracy": known.accuracy,
    }


def _samples(model: VAE, generator: torch.Generator) -> Tensor:
    """Return draws from p(x), flattened, `(SAMPLES, D)`."""
    drawn = []
    for _ in range(SAMPLES // SAMPLES_AT_ONCE):
        z = model.prior(torch.zeros(SAMPLES_AT_ONCE, model.latent, device=generator.device)).rsample(generator)
        drawn.append(model.decode(z).sample(generator).flatten(1))
    return torch.cat(drawn).nan_to_num(0, LARGE, -LARGE)


def _examples(split: Split, generator: torch.Generator) -> Tensor:
    return split.batch(generator=generator).flatten(1)


def _classes(split: Split) -> Tensor:
    assert split.labels is not None
    return split.labels[:, 0]


def _of_both(read: Callable[[Split], Tensor], parts: tuple[Split, Split]) -> Pair:
    """Return what is read of a training set and of another split, not on a GPU."""
    return read(parts[0]).cpu(), read(parts[1]).cpu()


def _counted(train: Split, test: Split) -> list[Split]:
    """Return two splits with their classes counted from 0 without a gap."""
    assert train.labels is not None
    assert test.labels is not None
    known = ranked(torch.cat([train.labels, test.labels])).split([len(train), len(test)])
    return [dataclasses.replace(part, labels=labels) for part, labels in zip((train, test), known, strict=True)]
