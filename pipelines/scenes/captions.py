"""Captions of scenes in English and Chinese: their grammar, the objects of each word, and a parser for their meaning.

A caption names everything visible, except for the defaults: a medium size and a white ground may be omitted. So a short
prompt still has exactly one meaning.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np

LANGUAGES = {"en": "English", "zh": "Chinese"}

SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium", "medium-sized"), "big": ("big", "large")}
COUNT_WORDS = {2: "two", 3: "three"}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
"""Relation -> its wordings."""

CHINESE_SHAPES = {
    "circle": ("圆形", "圆"),
    "square": ("正方形", "方块"),
    "triangle": ("三角形",),
    "diamond": ("菱形",),
    "star": ("五角星", "星星"),
    "heart": ("心形", "爱心"),
    "cross": ("十字形", "十字"),
}
CHINESE_COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
}
CHINESE_GROUNDS = {"white": "白色", "gray": "灰色", "black": "黑色", "turquoise": "青色"}
CHINESE_SIZES = {"small": ("小", "很小"), "medium": ("中等", "中等大小"), "big": ("大", "很大")}
CHINESE_NUMERALS = {1: "一", 2: "两", 3: "三"}
CHINESE_RELATIONS = {
    "left of": ("左边", "左侧", "左面"),
    "right of": ("右边", "右侧", "右面"),
    "above": ("上面", "上方", "上边"),
    "below": ("下面", "下方", "下边"),
}
OPPOSITE = {"right of": "left of", "below": "above"}


@dataclass(frozen=True)
class Noun:
    """The names of a kind of object: English plural, Chinese names, and the Chinese measure word."""

    plural: str
    chinese: tuple[str, ...]
    measure: str = "个"


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The words for the captions of one world: English word -> noun or Chinese word.

    `colours` is empty if every object has its own colours, as emoji do.
    """

    nouns: Mapping[str, Noun]
    colours: Mapping[str, str]
    grounds: Mapping[str, str]


SHAPE_LEXICON = Lexicon(
    {shape: Noun(shape + ("es" if shape.endswith("s") else "s"), names) for shape, names in CHINESE_SHAPES.items()},
    CHINESE_COLOURS,
    CHINESE_GROUNDS,
)


