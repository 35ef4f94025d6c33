"""Settings of the model."""

from dataclasses import dataclass
from typing import Any, Literal

from vaebench.vae.config.fields import Predicate, Section, field

OWN_NONE = "none"


def is_vae(run: Any) -> bool:
    """Return whether a run trains a VAE, not a flow as a model of its own."""
    return run.model.kind == "vae"


def _likelihood(name: str) -> Predicate:
    return lambda run: is_vae(run) and run.model.likelihood == name


def _has_flow(run: Any) -> bool:
    return not is_vae(run) or run.model.prior == "flow" or run.model.posterior == "iaf"


@dataclass(frozen=True)
class Model(Section):
    """Networks, code and likelihood, or the layers of a flow."""

    kind: Literal["vae", "coupling", "autoregressive"] = field(
        "vae",
        "vae; coupling, autoregressive: a flow of the dequantised data, with networks of the widths in hidden.",
        stack="shared",
    )
    build: str = field(
        OWN_NONE,
        "FILE.py:FUNCTION of your own, (settings, shape) -> encoder and decoder, or the model; none: by network.",
        location=True,
    )
    network: Literal["mlp", "conv", "residual", "linear"] = field(
        "mlp", "Encoder and decoder: mlp, conv, residual, linear.", used=is_vae, stack="shared"
    )
    latent: int = field(8, "Size K of the code z.", at_least=1, used=is_vae, stack="own")
    hidden: tuple[int, ...] = field(
        (256, 256),
        "mlp: widths from data to code; conv, residual: channels at each halving.",
        at_least=1,
        used=lambda run: not is_vae(run) or run.model.network != "linear",
        stack="shared",
    )
    dense: tuple[int, ...] = field(
        (),
        "conv, residual: widths of fully connected layers between convolutions and code; auto: none.",
        at_least=1,
        used=lambda run: is_vae(run) and run.model.network in ("conv", "residual"),
    )
    activation: Literal["silu", "relu", "tanh"] = field(
        "silu",
        "mlp: what follows each hidden layer.",
        used=lambda run: is_vae(run) and run.model.network == "mlp" and bool(run.model.hidden),
        stack="shared",
    )
    dropout: float = field(
        0.0,
        "mlp: share of hidden units dropped in training.",
        at_least=0,
        at_most=0.95,
        used=lambda run: is_vae(run) and run.model.network == "mlp" and bool(run.model.hidden),
        stack="shared",
    )
    likelihood: Literal["bernoulli", "gaussian", "discretised_logistic", "logistic_mixture"] = field(
        "discretised_logistic",
        "p(x|z): bernoulli needs binarised data, discretised_logistic and logistic_mixture data with levels.",
        used=is_vae,
        stack="shared",
    )
    components: int = field(
        5,
        "logistic_mixture: discretised logistics M for each element.",
        at_least=1,
        used=_likelihood("logistic_mixture"),
        stack="shared",
    )
    sigma: float = field(
        0.1,
        "gaussian: standard deviation of p(x|z), the starting value if learned.",
        above=0,
        used=_likelihood("gaussian"),
        stack="own",
    )
    learn_sigma: bool = field(
        False, "gaussian: learn one sigma for all of x.", used=_likelihood("gaussian"), stack="shared"
    )
    prior: Literal["normal", "flow"] = field(
        "normal", "vae: p(z), N(0, I) or a coupling flow that is learned.", used=is_vae, stack="shared"
    )
    posterior: Literal["gaussian", "iaf"] = field(
        "gaussian",
        "vae: q(z|x), a diagonal Gaussian, or one moved by an inverse autoregressive flow.",
        used=is_vae,
        stack="shared",
    )
    flow_layers: int = field(
        4, "Layers of each flow, masks or orders taking turns.", at_least=1, at_most=1000, used=_has_flow
    )
    spline_bins: int = field(
        0,
        "Flows: bins of the rational-quadratic spline of each element, at least 2; 0: affine.",
        at_least=0,
        used=_has_flow,
    )
