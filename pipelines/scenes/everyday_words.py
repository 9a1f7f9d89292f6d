"""The things of the world of everyday things: their names in English and Chinese, and the words beside them.

`everyday.tsv` is the table: emoji, English names, Chinese measure word, Chinese names, and the grounds that the emoji
stands out on. The names are chosen by hand from the annotations of Unicode CLDR. "name/plural" gives an irregular
plural; "name/-" is a name without plural and article. The first name in each language is the usual one. The table's
order decides what is held out of training (`everyday.held_out`): add new rows at the end.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipelines.scenes.captions import CHINESE_COLOURS, CHINESE_GROUNDS, CHINESE_SHAPES, Lexicon, Noun
from pipelines.scenes.emoji_font import EMOJI_GROUNDS
from pipelines.scenes.scene import COLOURS
from pipelines.scenes.shapes import SHAPES

GROUNDS = ("white", "turquoise", "blue", "green", "gray", "yellow", "pink", "purple", "black")
"""The first of these that all things of a scene stand out on is its ground if the caption names none."""

SHAPE_COLOURS = {
    "circle": "red",
    "square": "blue",
    "triangle": "green",
    "diamond": "purple",
    "star": "yellow",
    "heart": "red",
    "cross": "red",
}
"""Shape -> its colour if the caption names none."""

CLEAR = 100.0
"""Smallest RGB distance between a shape and a ground that it stands out on, as in `emoji_font.clear_grounds`."""


@dataclass(frozen=True)
class Name:
    """An English name of a thing; `plural` is "" for one without plural and article, such as "bread"."""

    text: str
    plural: str


@dataclass(frozen=True)
class Thing:
    """A thing of this world: an emoji with its own colours, or a shape, whose emoji is ""."""

    emoji: str
    english: tuple[Name, ...]
    measure: str
    chinese: tuple[str, ...]
    grounds: frozenset[str]


def plural_of(name: str) -> str:
    """The regular English plural."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2] not in "aeiou" else name + "s"


def _name(entry: str) -> Name:
    text, _, plural = entry.partition("/")
    return Name(text, {"": plural_of(text), "-": ""}.get(plural, plural))


def _read_table() -> dict[str, Thing]:
    things = {}
    with (Path(__file__).parent / "everyday.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            names = tuple(map(_name, row["english"].split(",")))
            chinese, grounds = tuple(row["chinese"].split(",")), frozenset(row["grounds"].split(","))
            things[names[0].text] = Thing(row["emoji"], names, row["measure"], chinese, grounds)
    return things


EMOJI_THINGS = _read_table()

THINGS: dict[str, Thing] = EMOJI_THINGS | {
    shape: Thing("", (_name(shape),), "颗" if shape in ("star", "heart") else "个", CHINESE_SHAPES[shape], frozenset())
    for shape in SHAPES
}
"""Usual English name -> thing. Emoji first, then the shapes, whose grounds depend on their colour (`clear_grounds`)."""


@cache
def clear_grounds(thing: str, colour: str = "") -> frozenset[str]:
    """The grounds that a thing, or a shape of this colour, stands out on."""
    if not colour:
        return THINGS[thing].grounds
    own = np.array(COLOURS[colour])
    return frozenset(ground for ground, rgb in EMOJI_GROUNDS.items() if np.linalg.norm(own - rgb) > CLEAR)


def default_ground(things: list[tuple[str, str]]) -> str | None:
    """The ground of these (thing, colour) if their caption names none; None if no ground suits all of them."""
    common = frozenset(GROUNDS).intersection(*(clear_grounds(*thing) for thing in things))
    return next((ground for ground in GROUNDS if ground in common), None)


def all_names() -> tuple[str, ...]:
    """Every name of every thing, in both languages: scenes show some of them rarely."""
    english = [word for thing in THINGS.values() for name in thing.english for word in (name.text, name.plural) if word]
    return (*english, *(name for thing in THINGS.values() for name in thing.chinese))


EVERYDAY_LEXICON = Lexicon(
    {name: Noun(thing.english[0].plural, thing.chinese, thing.measure) for name, thing in THINGS.items()},
    CHINESE_COLOURS,
    CHINESE_GROUNDS | {name: CHINESE_COLOURS[name] for name in ("yellow", "green", "blue", "pink", "purple")},
)
