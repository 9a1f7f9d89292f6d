"""The colour map of every heat map, and fonts for labels."""

from collections.abc import Iterable

import numpy as np
from PIL import ImageFont

from pipelines.scenes.captions import is_chinese

CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc")
"""Fonts with Chinese characters as Debian, macOS and Windows name their files; Pillow looks where each keeps them."""

# Perceptually even from dark to light: nine stops of matplotlib's inferno (CC0).
_STOPS = np.array(
    [(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)]
    + [(227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)],
    np.float32,
)


def colour_map(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], (...) -> colours (..., 3) uint8."""
    place = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - below)[..., None]
    return (_STOPS[below] * (1 - part) + _STOPS[below + 1] * part).round().astype(np.uint8)


def label_font(texts: Iterable[str], size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A font that can draw these texts.

    Raises:
        ValueError: there are Chinese ones among them, and no font on this machine that can.
    """
    if not is_chinese("".join(texts)):
        return ImageFont.load_default(size)
    for name in CHINESE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    raise ValueError("no font here can draw Chinese labels: apt-get install fonts-wqy-microhei")
