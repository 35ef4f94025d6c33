"""CRMVAE, JMVAE, MVAE and MoPoE of MultiVae, as installed."""

import copy

import pytest
import torch
from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import CRMVAE, JMVAE, MVAE, AutoModel, CRMVAEConfig, JMVAEConfig, MoPoE, MoPoEConfig, MVAEConfig
from multivae.models.base import base_utils
from torch.distributions import normal

from tests.vae.integrations.real import common
from vaebench.vae import patch
from vaebench.vae.integrations.rebind import Rebound

G = torch.Generator().manual_seed(0)
X = MultimodalBaseDataset({"a": torch.rand(16, 6, generator=G), "b": torch.rand(16, 9, generator=G)})
NOISE = [(normal, "_standard_normal", common.kernel_noise)]
MODELS = {
    "crmvae": (CRMVAE, CRMVAEConfig),
    "jmvae": (JMVAE, JMVAEConfig),
    "mvae": (MVAE, MVAEConfig),
    "mopoe": (MoPoE, MoPoEConfig),
}


@pytest.fixture(params=MODELS)
def make(request):
    def build():
        torch.manual_seed(0)
        model, config = MODELS[request.param]
        return model(config(n_modalities=2, latent_dim=4, input_dims={"a": (6,), "b": (9,)}))

    return build


def loss(model):
    return model(X, epoch=5).loss


def test_a_training_is_that_of_the_unpatched_model(make, monkeypatch):
    common.assert_same_training(make, loss, monkeypatch, NOISE)


def test_weights_and_copies(make):
    common.assert_stored_and_copied(make, loss, [copy.deepcopy])  # theirs cannot be pickled


@pytest.mark.parametrize("make", ["crmvae", "jmvae"], indirect=True)
def test_it_compiles(make):
    common.assert_compiled(make, loss)


def test_it_is_saved_and_loaded_by_the_library(make, tmp_path):
    common.assert_saved_by_the_library(make, AutoModel, str(tmp_path))


def test_codes_of_several_draws_and_means_are_the_librarys(make):
    plain, model = make(), make()
    patch(model)
    for options in ({"return_mean": True}, {"N": 3}, {"N": 3, "flatten": True}):
        codes = []
        for one in (plain, model):
            torch.manual_seed(2)
            codes.append(one.encode(X, **options).z)
        torch.testing.assert_close(*codes)


def test_the_library_and_other_models_stay_as_they_are(make):
    before = vars(base_utils).copy()
    model = make()
    with patch(model):
        assert [one for one in vars(model).values() if isinstance(one, Rebound)]
        assert vars(base_utils) == before
        assert not [one for one in vars(make()).values() if isinstance(one, Rebound)]
    assert not [one for one in vars(model).values() if isinstance(one, Rebound)]
