"""Heat maps as pictures: over the picture they explain, and all words of a prompt on one sheet.

Shapes: h×w pixels.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.captions import is_chinese
from pipelines.text_to_text import Translation
from unet_xattn import AttentionTrace

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


def overlay(picture: Image.Image, heat: np.ndarray, opacity: float = 0.75) -> Image.Image:
    """A heat map (h, w) in [0, 1] laid over a picture of that size."""
    heated = Image.fromarray(colour_map(heat))
    return Image.blend(picture.convert("RGB"), heated.resize(picture.size), opacity)


def word_sheet(picture: Image.Image, attention: AttentionTrace, image: int = 0, tile: int = 192) -> Image.Image:
    """The picture, then a heat map over it for each word of its prompt, each scaled to its own peak and labelled.

    The label gives the peak: the largest share of the attention the word got anywhere.
    """
    heats = [(word.text, attention.heatmap(word, image=image).numpy()) for word in attention.words_of(image)]
    tiles = [("picture", picture.convert("RGB"))]
    tiles += [
        (f"{text}  {heat.max():.0%}", overlay(picture, heat / max(float(heat.max()), 1e-12))) for text, heat in heats
    ]
    scale = tile / picture.width
    height, label = round(picture.height * scale), 24
    columns = min(6, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (tile + 8) + 8, rows * (height + label + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), label_font([text for text, _ in tiles], 15)
    for i, (text, drawn) in enumerate(tiles):
        x, y = 8 + i % columns * (tile + 8), 8 + i // columns * (height + label + 8)
        sheet.paste(drawn.resize((tile, height), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + height + 3), text, fill=(20, 20, 20), font=font)
    return sheet


def alignment_sheet(translation: Translation, cell: int = 26) -> Image.Image:
    """Where each token that was written looked: a row for each, a column for each token of the source.

    The mean over layers and heads, dark where there was no attention; every row sums to one.
    """
    weights = translation.attention.mean(dim=(0, 1)).numpy()  # (T, S)
    font = label_font([*translation.tokens, *translation.source_tokens], 16)
    labels = [
        [token.replace("▁", " ").strip() or "▁" for token in tokens]
        for tokens in (translation.tokens, translation.source_tokens)
    ]
    left = 12 + max(round(font.getlength(text)) for text in labels[0])
    top = 12 + max(round(font.getlength(text)) for text in labels[1])
    rows, columns = weights.shape
    sheet = Image.new("RGB", (left + columns * cell + 8, top + rows * cell + 8), "white")
    heat = Image.fromarray(colour_map(weights)).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    sheet.paste(heat, (left, top))
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(labels[0]):
        draw.text((left - 6, top + (i + 0.5) * cell), text, fill=(20, 20, 20), font=font, anchor="rm")
    for i, text in enumerate(labels[1]):
        upright = Image.new("RGB", (top, cell), "white")
        ImageDraw.Draw(upright).text((6, cell / 2), text, fill=(20, 20, 20), font=font, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (left + i * cell, 0))
    return sheet
