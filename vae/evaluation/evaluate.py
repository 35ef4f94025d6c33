"""Evaluate a trained model on one split: a dict of metrics, each estimate with its standard error."""

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits, load
from vaebench.vae.data.splits import NAMES
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.log_likelihood import CheckedEstimate, Policy
from vaebench.vae.evaluation.class_metrics import class_metrics
from vaebench.vae.evaluation.codes import (
    ACTIVE_VARIANCE,
    draw_codes,
    encode_all,
    represent_all,
    variance_of_means,
)
from vaebench.vae.evaluation.factor_metrics import code_metrics, factor_metrics
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.metrics import log_det_covariance
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.aggregate import aggregate
from vaebench.vae.prob.divergences import mmd2_to_prior
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.training import checkpoint
from vaebench.vae.training.epoch import Metrics, validate
from vaebench.vae.training.fit import Result
from vaebench.vae.training.setup import require_match
from vaebench.vae.training.state import load_model
from vaebench.vae.training.streams import evaluation_generator, streams

PLACES = 10
MMD_CODES = 10_000


def evaluate(result: Result, *, split: str = "test", progress: bool = False) -> Metrics:
    """Measure the model of a result on a split: see `measure`."""
    metrics = measure(result.model, result.splits, result.config, split=split, progress=progress)
    speed = [epoch["perf/images_per_s"] for epoch in result.history]
    peak = peak_memory_mb(result.splits.train.device)
    return metrics | {"perf/images_per_s": torch.tensor(speed).median().item(), "perf/peak_memory_mb": peak}


def evaluate_checkpoint(
    path: Path, *, data: Splits | None = None, model: GenerativeModel | None = None, split: str = "test"
) -> Metrics:
    """Measure the model of a checkpoint file; give the data and the model that were given to `fit`."""
    restored, config = load_model(path, model)
    splits = load(config.data, data)
    if splits.digest != checkpoint.read(path)[1]["data"]:
        raise InputError(f"{path} is of a run on other data than {splits.name}; give the data that `fit` was given.")
    return measure(restored, splits, config, split=split)


@torch.no_grad()
def measure(
    model: GenerativeModel,
    splits: Splits,
    config: Run,
    *,
    split: str = "test",
    log_px: Estimate | None = None,
    progress: bool = False,
) -> Metrics:
    """Return every metric of a trained model on one split of its data.

    `{split}/elbo, distortion, rate` are means over the split and the draws of each example, one or `iwae`'s k.
    `{split}/nll` is minus the estimated log p(x) over `eval.examples` of it, evenly spaced. `latent/*` describe
    q(z) over `eval.codes` of the training set and, with labels, score its codes. docs/metrics.md has a line for each
    metric. Give `log_px` if `estimate_log_px` of the split is at hand.
    """
    if split not in NAMES:
        raise InputError(f"split must be one of {', '.join(NAMES)}, got {split!r}.")
    require_match(model, splits)
    model.eval()
    chosen: Split = getattr(splits, split)
    likelihood = likelihood_metrics(model, chosen, config, log_px=log_px, progress=progress)
    metrics = {f"{split}/{name}": value for name, value in likelihood.items()}
    metrics |= latent_metrics(model, splits.train, config, progress=progress)
    metrics |= class_metrics(model, splits, chosen, config.eval, progress=progress)
    return metrics | factor_metrics(model, splits, chosen, config.eval, progress=progress)


@torch.no_grad()
def likelihood_metrics(
    model: GenerativeModel, split: Split, config: Run, *, log_px: Estimate | None = None, progress: bool = False
) -> Metrics:
    """Return the ELBO of a split with its parts, the nll, and for discrete data the bits per dimension."""
    seed = streams(config.eval.seed).evaluation
    found = {name.removeprefix("valid/"): value for name, value in validate(model, split, config, seed).items()}
    found |= summarise_log_px(log_px or estimate_log_px(model, split, config, progress=progress), config)
    if model.likelihood.discrete:
        found["bits_per_dim"] = found["nll"] / (math.prod(model.likelihood.shape) * math.log(2))
    return found


def importance_nll(model: GenerativeModel, split: Split, config: Run, *, progress: bool = False) -> Metrics:
    """Estimate -log p(x) of `eval.examples` of a split, and count those whose estimate cannot be trusted."""
    return summarise_log_px(estimate_log_px(model, split, config, progress=progress), config)


@torch.no_grad()
def estimate_log_px(model: GenerativeModel, split: Split, config: Run, *, progress: bool = False) -> Estimate:
    """Estimate log p(x) of each of `eval.examples` examples, evenly spaced over a split.

    `vae.estimators.log_likelihood` has the policy. A flow as a model of its own needs no codes: see `flow_log_px`.
    """
    generator = evaluation_generator(config.eval.seed, split.device)
    x = split.subsample(config.eval.examples).batch(generator=generator)
    if not model.has_codes:
        return flow_log_px(model, x, generator)
    policy = Policy(samples=config.eval.samples)
    return model_log_likelihood(model, x, policy=policy, generator=generator, progress=progress)


@torch.no_grad()
def flow_log_px(model: GenerativeModel, x: Tensor, generator: torch.Generator) -> Estimate:
    """Average log p(y) of a flow over ten places y of each level in its cell: a lower bound of log P(levels)."""
    log_p = torch.stack([objectives.terms(model, x, generator=generator).log_px for _ in range(PLACES)])
    return Estimate(log_p.mean(0), log_p.std(0) / math.sqrt(PLACES), "lower", PLACES)


