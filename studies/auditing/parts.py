"""The parts of an audit: each is kept in a file as soon as it is finished, and not computed again."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vaebench.studies.whole_file import replacing

FOLDER = "parts"


@dataclass
class Parts:
    """The finished parts in a folder, with a bar of how many there are.

    Attributes:
        identity: everything that all parts depend on: the model, the data, the code.
        seconds: the time that each part took when it was computed.
    """

    folder: Path
    identity: str
    bar: "tqdm[Any]"
    seconds: dict[str, float] = field(default_factory=dict)

    def get(self, name: str, settings: object, compute: Callable[[], Any]) -> Any:
        """Return a part, plain values alone: read if it was computed from the same settings, and else computed."""
        key = hashlib.sha256(json.dumps([self.identity, settings]).encode()).hexdigest()
        path = self.folder / FOLDER / f"{name}.json"
        self.bar.set_postfix_str(name)
        stored = _read(path)
        if stored is None or stored["key"] != key:
            started = time.perf_counter()
            stored = {"key": key, "found": compute(), "seconds": time.perf_counter() - started}
            with replacing(path) as unfinished:
                unfinished.write_text(json.dumps(stored))
        self.seconds[name] = stored["seconds"]
        self.bar.update()
        return stored["found"]


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file holds; None where it is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        return stored if {"key", "found", "seconds"} <= set(stored) else None
    except (OSError, ValueError, TypeError):
        return None
