"""A scene: the objects in a picture, where each one is, and the caption that describes them.

Lengths and positions are in units of the picture's shorter side, x to the right and y down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.scenes.captions import OPPOSITE, Vocabulary, Word, caption, meaning
from pipelines.scenes.captions import SHAPES as VOCABULARY

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

KINDS = ("one", "count", "two", "relation", "three")
"""one object; two or three of a kind; two different ones; the same with their relation; three different ones."""

DIFFERENT = {"one": 1, "count": 1, "two": 2, "relation": 2, "three": 3}
"""A kind -> how many different things it shows."""

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


def tell(rng: np.random.Generator, untold: Scene, languages: Sequence[str], vocabulary: Vocabulary) -> list[Scene]:
    """A scene with its caption in each of these languages, as `rng` would have it in each alone."""
    said = untold.relation and untold.relation[1]
    state, told = rng.bit_generator.state, []
    for language in languages:
        rng.bit_generator.state = state
        text, words = caption(rng, untold.objects, untold.kind == "count", untold.ground, said, language, vocabulary)
        told.append(replace(untold, caption=text, words=words))
    return told


def kind_of(rng: np.random.Generator) -> str:
    """One of `KINDS`, in training's mixture."""
    return str(rng.choice(KINDS, p=[0.15, 0.2, 0.2, 0.3, 0.15]))


def parse_caption(text: str, vocabulary: Vocabulary = VOCABULARY, data: str = "shapes") -> Scene | None:
    """The scene that a caption describes, its objects without positions; None for a text that describes none."""
    said = meaning(text, vocabulary)
    if said is None:
        return None
    groups = [[Object(shape, colour, size)] * count for count, size, colour, shape in said.groups]
    objects = tuple(o for group in groups for o in group)
    relation = (0, said.relation, len(groups[0])) if said.relation else None
    alone = "count" if len(objects) > 1 else "one"
    kind = "relation" if relation else {1: alone, 2: "two"}.get(len(groups), "three")
    return Scene(kind, objects, said.ground, relation, text, data=data)


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


def relation_between(a: Object, b: Object, margin: float = 1.25) -> str | None:
    """How `a` lies to `b` along the axis that dominates by `margin`, or None where it is neither."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > margin * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > margin * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def word_mask(word: Word, masks: np.ndarray) -> np.ndarray | None:
    """Where a word's meaning lies, (h, w) in [0, 1], or None for a relation, which lies nowhere.

    masks: what `render` gave for the scene, (objects, h, w).
    """
    if word.kind == "relation":
        return None
    if word.kind == "ground":
        return 1 - masks.max(axis=0)
    return masks[list(word.objects)].max(axis=0)
