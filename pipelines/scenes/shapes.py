"""The world of shapes: endless scenes of coloured shapes, each with a rendered picture and an exact mask per object.

A scene is a pure function of (seed, index). Its caption (`captions`) names everything visible.

Shapes: h×w pixels. Lengths and places are in units of the picture's shorter side, x to the right and y down.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from pipelines.scenes.captions import SHAPE_LEXICON
from pipelines.scenes.scene import (
    COLOURS,
    DIFFERENT,
    REVERSED,
    SHAPE_GROUNDS,
    Object,
    Scene,
    choose_kind,
    place,
    write_captions,
)

SHAPE_SIZES: dict[str, float] = {"small": 0.09, "medium": 0.13, "big": 0.18}
"""Name of a size -> radius of the shape, half the width of its box."""


def _regular(points: int, turn: float = 0.0) -> np.ndarray:
    angles = turn + np.arange(points) * 2 * math.pi / points
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.42
    return points * 1.08


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


SHAPES: dict[str, np.ndarray] = {
    "circle": _regular(48),
    "square": np.array([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]),
    "triangle": np.array([[0, -1], [1.05, 0.85], [-1.05, 0.85]]),
    "diamond": np.array([[0, -1.15], [0.75, 0], [0, 1.15], [-0.75, 0]]),
    "star": _star(),
    "heart": _heart(),
    "cross": np.array(
        [[-1, -0.34], [-0.34, -0.34], [-0.34, -1], [0.34, -1], [0.34, -0.34], [1, -0.34]]
        + [[1, 0.34], [0.34, 0.34], [0.34, 1], [-0.34, 1], [-0.34, 0.34], [-1, 0.34]]
    ),
}
"""Name of a shape -> its outline, points (n, 2) about the centre at radius 1."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("circle", "orange"),
        ("square", "purple"),
        ("triangle", "pink"),
        ("diamond", "red"),
        ("star", "blue"),
        ("heart", "green"),
        ("cross", "yellow"),
        ("square", "brown"),
    }
)
"""(shape, colour) pairs that no training scene shows: a model that draws them composes them."""


SWAPS = {"colours": "two", "relation": "relation"}
"""What is exchanged between the two scenes of a minimal pair -> the kind of scene for such pairs."""


def scene(
    seed: int,
    index: int,
    kind: str | None = None,
    held_out: bool = False,
    language: str = "en",
    swap: str | None = None,
) -> Scene:
    """The scene number `index` of the endless series `seed`.

    Args:
        kind: one of `scene.KINDS`, or None for the training mixture.
        held_out: False never shows a pair of `HELD_OUT`; True shows one in every scene, for testing.
        language: language of the caption, one of `captions.LANGUAGES`; the picture is the same in all.
        swap: one of `SWAPS`, for a scene with two different objects: their colours exchanged or their relation
            reversed, and everything else unchanged, including the wording of the caption.
    """
    return tellings(seed, index, (language,), kind, held_out, swap)[0]


def tellings(
    seed: int,
    index: int,
    languages: Sequence[str],
    kind: str | None = None,
    held_out: bool = False,
    swap: str | None = None,
) -> list[Scene]:
    """The same `scene` with a caption in each of several languages: faster than to make the scene once per language."""
    rng = np.random.default_rng((seed, index))
    kind = choose_kind(rng) if kind is None else kind
    ground = str(rng.choice(list(SHAPE_GROUNDS), p=[0.4, 0.2, 0.2, 0.2]))
    unsized = _describe_objects(rng, kind, held_out)
    sized = [replace(o, radius=SHAPE_SIZES[o.size] * rng.uniform(0.95, 1.05)) for o in unsized]
    objects, relation = place(rng, kind, sized, reach=1.15, gap=0.02)  # a diamond is the tallest shape for its radius
    if swap:
        objects, relation = _swapped(objects, relation, swap)
    return write_captions(rng, Scene(kind, objects, ground, relation), languages, SHAPE_LEXICON)