class CaptionObject(Protocol):
    """The properties of an object that a caption mentions."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...


@dataclass(frozen=True)
class CaptionWord:
    """A word or phrase of the caption: characters [start, end), its kind, and the indices of the objects it describes.

    A word for the ground describes no object.
    """

    start: int
    end: int
    kind: str  # shape (the noun), colour, size, count, relation or ground
    objects: tuple[int, ...] = ()


@dataclass
class _Writer:
    """A caption under construction."""

    rng: np.random.Generator
    lexicon: Lexicon
    text: str = ""
    words: list[CaptionWord] = field(default_factory=list)

    def write(self, piece: str, kind: str | None = None, objects: tuple[int, ...] = ()) -> None:
        if kind:
            self.words.append(CaptionWord(len(self.text), len(self.text) + len(piece), kind, objects))
        self.text += piece

    def pick(self, *wordings: str) -> str:
        return str(self.rng.choice(wordings))

    def pick_size(self, wordings: Mapping[str, tuple[str, ...]], size: str) -> str:
        """A wording of a size. A medium size is mostly omitted; small and big never are."""
        return self.pick(*wordings[size]) if size != "medium" or self.rng.random() < 0.2 else ""


Groups = Sequence[tuple[int, ...]]
"""Indices of the objects that are named together."""


def write_caption(
    rng: np.random.Generator,
    objects: Sequence[CaptionObject],
    counted: bool,
    ground: str,
    relation: str | None,
    language: str,
    lexicon: Lexicon = SHAPE_LEXICON,
) -> tuple[str, tuple[CaptionWord, ...]]:
    """One of the many wordings of a scene's caption, with the objects that each word describes.

    Args:
        counted: the objects are alike and form one group, as in "three small green triangles".
        relation: the position of the first object relative to the second, or None to leave it out.
        language: one of `LANGUAGES`.
    """
    groups = [tuple(range(len(objects)))] if counted else [(i,) for i in range(len(objects))]
    writer = _Writer(rng, lexicon)
    {"en": _write_english, "zh": _write_chinese}[language](writer, objects, groups, ground, relation)
    return writer.text, tuple(writer.words)


def _write_english(
    writer: _Writer, objects: Sequence[CaptionObject], groups: Groups, ground: str, relation: str | None
) -> None:
    rng, write = writer.rng, writer.write
    names_ground = ground != "white" or rng.random() < 0.4
    ground_first = names_ground and rng.random() < 0.2
    opening = writer.pick("", "", "", "a picture of ", "there is ", "draw ")
    if opening == "there is " and len(groups[0]) > 1:
        opening = "there are "
    if ground_first:
        write("on a ")
        write(ground, "ground")
        write(writer.pick(" background, ", " ground, "))
    else:
        write(opening)
    for i, group in enumerate(groups):
        if i and relation:
            write(writer.pick(" ", " ", " is ") if not opening or ground_first else " ")
            write(writer.pick(*RELATIONS[relation]), "relation", (0, 1))
            write(" ")
        elif i:
            write(" and " if i == len(groups) - 1 else ", ")
        o = objects[group[0]]
        size = writer.pick_size(SIZE_WORDS, o.size)
        if len(group) > 1:
            write(COUNT_WORDS[len(group)], "count", group)
        else:
            write("an" if (size or o.colour or o.shape)[0] in "aeiou" else "a")
        if size:
            write(" ")
            write(size, "size", group)
        if o.colour:
            write(" ")
            write(o.colour, "colour", group)
        write(" ")
        write(writer.lexicon.nouns[o.shape].plural if len(group) > 1 else o.shape, "shape", group)
    if names_ground and not ground_first:
        write(writer.pick(" on a ", ", on a ", " against a "))
        write(ground, "ground")
        write(writer.pick(" background", " ground"))
    # Capitals and punctuation, as people type them. Neither moves a word: the spans stay valid.
    style = rng.random()
    if style < 0.3:
        writer.text = writer.text[0].upper() + writer.text[1:]
    elif style < 0.36:
        writer.text = writer.text.upper()
    write(writer.pick("", "", "", ".", "!"))


def _write_chinese(
    writer: _Writer, objects: Sequence[CaptionObject], groups: Groups, ground: str, relation: str | None
) -> None:
    rng, write, grounds = writer.rng, writer.write, writer.lexicon.grounds
    names_ground = ground != "white" or rng.random() < 0.4
    ground_first = names_ground and rng.random() < 0.4
    if ground_first:
        write(writer.pick("", "在"))
        write(grounds[ground], "ground")
        write(writer.pick("背景上有", "背景上，"))
    else:
        write(writer.pick("", "", "", "图中有", "有", "画"))
    for i, group in enumerate(groups):
        if i:
            write("在" if relation else ("和" if i == len(groups) - 1 else "、"))
        o = objects[group[0]]
        noun = writer.lexicon.nouns[o.shape]
        counted = CHINESE_NUMERALS[len(group)] + noun.measure
        if len(group) > 1:
            write(counted, "count", group)
        elif not (i and relation) or rng.random() < 0.5:
            write(counted)
        if size := writer.pick_size(CHINESE_SIZES, o.size):
            write(size, "size", group)
            particle = o.colour or len(size) > 1 or noun.chinese[0].startswith(size)  # 小猫, but 很小的猫 and 大的大象
            write("的" if particle else writer.pick("的", ""))
        if o.colour:
            write(writer.lexicon.colours[o.colour], "colour", group)
            write(writer.pick("的", ""))
        write(writer.pick(*noun.chinese), "shape", group)
    if relation:
        write("的")
        write(writer.pick(*CHINESE_RELATIONS[relation]), "relation", (0, 1))
    if names_ground and not ground_first:
        write(writer.pick("，在", "，背景是", "，"))
        last = writer.text[-1]
        write(grounds[ground], "ground")
        write({"在": "背景上", "是": "的"}.get(last, "背景"))
    write(writer.pick("", "", "", "。", "！"))


def is_chinese(text: str) -> bool:
    """Whether a text contains a Han character."""
    return re.search("[\u4e00-\u9fff]", text) is not None


@dataclass(frozen=True)
class Meaning:
    """The meaning of a caption, independent of wording and language.

    groups: (number, size, colour, shape) of each group of objects; sorted, unless a relation defines their order.
    relation: the position of the first group relative to the second, "left of" or "above", or None.
    places: the place in the picture that is stated for each group, such as "top left" or "", if any is stated.
    """

    groups: tuple[tuple[int, str, str, str], ...]
    relation: str | None
    ground: str
    places: tuple[str, ...] = ()


def meaning(text: str, lexicon: Lexicon = SHAPE_LEXICON) -> Meaning | None:
    """The meaning of a caption in either language, or None if the text does not follow the grammar.

    Case and the width of punctuation are ignored, because the tokenizer does not keep them either.
    """
    text = unicodedata.normalize("NFKC", text.strip()).lower()
    return _meaning_of(text, *_english_grammar(lexicon)) or _meaning_of(text, *_chinese_grammar(lexicon))


def _meaning_of(text: str, sentence: re.Pattern, group: re.Pattern, name: Callable[[str], str]) -> Meaning | None:
    """The meaning of a text by one grammar; `name` maps each wording to the name of what it denotes."""
    match = sentence.fullmatch(text)
    if not match:
        return None
    groups = []
    for found in group.finditer(match["groups"]):
        size = name(found["size"]) if found["size"] else "medium"
        count = int(name(found["count"] or "一"))
        groups.append((count, size, name(found["colour"]), name(found["shape"])))
    relation = match["relation"] and name(match["relation"])
    if relation in OPPOSITE:
        relation, groups = OPPOSITE[relation], groups[::-1]
    if not relation:
        groups.sort()
    grounds = [found for key, found in match.groupdict().items() if key.startswith("ground") and found]
    return Meaning(tuple(groups), relation, name(grounds[0]) if grounds else "white")


def _any(wordings: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, wordings), key=len, reverse=True))


@cache
def _english_grammar(lexicon: Lexicon) -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    names = {"a": "1", "an": "1"} | {word: str(count) for count, word in COUNT_WORDS.items()}
    names |= {word: size for size, wordings in SIZE_WORDS.items() for word in wordings}
    names |= {word: relation for relation, wordings in RELATIONS.items() for word in wordings}
    names |= {noun.plural: name for name, noun in lexicon.nouns.items()}
    sizes = _any([word for wordings in SIZE_WORDS.values() for word in wordings])
    colour = rf"({_any(list(lexicon.colours))}) " if lexicon.colours else "()"
    nouns = _any([word for name, noun in lexicon.nouns.items() for word in (name, noun.plural)])
    group = rf"\b(an?|two|three) (?:({sizes}) )?{colour}({nouns})\b"
    relations = _any([word for wordings in RELATIONS.values() for word in wordings])
    ground = rf"(?:{_any(list(lexicon.grounds))})"
    plain = re.sub(r"\((?!\?)", "(?:", group)  # without capturing
    sentence = (
        rf"(?:on an? (?P<ground1>{ground}) (?:back)?ground, |a picture of |there is |there are |draw )?"
        rf"(?P<groups>{plain}(?:(?: is)? (?P<relation>{relations}) {plain}|(?:, {plain})* and {plain})?)"
        rf"(?:(?:,? on| against) an? (?P<ground2>{ground}) (?:back)?ground)?[.!]?"
    )
    return re.compile(sentence), _named_groups(group), lambda word: names.get(word, word)


@cache
def _chinese_grammar(lexicon: Lexicon) -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    nouns = {name: noun.chinese for name, noun in lexicon.nouns.items()}
    names = {word: str(count) for count, word in CHINESE_NUMERALS.items()}
    for wordings in (CHINESE_SIZES, CHINESE_RELATIONS, nouns):
        names |= {word: name for name, words in wordings.items() for word in words}
    for words in (lexicon.colours, lexicon.grounds):
        names |= {word: name for name, word in words.items()}
    sizes, shapes, relations = (
        _any([word for words in wordings.values() for word in words])
        for wordings in (CHINESE_SIZES, nouns, CHINESE_RELATIONS)
    )
    ground = rf"(?:{_any(list(lexicon.grounds.values()))})"
    colour = rf"({_any(list(lexicon.colours.values()))})的?" if lexicon.colours else "()"
    # In speech 个 counts anything.
    measure = _any(sorted({"个"} | {noun.measure for noun in lexicon.nouns.values()}))
    group = rf"(?:([{''.join(CHINESE_NUMERALS.values())}])(?:{measure}))?(?:({sizes})的?)?{colour}({shapes})"
    plain = re.sub(r"\((?!\?)", "(?:", group)  # without capturing
    sentence = (
        rf"(?:在?(?P<ground1>{ground})背景上(?:有|,)|图中有|有|画)?"
        rf"(?P<groups>{plain}(?:在{plain}的(?P<relation>{relations})|(?:、{plain})*和{plain})?)"
        rf"(?:,在(?P<ground2>{ground})背景上|,背景是(?P<ground3>{ground})的|,(?P<ground4>{ground})背景)?[。!]?"
    )
    return re.compile(sentence), _named_groups(group), lambda word: names.get(word, word)


def _named_groups(pattern: str) -> re.Pattern:
    names = iter(("count", "size", "colour", "shape"))
    return re.compile(re.sub(r"\((?!\?)", lambda _: f"(?P<{next(names)}>", pattern))
