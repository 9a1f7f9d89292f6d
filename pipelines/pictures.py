"""Pictures as people bring them -> pictures to train on, of the shapes a model can draw.

Shapes: B batch, h×w pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Shape = tuple[int, int]
"""Height and width in pixels."""

FITS = ("crop", "pad")
"""What becomes of a picture of another shape: its middle is kept, or all of it, on a white ground."""

RATIOS = (4 / 3, 3 / 2, 16 / 9)
"""Longer side to shorter of what cameras and screens give."""


def load_picture(path: Path, size: int | Shape, fit: str = "crop") -> np.ndarray:
    """A picture file as (h, w, 3) uint8: turned as its EXIF says, laid on white where transparent, then fitted."""
    with Image.open(path) as file:
        return fit_picture(file, size, fit)


def fit_picture(picture: Image.Image, size: int | Shape, fit: str = "crop") -> np.ndarray:
    """`load_picture` of a picture that is open already; `size` is a side or a shape, `fit` one of `FITS`."""
    return _fitted(_opaque(picture, "white").convert("RGB"), size, fit, Image.Resampling.LANCZOS, "white")


def fit_mask(mask: Image.Image, picture_size: tuple[int, int], size: int | Shape, fit: str = "crop") -> np.ndarray:
    """A mask, white where something is, as (h, w) uint8: fitted just as its picture is.

    Nothing is where it is transparent, and on a border.

    picture_size: (width, height) of the picture it belongs to, upright; the mask may be coarser or finer.

    Raises:
        ValueError: it is of another shape than its picture.
    """
    mask = _opaque(mask, "black").convert("L")
    (w, h), (width, height) = mask.size, picture_size
    if abs(w * height / (h * width) - 1) > 0.05:  # more than rounding explains
        raise ValueError(f"the mask has {w}×{h} pixels, its picture {width}×{height}: give both the same shape")
    if mask.size != picture_size:
        mask = mask.resize(picture_size, Image.Resampling.BOX)
    return _fitted(mask, size, fit, Image.Resampling.BOX, "black")


def _opaque(picture: Image.Image, ground: str) -> Image.Image:
    """A picture upright and on a ground."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # 16 bits of grey, which Pillow's own conversion would clip
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture.convert("RGBA"))


def _fitted(picture: Image.Image, size: int | Shape, fit: str, resampling: Image.Resampling, border: str) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    if fit == "pad":
        return np.array(ImageOps.pad(picture, (width, height), resampling, border))
    return np.array(ImageOps.fit(picture, (width, height), resampling))


def shapes_near(size: int, multiple: int) -> list[Shape]:
    """Shapes of about size² pixels, sides multiples of `multiple`: the square, then each wide one and the same upright.

    Their ratios are near `RATIOS`, as near as the multiples come; shapes a quarter larger or smaller than the square
    are left out. At 64 pixels and multiples of 16 there are three of them, and never more than seven.
    """
    shapes = [(size, size)]
    for ratio in RATIOS:
        short, long = (round(side / multiple) * multiple for side in (size / ratio**0.5, size * ratio**0.5))
        if abs(short * long / size**2 - 1) < 0.25:
            shapes += [(short, long), (long, short)]
    return list(dict.fromkeys(shapes))


def nearest_shape(width: int, height: int, shapes: Sequence[Shape]) -> Shape:
    """The shape that a picture of that many pixels loses least to: that of the nearest ratio."""
    return min(shapes, key=lambda shape: abs(math.log(shape[1] * height / (shape[0] * width))))