def summarise_log_px(estimate: Estimate, config: Run) -> Metrics:
    """Return the mean -log p(x) and what tells how far it can be trusted.

    `nll_stderr`, the standard error of the sampling for these examples, is there only if `nll_unresolved` is 0; else
    `nll` is an upper bound.
    """
    value, stderr = estimate.mean()
    if not isinstance(estimate, CheckedEstimate):
        return {"nll": -value, "nll_stderr": stderr, "nll_samples": float(estimate.cost)}
    assert estimate.ess is not None
    assert estimate.tail is not None
    return {
        "nll": -value,
        **({} if estimate.unresolved else {"nll_stderr": stderr}),
        "nll_unresolved": float(estimate.unresolved),
        "nll_examples": float(len(estimate.value)),
        "nll_samples": float(config.eval.samples),
        "nll_ess": estimate.ess.median().item(),
        **({} if estimate.tail.isnan().all() else {"nll_tail": estimate.tail.nanmedian().item()}),
        "nll_rounds": estimate.rounds.double().mean().item(),
        "nll_evaluations": estimate.evaluations.mean().item(),
    }


def nll_of(name: str) -> str:
    """Return the nll that a metric is, or is computed from; empty for other metrics.

    Example:
        >>> nll_of("test/bits_per_dim"), nll_of("test/elbo")
        ('test/nll', '')
    """
    split, _, metric = name.rpartition("/")
    return f"{split}/nll" if metric in ("nll", "bits_per_dim") else ""


def format_metric(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric with its standard error, or as the bound that it is while examples are unresolved.

    Example:
        >>> format_metric({"test/nll": 83.97, "test/nll_unresolved": 0, "test/nll_stderr": 0.02}, "test/nll")
        '83.970 ± 0.020'
        >>> format_metric({"test/nll": 1918.5, "test/nll_unresolved": 3, "test/nll_examples": 1000}, "test/nll")
        '<= 1918.500 (3 of 1000 examples unresolved)'
    """
    nll, stderr = nll_of(name), metrics.get(f"{name}_stderr")
    unresolved = metrics.get(f"{nll}_unresolved", 0) if nll else 0
    if unresolved:
        count = f"{math.ceil(unresolved)} of {metrics[f'{nll}_examples']:.0f}"
        return f"<= {metrics[name]:.3f} ({count} examples unresolved)"
    return f"{metrics[name]:.3f}" + (f" ± {stderr:.3f}" if stderr is not None else "")


@torch.no_grad()
def latent_metrics(model: GenerativeModel, split: Split, config: Run, *, progress: bool = False) -> Metrics:
    """Describe the codes of at most `eval.codes` examples: active units, the parts of the mean KL, and moments.

    The parts come from `vae.prob.aggregate`, whose cost grows with the square of the examples. A unit is active where
    Var_x(E[z_k|x]) > 0.01. The mutual information cannot exceed log N, which is logged too. With a flow as posterior
    q(z) is unknown, and the parts of the KL are missing. A flow as a model of its own has no codes. Where the split has
    labels of several factors, the mutual information gap is included, since it needs the same codes.
    """
    if not model.has_codes:
        return {}
    split = split.subsample(config.eval.codes)
    generator = evaluation_generator(config.eval.seed, split.device)
    if model.posterior_flow is not None:
        codes = draw_codes(model, split, 1, generator)[0]
        return {
            "latent/active_units": active_units(model, split, generator),
            "latent/log_det_cov": log_det_covariance(codes),
            "latent/mmd2": _mmd2_to_model_prior(model, codes, generator),
            **code_metrics(represent_all(model, split, generator), split.labels, config.eval),
        }
    mu, logvar = encode_all(model, split, generator)
    log_prior = (lambda z: model.prior(z).log_prob(z)) if model.prior_flow is not None else None
    parts = aggregate(mu, logvar, log_prior=log_prior, generator=generator, progress=progress)
    codes = mu + torch.exp(0.5 * logvar) * normal_like(mu, generator)
    return {
        "latent/active_units": float((mu.var(0) > ACTIVE_VARIANCE).sum()),
        "latent/mi": parts.mi,
        "latent/mi_stderr": parts.mi_stderr,
        "latent/log_n": parts.log_n,
        "latent/kl_aggregate": parts.kl_aggregate,
        "latent/kl_aggregate_stderr": parts.kl_aggregate_stderr,
        "latent/tc": parts.tc,
        "latent/tc_stderr": parts.tc_stderr,
        "latent/log_det_cov": log_det_covariance(mu, logvar),
        "latent/mmd2": _mmd2_to_model_prior(model, codes, generator),
        **code_metrics(mu, split.labels, config.eval),
    }


def active_units(model: GenerativeModel, split: Split, generator: torch.Generator) -> float:
    """Count the latents whose posterior mean varies with x over a split: Var_x(E[z_k|x]) > 0.01."""
    return float((variance_of_means(model, split, generator) > ACTIVE_VARIANCE).sum())


def _mmd2_to_model_prior(model: GenerativeModel, codes: Tensor, generator: torch.Generator) -> float:
    codes = codes[:: math.ceil(len(codes) / MMD_CODES)]
    return mmd2_to_prior(codes, prior=model.prior(codes).rsample(generator)).item()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory so far, in MiB: torch's on a GPU, on a CPU that of the whole process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else process_peak_mb()


def process_peak_mb() -> float:
    """Return the most memory that this process held, in MiB.

    On Linux the figure of getrusage includes the process that started this one, so that it is not used there.
    """
    status = Path("/proc/self/status")
    if sys.platform == "linux" and status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
