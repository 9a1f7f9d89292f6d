"""Picture -> objects of the world of shapes, by exact rules, without a learned model.

The ground is the most frequent ground colour of the border. Pixels that differ from it form connected parts of one
colour each: the objects. A pixel's position between the ground's and the object's colour is the share of it that the
object covers. The shape is the template that overlaps this coverage best at the same area and centroid.

Shapes: h×w pixels, P palette colours. Units as in `shapes`: an object's centre is a share of the picture's width and
height, its radius a share of the shorter side.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from pipelines.scenes.scene import COLOURS, SHAPE_GROUNDS, Object
from pipelines.scenes.shapes import SHAPE_SIZES, SHAPES, coverage, unit_area
from pipelines.scenes.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

PALETTE = COLOURS | SHAPE_GROUNDS

CLEAR = 48.0
"""RGB distance from which a pixel differs from the ground: half the smallest contrast between object and ground."""

SPECK = 0.0025
"""Smallest area of an object, in squares of the shorter side: a quarter of the smallest object in a scene."""

RECOGNISED = 0.7
"""Smallest overlap with the best template; below it a shape is unknown. The smallest star, blurred with a standard
deviation of 0.7 pixels at 64×64, still overlaps its own template by 0.74."""


def see_shapes(picture: np.ndarray) -> Sight:
    """The objects and the ground of a picture (h, w, 3) uint8 of shapes.

    Raises:
        ValueError: not an 8-bit colour picture.
    """
    check_picture(picture)
    ground = ground_of(picture, SHAPE_GROUNDS)
    pixels = picture - ground  # (h, w, 3)
    parts, solid = _parts(pixels, ground)  # (h, w), (h, w)
    objects, masks = [], [np.zeros((0, *parts.shape), np.float32)]
    for part in range(1, parts.max() + 1):
        inside = parts == part
        core = pixels[inside & solid] if (inside & solid).any() else pixels[inside]  # (n, 3)
        own = core[np.linalg.norm(core - np.median(core, axis=0), axis=1).argmin()]  # (3,), a colour that occurs
        around = ndimage.binary_dilation(inside, iterations=2) & ((parts == 0) | inside)
        mask = np.clip(pixels @ (own / (own @ own)), 0, 1) * around  # (h, w)
        objects.append(_object(mask, name_of_colour(own + ground, PALETTE)))
        masks.append(mask[None])
    return Sight(tuple(objects), np.concatenate(masks), name_of_colour(ground, SHAPE_GROUNDS))


def _parts(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment the picture into objects.

    pixels: (h, w, 3), relative to the ground's colour -> the number of each pixel's object, (h, w), 0 for the ground,
    and whether all neighbours have the pixel's colour, (h, w): False at edges, where colours mix.
    """
    clear = (pixels**2).sum(axis=2) > CLEAR**2  # (h, w)
    # Anti-aliasing mixes an object's colour with the ground's: a mixed pixel lies on the line between the two.
    lines = np.array(list(PALETTE.values()), np.float32) - ground
    lines = lines[(lines**2).sum(axis=1) > CLEAR**2]  # (P, 3)
    share = pixels[clear] @ (lines / (lines**2).sum(axis=1, keepdims=True)).T  # (n, P), 1 at the colour itself
    off = np.linalg.norm(pixels[clear][:, None] - share.clip(0, 1)[..., None] * lines, axis=2)
    like = np.full(clear.shape, -1)
    # Only beyond half way: the faint edge of an orange object on black would be taken for brown.
    like[clear] = np.where(share > 0.5, off, np.inf).argmin(axis=1)
    beside = np.pad(like, 1, mode="edge")
    solid = clear & (beside[:-2, 1:-1] == like) & (beside[2:, 1:-1] == like)
    solid &= (beside[1:-1, :-2] == like) & (beside[1:-1, 2:] == like)
    if solid.any():  # a mixed pixel gets the nearest unmixed colour
        nearest = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)  # (2, h, w)
        like = like[tuple(nearest)]
    parts, count = np.zeros(clear.shape, int), 0
    for colour in np.unique(like[clear]):
        blobs, _ = ndimage.label(clear & (like == colour))
        areas = np.bincount(blobs.ravel())[1:]
        for blob in 1 + np.flatnonzero(areas >= SPECK * min(clear.shape) ** 2):
            count += 1
            parts[blobs == blob] = count
    return parts, solid


def _object(mask: np.ndarray, colour: str) -> Object:
    """The object with coverage `mask` (h, w)."""
    height, width = mask.shape
    area = float(mask.sum())
    cx = float(mask.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    cy = float(mask.sum(axis=1) @ (np.arange(height) + 0.5)) / area
    candidates = []
    for shape in SHAPES:
        radius = math.sqrt(area / unit_area(shape))
        dx, dy = unit_centroid(shape)
        x, y = cx - radius * dx, cy - radius * dy
        template = coverage(shape, x, y, radius, height, width)
        overlap = float(np.minimum(mask, template).sum() / np.maximum(mask, template).sum())
        share = radius / min(height, width)
        name = shape if overlap >= RECOGNISED else UNKNOWN
        candidates.append((overlap, Object(name, colour, _size(share), x / width, y / height, share)))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _size(radius: float) -> str:
    return min(SHAPE_SIZES, key=lambda name: abs(SHAPE_SIZES[name] - radius))


@lru_cache(maxsize=64)
def unit_centroid(shape: str) -> tuple[float, float]:
    """The centroid (x, y) of a shape of radius 1 relative to its centre: a triangle's lies below it."""
    x, y = SHAPES[shape].T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y1 - x1 * y
    return float(((x + x1) * cross).sum() / cross.sum() / 3), float(((y + y1) * cross).sum() / cross.sum() / 3)
