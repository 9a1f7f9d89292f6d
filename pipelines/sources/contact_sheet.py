"""Many pictures with their captions on one, to look over."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipelines.drawing import label_font
from pipelines.sources.findings import printable
from pipelines.sources.look import decoding, eight_bits, open_picture
from pipelines.sources.rows import Row

MOST = 64
COLUMNS, SIDE, LABEL = 8, 112, 16  # pictures in a row; pixels


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """Up to `MOST` of these rows' pictures, evenly chosen, each above as much of its caption as there is room for."""
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
    height = -(-len(chosen) // COLUMNS) * (SIDE + LABEL)
    sheet = Image.new("RGB", (min(COLUMNS, len(chosen)) * SIDE, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font([row.caption for row in chosen])
    for i, row in enumerate(chosen):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + LABEL)
        with decoding():
            picture = eight_bits(ImageOps.exif_transpose(open_picture(row.read())))
            picture.thumbnail((SIDE - 4, SIDE - 4))
            picture = picture.convert("RGBA")
        sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2), picture)
        label = printable(row.caption[:40])
        while draw.textlength(label, font) > SIDE - 4:
            label = label.removesuffix("…")[:-1] + "…"
        draw.text((x + 2, y + SIDE), label, "black", font)
    return sheet


def _font(captions: Sequence[str]) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return label_font(captions, 11)
    except ValueError:  # there is no Chinese font: boxes instead of characters
        return ImageFont.load_default(11)
