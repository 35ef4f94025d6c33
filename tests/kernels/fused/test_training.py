"""A seed trains the same model by every backend, up to rounding: the noise does not depend on the backend."""

import pytest

from tests.fused_checks import DEVICE, skip_module_without_triton
from vaebench.vae import Model, Run, Train, fit

skip_module_without_triton()

TEN_STEPS = Run(model=Model(hidden=(16,), latent=3), train=Train(epochs=1, batch_size=144, patience=0))


def test_ten_steps_end_at_the_same_weights():
    results = {
        backend: fit(TEN_STEPS.replace({"train.backend": backend, "train.device": device}))
        for backend, device in (("triton", DEVICE.type), ("numba", "cpu"), ("eager", DEVICE.type))
    }
    expected = results.pop("numba")
    untrained = fit(TEN_STEPS.replace({"train.learning_rate": 1e-9})).model.state_dict()
    for found in results.values():
        for name, weight in expected.model.state_dict().items():
            error = (found.model.state_dict()[name].cpu() - weight).abs().max()
            assert error <= 0.01 * (weight - untrained[name]).abs().max(), name
        for name in ("train/objective", "train/rate", "valid/elbo"):
            assert found.history[0][name] == pytest.approx(expected.history[0][name], rel=1e-4)
