"""Everything that an audit measures, part by part."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.studies import pictures
from vaebench.studies.auditing.parts import Parts
from vaebench.studies.auditing.subject import Subject
from vaebench.studies.tracking.provenance import code_version
from vaebench.vae.estimators.log_likelihood import CheckedEstimate, Policy
from vaebench.vae.evaluation.codes import Latents, describe_latents, encode_all
from vaebench.vae.evaluation.enclosure import enclose
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.evaluation.inference import Inference, measure_inference
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.streams import evaluation_generator, streams

BLOCK = 64
PER_EXAMPLE = ("value", "stderr", "ess", "tail", "passed", "rounds", "evaluations")
ESTIMATES, INFERENCE = 0, 1  # purposes of a block's noise


@dataclass(frozen=True)
class Audit:
    """What an audit has measured.

    Attributes:
        latents: every latent; None with a posterior flow, where q(z_k|x) has no density of its own.
        log_px: log p(x) of the test examples.
        drawn: the files of the pictures.
        seconds: the time of each part, when it was computed.
    """

    subject: Subject
    figures: Metrics
    latents: Latents | None
    log_px: CheckedEstimate
    drawn: list[Path]
    seconds: dict[str, float]


def run_audit(subject: Subject, options: argparse.Namespace, folder: Path) -> Audit:
    """Measure a model, or what of it is not yet in the folder."""
    model, splits, config = subject.adapted.model, subject.adapted.splits, subject.config
    generator = evaluation_generator(config.eval.seed, splits.test.device)
    x = splits.test.subsample(config.eval.examples).batch(generator=generator)
    chosen = torch.arange(min(options.gap_examples, len(x)), device=x.device)
    chosen = chosen * len(x) // len(chosen)
    count = math.ceil(len(x) / BLOCK) + math.ceil(len(chosen) / BLOCK) + 3
    progress = sys.stderr.isatty()
    with tqdm(total=count, desc="audit", unit="part", disable=not progress) as bar:
        parts = Parts(folder, f"{subject.digest} {code_version()}", bar)
        log_px = _estimate(parts, subject, x)
        settings = [dataclasses.asdict(config.eval), log_px.value.tolist()]
        figures: Metrics = parts.get(
            "metrics", settings, lambda: measure(model, splits, config, log_px=log_px, progress=progress)
        )
        latents = _latents(parts, subject)
        active = torch.ones(model.latent, dtype=torch.bool) if latents is None else latents.active
        inference = _infer(parts, subject, x[chosen], _select(log_px, chosen), chosen.tolist())
        simulated = {"examples": options.simulated, "temperatures": options.temperatures, "seed": config.eval.seed}
        bounds = parts.get(
            "enclosure",
            [simulated, config.eval.samples],
            lambda: enclose(model, **simulated, policy=Policy(config.eval.samples), progress=progress).metrics(),
        )
        figures |= inference.metrics(active.to(inference.narrowness.device)) | bounds
        drawn = _draw(parts, subject, folder)
    figures |= {name: value for name, value in _sigma(subject).items() if value is not None}
    return Audit(subject, figures, latents, log_px, drawn, parts.seconds)


def _estimate(parts: Parts, subject: Subject, x: Tensor) -> CheckedEstimate:
    """Estimate log p(x) of the test examples, a block at a time."""
    config, blocks = subject.config.eval, []
    for i, part, seed in _split(x, config.seed, ESTIMATES):

        def compute(part: Tensor = part, seed: int = seed) -> dict[str, Any]:
            found = model_log_likelihood(
                subject.adapted.model,
                x[part],
                policy=Policy(config.samples),
                generator=torch.Generator(x.device).manual_seed(seed),
                progress=sys.stderr.isatty(),
            )
            return {name: getattr(found, name).tolist() for name in PER_EXAMPLE}

        blocks.append(parts.get(f"log_px-{i}", [part.tolist(), config.samples, len(x), seed], compute))
    joined = {name: torch.tensor([value for block in blocks for value in block[name]]) for name in PER_EXAMPLE}
    return CheckedEstimate(
        kind="unbiased" if bool(joined["passed"].all()) else "lower",
        cost=math.ceil(joined["evaluations"].mean().item()),
        **{name: values.to(x.device) for name, values in joined.items()},
    )


def _latents(parts: Parts, subject: Subject) -> Latents | None:
    """Describe every latent over training examples, as many as the measure of q(z) takes."""
    model, splits, config = subject.adapted.model, subject.adapted.splits, subject.config.eval
    if model.posterior_flow is not None:
        return None
    generator = evaluation_generator(config.seed, splits.train.device)

    def compute() -> dict[str, list[float]]:
        found = describe_latents(*encode_all(model, splits.train.subsample(config.codes), generator))
        return {field.name: getattr(found, field.name).tolist() for field in dataclasses.fields(found)}

    found = parts.get("latents", [config.codes, config.seed], compute)
    return Latents(**{name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()})


def _infer(parts: Parts, subject: Subject, x: Tensor, log_px: CheckedEstimate, chosen: list[int]) -> Inference:
    """Take the gap of the ELBO apart for some of the test examples, a block at a time."""
    blocks = []
    for i, part, seed in _split(x, subject.config.eval.seed, INFERENCE):

        def compute(part: Tensor = part, seed: int = seed) -> dict[str, Any]:
            found = measure_inference(
                subject.adapted.model,
                x[part],
                _select(log_px, part),
                generator=torch.Generator(x.device).manual_seed(seed),
                progress=sys.stderr.isatty(),
            )
            return {field.name: getattr(found, field.name).tolist() for field in dataclasses.fields(found)}

        # log p(x) of the examples is an argument: a part that was computed from other estimates is not used
        blocks.append(parts.get(f"inference-{i}", [chosen, seed, log_px.value[part].tolist()], compute))
    return Inference.join([Inference(**{name: torch.tensor(value) for name, value in one.items()}) for one in blocks])


def _draw(parts: Parts, subject: Subject, folder: Path) -> list[Path]:
    """Draw reconstructions, samples, a traversal and the codes; return the files."""

    def compute() -> list[str]:
        return [path.name for path in pictures.draw_all(subject.adapted.model, subject.adapted.splits, folder)]

    drawn = [folder / name for name in parts.get("pictures", [], compute)]
    return [path for path in drawn if path.exists()]


def _select(estimate: CheckedEstimate, rows: Tensor) -> CheckedEstimate:
    """Return the estimates of some examples."""
    chosen = {name: getattr(estimate, name)[rows] for name in PER_EXAMPLE}
    return CheckedEstimate(kind=estimate.kind, cost=estimate.cost, **chosen)


def _split(x: Tensor, seed: int, purpose: int) -> Iterator[tuple[int, Tensor, int]]:
    """Yield the number of each block of examples, its rows of x, and the seed of its noise."""
    rows = torch.arange(len(x), device=x.device).split(BLOCK)
    seeds = np.random.SeedSequence([streams(seed).evaluation, purpose]).generate_state(len(rows), np.uint64)
    for i, part in enumerate(rows):
        yield i, part, int(seeds[i])


def _sigma(subject: Subject) -> dict[str, float | None]:
    return {"model/sigma": subject.adapted.sigma, "model/sigma_fitted": subject.adapted.fitted_sigma}
