"""The colour map of all heat maps, and labels in any script.

A label is drawn in the fonts of this machine. Each part of it gets the first font that has all its characters.
"""

import math
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import regex
from PIL import Image, ImageDraw, ImageFont, features

from pipelines.scenes.emoji_font import FONT_FOLDERS, HEIGHT, WIDTH, FontError, bitmap, find_font

FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "segoeui.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc", "Nirmala.ttf"),
)
"""Files of fonts on Debian, macOS and Windows that are tried first; then all others of the machine are."""

ALL_FOLDERS = (*FONT_FOLDERS, "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts")
INK = (20, 20, 20)

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


def readable(token: str) -> str:
    """A token for people to read: without the mark "▁" of a word's start, unless the token is only that mark."""
    return token.replace("▁", " ").strip() or "▁"


# Labels


def label(text: str, size: int) -> Image.Image:
    """A text in one line as an RGBA picture with a transparent ground, 1.6 times `size` high.

    An emoji is drawn in its colours. A symbol that no font has is shown by its code point, "U+1F986".

    Raises:
        ValueError: no font of this machine has a letter of the text, or its script needs a library that is missing.
    """
    parts = [_line(run, size) if emoji is None else _scaled(emoji, size) for run, emoji in _runs(text)]
    whole = Image.new("RGBA", (max(1, sum(part.width for part in parts)), round(1.6 * size)))
    x = 0
    for part in parts:
        whole.paste(part, (x, 0))
        x += part.width
    return whole


def label_font(texts: Iterable[str], size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """One font that has the characters of all these texts.

    Raises:
        ValueError: no font of this machine has them all.
    """
    text = unicodedata.normalize("NFC", "".join(texts))
    if text.isascii():
        return ImageFont.load_default(size)
    file = _font_file(text)
    if file is None:
        raise ValueError(_missing(next((c for c in text if not c.isascii() and _font_file(c) is None), text)))
    return ImageFont.truetype(file, size)


def _runs(text: str) -> list[tuple[str, Image.Image | None]]:
    """A text cut into parts, each with characters of one font, or with an emoji and its picture."""
    runs: list[tuple[str, Image.Image | None]] = []
    for cluster in regex.findall(r"\X", unicodedata.normalize("NFC", text)):
        if regex.search(r"\p{Emoji_Presentation}|\uFE0F", cluster) and (emoji := _emoji(cluster)):
            runs.append((cluster, emoji))
            continue
        if not cluster.isascii() and _font_file(cluster) is None:
            if regex.search(r"[\p{L}\p{M}\p{N}]", cluster):
                raise ValueError(_missing(cluster))
            cluster = " ".join(f"U+{ord(character):04X}" for character in cluster)
        elif not features.check("raqm") and regex.search(r"\p{M}|\p{Bidi_Class=R}|\p{Bidi_Class=AL}", cluster):
            raise ValueError(f"labels with {cluster!r} need Pillow with libraqm, which joins and orders letters")
        before, emoji = runs[-1] if runs else ("", None)
        if before and emoji is None and ((before + cluster).isascii() or _font_file(before + cluster)):
            runs[-1] = (before + cluster, None)
        else:
            runs.append((cluster, None))
    return runs


def _line(run: str, size: int) -> Image.Image:
    font = label_font([run], size)
    mask = Image.new("L", (math.ceil(font.getlength(run)) + 1, round(1.6 * size)))
    ImageDraw.Draw(mask).text((0, round(1.15 * size)), run, fill=255, font=font, anchor="ls")
    line = Image.new("RGBA", mask.size, INK)
    line.putalpha(mask)
    return line


def _emoji(cluster: str) -> Image.Image | None:
    """An emoji in its colours at the emoji font's own size, or None if the font is missing or lacks it."""
    try:
        font = find_font()
    except FontError:
        return None
    if font.getlength(cluster) > 1.2 * WIDTH:  # a sequence of emoji that is none of the font's
        return None
    drawn = bitmap(font, cluster)
    return drawn if drawn.getbbox() else None


def _scaled(emoji: Image.Image, size: int) -> Image.Image:
    height = round(1.2 * size)
    small = emoji.resize((round(WIDTH * height / HEIGHT), height), Image.Resampling.LANCZOS)
    line = Image.new("RGBA", (small.width, round(1.6 * size)))
    line.paste(small, (0, round(1.6 * size - height) // 2))
    return line


def _missing(character: str) -> str:
    east_asian = regex.search(r"[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}]", character)
    package = "fonts-wqy-microhei" if east_asian else "fonts-noto-core"
    return f"no font with {character!r} found for labels: install one (on Debian: apt-get install {package})"


# Fonts


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """The font files of this machine: those of `FONTS` first, then upright ones without serifs."""
    found = [
        file
        for folder in ALL_FOLDERS
        for file in Path(folder).expanduser().rglob("*")
        if file.suffix.lower() in (".ttf", ".otf", ".ttc") and not file.name.startswith("LastResort")  # only boxes
    ]

    def rank(file: Path) -> tuple[int, bool, bool, str]:
        place = FONTS.index(file.name) if file.name in FONTS else len(FONTS)
        slanted_or_heavy = regex.search("Bold|Italic|Oblique|Black|Light|Thin", file.name) is not None
        return place, slanted_or_heavy, "Sans" not in file.name, str(file)

    return tuple(str(file) for file in sorted(found, key=rank))


@lru_cache(maxsize=4096)
def _font_file(text: str) -> str | None:
    """The first font file that has all characters of a text."""
    return next((file for file in _font_files() if all(_has(file, character) for character in text)), None)


@lru_cache(maxsize=65536)
def _has(file: str, character: str) -> bool:
    """Whether a font has a character: it draws another glyph than for U+10FFFF, which is no character."""
    if character.isspace() or unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f":
        return True  # nothing is drawn
    opened = _opened(file)
    return opened is not None and _glyph(opened, character) != _glyph(opened, "\U0010ffff")


@lru_cache(maxsize=32)
def _opened(file: str) -> ImageFont.FreeTypeFont | None:
    """A font that draws each character by itself, without forming syllables; None if it has only bitmaps."""
    try:
        return ImageFont.truetype(file, 24, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return None


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
