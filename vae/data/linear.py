"""Samples of a known probabilistic PCA model, on which a linear VAE has a closed-form optimum."""

import torch

from vaebench.vae.config.run import Data
from vaebench.vae.data.splits import Splits, shuffle_and_split
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.exact import ProbabilisticPCA


def load(config: Data) -> Splits:
    """Return `size` draws of `truth(config)`, float32, `(size, features)`, split by the seed."""
    generator = torch.Generator().manual_seed(config.seed)
    x, _ = _draw_model(config, generator).sample(config.size, generator)
    return shuffle_and_split(x.float(), levels=0, name="linear", seed=config.seed)


def truth(config: Data) -> ProbabilisticPCA:
    """Return the model that generates the data, in float64: orthogonal directions of standard deviation 1 to 3."""
    return _draw_model(config, torch.Generator().manual_seed(config.seed))


def _draw_model(config: Data, generator: torch.Generator) -> ProbabilisticPCA:
    if config.rank >= config.features:
        raise InputError(f"data set linear needs data.rank < data.features, got {config.rank} and {config.features}.")
    square = torch.randn(config.features, config.features, dtype=torch.float64, generator=generator)
    directions = torch.linalg.qr(square).Q[:, : config.rank]
    scales = torch.linspace(3, 1, config.rank, dtype=torch.float64)
    mean = torch.randn(config.features, dtype=torch.float64, generator=generator)
    return ProbabilisticPCA(directions * scales, mean, config.noise**2)
