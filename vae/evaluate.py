"""What a trained model is worth: one split to a dict of metrics, each estimate with its standard error."""

import math
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

from vae import checkpoint, evidence
from vae.config import Run
from vae.data import Split, Splits, load
from vae.data.splits import NAMES
from vae.errors import InputError
from vae.model import VAE
from vae.prob.aggregate import aggregate
from vae.prob.divergences import mmd2_to_prior
from vae.proposals import GaussianProposal
from vae.state import load_model
from vae.train import Metrics, Result, require_match, validate

ACTIVE_VARIANCE = 0.01
SMALL_ESS = 100
MMD_CODES = 10_000
ROWS_AT_ONCE = 1024


def evaluate(result: Result, *, split: str = "test", progress: bool = False) -> Metrics:
    """Measure the model of a result on a split: see `measure`."""
    metrics = measure(result.model, result.splits, result.config, split=split, progress=progress)
    speed = [epoch["perf/images_per_s"] for epoch in result.history]
    return metrics | {"perf/images_per_s": torch.tensor(speed).median().item(), "perf/peak_memory_mb": peak_memory_mb()}


def evaluate_checkpoint(
    path: Path, *, data: Splits | None = None, model: VAE | None = None, split: str = "test"
) -> Metrics:
    """Measure the model of a checkpoint file; give the data and the model that were given to `fit`."""
    restored, config = load_model(path, model)
    splits = load(config.data, data)
    if splits.digest != checkpoint.read(path)[1]["data"]:
        raise InputError(f"{path} is of a run on other data than {splits.name}; give the data that `fit` was given.")
    return measure(restored, splits, config, split=split)


@torch.no_grad()
def measure(model: VAE, splits: Splits, config: Run, *, split: str = "test", progress: bool = False) -> Metrics:
    """Return every metric of a trained model that one split of its data can give.

    `{split}/elbo, distortion, rate` are means over the split at one draw each; `{split}/nll` is minus the
    importance-sampled log p(x) over the first `eval.examples` of it; `latent/*` describe q(z) over the training set,
    at one draw each. docs/metrics.md has a line for each.
    """
    if split not in NAMES:
        raise InputError(f"split must be one of {', '.join(NAMES)}, got {split!r}.")
    require_match(model, splits)
    model.eval()
    chosen: Split = getattr(splits, split)
    metrics = {name.replace("valid/", f"{split}/"): value for name, value in validate(model, chosen, config).items()}
    metrics |= {f"{split}/{name}": value for name, value in importance_nll(model, chosen, config).items()}
    if model.likelihood.discrete:
        metrics[f"{split}/bits_per_dim"] = metrics[f"{split}/nll"] / (math.prod(splits.shape) * math.log(2))
    return metrics | latent_metrics(model, splits.train, config, progress=progress)


@torch.no_grad()
def importance_nll(model: VAE, split: Split, config: Run) -> Metrics:
    """Estimate -log p(x) by importance sampling from q(z|x), widened as a separate draw of a tenth the size prefers.

        -log p(x) ~ -log (1/S) sum_s p(x|z_s) p(z_s) / q_w(z_s|x)

    `nll_stderr` is the standard error of the sampling, for these examples; `nll_ess` is the median effective sample
    size and `nll_untrusted` the share of examples whose own is below 100 (or below S / 5 where S is small).
    """
    generator = torch.Generator(split.stored.device).manual_seed(config.eval.seed)
    x = split.batch(torch.arange(min(config.eval.examples, len(split)), device=split.stored.device), generator)
    q = model.encode(x)
    proposal = GaussianProposal(q.mu, q.logvar)
    log_joint = evidence.with_standard_prior(lambda z: model.decode(z).log_prob(x))
    S = config.eval.samples
    width = evidence.choose_width(log_joint, proposal, samples=max(2, S // 10), generator=generator)
    estimate = evidence.importance_sampling(log_joint, proposal.widened(width), samples=S, generator=generator)
    value, stderr = estimate.mean()
    assert estimate.ess is not None
    return {
        "nll": -value,
        "nll_stderr": stderr,
        "nll_samples": float(S),
        "nll_width": width,
        "nll_ess": estimate.ess.median().item(),
        "nll_untrusted": (estimate.ess < min(SMALL_ESS, S / 5)).double().mean().item(),
    }


@torch.no_grad()
def latent_metrics(model: VAE, split: Split, config: Run, *, progress: bool = False) -> Metrics:
    """Describe the codes of a whole set: active units, and the parts of the mean KL from `vae.prob.aggregate`.

    A unit is active where Var_x(E[z_k|x]) > 0.01. The mutual information cannot exceed log N, which stands beside it.
    """
    generator = torch.Generator(split.stored.device).manual_seed(config.eval.seed)
    mu, logvar = encode_all(model, split, generator)
    parts = aggregate(mu, logvar, generator=generator, progress=progress)
    codes = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, device=mu.device, generator=generator)
    return {
        "latent/active_units": float((mu.var(0) > ACTIVE_VARIANCE).sum()),
        "latent/mi": parts.mi,
        "latent/mi_stderr": parts.mi_stderr,
        "latent/log_n": parts.log_n,
        "latent/kl_aggregate": parts.kl_aggregate,
        "latent/kl_aggregate_stderr": parts.kl_aggregate_stderr,
        "latent/tc": parts.tc,
        "latent/tc_stderr": parts.tc_stderr,
        "latent/mmd2": mmd2_to_prior(codes[:MMD_CODES], generator=generator).item(),
    }


@torch.no_grad()
def encode_all(model: VAE, split: Split, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return mu and logvar of q(z|x) for every example of a split, `(N, K)` each."""
    index = torch.arange(len(split), device=split.stored.device)
    posteriors = [model.encode(split.batch(rows, generator)) for rows in index.split(ROWS_AT_ONCE)]
    return torch.cat([q.mu for q in posteriors]), torch.cat([q.logvar for q in posteriors])


def peak_memory_mb() -> float:
    """Return the most memory held so far: by torch on the GPU where there is one, else by the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
