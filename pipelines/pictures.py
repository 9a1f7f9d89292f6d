"""Picture files of any format and shape -> arrays of a shape that a model can draw.

Shapes: h×w pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipelines.pixels import as_mask, displayed, opaque, read_picture

Shape = tuple[int, int]
"""Height and width in pixels."""

RATIOS = (4 / 3, 3 / 2, 16 / 9)
"""Longer side / shorter side of common cameras and screens."""


def load_picture(path: Path, size: int | Shape, fit: str = "crop") -> np.ndarray:
    """A picture file as (h, w, 3) uint8: rotated by its EXIF orientation, in sRGB, opaque on white, then fitted.

    A picture of another shape is cropped to its middle where `fit` is "crop", and padded with white where it is "pad".

    Raises:
        OSError: the file cannot be opened.
        PictureError: it is damaged, or no picture whose pixels are known to be right.
    """
    return fit_picture(read_picture(path.read_bytes()), size, fit)


def fit_picture(picture: Image.Image, size: int | Shape, fit: str = "crop") -> np.ndarray:
    """The same as `load_picture` for an open picture; `size` is a side or a shape."""
    return _fitted(opaque(displayed(picture)[0], "white"), size, fit, Image.Resampling.LANCZOS, "white")


def fit_mask(mask: Image.Image, picture_size: tuple[int, int], size: int | Shape, fit: str = "crop") -> np.ndarray:
    """A mask as (h, w) uint8, white where the object is (see `as_mask`), fitted in the same way as its picture.

    Padding is black.

    Args:
        picture_size: (width, height) of its picture after rotation; the mask's resolution may be lower or higher.

    Raises:
        ValueError: the mask's aspect ratio is not its picture's, or it is not known which part is the object.
    """
    mask = as_mask(mask)
    (w, h), (width, height) = mask.size, picture_size
    if abs(w * height / (h * width) - 1) > 0.05:  # more than rounding can cause
        raise ValueError(f"the mask has {w}×{h} pixels, its picture {width}×{height}: give both the same aspect ratio")
    if mask.size != picture_size:
        mask = mask.resize(picture_size, Image.Resampling.BOX)
    return _fitted(mask, size, fit, Image.Resampling.BOX, "black")


def _fitted(picture: Image.Image, size: int | Shape, fit: str, resampling: Image.Resampling, border: str) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    if fit == "pad":
        return np.array(ImageOps.pad(picture, (width, height), resampling, border))
    return np.array(ImageOps.fit(picture, (width, height), resampling))


def shapes_near(size: int, multiple: int) -> list[Shape]:
    """Shapes of about size² pixels whose sides are multiples of `multiple`: the square, then pairs of wide and tall.

    Their ratios are as near to `RATIOS` as the multiples allow. Shapes with a quarter more or fewer pixels than the
    square are left out. At 64 pixels and multiples of 16 there are three shapes; there are never more than seven.
    """
    shapes = [(size, size)]
    for ratio in RATIOS:
        short, long = (round(side / multiple) * multiple for side in (size / ratio**0.5, size * ratio**0.5))
        if abs(short * long / size**2 - 1) < 0.25:
            shapes += [(short, long), (long, short)]
    return list(dict.fromkeys(shapes))


def nearest_shape(width: int, height: int, shapes: Sequence[Shape]) -> Shape:
    """The shape of the nearest aspect ratio, so that a crop of the picture loses least."""
    return min(shapes, key=lambda shape: abs(math.log(shape[1] * height / (shape[0] * width))))
