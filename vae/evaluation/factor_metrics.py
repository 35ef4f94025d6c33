"""Does each latent of a trained model know one factor of the data? Scores against labels, each with its bounds.

Every score stands beside its floor, what random codes of as many latents get on the same labels, and its ceiling, what
the labels get that are taken for a code. Labels are those of the splits; where look-alikes share one, as with sprites,
scores are of what can be seen. The protocols, and how the published ones differ, are in `vae.metrics`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from vaebench.vae import metrics
from vaebench.vae.config.run import Eval
from vaebench.vae.data import Split, Splits, World
from vaebench.vae.evaluation.codes import ROWS_AT_ONCE, encode_all, represent_all
from vaebench.vae.metrics.labels import ranked
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.training.epoch import Metrics

TRAIN_POINTS, TEST_POINTS = 10_000, 5_000
REFERENCE_LOGVAR = -9.0

T = TypeVar("T")


def code_metrics(codes: Tensor, labels: Tensor | None, config: Eval) -> Metrics:
    """Measure the codes of a training split, `(N, K)`: how they correlate, and, of factors `(N, F)`, their MIG."""
    found: Metrics = {}
    if len(codes) > codes.shape[1]:
        found["latent/gaussian_tc"] = metrics.gaussian_total_correlation(codes)
        found["latent/gaussian_tc_floor"] = metrics.independent_total_correlation(*codes.shape)
    if config.labels == "none" or labels is None or labels.shape[1] < 2 or not metrics.varying(labels):
        return found
    known = ranked(labels)
    bounds = {bound: code(known) for bound, code in _bounds(known, codes.shape[1], config).items()}
    return found | with_bounds(lambda code: {"latent/mig": metrics.binned_mig(code, known)}, codes, bounds)


@torch.no_grad()
def factor_metrics(model: VAE, splits: Splits, split: Split, config: Eval, *, progress: bool = False) -> Metrics:
    """Return the scores that take minutes, with `eval.labels = all`: Chen's MIG, SAP, DCI and FactorVAE.

    Classifiers learn from the training split and are tested on another. Chen's MIG needs Gaussian posteriors; the
    FactorVAE score needs data that can be made of any combination of factors, see `vae.data.World`.
    """
    if config.labels != "all" or len(splits.label_names) < 2 or isinstance(model, FlowModel):
        return {}
    shown = splits.train.spread(TRAIN_POINTS)
    if shown.labels is None or not metrics.varying(shown.labels):
        return {}
    found = _predicted(model, splits.train, split, config, progress)
    if model.posterior_flow is None:
        found |= _of_posteriors(model, splits.train, config, progress)
    if splits.world is not None:
        found |= _of_votes(model, splits.world, splits.train, config, progress)
    return found


def with_bounds(score: Callable[[T], Metrics], own: T, bounds: Mapping[str, T]) -> Metrics:
    """Return scores of a model's codes, and as `_floor` and `_ceiling` those of codes whose worth is known."""
    found = score(own)
    for bound, codes in bounds.items():
        found |= {f"{name}_{bound}": value for name, value in score(codes).items()}
    return found


def _predicted(model: VAE, train: Split, test: Split, config: Eval, progress: bool) -> Metrics:
    """Return SAP and DCI."""
    generator = torch.Generator(train.device).manual_seed(config.seed)
    train, test = train.spread(TRAIN_POINTS), test.spread(TEST_POINTS)
    assert train.labels is not None
    assert test.labels is not None
    known, sizes = ranked(torch.cat([train.labels, test.labels])), [len(train), len(test)]
    train_known, test_known = known.split(sizes)

    def score(codes: Tensor) -> Metrics:
        train_codes, test_codes = codes.split(sizes)
        points = (train_codes, train_known, test_codes, test_known)
        found = metrics.dci(*points, seed=config.seed % 2**32, progress=progress)
        scores = {f"latent/dci_{name}": value for name, value in dataclasses.asdict(found).items()}
        return scores | {"latent/sap": metrics.sap_score(*points, seed=config.seed % 2**32, progress=progress)}

    own = torch.cat([represent_all(model, part, generator) for part in (train, test)])
    bounds = {bound: code(known) for bound, code in _bounds(known, own.shape[1], config).items()}
    return with_bounds(score, own, bounds)


def _of_posteriors(model: VAE, train: Split, config: Eval, progress: bool) -> Metrics:
    """Return Chen's MIG; the factors as posteriors are narrow beside the step between two values."""
    generator = torch.Generator(train.device).manual_seed(config.seed)
    train = train.spread(TRAIN_POINTS)
    mu, logvar = encode_all(model, train, generator)
    assert train.labels is not None
    known = ranked(train.labels)
    codes = {bound: code(known) for bound, code in _bounds(known, mu.shape[1], config).items()}

    def score(posterior: tuple[Tensor, Tensor]) -> Metrics:
        gap = metrics.posterior_mig(*posterior, known, generator=generator, progress=progress)
        return {"latent/posterior_mig": gap}

    bounds = {bound: (code, torch.full_like(code, REFERENCE_LOGVAR)) for bound, code in codes.items()}
    return with_bounds(score, (mu, logvar), bounds)


def _of_votes(model: VAE, world: World, split: Split, config: Eval, progress: bool) -> Metrics:
    """Return the FactorVAE score of codes of images that are rendered for it."""

    def score(codes: Callable[[Tensor], Tensor]) -> Metrics:
        generator = torch.Generator().manual_seed(config.seed)
        return {
            "latent/factor_vae": metrics.factor_vae_score(codes, world.sizes, generator=generator, progress=progress)
        }

    generator = torch.Generator().manual_seed(config.seed)
    codes = metrics.references(world.sizes, model.latent, generator=generator)
    return with_bounds(score, remembering(model, world, split), {"floor": codes["random"], "ceiling": codes["perfect"]})


def remembering(model: VAE, world: World, split: Split) -> Callable[[Tensor], Tensor]:
    """Return a function from factors `(B, F)` to codes `(B, K)` that renders and encodes each image once."""
    table, known = torch.zeros(world.count, model.latent), torch.zeros(world.count, dtype=torch.bool)

    def codes(factors: Tensor) -> Tensor:
        found = world.find(factors)
        new = found[~known[found]].unique()
        for rows in new.split(ROWS_AT_ONCE) if len(new) else ():
            images = dataclasses.replace(split, stored=rows.to(split.stored.device), labels=None)
            table[rows] = model.represent(images.batch()).float().cpu()
        known[new] = True
        return table[found]

    return codes


def _bounds(known: Tensor, latents: int, config: Eval) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the codes that bound a score, as functions of labels `(N, F)`."""
    sizes = (known.amax(0) + 1).tolist()
    codes = metrics.references(sizes, latents, generator=torch.Generator().manual_seed(config.seed))
    return {"floor": codes["random"], "ceiling": codes["perfect"]}
