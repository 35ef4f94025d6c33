"""What the classes of the data say of a trained model: the measurements of InfoVAE that need labels."""

import dataclasses
from functools import partial

import torch
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

from vae import metrics
from vae.config import Eval
from vae.data import Split, Splits
from vae.disentanglement import ranked, represent_all
from vae.model import VAE, FlowModel
from vae.train import Metrics

CLASS = ("class",)
SHOWN_LABELS, LABELS_OF_SMALL_SETS, SMALL_SET = 1000, 100, 10_000
LEARNED, TESTED = 10_000, 5_000
SAMPLES, SAMPLES_AT_ONCE, MOST_PASSES = 2000, 500, 512
PENALTY = 10.0


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
    if len(_classes(train).unique()) < 2:
        return {}
    with tqdm(total=3, desc="classes", leave=False, disable=not progress) as bar:
        found = {} if isinstance(model, FlowModel) else _few_labels(model, train, test, config, bar)
        if model.passes <= MOST_PASSES:
            found |= _classes_of_samples(model, train, test, config, bar)
    return found


def _few_labels(model: VAE, train: Split, test: Split, config: Eval, bar: "tqdm[int]") -> Metrics:
    """Return the error of a classifier that was shown few labels: of codes, of the examples, of the commonest class."""
    generator = torch.Generator(train.device).manual_seed(config.seed)
    labels = SHOWN_LABELS if len(train) >= SMALL_SET else LABELS_OF_SMALL_SETS
    parts = train.spread(LEARNED), test.spread(TESTED)
    classes, test_classes = map(_classes, parts)
    codes, examples = ([see(part, generator) for part in parts] for see in (partial(represent_all, model), _examples))

    def error(seen: list[Tensor]) -> tuple[float, float]:
        draws = torch.Generator(classes.device).manual_seed(config.seed)
        bar.update()
        return metrics.svm_error(seen[0], classes, seen[1], test_classes, labels=labels, generator=draws)

    found = dict(zip(("latent/svm_error", "latent/svm_error_stderr"), error(codes), strict=True))
    commonest = test_classes.bincount().max().item() / len(test_classes)
    return found | {"latent/svm_error_pixels": error(examples)[0], "latent/svm_error_chance": 1 - commonest}


def _classes_of_samples(model: VAE, train: Split, test: Split, config: Eval, bar: "tqdm[int]") -> Metrics:
    """Return how the classes of samples from the model are distributed, and how far the classifier can be trusted."""
    generator = torch.Generator(train.device).manual_seed(config.seed)
    classes = _classes(train).cpu()
    learned, tested = (
        (_examples(part, generator).cpu().numpy(), _classes(part).cpu().numpy())
        for part in (train.spread(LEARNED), test.spread(TESTED))
    )
    classifier = SVC(C=PENALTY).fit(*learned)
    sampled = torch.from_numpy(classifier.predict(_samples(model, generator).cpu().numpy()))
    bar.update()
    drawn = torch.Generator().manual_seed(config.seed)
    return {
        "samples/class_mismatch": metrics.class_mismatch(sampled, classes),
        "samples/class_mismatch_floor": metrics.sampling_mismatch(classes, SAMPLES, generator=drawn),
        "samples/classifier_accuracy": float(classifier.score(*tested)),
    }


def _samples(model: VAE, generator: torch.Generator) -> Tensor:
    """Return draws from p(x), flattened, `(SAMPLES, D)`."""
    drawn = []
    for _ in range(SAMPLES // SAMPLES_AT_ONCE):
        z = model.prior(torch.zeros(SAMPLES_AT_ONCE, model.latent, device=generator.device)).rsample(generator)
        drawn.append(model.decode(z).sample(generator).flatten(1))
    return torch.cat(drawn).nan_to_num()


def _examples(split: Split, generator: torch.Generator) -> Tensor:
    return split.batch(generator=generator).flatten(1)


def _classes(split: Split) -> Tensor:
    assert split.labels is not None
    return split.labels[:, 0]


def _counted(train: Split, test: Split) -> list[Split]:
    """Return two splits with their classes counted from 0 without a gap."""
    assert train.labels is not None
    assert test.labels is not None
    known = ranked(torch.cat([train.labels, test.labels])).split([len(train), len(test)])
    return [dataclasses.replace(part, labels=labels) for part, labels in zip((train, test), known, strict=True)]
