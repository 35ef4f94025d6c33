"""Models of one's own, named in a configuration: `model.build = FILE.py:FUNCTION`.

    def build(config, shape):
        return encoder, decoder

The function gets the settings of `vae.config.model.Model` and the shape of an example. It returns an encoder and a
decoder as `VAE` takes them, around which the likelihood, the prior and the flows of the configuration are built, or a
whole `GenerativeModel`. A run knows the function by a digest of the source of its file.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaebench.vae.config.model import OWN_NONE
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model.generative import GenerativeModel

Pair = tuple[nn.Module, nn.Module]


def digest_source(build: str) -> str:
    """Return a hash of the file and the function that `model.build` names; empty if it names none."""
    if build == OWN_NONE:
        return ""
    return _digest(*_split(build))


def load_function(path: Path, name: str) -> Callable[..., object]:
    """Import a Python file as a module of its own, once for each state of its source, and return a function of it."""
    return _load_function(path, name, _digest(path, name))


def build_own(build: str, config: Any, shape: tuple[int, ...]) -> Pair | GenerativeModel:
    """Call the function that `model.build` names; raise one sentence where it fails or returns something else."""
    path, name = _split(build)
    try:
        built = load_function(path, name)(config, shape)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model.build = {build} raised {type(error).__name__}: {sentence(error)}.") from error
    if isinstance(built, GenerativeModel):
        return built
    if isinstance(built, tuple | list) and len(built) == 2 and all(isinstance(one, nn.Module) for one in built):
        return built[0], built[1]
    raise InputError(
        f"model.build = {build} must return an encoder and a decoder, two modules, or a GenerativeModel, got "
        f"{type(built).__name__}."
    )


@torch.no_grad()
def require_shapes(build: str, model: GenerativeModel, shape: tuple[int, ...]) -> None:
    """Refuse a model of one's own that cannot encode and decode two examples of zeros."""
    model.eval()
    try:
        x = torch.zeros(2, *shape)
        model.decode(model.represent(x)).log_prob(x)
    except Exception as error:
        raise InputError(f"model.build = {build} does not fit data of shape {shape}: {sentence(error)}") from error
    model.train()


def _split(build: str) -> tuple[Path, str]:
    path, _, function = build.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise InputError(f"model.build must be FILE.py:FUNCTION, or {OWN_NONE}, got {build!r}.")
    return Path(path), function


def _digest(path: Path, function: str) -> str:
    return hashlib.sha256(function.encode() + b"\0" + _read(path)).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the model's file {path}: {error.strerror}.") from error


@cache
def _load_function(path: Path, name: str, digest: str) -> Callable[..., object]:
    module_name = f"{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "the path ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {name}.")
    found: Callable[..., object] = function
    return found
