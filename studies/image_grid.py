"""Images in rows and columns, and the names of both beside them: tensors `(3, H, W)` in [0, 1]."""

from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

SMALLEST_SIDE = 48
PADDING = 2
LINE, GAP = 16, 4  # pixels


def arrange(images: Tensor, columns: int) -> Tensor:
    """Return images `(N, 3 or 1, H, W)` in rows, each pixel as a square, so that no image is smaller than 48 pixels."""
    scale = max(1, -(-SMALLEST_SIDE // images.shape[-1]))
    enlarged = images.clamp(0, 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(enlarged, nrow=columns, padding=PADDING, pad_value=0.5)


def annotate(
    grid: Tensor, rows: Sequence[str], columns: Sequence[str] = (), note: str = "", *, widest: str = ""
) -> Tensor:
    """Return a grid with the names of its rows on the left, of its columns on top, and a note below.

    Args:
        widest: a text for which there is room on the left in any case, so that pictures with other names fit below.
    """
    font = ImageFont.load_default(LINE * 3 // 4)
    left = max(round(font.getlength(text)) for text in (*rows, widest)) + 2 * GAP
    top, bottom = (LINE if columns else 0), (LINE if note else 0)
    height, width = grid.shape[-2:]
    canvas = Image.new("RGB", (left + max(width, round(font.getlength(note)) + GAP), top + height + bottom), "white")
    canvas.paste(to_pil_image(grid.float().cpu()), (left, top))
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(rows):
        centre = top + (height - PADDING) * (row + 0.5) / len(rows) + PADDING / 2
        draw.text((left - GAP, centre), text, "black", font, anchor="rm")
    for column, text in enumerate(columns):
        centre = left + (width - PADDING) * (column + 0.5) / len(columns) + PADDING / 2
        draw.text((centre, LINE / 2), text, "black", font, anchor="mm")
    draw.text((left, top + height + LINE / 2), note, "black", font, anchor="lm")
    return cast(Tensor, pil_to_tensor(canvas)).to(torch.get_default_dtype()) / 255
