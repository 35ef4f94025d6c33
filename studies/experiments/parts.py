"""The finished parts of an experiment, kept until the whole is written, so that the same command can go on."""

import argparse
import hashlib
import inspect
import shutil
import typing
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from vaebench.studies.tracking.provenance import code_version
from vaebench.studies.whole_file import replacing

FOLDER = "parts"
ELSEWHERE = ("name", "started", "folder", "tracking_uri")  # options that change no result

P = ParamSpec("P")
T = TypeVar("T")


def keep(options: argparse.Namespace, key: Hashable, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Return the function's result: read where an earlier start of the same command computed it, else kept now.

    The key tells the parts of an experiment apart. A part is of its key, of the options and of the code, so that no
    other command reads it. Files hold tensors, plain values and the class that the function declares, and no code.
    """
    settings = {name: value for name, value in vars(options).items() if name not in ELSEWHERE}
    source = Path(inspect.getfile(function)).read_text()
    identity = repr((sorted(settings.items()), key, function.__qualname__, source, code_version()))
    path = options.folder / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
    declared = typing.get_type_hints(function).get("return")
    classes: list[Any] = [one for one in (declared, *typing.get_args(declared)) if isinstance(one, type)]
    if path.exists():
        with torch.serialization.safe_globals(classes):
            found: T = torch.load(path)
        return found
    value = function(*args, **named)
    with replacing(path) as unfinished:
        torch.save(value, unfinished)
    return value


def remove(folder: Path) -> None:
    """Delete the parts of an experiment that is written."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
