"""Which settings of a run have no effect: a search skips them, and a command line warns about them."""

from vaebench.vae.config.run import SETTINGS, Run


def unused(run: Run) -> frozenset[str]:
    """Return the settings of data, model and objective of which any other value gives the same result.

    Each is judged alone: with alpha = 0 and lambda = 1 no setting of D(q(z)||p(z)) matters, as its weight is 0, but
    alpha does.

    Example:
        >>> sorted(unused(Run().replace({"objective.name": "tc_vae"})) & {"objective.beta", "objective.w_tc"})
        ['objective.beta']
    """
    predicates = ((name, declared.metadata["used"]) for name, (_, declared) in SETTINGS.items())
    return frozenset(name for name, is_used in predicates if is_used is not None and not is_used(run))
