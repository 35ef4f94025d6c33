"""Train, benchmark and compare variational autoencoders.

vaebench.kernels    the latent step and other operations, with interchangeable backends
vaebench.vae        models, objectives, training, evaluation
vaebench.bench      benchmarks for `pytest --benchmark-only`
vaebench.studies    command lines, sweeps, tracking

vaebench.load gives a trained model and its configuration back from the folder of its run.
vaebench.patch lets a model of another library use the kernels; vaebench.effective_weights says what its loss optimises.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_FROM_VAE = {"load": "load_model", "patch": "patch", "effective_weights": "effective_weights"}

# The four folders are links in a checkout. Where a system has no links, they are found in the folder above.
_ABOVE = Path(__file__).resolve().parent.parent
if (_ABOVE / "pyproject.toml").is_file():
    __path__.append(str(_ABOVE))


def __getattr__(name: str) -> Any:
    """Return `load`, `patch` or `effective_weights`, which are imported when they are first asked for."""
    if name in _FROM_VAE:
        from vaebench import vae

        return getattr(vae, _FROM_VAE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
