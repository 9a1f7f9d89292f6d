"""The world of everyday things: endless scenes of one to four emoji and coloured shapes, captioned as people type.

A scene is a pure function of (seed, index). The emoji are those of Noto Color Emoji (SIL Open Font License 1.1).
Pictures need that font; scenes and captions do not. Lengths and places are in units of the picture's shorter side, x to
the right and y down.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from pipelines.scenes.everyday_words import EMOJI_THINGS, GROUNDS, SHAPE_COLOURS, THINGS, clear_grounds, default_ground
from pipelines.scenes.glyphs import Glyph, emoji_glyph, paste, shared
from pipelines.scenes.scene import COLOURS, Object, Scene, related, relation_holds
from pipelines.scenes.shapes import HELD_OUT, SHAPES, coverage
from pipelines.scenes.typed import Group, write_typed
from pipelines.scenes.typed_words import PLACES

EVERYDAY_KINDS = {
    "one": 0.1,
    "count": 0.1,
    "place": 0.12,
    "two": 0.08,
    "groups": 0.12,
    "relation": 0.13,
    "between": 0.08,
    "several": 0.06,
    "three": 0.09,
    "four": 0.12,
}
"""Kind of scene -> its share of the training scenes. "place": one or two objects, and where in the picture each is;
"groups": two kinds of things, one of them several times; "between": one object between two others; "several": a
relation of several alike objects, such as "two birds above a tree" or "a bee between two roses"."""

ALONE = {"small": 0.30, "medium": 0.42, "big": 0.58}
TOGETHER = {"small": 0.22, "medium": 0.30, "big": 0.42}
"""Name of a size -> the longer side of the object's box, if it is the only one and if there are others."""

SIDES = (0.22, 0.30, 0.42, 0.58)
"""All sides, those that two tables share only once."""

CROWDED = 0.42
"""Largest sum of the objects' squares, as a share of the picture: more do not fit at random."""

GAP = 0.02


@cache
def held_out_grounds() -> dict[str, str]:
    """Emoji -> the ground that no training scene shows it on. Never white or turquoise, the usual grounds if a caption
    names none.
    """
    choices = {name: [g for g in GROUNDS[2:] if g in thing.grounds] for name, thing in EMOJI_THINGS.items()}
    return {name: found[i % len(found)] for i, (name, found) in enumerate(choices.items()) if found}


@cache
def _numbers() -> dict[str, int]:
    return {name: i for i, name in enumerate(THINGS)}


def held_out(scene: Scene) -> frozenset[tuple[str, ...]]:
    """What a scene shows that no training scene shows.

    Two things, if the sum of their numbers in the table is 3 modulo 10; an emoji on the ground of `held_out_grounds`;
    a shape in a colour of `shapes.HELD_OUT`; the subject of a relation, if the sum of its number and the relation's is
    5 modulo 8.
    """
    numbers = _numbers()
    names = list(dict.fromkeys(o.shape for o in scene.objects))
    found: list[tuple[str, ...]] = [
        ("things", a, b) for i, a in enumerate(names) for b in names[:i] if (numbers[a] + numbers[b]) % 10 == 3
    ]
    found += [("ground", name, scene.ground) for name in names if held_out_grounds().get(name) == scene.ground]
    found += [("colour", o.shape, o.colour) for o in scene.objects if (o.shape, o.colour) in HELD_OUT]
    if scene.relation:
        subject = scene.objects[scene.relation[0]].shape
        if (numbers[subject] + RELATION_NUMBERS[scene.relation[1]]) % 8 == 5:
            found.append(("relation", subject, scene.relation[1]))
    return frozenset(found)


RELATION_NUMBERS = {"left of": 0, "right of": 1, "above": 2, "below": 3, "beside": 4, "between": 5}


def scene(seed: int, index: int, kind: str | None = None, held_out: bool = False, language: str = "en") -> Scene:
    """The scene number `index` of the endless series `seed`.

    Args:
        kind: one of `EVERYDAY_KINDS`, or None for the training mixture.
        held_out: False never shows what is `held_out`; True, for testing, shows it in every scene.
        language: language of the caption, one of `captions.LANGUAGES`; the picture is the same in all.
    """
    return tellings(seed, index, (language,), kind, held_out)[0]


def tellings(
    seed: int, index: int, languages: Sequence[str], kind: str | None = None, held_out: bool = False
) -> list[Scene]:
    """The same `scene` with a caption in each of several languages."""
    rng = np.random.default_rng((seed, index))
    if kind is None:
        kind = str(rng.choice(list(EVERYDAY_KINDS), p=list(EVERYDAY_KINDS.values())))
    wanted = _fact_to_show(rng, kind) if held_out else ""
    while True:
        found = _try(rng, kind, wanted)
        if found is not None:
            break
    groups, made = found
    things = [(o.shape, o.colour) for o in made.objects]
    named = made.ground if made.ground != default_ground(things) or rng.random() < 0.1 else None
    told, state = [], rng.bit_generator.state
    for language in languages:
        rng.bit_generator.state = state  # no caption depends on the other languages
        caption, words = write_typed(rng, groups, made.relation and made.relation[1], named, language)
        told.append(replace(made, caption=caption, words=words))
    return told


