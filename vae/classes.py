"""What the classes of the data say of a trained model: the measurements of InfoVAE that need labels."""

import dataclasses
import math
from collections.abc import Callable

import torch
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
LEARNED, TESTED, FEWEST, ELEMENTS = 10_000, 5_000, 1000, 2**26
SAMPLES, SAMPLES_AT_ONCE, MOST_PASSES = 2000, 500, 512
PENALTY, COMPONENTS, LARGE = 10.0, 64, 1e6


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
    classes = [_classes(part).cpu() for part in parts]
    if len(classes[0].unique()) < 2:
        return {}
    generator = torch.Generator(train.device).manual_seed(config.seed)
    examples = [_examples(part, generator) for part in parts]
    look = components(examples[0])
    seen = [look(part).cpu() for part in examples]
    with tqdm(total=3, desc="classes", leave=False, disable=not progress) as bar:
        found: Metrics = {}
        if not isinstance(model, FlowModel):
            codes = [represent_all(model, part, generator).cpu() for part in parts]
            labels = SHOWN_LABELS if len(train) >= SMALL_SET else LABELS_OF_SMALL_SETS
            found |= _few_labels(codes, seen, classes, labels, config, bar)
        if model.passes <= MOST_PASSES:
            named, accuracy = _named(look(_samples(model, generator)), seen, classes)
            found |= _mismatch(named, _classes(train).cpu(), config)
            found["samples/classifier_accuracy"] = accuracy
            bar.update()
    return found


def components(examples: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what shows examples `(N, D)` to a classifier: their first principal components, all of few elements.

    A support vector machine names as many of Fashion-MNIST by 64 of them as by 784 pixels, 87 %, in an eighth of the
    time.
    """
    if examples.shape[1] <= COMPONENTS:
        return lambda x: x
    from sklearn.decomposition import PCA  # takes a second, and only labels need it

    kept = min(COMPONENTS, len(examples))
    found = PCA(kept, svd_solver="randomized", random_state=0).fit(examples.cpu().numpy())
    return lambda x: torch.from_numpy(found.transform(x.cpu().numpy()))


def _few_labels(
    codes: list[Tensor], seen: list[Tensor], classes: list[Tensor], labels: int, config: Eval, bar: "tqdm[int]"
) -> Metrics:
    """Return the error of a classifier that was shown few labels: of codes, of the examples, of the commonest class."""

    def error(shown: list[Tensor]) -> tuple[float, float]:
        draws = torch.Generator().manual_seed(config.seed)
        bar.update()
        return metrics.svm_error(shown[0], classes[0], shown[1], classes[1], labels=labels, generator=draws)

    found = dict(zip(("latent/svm_error", "latent/svm_error_stderr"), error(codes), strict=True))
    commonest = classes[1].bincount().max().item() / len(classes[1])
    return found | {"latent/svm_error_pixels": error(seen)[0], "latent/svm_error_chance": 1 - commonest}


def _named(samples: Tensor, seen: list[Tensor], classes: list[Tensor]) -> tuple[Tensor, float]:
    """Return the classes that a machine names samples by, and the share of a split that it names right."""
    from sklearn.svm import SVC  # takes a second, and only labels need it

    classifier = SVC(C=PENALTY).fit(seen[0].numpy(), classes[0].numpy())
    named = torch.from_numpy(classifier.predict(samples.cpu().numpy()))
    return named, float(classifier.score(seen[1].numpy(), classes[1].numpy()))


def _mismatch(named: Tensor, classes: Tensor, config: Eval) -> Metrics:
    """Return how far the classes of samples are from those of the data, and how far as many draws would be."""
    drawn = torch.Generator().manual_seed(config.seed)
    return {
        "samples/class_mismatch": metrics.class_mismatch(named, classes),
        "samples/class_mismatch_floor": metrics.sampling_mismatch(classes, SAMPLES, generator=drawn),
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


def _counted(train: Split, test: Split) -> list[Split]:
    """Return two splits with their classes counted from 0 without a gap."""
    assert train.labels is not None
    assert test.labels is not None
    known = ranked(torch.cat([train.labels, test.labels])).split([len(train), len(test)])
    return [dataclasses.replace(part, labels=labels) for part, labels in zip((train, test), known, strict=True)]
