"""Heat maps as pictures: over the picture they explain, and all words of a prompt on one sheet.

Shapes: h×w pixels.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unet_xattn import AttentionTrace

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
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (text, drawn) in enumerate(tiles):
        x, y = 8 + i % columns * (tile + 8), 8 + i // columns * (height + label + 8)
        sheet.paste(drawn.resize((tile, height), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + height + 3), text, fill=(20, 20, 20), font=font)
    return sheet