def _fact_to_show(rng: np.random.Generator, kind: str) -> str:
    """What kind of held-out fact a test scene of this kind shows."""
    facts = ["ground", "colour"]
    if kind not in ("one", "count", "place"):
        facts.append("things")
    if kind in ("relation", "between", "several"):
        facts.append("relation")
    return str(rng.choice(facts))


def _try(rng: np.random.Generator, kind: str, wanted: str) -> tuple[list[Group], Scene] | None:
    """A random scene of this kind, or None if what was drawn is not allowed or does not fit.

    wanted: the kind of held-out fact it must show; "": none.
    """
    counts = _counts(rng, kind)
    things = _things(rng, len(counts), wanted == "colour")
    ground = _ground(rng, things)
    if ground is None:
        return None
    total = sum(counts)
    table = ALONE if total == 1 else TOGETHER
    sizes = rng.choice(list(table), len(counts), p=[0.25, 0.5, 0.25]).tolist()
    objects = [
        Object(thing, colour, size, radius=table[size] / 2)
        for (thing, colour), size, count in zip(things, sizes, counts, strict=True)
        for _ in range(count)
    ]
    sides = np.array([2 * o.radius for o in objects])
    if (sides**2).sum() > CROWDED:
        return None
    relation, places = _statement(rng, kind, counts)
    made = Scene(kind, tuple(objects), ground, relation, data="everyday", places=places)
    if (wanted not in {fact[0] for fact in held_out(made)}) if wanted else held_out(made):
        return None
    centres = _layout(rng, made, sides)
    if centres is None:
        return None
    placed = [replace(o, x=float(x), y=float(y)) for o, (x, y) in zip(objects, centres, strict=True)]
    ends = np.cumsum(counts).tolist()
    spans = [tuple(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
    if not relation and not places:
        placed, spans = _in_reading_order(placed, spans)
    stated = dict(places)
    groups = []
    for span in spans:
        o = placed[span[0]]
        # What goes without saying is decided once: captions in two languages that state the same are translations.
        size = o.size if o.size != "medium" or rng.random() < 0.1 else ""
        colour = o.colour if o.colour != SHAPE_COLOURS.get(o.shape) or rng.random() < 0.5 else ""
        groups.append(Group(o.shape, colour, size, span, stated.get(span[0], "")))
    return groups, replace(made, objects=tuple(placed))


def _counts(rng: np.random.Generator, kind: str) -> list[int]:
    """How many alike objects each group of a scene has."""
    if kind == "count":
        return [int(rng.integers(2, 5))]
    if counts := GROUPED.get(kind):
        return list(counts[int(rng.integers(len(counts)))])
    different = {"one": 1, "two": 2, "relation": 2, "between": 3, "three": 3, "four": 4}
    return [1] * (different[kind] if kind in different else 1 + int(rng.random() < 0.3))


GROUPED = {
    "groups": [(2, 1), (1, 2), (2, 2), (3, 1), (1, 3)],
    "several": [(1, 2), (1, 2), (2, 1), (2, 1), (2, 2), (1, 3), (3, 1)],
}
"""Kind of scene -> numbers of objects in its two groups, all as likely."""


def _things(rng: np.random.Generator, different: int, held_out_colour: bool) -> list[tuple[str, str]]:
    """Different things with their colours; about one in seven is a shape."""
    things: dict[str, str] = {}
    while len(things) < different:
        if held_out_colour and not things:
            shape, colour = sorted(HELD_OUT)[int(rng.integers(len(HELD_OUT)))]
            things[shape] = colour
        elif rng.random() < 0.15:
            shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
            usual = rng.random() < 0.3
            things[shape] = SHAPE_COLOURS[shape] if usual else _COLOURS[int(rng.integers(len(_COLOURS)))]
        else:
            things[_EMOJI[int(rng.integers(len(_EMOJI)))]] = ""
    return list(things.items())


_SHAPES, _COLOURS, _EMOJI = list(SHAPES), list(COLOURS), list(EMOJI_THINGS)


def _ground(rng: np.random.Generator, things: list[tuple[str, str]]) -> str | None:
    """A ground that all things stand out on: in half of the scenes the one that a caption need not name."""
    default = default_ground(things)
    if default is None or rng.random() < 0.5:
        return default
    common = frozenset(GROUNDS).intersection(*(clear_grounds(*thing) for thing in things))
    choices = [ground for ground in GROUNDS if ground in common]
    return choices[int(rng.integers(len(choices)))]


Relation = tuple[int, str, int] | tuple[int, str, int, int] | None


def _statement(rng: np.random.Generator, kind: str, counts: list[int]) -> tuple[Relation, tuple[tuple[int, str], ...]]:
    """The relation or the places in the picture that a caption of this kind states."""
    if kind == "between" or (kind == "several" and counts == [1, 2] and rng.random() < 0.3):
        return (0, "between", 1, 2), ()
    if kind in ("relation", "several"):
        return (0, str(rng.choice(["left of", "right of", "above", "below", "beside"])), counts[0]), ()
    if kind == "place":
        names = list(PLACES) if len(counts) == 1 else list(PLACES)[:-1]
        return None, tuple(enumerate(rng.choice(names, len(counts), replace=False).tolist()))
    return None, ()


COLUMNS = {"left": (0.0, 0.36), "right": (0.64, 1.0)}
ROWS = {"top": (0.0, 0.36), "bottom": (0.64, 1.0)}
MIDDLE = (0.42, 0.58)


def _layout(rng: np.random.Generator, made: Scene, sides: np.ndarray) -> np.ndarray | None:
    """Random centres (objects, 2) of a scene's objects with these sides (objects,) for which its statements hold,
    without overlap; None if a few hundred layouts did not fit.
    """
    count, reach = len(sides), sides / 2
    low = np.repeat(reach[:, None] + 0.01, 2, axis=1)  # (objects, 2)
    high = 1 - low
    for i, place in made.places:
        for axis, bands in enumerate((COLUMNS, ROWS)):
            start, end = next((band for word, band in bands.items() if word in place), MIDDLE)
            low[i, axis], high[i, axis] = max(low[i, axis], start), min(high[i, axis], end)
    if made.kind == "one":
        return np.clip(rng.normal(0.5, 0.1, (1, 2)), low, high)
    if count == 1:
        return rng.uniform(low, high)[None, 0]
    together = related(made) if made.relation else []
    apart = reach[:, None] + reach + GAP - 2 * np.eye(count)  # an object may touch itself
    for _ in range(8):
        centres = rng.uniform(low, high, (64, count, 2))
        distance = np.abs(centres[:, :, None] - centres[:, None]).max(axis=-1)  # (64, objects, objects)
        fits = (distance > apart).all(axis=(1, 2))
        for layout in centres[fits]:
            if made.relation is None or _hold(made.relation[1], together, layout):
                return layout
    return None


def _hold(relation: str, together: list[tuple[int, ...]], centres: np.ndarray) -> bool:
    """Whether a relation clearly holds between all that are `related`, with these centres."""
    points = [Object("", "", "", float(x), float(y)) for x, y in centres]
    return all(relation_holds(relation, points[a], [points[i] for i in b], margin=1.25) for a, *b in together)


def _in_reading_order(
    objects: list[Object], spans: list[tuple[int, ...]]
) -> tuple[list[Object], list[tuple[int, ...]]]:
    """Groups of objects from left to right, or from top to bottom if they spread further vertically.

    Why: see `scene._in_reading_order`.
    """
    middles = np.array([np.mean([(objects[i].x, objects[i].y) for i in span], axis=0) for span in spans])
    axis = int(np.ptp(middles[:, 0]) <= np.ptp(middles[:, 1]))
    ordered: list[Object] = []
    new: list[tuple[int, ...]] = []
    for group in np.argsort(middles[:, axis], kind="stable").tolist():
        new.append(tuple(range(len(ordered), len(ordered) + len(spans[group]))))
        ordered += [objects[i] for i in spans[group]]
    return ordered, new


def render(scene: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, see `glyphs.paste`.

    size: a side, or (height, width), in pixels -> picture (h, w, 3) uint8 and the exact mask of each object,
    (objects, h, w) float32 in [0, 1].

    Raises:
        ValueError: the emoji font is missing.
    """
    return paste(scene, size, lambda o, side: thing_glyph(o.shape, o.colour, side))


@cache
def thing_glyph(thing: str, colour: str, side: int) -> Glyph:
    """The glyph of a thing, or of a shape in a colour, whose longer side has `side` pixels."""
    if not colour:
        return emoji_glyph(THINGS[thing].emoji, side)
    left, top = SHAPES[thing].min(axis=0)
    extent = np.ptp(SHAPES[thing], axis=0)
    radius = side / extent.max()
    width, height = (max(1, round(radius * length)) for length in extent)
    alpha = coverage(thing, -left * radius, -top * radius, radius, height, width)
    return shared(alpha[..., None] * np.array(COLOURS[colour], np.float32), alpha)
