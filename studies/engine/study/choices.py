"""The names that the options of a sweep choose from. This file imports nothing, so that `--help` takes no seconds."""

SAMPLERS = ("tpe", "gp", "random", "grid")
PRUNERS = ("hyperband", "median", "none")
TARGETS = ("nll", "rate-distortion", "mig")
ENGINES = ("local", "ray")
SPACES = ("full", "infovae", "beta", "latent")
