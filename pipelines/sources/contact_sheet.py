"""A contact sheet: many pictures with their captions on one page."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.drawing import label_font
from pipelines.pixels import read_picture
from pipelines.sources.findings import printable
from pipelines.sources.rows import Row

MOST = 64
PER_ROW, CELL, LABEL = 8, 112, 16  # pictures; side of a picture's cell and height of its caption, in pixels


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """Up to `MOST` of these rows' pictures, evenly chosen, each above the beginning of its caption."""
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
    return captioned_sheet([(_thumbnail(row), row.caption) for row in chosen])


def _thumbnail(row: Row) -> Image.Image:
    picture = read_picture(row.read())
    picture.thumbnail((CELL - 4, CELL - 4))
    return picture.convert("RGBA")


def captioned_sheet(pictures: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Pictures in rows, each above the beginning of its caption; large ones are made smaller."""
    height = -(-len(pictures) // PER_ROW) * (CELL + LABEL)
    sheet = Image.new("RGB", (min(PER_ROW, len(pictures)) * CELL, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font([caption for _, caption in pictures])
    for i, (picture, caption) in enumerate(pictures):
        x, y = i % PER_ROW * CELL, i // PER_ROW * (CELL + LABEL)
        picture.thumbnail((CELL - 4, CELL - 4))
        picture = picture.convert("RGBA")
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2), picture)
        label = printable(caption[:40])
        while draw.textlength(label, font) > CELL - 4:
            label = label.removesuffix("…")[:-1] + "…"
        draw.text((x + 2, y + CELL), label, "black", font)
    return sheet


def _font(captions: Sequence[str]) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return label_font(captions, 11)
    except ValueError:  # no Chinese font: boxes are drawn instead of characters
        return ImageFont.load_default(11)
