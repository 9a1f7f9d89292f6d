"""Pictures made of glyphs: drawings with an alpha, reduced to their size and pasted at whole pixels.

Shapes: h×w pixels.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from pipelines.scenes.emoji_font import EMOJI_GROUNDS, bitmap, find_font
from pipelines.scenes.scene import Object, Scene

Glyph = tuple[np.ndarray, np.ndarray]
"""Premultiplied colours, alpha times colour (h, w, 3) in [0, 255], and alpha (h, w) in [0, 1].

The picture is premultiplied + (1 − alpha) · ground.
"""


@cache
def emoji_glyph(emoji: str, side: int) -> Glyph:
    """An emoji cropped to its box, whose longer side has `side` pixels.

    Raises:
        ValueError: the font is missing.
    """
    uncropped = bitmap(cached_font(), emoji)
    box = uncropped.crop(uncropped.getchannel(3).getbbox())
    scale = side / max(box.size)
    width, height = (max(1, round(scale * length)) for length in box.size)
    pixels = np.asarray(box.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    alpha = pixels[..., 3] / 255
    return shared(pixels[..., :3] * alpha[..., None], alpha)


cached_font = cache(find_font)


def shared(premultiplied: np.ndarray, alpha: np.ndarray) -> Glyph:
    """A glyph that many pictures use: nobody may write to it."""
    for array in (premultiplied, alpha):
        array.setflags(write=False)
    return premultiplied, alpha


def paste(
    scene: Scene, size: int | tuple[int, int], glyph_of: Callable[[Object, int], Glyph]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: each object's glyph in its size is pasted at whole pixels.

    Args:
        size: a side, or (height, width), in pixels.
        glyph_of: the glyph of an object whose longer side has so many pixels.

    Returns:
        The picture (h, w, 3) uint8 and the exact mask of each object, its alpha (objects, h, w) float32 in [0, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = EMOJI_GROUNDS[scene.ground]
    masks = np.zeros((len(scene.objects), height, width), np.float32)
    for i, o in enumerate(scene.objects):
        premultiplied, alpha = glyph_of(o, max(1, round(2 * o.radius * min(height, width))))
        h, w = alpha.shape
        top, left = round(o.y * height - h / 2), round(o.x * width - w / 2)
        rows, columns = slice(top, top + h), slice(left, left + w)
        masks[:i, rows, columns] *= 1 - alpha  # boxes may touch at a corner
        masks[i, rows, columns] = alpha
        picture[rows, columns] = premultiplied + (1 - alpha[..., None]) * picture[rows, columns]
    return picture.round().astype(np.uint8), masks
