"""Picture -> scene of shapes by exact rules, no learned model.

The ground is what most of the border shows. What stands clear of it falls into connected parts of one colour each, the
objects. How far a pixel has gone from the ground's colour to the object's own is how much of it the object covers, and
the template that overlaps this coverage best, at the same area and centroid, is its shape.

Shapes: h×w pixels, P palette colours. Positions and radii are in the units of `shapes`: an object's centre is a share
of the picture's width and height, its radius one of the shorter side.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from pipelines.scenes.scene import COLOURS, GROUNDS, Object
from pipelines.scenes.shapes import SHAPES, SIZES, coverage, unit_area
from pipelines.scenes.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

PALETTE = COLOURS | GROUNDS

CLEAR = 48.0
"""RGB distance at which a pixel is clear of the ground: half the smallest contrast of an object with a ground."""

SPECK = 0.0025
"""Area, in squares of the shorter side, below which something is no object: a quarter of the smallest object's."""

RECOGNISED = 0.7
"""Overlap with the best template below which a shape is unknown. The smallest star, blurred by a standard deviation of
0.7 pixels at 64×64, still overlaps its own by 0.74."""


def see_shapes(picture: np.ndarray) -> Sight:
    """What a picture (h, w, 3) uint8 of shapes shows.

    Raises ValueError for anything but an 8-bit colour picture.
    """
    check_picture(picture)
    ground = ground_of(picture, GROUNDS)
    pixels = picture - ground  # (h, w, 3)
    parts, solid = _parts(pixels, ground)  # (h, w), (h, w)
    objects, masks = [], [np.zeros((0, *parts.shape), np.float32)]
    for part in range(1, parts.max() + 1):
        inside = parts == part
        core = pixels[inside & solid] if (inside & solid).any() else pixels[inside]  # (n, 3)
        own = core[np.linalg.norm(core - np.median(core, axis=0), axis=1).argmin()]  # (3,), a colour that is there
        around = ndimage.binary_dilation(inside, iterations=2) & ((parts == 0) | inside)
        mask = np.clip(pixels @ (own / (own @ own)), 0, 1) * around  # (h, w)
        objects.append(_object(mask, name_of_colour(own + ground, PALETTE)))
        masks.append(mask[None])
    return Sight(tuple(objects), np.concatenate(masks), name_of_colour(ground, GROUNDS))


def _parts(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell the objects apart.

    pixels: (h, w, 3), relative to the ground's colour -> the number of each pixel's object, (h, w), 0 for the ground,
    and whether the pixel lies among its like, (h, w), and not on an edge, where colours mix.
    """
    clear = (pixels**2).sum(axis=2) > CLEAR**2  # (h, w)
    # Anti-aliasing mixes an object's colour with the ground's: a pixel is of the colour whose line it lies on.
    lines = np.array(list(PALETTE.values()), np.float32) - ground
    lines = lines[(lines**2).sum(axis=1) > CLEAR**2]  # (P, 3)
    share = pixels[clear] @ (lines / (lines**2).sum(axis=1, keepdims=True)).T  # (n, P), 1 at the colour itself
    off = np.linalg.norm(pixels[clear][:, None] - share.clip(0, 1)[..., None] * lines, axis=2)
    like = np.full(clear.shape, -1)
    # Beyond half way only: the faint edge of an orange thing on black would pass for brown.
    like[clear] = np.where(share > 0.5, off, np.inf).argmin(axis=1)
    beside = np.pad(like, 1, mode="edge")
    solid = clear & (beside[:-2, 1:-1] == like) & (beside[2:, 1:-1] == like)
    solid &= (beside[1:-1, :-2] == like) & (beside[1:-1, 2:] == like)
    if solid.any():  # the mixed colours of an edge belong to the nearest colour that is not mixed
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
    """The object whose coverage is `mask` (h, w)."""
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
    return min(SIZES, key=lambda name: abs(SIZES[name] - radius))


@lru_cache(maxsize=64)
def unit_centroid(shape: str) -> tuple[float, float]:
    """Where the centroid (x, y) of a shape of radius 1 lies about its centre: a triangle's is below it."""
    x, y = SHAPES[shape].T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y1 - x1 * y
    return float(((x + x1) * cross).sum() / cross.sum() / 3), float(((y + y1) * cross).sum() / cross.sum() / 3)
