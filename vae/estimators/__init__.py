"""Estimate log p(x), gradients and posteriors, for any model given as callables; models with exact answers."""
