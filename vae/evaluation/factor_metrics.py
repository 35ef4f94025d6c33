"""Disentanglement scores of a trained model: does each latent encode one factor of the data?

Every score is logged with its floor, the score of random codes with as many latents on the same labels, and its
ceiling, the score of the labels used as a code. Where images that look alike share a label, as with sprites, scores
count only what can be seen. The protocols, and their differences from the published ones, are in `vae.metrics`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from vaebench.vae import metrics
from vaebench.vae.config.run import Eval
from vaebench.vae.data import FactorGrid, Split, Splits
from vaebench.vae.evaluation.codes import ROWS_AT_ONCE, encode_all, represent_all
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.streams import evaluation_generator

TRAIN_POINTS, TEST_POINTS = 10_000, 5_000
REFERENCE_LOGVAR = -9.0

T = TypeVar("T")


def code_metrics(codes: Tensor, labels: Tensor | None, config: Eval) -> Metrics:
    """Measure codes of a training split, `(N, K)`: their total correlation and, with factors `(N, F)`, their MIG."""
    found: Metrics = {}
    if len(codes) > codes.shape[1]:
        found["latent/gaussian_tc"] = metrics.gaussian_total_correlation(codes)
        found["latent/gaussian_tc_floor"] = metrics.independent_total_correlation(*codes.shape)
    if config.labels == "none" or labels is None or labels.shape[1] < 2 or not metrics.varying_factors(labels):
        return found
    labels = metrics.renumber(labels)
    bounds = _bounding_codes(labels, codes.shape[1], config)
    return found | score_with_bounds(lambda code: {"latent/mig": metrics.binned_mig(code, labels)}, codes, bounds)


@torch.no_grad()
def factor_metrics(
    model: GenerativeModel, splits: Splits, split: Split, config: Eval, *, progress: bool = False
) -> Metrics:
    """Return the scores that take minutes, with `eval.labels = all`: Chen's MIG, SAP, DCI and FactorVAE.

    Classifiers are trained on the training split and tested on another. Chen's MIG needs Gaussian posteriors; the
    FactorVAE score needs data that can be rendered from any combination of factors, see `vae.data.FactorGrid`.
    """
    if config.labels != "all" or len(splits.label_names) < 2 or not model.has_codes:
        return {}
    labels = splits.train.subsample(TRAIN_POINTS).labels
    if labels is None or not metrics.varying_factors(labels):
        return {}
    found = _classifier_scores(model, splits.train, split, config, progress)
    if model.posterior_flow is None:
        found |= _posterior_scores(model, splits.train, config, progress)
    if splits.factor_grid is not None:
        found |= _vote_scores(model, splits.factor_grid, splits.train, config, progress)
    return found


def score_with_bounds(score: Callable[[T], Metrics], codes: T, bounds: Mapping[str, T]) -> Metrics:
    """Return the scores of a model's codes and, with suffixes `_floor` and `_ceiling`, of the bounding codes."""
    found = score(codes)
    for bound, other in bounds.items():
        found |= {f"{name}_{bound}": value for name, value in score(other).items()}
    return found


def _classifier_scores(model: GenerativeModel, train: Split, test: Split, config: Eval, progress: bool) -> Metrics:
    """Return SAP and DCI."""
    generator = evaluation_generator(config.seed, train.device)
    train, test = train.subsample(TRAIN_POINTS), test.subsample(TEST_POINTS)
    assert train.labels is not None
    assert test.labels is not None
    labels, sizes = metrics.renumber(torch.cat([train.labels, test.labels])), [len(train), len(test)]
    train_labels, test_labels = labels.split(sizes)

    def score(codes: Tensor) -> Metrics:
        train_codes, test_codes = codes.split(sizes)
        points = (train_codes, train_labels, test_codes, test_labels)
        found = metrics.dci(*points, seed=config.seed % 2**32, progress=progress)
        scores = {f"latent/dci_{name}": value for name, value in dataclasses.asdict(found).items()}
        return scores | {"latent/sap": metrics.sap_score(*points, seed=config.seed % 2**32, progress=progress)}

    codes = torch.cat([represent_all(model, part, generator) for part in (train, test)])
    return score_with_bounds(score, codes, _bounding_codes(labels, codes.shape[1], config))


def _posterior_scores(model: GenerativeModel, train: Split, config: Eval, progress: bool) -> Metrics:
    """Return Chen's MIG; the bounding codes become posteriors that are narrow compared with the step of a factor."""
    generator = evaluation_generator(config.seed, train.device)
    train = train.subsample(TRAIN_POINTS)
    mu, logvar = encode_all(model, train, generator)
    assert train.labels is not None
    labels = metrics.renumber(train.labels)

    def score(posterior: tuple[Tensor, Tensor]) -> Metrics:
        gap = metrics.posterior_mig(*posterior, labels, generator=generator, progress=progress)
        return {"latent/posterior_mig": gap}

    codes = _bounding_codes(labels, mu.shape[1], config)
    bounds = {bound: (code, torch.full_like(code, REFERENCE_LOGVAR)) for bound, code in codes.items()}
    return score_with_bounds(score, (mu, logvar), bounds)


def _vote_scores(model: GenerativeModel, grid: FactorGrid, split: Split, config: Eval, progress: bool) -> Metrics:
    """Return the FactorVAE score, with the codes of images that are rendered for it."""

    def score(codes: Callable[[Tensor], Tensor]) -> Metrics:
        generator = evaluation_generator(config.seed)
        return {
            "latent/factor_vae": metrics.factor_vae_score(codes, grid.sizes, generator=generator, progress=progress)
        }

    generator = evaluation_generator(config.seed)
    codes = metrics.reference_codes(grid.sizes, model.latent, generator=generator)
    bounds = {"floor": codes["random"], "ceiling": codes["perfect"]}
    return score_with_bounds(score, cache_codes(model, grid, split), bounds)


def cache_codes(model: GenerativeModel, grid: FactorGrid, split: Split) -> Callable[[Tensor], Tensor]:
    """Return a function from factors `(B, F)` to codes `(B, K)` that renders and encodes each image only once."""
    table, cached = torch.zeros(grid.count, model.latent), torch.zeros(grid.count, dtype=torch.bool)

    def codes(factors: Tensor) -> Tensor:
        keys = grid.find(factors)
        new = keys[~cached[keys]].unique()
        for part in new.split(ROWS_AT_ONCE) if len(new) else ():
            images = dataclasses.replace(split, stored=part.to(split.stored.device), labels=None)
            table[part] = model.represent(images.batch()).float().cpu()
        cached[new] = True
        return table[keys]

    return codes


def _bounding_codes(labels: Tensor, latents: int, config: Eval) -> dict[str, Tensor]:
    """Return the reference codes of labels `(N, F)` that bound a score from below and from above."""
    sizes = (labels.amax(0) + 1).tolist()
    codes = metrics.reference_codes(sizes, latents, generator=evaluation_generator(config.seed))
    return {"floor": codes["random"](labels), "ceiling": codes["perfect"](labels)}
