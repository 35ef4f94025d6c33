"""Variational autoencoders whose every figure can be checked: models, objectives, estimators, exact oracles."""
