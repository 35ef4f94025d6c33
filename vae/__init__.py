"""Variational autoencoders and normalizing flows: configuration, data, models, training, evaluation.

>>> from vaebench.vae import Run, fit
>>> result = fit(Run().replace({"train.epochs": 1, "model.latent": 2}))
>>> sorted(result.history[-1])[-2:]
['valid/elbo', 'valid/rate']
"""

from vaebench.vae.config.objective import Objective
from vaebench.vae.config.run import Data, Eval, Model, Run, Train, register
from vaebench.vae.data import Split, Splits, from_files, from_tensors, load
from vaebench.vae.ensemble.compatible import can_stack
from vaebench.vae.ensemble.fit_many import fit_many
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.evaluation.effective_weights import effective_weights
from vaebench.vae.evaluation.evaluate import evaluate
from vaebench.vae.integrations import patch
from vaebench.vae.model import VAE, FlowModel, Likelihood
from vaebench.vae.training.fit import Result, fit
from vaebench.vae.training.state import load_model

__all__ = [
    "VAE",
    "Data",
    "DivergedError",
    "Eval",
    "FlowModel",
    "InputError",
    "Likelihood",
    "Model",
    "Objective",
    "Result",
    "Run",
    "Split",
    "Splits",
    "Train",
    "can_stack",
    "effective_weights",
    "evaluate",
    "fit",
    "fit_many",
    "from_files",
    "from_tensors",
    "load",
    "load_model",
    "patch",
    "register",
]
