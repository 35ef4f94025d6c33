"""Which settings of a run change nothing: `unused(run)`, for whoever searches settings or was given one in vain."""

from collections.abc import Callable

from vaebench.vae.config.run import Run

DECODED = ("folder",)
DRAWN = ("linear", "sprites")
IMAGES = ("conv", "residual")


def unused(run: Run) -> frozenset[str]:
    """Return the settings of data, model and objective of which any other value gives the same result.

    One at a time: with alpha = 0 and lambda = 1 nothing of D(q(z)||p(z)) matters, as its weight is 0, but alpha does.

    Example:
        >>> from vaebench.vae.config.run import from_flat
        >>> sorted(unused(from_flat({"objective.name": "tc_vae"})) & {"objective.beta", "objective.w_tc"})
        ['objective.beta']
    """
    return frozenset(name for name, uses in USED_BY.items() if not uses(run))


def _is_vae(run: Run) -> bool:
    return run.model.kind == "vae"


def _has_flow(run: Run) -> bool:
    return not _is_vae(run) or run.model.prior == "flow" or run.model.posterior == "iaf"


def _data(*names: str) -> Callable[[Run], bool]:
    return lambda run: run.data.name in names


def _network(*names: str) -> Callable[[Run], bool]:
    return lambda run: _is_vae(run) and run.model.network in names


def _likelihood(name: str) -> Callable[[Run], bool]:
    return lambda run: _is_vae(run) and run.model.likelihood == name


def _objective(*names: str) -> Callable[[Run], bool]:
    return lambda run: run.objective.name in names


def _weighs(run: Run) -> bool:
    return run.objective.name == "infovae" and run.objective.beta > 0


def _has_weight(run: Run) -> bool:
    weight = run.objective.w_d if not _is_vae(run) else abs(run.objective.w_kl) + run.objective.w_d
    return run.objective.name == "infovae" and (weight > 0 or run.objective.beta == 0)


def _divergence(*names: str) -> Callable[[Run], bool]:
    def uses(run: Run) -> bool:
        needed = run.objective.name == "infovae" and run.objective.uses_divergence
        return needed and (not names or run.objective.divergence in names)

    return uses


USED_BY: dict[str, Callable[[Run], bool]] = {
    "data.side": _data(*DECODED),
    "data.channels": _data(*DECODED),
    "data.size": _data(*DRAWN),
    "data.features": _data("linear"),
    "data.rank": _data("linear"),
    "data.noise": _data("linear"),
    "model.network": _is_vae,
    "model.latent": _is_vae,
    "model.hidden": lambda run: not _is_vae(run) or run.model.network != "linear",
    "model.dense": _network(*IMAGES),
    "model.dropout": lambda run: _network("mlp")(run) and bool(run.model.hidden),
    "model.likelihood": _is_vae,
    "model.components": _likelihood("logistic_mixture"),
    "model.sigma": _likelihood("gaussian"),
    "model.learn_sigma": _likelihood("gaussian"),
    "model.prior": _is_vae,
    "model.posterior": _is_vae,
    "model.flow_layers": _has_flow,
    "model.spline_bins": _has_flow,
    "objective.beta": _has_weight,
    "objective.alpha": _weighs,
    "objective.lambda": _weighs,
    "objective.divergence": _divergence(),
    "objective.kernel": _divergence("mmd", "stein"),
    "objective.bandwidth": _divergence("mmd", "stein"),
    "objective.estimator": _divergence("mmd"),
    "objective.projections": _divergence("sliced"),
    "objective.critic_hidden": lambda run: run.objective.uses_critic,
    "objective.critic_learning_rate": lambda run: run.objective.uses_critic,
    "objective.w_mi": _objective("tc_vae"),
    "objective.w_tc": _objective("tc_vae"),
    "objective.w_dim": _objective("tc_vae"),
    "objective.gamma": _objective("capacity", "factor_vae"),
    "objective.capacity": _objective("capacity"),
    "objective.capacity_epochs": _objective("capacity"),
}
