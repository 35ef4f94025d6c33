"""SCVI and TOTALVI of scvi-tools on its own synthetic data, as installed."""

import pytest
import scvi
import torch
from torch.distributions import normal

from tests.vae.integrations.real import common
from vaebench.kernels.adapters import FusedNormal
from vaebench.vae import patch

NOISE = [(normal, "_standard_normal", common.kernel_noise)]
ADATA = scvi.data.synthetic_iid(batch_size=32, n_genes=20, n_proteins=5)
scvi.model.SCVI.setup_anndata(ADATA, batch_key="batch")
BATCH = next(iter(scvi.model.SCVI(ADATA)._make_data_loader(ADATA, batch_size=64)))


def make():
    torch.manual_seed(0)
    return scvi.model.SCVI(ADATA, n_latent=5, n_hidden=16, dropout_rate=0.0)


def loss(module):
    return module(BATCH)[2].loss


def part(model):
    return model.module


def test_a_training_is_that_of_the_unpatched_model(monkeypatch):
    common.assert_same_training(make, loss, monkeypatch, NOISE, part)


def test_weights_and_copies():
    common.assert_stored_and_copied(lambda: make().module, loss)


def test_it_is_saved_and_loaded_by_the_library(tmp_path):
    model = make()
    patch(model)
    model.is_trained_ = True
    model.save(str(tmp_path / "model"))
    again = scvi.model.SCVI.load(str(tmp_path / "model"), ADATA)
    for name, weight in model.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], weight)


def test_it_compiles():
    common.assert_compiled(lambda: make().module, loss)


def test_the_kl_of_the_loss_is_that_of_the_draw(monkeypatch):
    taken = []
    own = FusedNormal.take_kl
    monkeypatch.setattr(FusedNormal, "take_kl", lambda q: (taken.append(own(q)), taken[-1])[1])
    model = make()
    patch(model)
    loss(model.module)
    assert len(taken) == 1
    assert taken[0] is not None


def test_its_own_trainer_trains_a_patched_model():
    model = make()
    with patch(model):
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False, logger=False)
        assert torch.isfinite(loss(model.module))


def test_totalvi_draws_all_its_codes_by_the_kernel(monkeypatch):
    scvi.model.TOTALVI.setup_anndata(ADATA, batch_key="batch", protein_expression_obsm_key="protein_expression")
    batch = next(iter(scvi.model.TOTALVI(ADATA)._make_data_loader(ADATA, batch_size=64)))

    def build():
        torch.manual_seed(0)
        return scvi.model.TOTALVI(ADATA, n_latent=5)

    losses, noise = [], pytest.MonkeyPatch()
    for replaced in (True, False):
        model = build()
        if replaced:
            patch(model)
        else:
            noise.setattr(normal, "_standard_normal", common.kernel_noise)
        torch.manual_seed(1)
        losses.append(model.module(batch)[2].loss)
    noise.undo()
    torch.testing.assert_close(*losses)
