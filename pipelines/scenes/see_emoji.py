"""Picture -> objects of the worlds of emoji and of everyday things, see `see_glyphs`."""

import numpy as np

from pipelines.scenes.emoji import EMOJI_SIZES, glyph
from pipelines.scenes.emoji_words import EMOJI
from pipelines.scenes.everyday import ALONE, SIDES, TOGETHER, thing_glyph
from pipelines.scenes.everyday_words import EMOJI_THINGS
from pipelines.scenes.scene import COLOURS
from pipelines.scenes.see_glyphs import Glyphs, see_glyphs
from pipelines.scenes.shapes import SHAPES
from pipelines.scenes.sight import Sight


def _sides(sizes: dict[str, float]) -> dict[float, str]:
    return {side: name for name, side in sizes.items()}


EMOJI_GLYPHS = Glyphs(
    [(name, "") for name in EMOJI],
    tuple(EMOJI_SIZES.values()),
    lambda thing, side: glyph(thing[0], side),
    lambda count: _sides(EMOJI_SIZES),
)
EVERYDAY_GLYPHS = Glyphs(
    [(name, "") for name in EMOJI_THINGS] + [(shape, colour) for shape in SHAPES for colour in COLOURS],
    SIDES,
    lambda thing, side: thing_glyph(*thing, side),
    lambda count: _sides(ALONE if count == 1 else TOGETHER),
    fine_searches=64,
)


def see_emoji(picture: np.ndarray) -> Sight:
    """The objects and the ground of a picture (h, w, 3) uint8 of emoji; raises as `see_glyphs`."""
    return see_glyphs(picture, EMOJI_GLYPHS)


def see_everyday(picture: np.ndarray) -> Sight:
    """The objects and the ground of a picture (h, w, 3) uint8 of everyday things; raises as `see_glyphs`."""
    return see_glyphs(picture, EVERYDAY_GLYPHS)
