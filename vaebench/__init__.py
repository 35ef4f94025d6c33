"""Train, benchmark and compare variational autoencoders.

vaebench.kernels    the latent step and other operations, with interchangeable backends
vaebench.vae        models, objectives, training, evaluation
vaebench.bench      benchmarks for `pytest --benchmark-only`
vaebench.studies    command lines, sweeps, tracking
"""

from pathlib import Path

__version__ = "0.1.0"

# The four folders are links in a checkout. Where a system has no links, they are found in the folder above.
_ABOVE = Path(__file__).resolve().parent.parent
if (_ABOVE / "pyproject.toml").is_file():
    __path__.append(str(_ABOVE))
