"""Time a training step of a library's model before and after `patch`, in turns, in milliseconds.

PYTHONPATH=.:FOLDER/pythae python -m tests.vae.integrations.real.time_steps pythae
"""

import sys
import time
from statistics import median

import torch

from vaebench.vae import patch

TURNS, STEPS = 40, 5


def diffusers():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    x = torch.rand(8, 3, 32, 32)

    def loss(model):
        posterior = model.encode(x).latent_dist
        return (model.decode(posterior.sample()).sample - x).square().sum() + posterior.kl().sum()

    make = lambda: AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4, **blocks)  # noqa: E731
    return {"AutoencoderKL, 8 images of 32 x 32": (make, loss)}


def pythae():
    from pythae.models import VAE, VAEConfig

    def case(latent, batch):
        x = torch.rand(batch, 1, 28, 28)
        return lambda: VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=latent)), lambda model: model({"data": x}).loss

    return {f"VAE, {latent} latents, batch {batch}": case(latent, batch) for latent, batch in ((16, 128), (128, 1024))}


def multivae():
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import CRMVAE, CRMVAEConfig

    data = MultimodalBaseDataset({"a": torch.rand(128, 784), "b": torch.rand(128, 300)})
    config = CRMVAEConfig(n_modalities=2, latent_dim=16, input_dims={"a": (784,), "b": (300,)})
    return {"CRMVAE, 16 latents, batch 128": (lambda: CRMVAE(config), lambda model: model(data).loss)}


def scvi():
    import scvi as library

    adata = library.data.synthetic_iid(batch_size=128, n_genes=1000)
    library.model.SCVI.setup_anndata(adata, batch_key="batch")
    batch = next(iter(library.model.SCVI(adata)._make_data_loader(adata, batch_size=128)))
    return {
        "SCVI, 10 latents, batch 128": (
            lambda: library.model.SCVI(adata).module.train(),
            lambda module: module(batch)[2].loss,
        )
    }


def milliseconds(model, optimizer, loss):
    """Return the time of a training step: the mean of a few in a row."""
    start = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss(model).backward()
        optimizer.step()
    return (time.perf_counter() - start) * 1e3 / STEPS


def main(name):
    for case, (make, loss) in globals()[name]().items():
        plain, patched = make(), make()
        patch(patched)
        both = [(model, torch.optim.Adam(model.parameters(), 1e-4), loss) for model in (plain, patched)]
        times = [[milliseconds(*one) for one in both] for _ in range(TURNS)][3:]
        before, after = (median(column) for column in zip(*times, strict=True))
        print(f"{case}: {before:.2f} ms before, {after:.2f} ms after, ratio {median(b / a for b, a in times):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
