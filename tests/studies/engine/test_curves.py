"""The curves that a trial logs while it trains."""

from types import SimpleNamespace

import pytest

from vaebench.studies.engine.workers.trial import Training
from vaebench.vae.config.run import Run
from vaebench.vae.data import load
from vaebench.vae.model.build import build
from vaebench.vae.training.epoch import validate


@pytest.mark.parametrize(("name", "has_bound"), [("iwae", True), ("infovae", False)])
def test_the_bound_is_a_curve_of_a_trial_that_has_one(name, has_bound):
    config = Run().replace({"objective.name": name, "model.latent": 2, "model.hidden": (4,)})
    data, logged = load(config.data), {}
    model = build(config.model, data.shape, data.levels)
    training = Training(SimpleNamespace(report_epochs=1), data, None, lambda _, found: logged.update(found))
    training._report(model, data, config, 1, validate(model, data.valid, config), prune=False)
    assert "valid/elbo" in logged
    assert ("valid/bound" in logged) == has_bound
