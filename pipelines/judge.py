"""Picture -> scene by exact rules, no learned model: does a picture show what its caption says?

Emoji are seen by `emoji_judge`, shapes here. The ground is what the border mostly is. What stands clear of it falls
into connected parts of one colour each, the objects. How far a pixel has gone from the ground's colour to the object's
own is how much of it the object covers, and the template that overlaps this coverage best, at the same area and
centroid, is its shape.

Shapes: h×w pixels, P palette colours. Places and radii are in the units of `scenes`: an object's centre is a share of
the picture's width and height, its radius one of the shorter side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from pipelines.emoji_judge import see_emoji
from pipelines.scenes import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    coverage,
    relation_between,
    unit_area,
)
from pipelines.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

PALETTE = COLOURS | GROUNDS

CLEAR = 48.0
"""RGB distance at which a pixel is clear of the ground: half the smallest contrast of an object with a ground."""

SPECK = 0.0025
"""Area, in squares of the shorter side, below which something is no object: a quarter of the smallest object's."""

RECOGNISED = 0.7
"""Overlap with the best template below which a shape is unknown. The smallest star, blurred by a standard deviation of
0.7 pixels at 64×64, still overlaps its own by 0.74."""

GENEVAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single_object": (("one",), ("count", "shape")),
    "two_objects": (("two", "relation"), ("shape",)),
    "counting": (("count",), ("count", "shape")),
    "colours": (("one",), ("shape", "colour")),
    "position": (("relation",), ("shape", "relation")),
    "colour_attribution": (("two", "relation"), ("shape", "colour")),
}
"""GenEval's tag -> the kinds of prompt it is measured on and the facts that must all be right there.

As in GenEval (arXiv 2310.11513), a colour or a place counts only on a thing that is there, and sizes and the ground,
which it does not ask for, count in all-correct alone. All-correct is measured on every kind, "three" too.
"""


@dataclass(frozen=True)
class Check:
    """One thing a caption says, or leaves to be assumed, and whether the picture shows it."""

    fact: str  # count, shape, colour, size, relation or ground
    text: str
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """Every check of a picture against the scene its caption describes."""

    kind: str
    checks: tuple[Check, ...]

    @property
    def all_correct(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def tags(self) -> dict[str, bool]:
        """The tags of `GENEVAL` that this kind of prompt is measured on, and whether the picture is right by each.

        None of colours where things have their own.
        """
        said = {check.fact for check in self.checks}
        return {
            tag: all(check.ok for check in self.checks if check.fact in facts)
            for tag, (kinds, facts) in GENEVAL.items()
            if self.kind in kinds and said.issuperset(facts)
        }


def judge(described: Scene, picture: np.ndarray) -> Verdict:
    """Check a picture (h, w, 3) uint8 against the scene its caption describes.

    Each described object is held against one seen object. What the caption leaves unsaid is checked like the rest: a
    described scene has its sizes and its ground even where they go without saying.
    """
    sight = SEE[described.data](picture)
    matched = [None if i is None else sight.objects[i] for i in _match(described.objects, sight.objects)]
    found: dict[tuple[str, str], bool] = {}

    def check(fact: str, text: str, ok: bool) -> None:
        # Three green triangles are green only if all of them are.
        found[fact, text] = found.get((fact, text), True) and ok

    check("count", f"count: {len(described.objects)}", len(sight.objects) == len(described.objects))
    for said, seen in zip(described.objects, matched, strict=True):
        check("shape", said.shape, seen is not None and seen.shape == said.shape)
        if said.colour:
            check("colour", f"{said.shape}: {said.colour}", seen is not None and seen.colour == said.colour)
        check("size", f"{_name_of(said)}: {said.size}", seen is not None and seen.size == said.size)
    if described.relation:
        subject, relation, other = described.relation
        a, b = matched[subject], matched[other]
        # A person accepts any "left of" that is more left than above or below: no margin here.
        holds = a is not None and b is not None and relation_between(a, b, margin=1.0) == relation
        names = [_name_of(described.objects[i]) for i in (subject, other)]
        check("relation", f"{names[0]} {relation} {names[1]}", holds)
    check("ground", f"ground: {described.ground}", sight.ground == described.ground)
    return Verdict(described.kind, tuple(Check(fact, text, ok) for (fact, text), ok in found.items()))


def _name_of(o: Object) -> str:
    return f"{o.colour} {o.shape}".strip()


def locate(described: Scene, picture: np.ndarray) -> list[np.ndarray | None]:
    """Where each described object is, coverage (h, w) in [0, 1], or None where no such thing is in such a colour."""
    sight = SEE[described.data](picture)
    found: list[np.ndarray | None] = []
    for said, i in zip(described.objects, _match(described.objects, sight.objects), strict=True):
        there = i is not None and (sight.objects[i].shape, sight.objects[i].colour) == (said.shape, said.colour)
        found.append(sight.masks[i] if there else None)
    return found


def _match(described: tuple[Object, ...], seen: tuple[Object, ...]) -> list[int | None]:
    """For each described object which seen one is held against it, or None where they do not suffice."""
    # What a thing is goes before its colour, and that before its size, whatever the other two objects gain.
    agreement = [
        [16 * (a.shape == b.shape) + 4 * (a.colour == b.colour) + (a.size == b.size) for b in seen] for a in described
    ]
    matched: list[int | None] = [None] * len(described)
    table = np.array(agreement).reshape(len(described), len(seen))
    for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        matched[row] = int(column)
    return matched


def see(picture: np.ndarray) -> Sight:
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


SEE: dict[str, Callable[[np.ndarray], Sight]] = {"shapes": see, "emoji": see_emoji}
"""How the pictures of each of `worlds.WORLDS` are looked at."""
