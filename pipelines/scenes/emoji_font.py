"""The emoji font: finding it, its bitmaps, and the grounds that an emoji stands out on.

Noto Color Emoji, SIL Open Font License 1.1.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.scenes.scene import COLOURS, SHAPE_GROUNDS

FONT_FILE = "NotoColorEmoji.ttf"
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
STRIKE, WIDTH, HEIGHT = 109, 136, 128  # the font's only size; width and height of its bitmaps in pixels

EMOJI_GROUNDS = SHAPE_GROUNDS | {name: COLOURS[name] for name in ("yellow", "green", "blue", "pink", "purple")}
"""Name of a ground -> its colour, as in the world of shapes."""


class FontError(ValueError):
    """No emoji font was found that Pillow can draw with."""


def find_font(folders: Sequence[str | Path] = FONT_FOLDERS) -> ImageFont.FreeTypeFont:
    """The emoji font, from the first folder that contains it.

    Raises:
        FontError: no folder contains it, or only as outlines (COLRv1), which Pillow cannot draw.
    """
    for path in (path for folder in folders for path in sorted(Path(folder).expanduser().rglob(FONT_FILE))):
        with suppress(OSError):
            font = ImageFont.FreeTypeFont(path, STRIKE)  # truetype() would search other folders too
            if font.getmask("🐄", mode="RGBA").getbbox():
                return font
    places = ", ".join(map(str, folders))
    raise FontError(f"the font {FONT_FILE} is missing: apt-get install fonts-noto-color-emoji (looked in {places})")


def clear_grounds(font: ImageFont.FreeTypeFont, emoji: str) -> list[str]:
    """The grounds that differ from three quarters of an emoji's pixels; an empty list if the font lacks the emoji."""
    grounds = np.array(list(EMOJI_GROUNDS.values()), np.float32)
    glyph = np.asarray(bitmap(font, emoji), np.float32)
    colours = glyph[glyph[..., 3] == 255][::8, :3]  # (n, 3): one opaque pixel in eight is enough
    if len(colours) == 0:
        return []
    distance = np.linalg.norm(colours[:, None] - grounds, axis=-1)  # (n, grounds)
    return [name for name, share in zip(EMOJI_GROUNDS, (distance > 100).mean(axis=0), strict=True) if share > 0.75]


def bitmap(font: ImageFont.FreeTypeFont, emoji: str) -> Image.Image:
    """An emoji at the font's own size: RGBA, `WIDTH`×`HEIGHT` pixels."""
    # On a transparent canvas Pillow draws premultiplied colours ("RGBa").
    drawn = draw_glyph(font, emoji, Image.new("RGBA", (WIDTH, HEIGHT)), (0, 0))
    return Image.frombytes("RGBa", drawn.size, drawn.tobytes()).convert("RGBA")


def draw_glyph(font: ImageFont.FreeTypeFont, emoji: str, canvas: Image.Image, place: tuple[int, int]) -> Image.Image:
    ImageDraw.Draw(canvas).text(place, emoji, font=font, embedded_color=True, anchor="lt")
    return canvas
