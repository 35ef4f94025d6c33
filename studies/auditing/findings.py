"""What an audit's figures mean, in plain words: one sentence for each thing that a user should know."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vaebench.vae.evaluation import enclosure

STDERRS = 3.0
WIDTH, FAMILY_WIDTH = 1.15, 1.05  # ratios of standard deviations
NATS = 0.5
OFFSET = 0.5
SIGMA = 1.25


@dataclass(frozen=True)
class Finding:
    """A sentence; `severe` where figures or samples of the model cannot be used as they are."""

    text: str
    severe: bool = False


Figures = Mapping[str, float]


def find(figures: Figures, latents: int, *, flow: bool = False) -> list[Finding]:
    """Return what is wrong with a model of K latents, the severe first; empty where nothing is.

    `flow` says that the model has a posterior flow.
    """
    checks: tuple[Callable[[Figures], Finding | None], ...] = (
        _estimator, _unresolved, _sigma, lambda figures: _collapsed(figures, latents), _width, _offset, _amortisation,
        lambda figures: _family(figures, flow), _saturated, _aggregate,
    )  # fmt: skip
    found = [finding for check in checks if (finding := check(figures)) is not None]
    return sorted(found, key=lambda finding: not finding.severe)


def _estimator(figures: Figures) -> Finding | None:
    doubt = enclosure.find_estimate_outside(figures)
    if not doubt:
        return None
    return Finding(f"The estimator of log p(x) is in doubt: on data simulated from the model it lies {doubt}.", True)


def _unresolved(figures: Figures) -> Finding | None:
    count, examples = figures["test/nll_unresolved"], figures["test/nll_examples"]
    if not count:
        return None
    return Finding(
        f"log p(x) is a lower bound: in {count:.0f} of {examples:.0f} examples the importance weights failed their "
        "check, those of annealing too; raise them by --set eval.samples=N."
    )


def _sigma(figures: Figures) -> Finding | None:
    sigma, fitted = figures.get("model/sigma"), figures.get("model/sigma_fitted")
    if sigma is None or fitted is None or abs(math.log(sigma / fitted)) < math.log(SIGMA):
        return None
    effect = "noise drowns what latents could say" if sigma > fitted else "errors are punished too much"
    return Finding(
        f"p(x|z) has sigma {sigma:.3g}, the validation data prefer {fitted:.3g}: log p(x) is far from what the decoder "
        f"could have, and {effect}. Try --sigma fit.",
        True,
    )


def _collapsed(figures: Figures, latents: int) -> Finding | None:
    collapsed = latents - round(figures["latent/active_units"])
    if not collapsed:
        return None
    if collapsed == latents:
        return Finding(f"The posterior is collapsed in all {latents} latents: the code says nothing of x.", True)
    return Finding(
        f"The posterior is collapsed in {collapsed} of {latents} latents: there q(z|x) is nearly the same for every x."
    )


def _width(figures: Figures) -> Finding | None:
    ratio, best = figures["q/narrowness"], figures["q/narrowness_of_best"]
    if abs(math.log(ratio)) < math.log(WIDTH):
        return None
    kind, factor = ("narrow", ratio) if ratio > 1 else ("wide", 1 / ratio)
    of_family = (
        f" The diagonal Gaussian of the best ELBO is itself narrower by {best:.2g}x."
        if ratio > 1 and best > FAMILY_WIDTH
        else ""
    )
    return Finding(
        f"q is too {kind} by {factor:.2g}x: the ratio of its standard deviations and the posterior's, on average over "
        f"examples and active latents.{of_family}"
    )


def _offset(figures: Figures) -> Finding | None:
    if figures["q/offset"] < OFFSET:
        return None
    return Finding(
        f"q is in the wrong place: its mean lies {figures['q/offset']:.2f} of the posterior's standard deviations from "
        "the posterior's mean."
    )


def _amortisation(figures: Figures) -> Finding | None:
    gap, stderr = figures["gap/amortisation"], figures["gap/amortisation_stderr"]
    if gap < NATS or gap < STDERRS * stderr:
        return None
    return Finding(
        f"The encoder costs {gap:.1f} nats: a Gaussian fitted to each example has an ELBO higher by so much. A larger "
        "encoder, or more training of it alone, can gain them."
    )


def _family(figures: Figures, flow: bool) -> Finding | None:
    gap, stderr = figures["gap/family"], figures["gap/family_stderr"]
    if gap < NATS or gap < STDERRS * stderr:
        return None
    if figures["gap/unresolved"]:
        advice = f"It is in doubt: so is log p(x) of {figures['gap/unresolved']:.0f} of these examples."
    else:
        advice = "More layers of the posterior's flow can gain them." if flow else "A flow as posterior can gain them."
    return Finding(
        f"A Gaussian q{' before its flow' if flow else ''} costs {gap:.1f} nats: so far is log p(x) above the best "
        f"ELBO with it. {advice}"
    )


def _saturated(figures: Figures) -> Finding | None:
    mi, log_n = figures.get("latent/mi"), figures.get("latent/log_n", math.inf)
    if mi is None or mi < log_n - 1:
        return None
    return Finding(
        f"The mutual information of x and z, {mi:.1f} nats, is at its limit log N = {log_n:.1f}: it may be much "
        "larger, and KL(q(z)||p(z)) smaller; take more codes by --set eval.codes=N."
    )


def _aggregate(figures: Figures) -> Finding | None:
    kl, stderr = figures.get("latent/kl_aggregate"), figures.get("latent/kl_aggregate_stderr", 0.0)
    if kl is None or kl < max(1.0, STDERRS * stderr) or _saturated(figures) is not None:
        return None
    return Finding(
        f"The codes of the data are not those of the prior: KL(q(z)||p(z)) is {kl:.1f} nats. Samples decode codes that "
        "the decoder has rarely seen."
    )
