"""The colour map of all heat maps, and the fonts and texts of labels."""

from collections.abc import Iterable

import numpy as np
from PIL import ImageFont

from pipelines.scenes.captions import is_chinese

CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc")
"""Files of Chinese fonts on Debian, macOS and Windows; Pillow searches the font folders of each system."""

# Perceptually uniform from dark to light: nine stops of matplotlib's inferno (CC0).
_STOPS = np.array(
    [(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)]
    + [(227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)],
    np.float32,
)


def colour_map(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], (...) -> colours (..., 3) uint8."""
    position = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(position.astype(int), len(_STOPS) - 2)
    fraction = (position - below)[..., None]
    return (_STOPS[below] * (1 - fraction) + _STOPS[below + 1] * fraction).round().astype(np.uint8)


def label_font(texts: Iterable[str], size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A font that has the characters of these texts.

    Raises:
        ValueError: a text is Chinese, and no font of this machine has its characters.
    """
    if not is_chinese("".join(texts)):
        return ImageFont.load_default(size)
    for name in CHINESE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    raise ValueError("no font for Chinese labels found: apt-get install fonts-wqy-microhei")


def readable(token: str) -> str:
    """A token for people to read: without the mark "▁" of a word's start, unless the token is only that mark."""
    return token.replace("▁", " ").strip() or "▁"