def _describe_objects(rng: np.random.Generator, kind: str, held_out: bool) -> list[Object]:
    pairs = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT]
    different = DIFFERENT[kind]
    chosen = [pairs[i] for i in rng.choice(len(pairs), different, replace=False)]
    if held_out:
        unseen = sorted(HELD_OUT)
        chosen[int(rng.integers(different))] = unseen[int(rng.integers(len(unseen)))]
    sizes = rng.choice(list(SHAPE_SIZES), different, p=[0.3, 0.4, 0.3])
    objects = [Object(shape, colour, str(size)) for (shape, colour), size in zip(chosen, sizes, strict=True)]
    return objects * int(rng.integers(2, 4)) if kind == "count" else objects


def _swapped(
    objects: tuple[Object, ...], relation: tuple[int, str, int] | None, swap: str
) -> tuple[tuple[Object, ...], tuple[int, str, int] | None]:
    a, b = objects
    if swap == "colours":
        return (replace(a, colour=b.colour), replace(b, colour=a.colour)), relation
    assert swap == "relation" and relation
    # Mirroring keeps their distances to each other and to the edges.
    horizontal = relation[1] in ("left of", "right of")
    mirrored = tuple(replace(o, x=1 - o.x) if horizontal else replace(o, y=1 - o.y) for o in objects)
    return mirrored, (relation[0], REVERSED[relation[1]], relation[2])


def render(scene: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, anti-aliased.

    size: a side, or (height, width), in pixels -> picture (h, w, 3) uint8 and the exact mask of each object, its
    coverage (objects, h, w) float32 in [0, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = SHAPE_GROUNDS[scene.ground]
    masks = np.zeros((len(scene.objects), height, width), np.float32)
    for i, o in enumerate(scene.objects):
        box, covered = _coverage(o.shape, *_pixels(o, height, width), height, width)
        masks[(slice(i), *box)] *= 1 - covered  # the objects of `scene` are apart, those of other scenes may overlap
        masks[(i, *box)] = covered
        picture[box] += covered[..., None] * (np.array(COLOURS[o.colour], np.float32) - picture[box])
    return picture.round().astype(np.uint8), masks


def _pixels(o: Object, height: int, width: int) -> tuple[float, float, float]:
    side = min(height, width)
    # Positions stretch with the longer side; sizes do not.
    return o.x * width, o.y * height, o.radius * side


def coverage(shape: str, x: float, y: float, radius: float, height: int, width: int) -> np.ndarray:
    """The share of each pixel that a shape covers, (h, w) float32 in [0, 1]; centre and radius in pixels."""
    out = np.zeros((height, width), np.float32)
    box, covered = _coverage(shape, x, y, radius, height, width)
    out[box] = covered
    return out


def _coverage(
    shape: str, x: float, y: float, radius: float, height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """(rows and columns of the shape's box, its coverage there): everywhere else the coverage is 0."""
    fine = 16  # samples per pixel side; Pillow's polygon includes its border, so it is half a sample too large
    left, top = math.floor(x - 1.3 * radius), math.floor(y - 1.3 * radius)
    box = math.ceil(2.6 * radius) + 2
    canvas = Image.new("L", (box * fine, box * fine))
    outline = (SHAPES[shape] * radius + (x - left, y - top)) * fine
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline.tolist()], fill=255)
    patch = np.asarray(canvas.reduce(fine), np.float32) / 255
    y0, y1 = (min(max(side, 0), height) for side in (top, top + box))
    x0, x1 = (min(max(side, 0), width) for side in (left, left + box))
    return (slice(y0, y1), slice(x0, x1)), patch[y0 - top : y1 - top, x0 - left : x1 - left]


@lru_cache(maxsize=64)
def unit_area(shape: str) -> float:
    """Area of a shape of radius 1 (the shoelace formula)."""
    x, y = SHAPES[shape].T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
