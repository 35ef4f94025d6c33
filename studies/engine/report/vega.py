"""Vega-Lite: its JavaScript for a page that works offline, and PNG files of specifications."""

import contextlib
import importlib.metadata
import io
import os
from pathlib import Path
from typing import Any

import vl_convert
from PIL import Image

from vaebench.studies.whole_file import replacing

PACKAGE = "vl-convert-python"
GLOBALS = "window.vega = vega; window.vegaLite = vegaLite; window.vegaEmbed = vegaEmbed;"
PNG_SCALE = 1.5


def read_javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script.

    To bundle them takes a second or two. So the script is kept in the user's cache; a cache that cannot be written is
    left out.
    """
    kept = _cache_folder() / f"vega-{importlib.metadata.version(PACKAGE)}.js"
    with contextlib.suppress(OSError):
        return kept.read_text()
    script = vl_convert.javascript_bundle(GLOBALS)
    with contextlib.suppress(OSError), replacing(kept) as unfinished:
        unfinished.write_text(script)
    return script


def save_png(spec: dict[str, Any], path: Path) -> Path:
    """Draw a complete specification."""
    drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, scale=PNG_SCALE)))
    drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)  # a tenth of the size
    return path


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vaebench"
