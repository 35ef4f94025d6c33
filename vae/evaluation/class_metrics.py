"""Metrics of a trained model against the classes of the data: the measurements of InfoVAE that need labels."""

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
from vaebench.vae.evaluation.label_baselines import LabelBaseline, Pair, fit_baseline
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.streams import evaluation_generator

FEW_LABELS, FEW_LABELS_OF_SMALL_SETS, SMALL_SET = 1000, 100, 10_000
TRAIN_EXAMPLES, TEST_EXAMPLES, MIN_EXAMPLES, MAX_ELEMENTS = 10_000, 5_000, 1000, 2**26
SAMPLES, SAMPLES_AT_ONCE, MAX_PASSES, LARGE = 2000, 500, 512, 1e6


@torch.no_grad()
def class_metrics(
    model: GenerativeModel, splits: Splits, split: Split, config: Eval, *, progress: bool = False
) -> Metrics:
    """Measure codes and samples against the classes of the data; without a single label `class` return nothing.

    `latent/svm_error` is the error of a classifier of the codes that is trained on 1 000 labels, or 100 if there are
    fewer than 10 000 examples. `samples/class_mismatch` is the distance between the class frequencies of samples and
    data, by a classifier of the examples, whose accuracy on this split is logged too.
    """
    if config.labels == "none" or splits.label_names != ("class",):
        return {}
    train, test = _renumber_classes(splits.train, split)
    most = max(MIN_EXAMPLES, MAX_ELEMENTS // math.prod(splits.shape))
    parts = train.subsample(min(TRAIN_EXAMPLES, most)), test.subsample(min(TEST_EXAMPLES, most))
    if len(_classes(parts[0]).unique()) < 2:
        return {}
    generator = evaluation_generator(config.seed, train.device)
    few_labels = FEW_LABELS if len(train) >= SMALL_SET else FEW_LABELS_OF_SMALL_SETS
    examples = _map_both(lambda part: part.batch(generator=generator).flatten(1), parts)
    baseline = fit_baseline(examples, _map_both(_classes, parts), few_labels, config.seed)
    with tqdm(total=2, desc="classes", leave=False, disable=not progress) as bar:
        found: Metrics = {}
        if model.has_codes:
            codes = _map_both(lambda part: represent_all(model, part, generator), parts)
            found |= _svm_metrics(codes, baseline)
            bar.update()
        if model.passes <= MAX_PASSES:
            found |= _sample_metrics(_draw_samples(model, generator), _classes(train).cpu(), baseline)
            bar.update()
    return found


def _svm_metrics(codes: Pair, baseline: LabelBaseline) -> Metrics:
    """Return the errors of classifiers trained on few labels, from codes and from examples, and the chance error."""
    error, stderr = baseline.svm_error(codes)
    return {
        "latent/svm_error": error,
        "latent/svm_error_stderr": stderr,
        "latent/svm_error_pixels": baseline.pixels_error,
        "latent/svm_error_chance": baseline.chance_error,
    }


def _sample_metrics(samples: Tensor, classes: Tensor, baseline: LabelBaseline) -> Metrics:
    """Return the class mismatch of samples and its floor, the mean mismatch of as many draws from the data."""
    generator = torch.Generator().manual_seed(baseline.seed)
    return {
        "samples/class_mismatch": metrics.class_mismatch(baseline.classify(samples), classes),
        "samples/class_mismatch_floor": metrics.sampling_mismatch(classes, SAMPLES, generator=generator),
        "samples/classifier_accuracy": baseline.accuracy,
    }


def _draw_samples(model: GenerativeModel, generator: torch.Generator) -> Tensor:
    """Return draws from p(x), flattened, `(SAMPLES, D)`."""
    drawn = [model.sample(SAMPLES_AT_ONCE, generator).flatten(1) for _ in range(SAMPLES // SAMPLES_AT_ONCE)]
    return torch.cat(drawn).nan_to_num(0, LARGE, -LARGE)


def _classes(split: Split) -> Tensor:
    assert split.labels is not None
    return split.labels[:, 0]


def _map_both(function: Callable[[Split], Tensor], parts: tuple[Split, Split]) -> Pair:
    """Apply a function to a training set and to another split, and return the results on the CPU."""
    return function(parts[0]).cpu(), function(parts[1]).cpu()


def _renumber_classes(train: Split, test: Split) -> list[Split]:
    """Return two splits with their classes numbered 0, 1, ... without gaps."""
    assert train.labels is not None
    assert test.labels is not None
    labels = metrics.renumber(torch.cat([train.labels, test.labels])).split([len(train), len(test)])
    return [dataclasses.replace(part, labels=own) for part, own in zip((train, test), labels, strict=True)]
