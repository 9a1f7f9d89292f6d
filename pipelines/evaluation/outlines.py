"""The outlines of things as a model drew them.

The judge of emoji knows what an emoji looks like, not how it was drawn: its mask is the exact one at the place where
the emoji was found. A crab drawn without its legs has legs in that mask. Here a mask is what differs from the ground.

Shapes: h×w pixels.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from pipelines.scenes.emoji_font import EMOJI_GROUNDS
from pipelines.scenes.judge import find
from pipelines.scenes.scene import Scene
from pipelines.scenes.sight import ground_of
from pipelines.scenes.worlds import render

REACH, INNER = 2, 2
"""Pixels beyond the exact outline that may belong to a thing, and pixels inside from which all belong to it."""

CLEAR = 90.0
"""RGB distance of thing and ground below which their difference is not asked, and the exact outline counts."""


def drawn_outlines(scene: Scene, picture: np.ndarray) -> list[np.ndarray | None]:
    """The mask (h, w) in [0, 1] of each object of a scene as a picture (h, w, 3) uint8 shows it, or None.

    Near the exact outline, a pixel's mask is its distance from the ground's colour, relative to that of the nearest
    pixel inside of the exact render. By the masks of exact renders themselves: an IoU of 0.98 for emoji.
    """
    found = find(scene, picture)
    ground = ground_of(picture, EMOJI_GROUNDS)
    distance = np.linalg.norm(picture - ground, axis=2)  # (h, w)
    outlines: list[np.ndarray | None] = []
    for one in found:
        if one is None:
            outlines.append(None)
            continue
        seen, mask = one
        exact, (alpha,) = render(replace(scene, objects=(seen,)), mask.shape)
        inside = alpha > 0.9 * alpha.max()  # tiny emoji are nowhere fully opaque
        nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)  # (2, h, w)
        contrast = np.linalg.norm(exact - ground, axis=2)[tuple(nearest)]
        thing = mask >= 0.5
        near = ndimage.binary_dilation(thing, iterations=REACH)
        certain = ndimage.binary_erosion(thing, iterations=INNER) | (contrast < CLEAR)
        shared = near * (distance / contrast.clip(CLEAR)).clip(0, 1)
        outlines.append(np.where(certain, mask, shared).astype(np.float32))
    return outlines
