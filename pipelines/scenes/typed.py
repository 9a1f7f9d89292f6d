"""Captions as people type them: "cat", "two cats and a moon", "a cat in the top left", "猫在左边".

A caption names the things of a scene. It may omit a medium size, the usual colour of a shape, the default ground
(`everyday_words`) and the number of two, so a short prompt still has exactly one meaning. `typed_meaning` (in
`typed_grammar`) reads it back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.scenes.captions import CHINESE_SIZES, SIZE_WORDS, CaptionWord, Lexicon, _Writer
from pipelines.scenes.everyday_words import EVERYDAY_LEXICON, THINGS
from pipelines.scenes.typed_words import (
    CHINESE_COUNTS,
    CHINESE_OPENINGS,
    CHINESE_PLACES,
    COUNTS,
    GRAY,
    OPENINGS,
    PLACES,
    TYPED_CHINESE_COLOURS,
    TYPED_CHINESE_RELATIONS,
    TYPED_RELATIONS,
)


@dataclass(frozen=True)
class Group:
    """Alike objects that are named together, by their indices, and what a caption says of them.

    colour, size, place: "" if it says nothing of it.
    """

    thing: str
    colour: str
    size: str
    objects: tuple[int, ...]
    place: str = ""


class TypedWriter(_Writer):
    """A caption under construction, in the style of one person: with or without articles."""

    def __init__(self, rng: np.random.Generator, lexicon: Lexicon = EVERYDAY_LEXICON):
        super().__init__(rng, lexicon)
        self.draws = iter(rng.random(64).tolist())  # one call for all: 64 are more than any caption needs

    def chance(self, share: float) -> bool:
        return next(self.draws) < share

    def pick(self, *wordings: str) -> str:
        return wordings[int(next(self.draws) * len(wordings))]

    def usual(self, wordings: Sequence[str], share: float = 0.7) -> str:
        """The first wording in this share of the captions, else one of the others."""
        return wordings[0] if len(wordings) == 1 or self.chance(share) else self.pick(*wordings[1:])


def write_typed(
    rng: np.random.Generator,
    groups: Sequence[Group],
    relation: str | None,
    ground: str | None,
    language: str,
) -> tuple[str, tuple[CaptionWord, ...]]:
    """One of the many wordings of a scene's caption, with the objects that each word describes.

    Args:
        relation: of the first group to the others, or None.
        ground: None for one that the caption may omit because it is the default.
        language: one of `captions.LANGUAGES`.
    """
    writer = TypedWriter(rng)
    {"en": _write_english, "zh": _write_chinese}[language](writer, groups, relation, ground)
    return writer.text, tuple(writer.words)


def _write_english(writer: TypedWriter, groups: Sequence[Group], relation: str | None, ground: str | None) -> None:
    write = writer.write
    ground_first = ground is not None and writer.chance(0.15)
    articles = writer.chance(0.6)
    if ground_first and ground is not None:
        write("on a ")
        _write_ground(writer, ground)
        write(writer.pick(" background, ", " ground, "))
    elif writer.chance(0.25):
        if writer.chance(0.3):
            write("there are " if len(groups[0].objects) > 1 else "there is ")
        else:
            write(writer.pick(*OPENINGS))
    subject_first = not writer.text
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        if i == 1 and relation:
            verb = " are " if len(groups[0].objects) > 1 else " is "
            write(writer.pick(" ", " ", verb) if subject_first else " ")
            write(writer.usual(TYPED_RELATIONS[relation], 0.5), "relation", _all(groups))
            write(" ")
        elif i:
            serial = len(groups) > 2 and not relation and writer.chance(0.25)  # a comma before "and"
            write(", and " if last and serial else " and " if last else ", ")
        _write_english_group(writer, group, articles)
        if group.place:
            write(" ")
            write(writer.usual(PLACES[group.place], 0.6), "relation", group.objects)
    if ground is not None and not ground_first:
        write(writer.pick(" on a ", " on a ", ", on a ", " on "))
        short = writer.text.endswith(" on ")
        _write_ground(writer, ground)
        write("" if short else writer.pick(" background", " background", " ground"))
    # Capitals and punctuation, as people type them. Neither moves a word: the spans stay valid.
    if writer.chance(0.25):
        writer.text = writer.text[0].upper() + writer.text[1:]
    elif writer.chance(0.05):
        writer.text = writer.text.upper()
    write(writer.pick("", "", "", "", ".", "!"))


def _write_ground(writer: TypedWriter, ground: str) -> None:
    writer.write(writer.usual(GRAY) if ground == "gray" else ground, "ground")


def article(word: str) -> str:
    """ "a" or "an", by sound: a unicorn, a ewe, an hourglass."""
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "ufo", "ewe"))
    return "an" if vowel or word.startswith("hour") else "a"


def _all(groups: Sequence[Group]) -> tuple[int, ...]:
    return tuple(i for group in groups for i in group.objects)


def _write_english_group(writer: TypedWriter, group: Group, articles: bool) -> None:
    write, objects = writer.write, group.objects
    names = [n for n in THINGS[group.thing].english if n.plural or len(objects) == 1]
    name = names[0] if len(names) == 1 or writer.chance(0.7) else names[1 + int(next(writer.draws) * (len(names) - 1))]
    size = writer.usual(SIZE_WORDS[group.size]) if group.size else ""
    if len(objects) > 1:
        if len(objects) > 2 or name.plural == name.text or writer.chance(0.85):  # "cats" are two
            write(writer.usual(COUNTS[len(objects)], 0.85), "count", objects)
            write(" ")
    elif articles and name.plural:
        write(writer.usual((f"{article(size or group.colour or name.text)} ", "the ", "one "), 0.95))
    for text, kind in ((size, "size"), (group.colour, "colour")):
        if text:
            write(text, kind, objects)
            write(" ")
    write(name.plural if len(objects) > 1 else name.text, "shape", objects)


def _write_chinese(writer: TypedWriter, groups: Sequence[Group], relation: str | None, ground: str | None) -> None:
    write, ground_words = writer.write, writer.lexicon.grounds
    ground_first = ground is not None and writer.chance(0.4)
    counts = writer.chance(0.6)
    if ground_first and ground is not None:
        write(writer.pick("", "在"))
        write(ground_words[ground], "ground")
        write(writer.pick("背景上有", "背景上，"))
    elif writer.chance(0.25):
        write(writer.pick(*CHINESE_OPENINGS))
    if relation and relation != "between" and not writer.text and writer.chance(0.2):
        # "猫的左边有狗" is "狗在猫的左边".
        _write_chinese_group(writer, groups[1], counts and not writer.chance(0.5))
        _write_chinese_relation(writer, relation, groups)
        write("有")
        _write_chinese_group(writer, groups[0], counts)
    else:
        _write_chinese_row(writer, groups, relation, counts)
    if ground is not None and not ground_first:
        opening = writer.pick("，在", "，背景是", "，")
        write(opening)
        write(ground_words[ground], "ground")
        write({"在": "背景上", "是": "的"}.get(opening[-1], "背景"))
    write(writer.pick("", "", "", "", "。", "！"))


def _write_chinese_row(writer: TypedWriter, groups: Sequence[Group], relation: str | None, counts: bool) -> None:
    """The groups one after another, each with its place, and what relates the first to the others."""
    write = writer.write
    place_first = bool(groups[0].place) and writer.text in ("", "图中有") and writer.chance(0.5)
    if place_first:
        writer.text = ""
    for i, group in enumerate(groups):
        if i:
            last = i == len(groups) - 1
            joined = "在" if i == 1 else "和"
            write(joined if relation else ("，" if group.place else "和" if last else "、"))
        if place_first:
            _write_place(writer, group)
            write(writer.pick("有", "有", "") if counts else "有")
        _write_chinese_group(writer, group, counts and not (relation and i and writer.chance(0.5)))
        if group.place and not place_first:
            write("在")
            _write_place(writer, group)
    if relation:
        _write_chinese_relation(writer, relation, groups)


def _write_chinese_relation(writer: TypedWriter, relation: str, groups: Sequence[Group]) -> None:
    writer.write("" if relation in ("beside", "between") or writer.chance(0.3) else "的")
    writer.write(writer.usual(TYPED_CHINESE_RELATIONS[relation], 0.6), "relation", _all(groups))


def _write_place(writer: TypedWriter, group: Group) -> None:
    writer.write(writer.usual(CHINESE_PLACES[group.place], 0.7), "relation", group.objects)


def _write_chinese_group(writer: TypedWriter, group: Group, counts: bool) -> None:
    write, objects, thing = writer.write, group.objects, THINGS[group.thing]
    name = writer.usual(thing.chinese)
    if len(objects) > 1 or counts:
        number = writer.usual(CHINESE_COUNTS[len(objects)], 0.9) + writer.usual((thing.measure, "个"), 0.85)
        write(number, *(("count", objects) if len(objects) > 1 else ()))
    if group.size:
        size = writer.usual(CHINESE_SIZES[group.size])
        write(size, "size", objects)
        particle = group.colour or len(size) > 1 or name.startswith(size)  # 小猫, but 很小的猫 and 大的大象
        write("的" if particle else writer.pick("的", ""))
    if group.colour:
        write(writer.usual(TYPED_CHINESE_COLOURS[group.colour], 0.8), "colour", objects)
        write(writer.pick("的", ""))
    write(name, "shape", objects)
