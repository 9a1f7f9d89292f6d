"""A scene: the objects of a picture, their positions, and the caption that describes them.

Lengths and positions are in units of the picture's shorter side, x to the right and y down.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from pipelines.scenes.captions import OPPOSITE, SHAPE_LEXICON, CaptionWord, Lexicon, meaning, write_caption

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
SHAPE_GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "gray": (150, 152, 155),
    "black": (24, 24, 28),
    "turquoise": (90, 205, 200),
}

KINDS = ("one", "count", "two", "relation", "three")
"""One object; two or three alike; two different ones; two different ones with their relation; three different ones."""

DIFFERENT = {"one": 1, "count": 1, "two": 2, "relation": 2, "three": 3}
"""Kind of scene -> number of different objects."""

REVERSED = OPPOSITE | {other: relation for relation, other in OPPOSITE.items()}
"""Relation -> the same relation with its objects exchanged."""


@dataclass(frozen=True)
class Object:
    """One object of the picture: its centre (x, y) and its radius in units of the shorter side.

    `shape` is its noun, "circle" or "cat"; `colour` is "" for an object with its own colours.
    """

    shape: str
    colour: str
    size: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.0


@dataclass(frozen=True)
class Scene:
    """The content of a picture and its caption.

    `kind` is one of the world's kinds; `relation` is (subject, relation, others) if the caption states one, where each
    number is that of the first object of a group, such as "two bananas" (see `related`); `places` are the places in
    the picture that it states, (object, place); `data` is the name of its world, one of `worlds.WORLDS`.
    """

    kind: str
    objects: tuple[Object, ...]
    ground: str
    relation: tuple[int, str, int] | tuple[int, str, int, int] | None = None
    caption: str = ""
    words: tuple[CaptionWord, ...] = ()
    data: str = "shapes"
    places: tuple[tuple[int, str], ...] = ()


def write_captions(rng: np.random.Generator, scene: Scene, languages: Sequence[str], lexicon: Lexicon) -> list[Scene]:
    """The scene once for each language, with its caption.

    Each language starts from the same state of `rng`: its caption does not depend on the others.
    """
    relation = scene.relation and scene.relation[1]
    state, captioned = rng.bit_generator.state, []
    for language in languages:
        rng.bit_generator.state = state
        counted = scene.kind == "count"
        text, words = write_caption(rng, scene.objects, counted, scene.ground, relation, language, lexicon)
        captioned.append(replace(scene, caption=text, words=words))
    return captioned


def choose_kind(rng: np.random.Generator) -> str:
    """One of `KINDS`, in the proportions of the training scenes."""
    return str(rng.choice(KINDS, p=[0.15, 0.2, 0.2, 0.3, 0.15]))


def parse_caption(text: str, lexicon: Lexicon = SHAPE_LEXICON, data: str = "shapes") -> Scene | None:
    """The scene that a caption describes, its objects without positions; None if the text describes no scene."""
    parsed = meaning(text, lexicon)
    if parsed is None:
        return None
    groups = [[Object(shape, colour, size)] * count for count, size, colour, shape in parsed.groups]
    objects = tuple(o for group in groups for o in group)
    relation = (0, parsed.relation, len(groups[0])) if parsed.relation else None
    single = "count" if len(objects) > 1 else "one"
    kind = "relation" if relation else {1: single, 2: "two"}.get(len(groups), "three")
    return Scene(kind, objects, parsed.ground, relation, text, data=data)


def place(
    rng: np.random.Generator, kind: str, objects: Sequence[Object], reach: float, gap: float
) -> tuple[tuple[Object, ...], tuple[int, str, int] | None]:
    """The objects at random positions inside the picture, without overlap, and a relation that holds between them.

    reach: half the side of an object's box for a radius of 1; gap: smallest distance between two boxes.
    """
    reaches = reach * np.array([o.radius for o in objects])  # (objects,)
    while True:
        # 64 layouts at a time, because three big objects rarely fit.
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
    """The objects from left to right, or from top to bottom if they spread further vertically, as people list them.

    The layout of a relation depends on its word and on the order of its objects together, but on neither alone. Like a
    parity, that is hard to learn by gradient descent. Lists in reading order teach the meaning of order first.
    """
    spread = np.ptp([(o.x, o.y) for o in objects], axis=0)
    return tuple(sorted(objects, key=lambda o: o.x if spread[0] > spread[1] else o.y))


def relation_between(a: Object, b: Object, margin: float = 1.25) -> str | None:
    """The position of `a` relative to `b` along the dominant axis, or None if neither dominates by `margin`."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > margin * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > margin * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def relation_holds(relation: str, a: Object, others: Sequence[Object], margin: float = 1.0) -> bool:
    """Whether `a` is in this relation to the others; a larger margin asks for it more clearly.

    "beside" is left or right of. "between": as seen along the line through the two others, `a` is in the middle three
    fifths between them, and no farther from the line than a third of their distance.
    """
    if relation == "beside":
        return relation_between(a, others[0], margin) in ("left of", "right of")
    if relation != "between":
        return relation_between(a, others[0], margin) == relation
    start, end = (np.array([o.x, o.y]) for o in others)
    along, point = end - start, np.array([a.x, a.y]) - start
    length = float(np.hypot(*along))
    if length == 0:
        return False
    share = float(point @ along) / length**2
    away = abs(float(along[0] * point[1] - along[1] * point[0])) / length
    return 0.2 * margin <= share <= 1 - 0.2 * margin and away <= length / 3 / margin


def related(scene: Scene) -> list[tuple[int, ...]]:
    """The objects that are in a scene's relation, (subject, others), once for each object of a group.

    If a cat is left of two bananas, it is left of each.
    """
    assert scene.relation
    starts = (scene.relation[0], *scene.relation[2:])

    def group(first: int) -> Iterator[int]:
        """The objects from the first one on that are like it, up to the next group."""
        for i in range(first, len(scene.objects)):
            if i != first and (i in starts or _look(scene.objects[i]) != _look(scene.objects[first])):
                return
            yield i

    return list(product(*map(group, starts)))


def _look(o: Object) -> tuple[str, str, str]:
    return o.shape, o.colour, o.size


def place_holds(place: str, o: Object) -> bool:
    """Whether an object is at a place in the picture, such as "top left" or "left"; its centre decides."""
    inside = [o.x < 0.45 if "left" in place else o.x > 0.55 if "right" in place else True]
    inside.append(o.y < 0.45 if "top" in place else o.y > 0.55 if "bottom" in place else True)
    if place == "middle":
        inside = [0.3 < o.x < 0.7, 0.3 < o.y < 0.7]
    return all(inside)


def word_mask(word: CaptionWord, masks: np.ndarray) -> np.ndarray | None:
    """The region a word describes, (h, w) in [0, 1], or None for a relation, which has no region.

    masks: those that `render` returns for the scene, (objects, h, w).
    """
    if word.kind == "relation":
        return None
    if word.kind == "ground":
        return 1 - masks.max(axis=0)
    return masks[list(word.objects)].max(axis=0)
