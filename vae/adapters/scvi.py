"""VAE modules of scvi-tools: counts of a cell given its library size, batch, label and covariates.

A row of x is `[counts | log library size, batch, label, continuous covariates, categorical covariates]`. Everything
behind the counts is given: log p(x) is the one of the counts, as in scvi-tools' own loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench.vae.data import Splits, from_tensors
from vaebench.vae.errors import InputError

SERVED = ("VAE", "LDVAE")  # SCANVAE, a subclass, has another prior
SHARES = (0.8, 0.1)
GIVEN = 3  # log library size, batch, label


class ScviSource(nn.Module):
    """The module of an SCVI model."""

    def __init__(self, module: Any, continuous: int = 0, categorical: int = 0) -> None:
        super().__init__()
        if type(module).__name__ not in SERVED or not hasattr(module, "z_encoder"):
            raise InputError(
                f"of scvi-tools the modules VAE of SCVI and LDVAE of LinearSCVI can be audited; got "
                f"{type(module).__name__}."
            )
        if not module.use_observed_lib_size or module.use_size_factor_key:
            raise InputError(
                "an audit of scvi-tools needs use_observed_lib_size = True and no size factors: with a latent library "
                "size the code is more than z."
            )
        self.module, self.continuous, self.categorical = module, continuous, categorical

    def encode(self, x: Tensor) -> Distribution:
        counts = x[:, : x.shape[1] - GIVEN - self.continuous - self.categorical]
        given = self._name(x[:, counts.shape[1] :])
        inferred = self.module.inference(counts, given["batch_index"], given["cont_covs"], given["cat_covs"])
        posterior: Distribution = inferred["qz"]
        return posterior

    def decode(self, z: Tensor, covariates: Tensor) -> Distribution:
        moved = self.module.z_encoder.z_transformation(z)
        p: Distribution = self.module.generative(z=moved, **self._name(covariates, decoding=True))["px"]
        return p

    def _name(self, given: Tensor, *, decoding: bool = False) -> dict[str, Tensor | None]:
        """Return covariates `(B, C)` by the names of the module's arguments."""
        continuous, categorical = given[:, GIVEN:].split([self.continuous, self.categorical], dim=1)
        named: dict[str, Tensor | None] = {
            "batch_index": given[:, 1:2].long(),
            "cont_covs": continuous if self.continuous else None,
            "cat_covs": categorical.long() if self.categorical else None,
        }
        return named | ({"library": given[:, :1], "y": given[:, 2:3].long()} if decoding else {})


def add_covariates(counts: Tensor) -> Tensor:
    """Return counts `(N, G)` of one batch and one label with their covariates, `(N, G + 3)`."""
    library = counts.sum(1, keepdim=True)
    if not bool((library > 0).all()):
        raise InputError("scvi-tools needs a count in every cell; leave out the empty ones.")
    return torch.cat([counts, library.log(), torch.zeros_like(library).expand(-1, GIVEN - 1)], dim=1)


def registered_splits(model: Any, loader: Any, seed: int) -> tuple[Splits, int, int]:
    """Return the cells that a model was set up with, and how many of the columns are covariates of either kind.

    `train` are the model's own training cells; the other cells are halved into `valid` and `test`. A model that was
    not trained has no such cells, and all are split by the seed.
    """
    cells = range(model.adata_manager.adata.n_obs)
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed)).tolist()
    own = model.train_indices
    chosen = set(order[: int(SHARES[0] * len(cells))] if own is None else map(int, own))
    rest = [cell for cell in order if cell not in chosen]
    halves = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    if not all(halves):
        raise InputError(
            f"an audit needs cells that the model was not trained on, got {len(rest)} of {len(cells)}; train it with "
            "train_size below 1."
        )
    parts = [_read(model, loader, indices) for indices in (sorted(chosen), *halves)]
    splits = from_tensors(*(rows for rows, _, _ in parts), name="scvi")
    return splits, parts[0][1], parts[0][2]


def _read(model: Any, loader: Any, indices: Sequence[int]) -> tuple[Tensor, int, int]:
    """Return the rows of some cells, and the number of their continuous and categorical covariates."""
    rows, continuous, categorical = [], 0, 0
    for batch in loader(model.adata_manager, indices=list(indices), batch_size=1024):
        counts, label = batch["X"].float(), batch.get("labels")
        nothing = counts.new_zeros(len(counts), 0)
        covariates = [batch.get(f"extra_{kind}_covs") for kind in ("continuous", "categorical")]
        numbers, classes = (nothing if one is None else one.float() for one in covariates)
        continuous, categorical = numbers.shape[1], classes.shape[1]
        label = counts.new_zeros(len(counts), 1) if label is None else label.float()
        with_library = add_covariates(counts)[:, : counts.shape[1] + 1]
        rows.append(torch.cat([with_library, batch["batch"].float(), label, numbers, classes], dim=1))
    return torch.cat(rows), continuous, categorical
