"""Captioned pictures without end: a scene, its picture, a mask per object and a mask per word, all exact.

A scene is a pure function of (seed, index). Its caption (`captions`) names everything visible.

Shapes: h×w pixels. Lengths and places are in units of the picture's shorter side, x to the right and y down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from pipelines import captions
from pipelines.captions import OPPOSITE, Vocabulary, Word, caption, meaning

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (45, 160, 70),
    "blue": (40, 90, 220),
    "purple": (130, 60, 175),
    "pink": (245, 150, 195),
    "brown": (120, 72, 36),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "gray": (150, 152, 155),
    "black": (24, 24, 28),
    "turquoise": (90, 205, 200),
}
SIZES: dict[str, float] = {"small": 0.09, "medium": 0.13, "big": 0.18}
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
"""(shape, colour) pairs that no training scene shows: what a model draws for them, it has composed."""

KINDS = ("one", "count", "two", "relation", "three")
"""one object; two or three of a kind; two different ones; the same with their relation; three different ones."""

WORDY = 2000
"""Scenes of a series after which every word has been said, for a tokenizer to learn from."""

DIFFERENT = {"one": 1, "count": 1, "two": 2, "relation": 2, "three": 3}
"""A kind -> how many different things it shows."""


SWAPS = {"colours": "two", "relation": "relation"}
"""What is exchanged between the two scenes of a minimal pair -> the kind of scene that is done with."""

REVERSED = OPPOSITE | {other: relation for relation, other in OPPOSITE.items()}


@dataclass(frozen=True)
class Object:
    """One thing in the picture: its centre (x, y) and its radius in units of the shorter side.

    `shape` is what it is; `colour` is "" for a thing that has colours of its own.
    """

    shape: str
    colour: str
    size: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What a picture shows and what its caption says of it.

    `relation` is (subject, relation, object) where the caption states one; `kind` is one of `KINDS`; `data` is the name
    of the scenes it is one of, "shapes" for those of this module.
    """

    kind: str
    objects: tuple[Object, ...]
    ground: str
    relation: tuple[int, str, int] | None = None
    caption: str = ""
    words: tuple[Word, ...] = ()
    data: str = "shapes"


def scene(
    seed: int,
    index: int,
    kind: str | None = None,
    held_out: bool = False,
    language: str = "en",
    swap: str | None = None,
) -> Scene:
    """The scene at place `index` of the endless series `seed`.

    Args:
        kind: one of `KINDS`, or None for training's mixture of them.
        held_out: False never shows a pair of `HELD_OUT`; True shows one in every scene, for testing.
        language: of the caption, one of `captions.LANGUAGES`; the picture is the same in all.
        swap: one of `SWAPS`: that exchanged, of a scene with two different objects, and all else as without it, the
            wording of the caption too.
    """
    rng = np.random.default_rng((seed, index))
    kind = kind_of(rng) if kind is None else kind
    ground = str(rng.choice(list(GROUNDS), p=[0.4, 0.2, 0.2, 0.2]))
    described = _describe_objects(rng, kind, held_out)
    sized = [replace(o, radius=SIZES[o.size] * rng.uniform(0.95, 1.05)) for o in described]
    objects, relation = place(rng, kind, sized, reach=1.15, gap=0.02)  # a diamond is the tallest shape for its radius
    if swap:
        objects, relation = _swapped(objects, relation, swap)
    said = relation and relation[1]
    text, words = caption(rng, objects, kind == "count", ground, said, language)
    return Scene(kind, objects, ground, relation, text, words)


def kind_of(rng: np.random.Generator) -> str:
    """One of `KINDS`, in training's mixture."""
    return str(rng.choice(KINDS, p=[0.15, 0.2, 0.2, 0.3, 0.15]))


def described(text: str, vocabulary: Vocabulary = captions.SHAPES) -> Scene | None:
    """The scene a caption describes, its things placed nowhere in particular; None for a text that describes none."""
    said = meaning(text, vocabulary)
    if said is None:
        return None
    groups = [[Object(shape, colour, size)] * count for count, size, colour, shape in said.groups]
    objects = tuple(o for group in groups for o in group)
    relation = (0, said.relation, len(groups[0])) if said.relation else None
    alone = "count" if len(objects) > 1 else "one"
    kind = "relation" if relation else {1: alone, 2: "two"}.get(len(groups), "three")
    return Scene(kind, objects, said.ground, relation, text)


def _describe_objects(rng: np.random.Generator, kind: str, held_out: bool) -> list[Object]:
    pairs = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT]
    different = DIFFERENT[kind]
    chosen = [pairs[i] for i in rng.choice(len(pairs), different, replace=False)]
    if held_out:
        left_out = sorted(HELD_OUT)
        chosen[int(rng.integers(different))] = left_out[int(rng.integers(len(left_out)))]
    sizes = rng.choice(list(SIZES), different, p=[0.3, 0.4, 0.3])
    objects = [Object(shape, colour, str(size)) for (shape, colour), size in zip(chosen, sizes, strict=True)]
    return objects * int(rng.integers(2, 4)) if kind == "count" else objects


