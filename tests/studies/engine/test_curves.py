"""The curves that a trial logs while it trains."""

import pytest

from vaebench.studies.engine.workers.trial import summarise_epoch
from vaebench.vae.config.run import Run
from vaebench.vae.data import load
from vaebench.vae.ensemble.fit_many import Ensemble


@pytest.mark.parametrize(("name", "has_bound"), [("iwae", True), ("infovae", False)])
def test_the_bound_is_a_curve_of_a_trial_that_has_one(name, has_bound):
    config = Run().replace({"objective.name": name, "model.latent": 2, "model.hidden": (4,), "train.device": "cpu"})
    seeds = Ensemble([config], load(config.data))
    seeds.train_epoch()
    epoch, logged = summarise_epoch(seeds)
    assert epoch == 1
    assert logged["valid/elbo"] == seeds.members[0].state.history[0]["valid/elbo"]
    assert ("valid/bound" in logged) == has_bound
