"""Read one image file of any common format as bytes `(C, side, side)`.

- The image is rotated as its Exif orientation says.
- 16-bit grey becomes levels / 257, rounded; 16-bit colours their high byte, which Pillow reads.
- Palettes become their colours; transparent pixels are composed over white.
- CMYK, YCbCr, black and white become RGB; grey is 0.299 R + 0.587 G + 0.114 B.
- The shorter side is scaled to `side` by antialiased bicubic interpolation; then the central square is cropped.
- An animation gives its first frame.

Floating-point pixels have no known range, so such a file is refused.
"""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
HIGHEST_16_BIT = 2**16 - 1
DRAFT = 4

Pixels = npt.NDArray[np.uint8]


def read(path: Path, side: int, channels: int) -> Pixels:
    """Return the pixels of a file, `(channels, side, side)`; Pillow's own errors pass through."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")
    with Image.open(path, formats=FORMATS) as image:
        image.draft("RGB", (DRAFT * side, DRAFT * side))
        upright = ImageOps.exif_transpose(image)
    coloured = _to_8_bit_rgb(upright).convert("RGB" if channels == 3 else "L")
    fitted = ImageOps.fit(coloured, (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(fitted).reshape(side, side, channels).transpose(2, 0, 1))


def _to_8_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        levels: npt.NDArray[Any] = np.asarray(image).clip(0, HIGHEST_16_BIT)
        return Image.fromarray((levels / (HIGHEST_16_BIT // 255)).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