def place(
    rng: np.random.Generator, kind: str, objects: Sequence[Object], reach: float, gap: float
) -> tuple[tuple[Object, ...], tuple[int, str, int] | None]:
    """Put each object somewhere inside the picture and clear of the others, and state a relation that holds.

    reach: half the side of an object's box for a radius of 1; gap: the least distance between two boxes.
    """
    reaches = reach * np.array([o.radius for o in objects])  # (objects,)
    while True:
        # Many layouts at a time: three big objects rarely fall clear of one another.
        centres = rng.uniform(0.01 + reaches[:, None], 0.99 - reaches[:, None], (64, len(objects), 2))
        distance = np.abs(centres[:, :, None] - centres[:, None]).max(axis=-1)  # (64, objects, objects)
        clear = distance > reaches[:, None] + reaches + gap
        clear |= np.eye(len(objects), dtype=bool)
        for layout in centres[clear.all(axis=(1, 2))]:
            placed = tuple(replace(o, x=float(x), y=float(y)) for o, (x, y) in zip(objects, layout, strict=True))
            if kind in ("two", "three"):
                return _in_reading_order(placed), None
            if kind != "relation":
                return placed, None
            stated = relation_between(placed[0], placed[1])
            if stated:
                return placed, (0, stated, 1)


def _in_reading_order(objects: tuple[Object, ...]) -> tuple[Object, ...]:
    """From left to right, or from top to bottom where they spread further that way, as people name what they see.

    Where the things of a relation lie depends on its word and on their order together and on neither alone, which
    is next to unlearnable by descent, as parities are. Lists teach order alone first.
    """
    spread = np.ptp([(o.x, o.y) for o in objects], axis=0)
    return tuple(sorted(objects, key=lambda o: o.x if spread[0] > spread[1] else o.y))


def _swapped(
    objects: tuple[Object, ...], relation: tuple[int, str, int] | None, swap: str
) -> tuple[tuple[Object, ...], tuple[int, str, int] | None]:
    a, b = objects
    if swap == "colours":
        return (replace(a, colour=b.colour), replace(b, colour=a.colour)), relation
    assert swap == "relation" and relation
    # Mirrored, they are as far apart and as far from the edge as they were.
    across = relation[1] in ("left of", "right of")
    mirrored = tuple(replace(o, x=1 - o.x) if across else replace(o, y=1 - o.y) for o in objects)
    return mirrored, (relation[0], REVERSED[relation[1]], relation[2])


def relation_between(a: Object, b: Object, margin: float = 1.25) -> str | None:
    """How `a` lies to `b` along the axis that dominates by `margin`, or None where it is neither."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > margin * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > margin * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def render(described: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, anti-aliased.

    size: a side, or (height, width), in pixels -> picture (h, w, 3) uint8 and the coverage of each object,
    (objects, h, w) float32 in [0, 1], which is its exact mask.
    """
    height, width = (size, size) if isinstance(size, int) else size
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = GROUNDS[described.ground]
    masks = np.zeros((len(described.objects), height, width), np.float32)
    for mask, o in zip(masks, described.objects, strict=True):
        mask[:] = coverage(o.shape, *_pixels(o, height, width), height, width)
        picture += mask[..., None] * (np.array(COLOURS[o.colour], np.float32) - picture)
    return picture.round().astype(np.uint8), masks


def _pixels(o: Object, height: int, width: int) -> tuple[float, float, float]:
    side = min(height, width)
    # The longer side spreads the places out and leaves the sizes alone.
    return o.x * width, o.y * height, o.radius * side


def coverage(shape: str, x: float, y: float, radius: float, height: int, width: int) -> np.ndarray:
    """How much of each pixel a shape covers, (h, w) float32 in [0, 1]; centre and radius in pixels."""
    fine = 16  # samples across a pixel: Pillow's polygon draws its border too, half a sample too many all around
    left, top = math.floor(x - 1.3 * radius), math.floor(y - 1.3 * radius)
    box = math.ceil(2.6 * radius) + 2
    canvas = Image.new("L", (box * fine, box * fine))
    outline = (SHAPES[shape] * radius + (x - left, y - top)) * fine
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline.tolist()], fill=255)
    patch = np.asarray(canvas.reduce(fine), np.float32) / 255
    out = np.zeros((height, width), np.float32)
    y0, y1, x0, x1 = max(top, 0), min(top + box, height), max(left, 0), min(left + box, width)
    if y0 < y1 and x0 < x1:
        out[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def word_mask(word: Word, masks: np.ndarray) -> np.ndarray | None:
    """Where a word's meaning lies, (h, w) in [0, 1], or None for a relation, which lies nowhere.

    masks: what `render` gave for the scene, (objects, h, w).
    """
    if word.kind == "relation":
        return None
    if word.kind == "ground":
        return 1 - masks.max(axis=0)
    return masks[list(word.objects)].max(axis=0)


@lru_cache(maxsize=64)
def unit_area(shape: str) -> float:
    """Area of a shape of radius 1 (the shoelace formula)."""
    x, y = SHAPES[shape].T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
