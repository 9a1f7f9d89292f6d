"""Shared by all worlds' `see`: the ground from the border, colours by name, and the result type `Sight`.

Shapes: h×w pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.scenes.scene import Object

UNKNOWN = "?"
"""The name of a shape, colour or ground outside the world; it matches no caption."""

COLOUR_REACH = 60.0
"""Largest RGB distance at which a colour gets the name of the nearest palette colour."""

Palette = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Sight:
    """The objects found in a picture, their masks (objects, h, w) float32 in [0, 1], and the name of its ground."""

    objects: tuple[Object, ...]
    masks: np.ndarray
    ground: str


def check_picture(picture: np.ndarray) -> None:
    """Raises ValueError unless the picture is an 8-bit colour picture (h, w, 3)."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"the judge needs a picture (h, w, 3) in uint8, got {picture.shape} in {picture.dtype}")


def ground_of(picture: np.ndarray, grounds: Palette) -> np.ndarray:
    """The colour (3,) of the ground: the median of the border pixels that are nearest to the most frequent ground."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).astype(np.float32)
    palette = np.array(list(grounds.values()), np.float32)
    nearest = np.linalg.norm(border[:, None] - palette, axis=2).argmin(axis=1)
    return np.median(border[nearest == np.bincount(nearest).argmax()], axis=0)


def name_of_colour(colour: np.ndarray, palette: Palette) -> str:
    """The name of the nearest palette colour, or `UNKNOWN` if none is near."""
    distance = np.linalg.norm(np.array(list(palette.values())) - colour, axis=1)
    return list(palette)[distance.argmin()] if distance.min() <= COLOUR_REACH else UNKNOWN
