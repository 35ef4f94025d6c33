"""Which settings of a run have no effect: a search skips them, and a command line warns about them."""

from vaebench.vae.config.model import OWN_NONE
from vaebench.vae.config.run import SETTINGS, Run, field_of


def unused(run: Run) -> frozenset[str]:
    """Return the settings of data, model and objective of which any other value gives the same result.

    The settings of an objective of another family are among them. Each is judged alone: with alpha = 0 and lambda = 1
    no setting of D(q(z)||p(z)) matters, as its weight is 0, but alpha does.

    Example:
        >>> sorted(unused(Run().replace({"objective.name": "tc_vae"})) & {"objective.beta", "objective.w_tc"})
        ['objective.beta']
    """
    return frozenset(name for name in SETTINGS if not _is_used(run, name))


def _is_used(run: Run, name: str) -> bool:
    declared = field_of(run, name)
    if declared is None:
        return False
    if name.startswith("model.") and run.model.build != OWN_NONE:
        return True  # a function of one's own may read any of them
    is_used = declared.metadata["used"]
    return is_used is None or bool(is_used(run))
