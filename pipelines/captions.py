"""What is said of a scene, in English or in Chinese: the wording, which word speaks of what, and what a caption means.

A caption names everything visible; what goes unsaid is what everybody assumes, a medium size and a white ground, so a
short prompt still has one meaning.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
"""A relation -> the ways to say it."""

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
CHINESE_COUNTS = {2: "两个", 3: "三个"}
CHINESE_RELATIONS = {
    "left of": ("左边", "左侧", "左面"),
    "right of": ("右边", "右侧", "右面"),
    "above": ("上面", "上方", "上边"),
    "below": ("下面", "下方", "下边"),
}
OPPOSITE = {"right of": "left of", "below": "above"}


class Thing(Protocol):
    """What a caption says of an object."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...


@dataclass(frozen=True)
class Word:
    """A stretch of the caption, its class and what it speaks of: indices of objects, or none for the ground."""

    start: int
    end: int
    kind: str  # shape, colour, size, count, relation or ground
    objects: tuple[int, ...] = ()


@dataclass
class _Speech:
    """A caption as it is being said."""

    rng: np.random.Generator
    text: str = ""
    words: list[Word] = field(default_factory=list)

    def say(self, piece: str, kind: str | None = None, objects: tuple[int, ...] = ()) -> None:
        if kind:
            self.words.append(Word(len(self.text), len(self.text) + len(piece), kind, objects))
        self.text += piece

    def one_of(self, *wordings: str) -> str:
        return str(self.rng.choice(wordings))

    def size(self, wordings: Mapping[str, tuple[str, ...]], size: str) -> str:
        """ "medium" mostly goes without saying; small and big never do."""
        return self.one_of(*wordings[size]) if size != "medium" or self.rng.random() < 0.2 else ""


def caption(
    rng: np.random.Generator,
    objects: Sequence[Thing],
    counted: bool,
    ground: str,
    relation: str | None,
    language: str,
) -> tuple[str, tuple[Word, ...]]:
    """Say a scene in one of many wordings, keeping account of what each word speaks of.

    Args:
        counted: the objects are of a kind and are named as one group, "three small green triangles".
        relation: how the first object lies to the second, if that is to be said.
        language: one of `LANGUAGES`.
    """
    groups = [tuple(range(len(objects)))] if counted else [(i,) for i in range(len(objects))]
    speech = _Speech(rng)
    {"en": _english, "zh": _chinese}[language](speech, objects, groups, ground, relation)
    return speech.text, tuple(speech.words)


Groups = Sequence[tuple[int, ...]]


def _english(speech: _Speech, objects: Sequence[Thing], groups: Groups, ground: str, relation: str | None) -> None:
    rng, say = speech.rng, speech.say
    shows_ground = ground != "white" or rng.random() < 0.4
    ground_first = shows_ground and rng.random() < 0.2
    opening = speech.one_of("", "", "", "a picture of ", "there is ", "draw ")
    if opening == "there is " and len(groups[0]) > 1:
        opening = "there are "
    if ground_first:
        say("on a ")
        say(ground, "ground")
        say(speech.one_of(" background, ", " ground, "))
    else:
        say(opening)
    for i, group in enumerate(groups):
        if i and relation:
            say(speech.one_of(" ", " ", " is ") if not opening or ground_first else " ")
            say(speech.one_of(*RELATIONS[relation]), "relation", (0, 1))
            say(" ")
        elif i:
            say(" and " if i == len(groups) - 1 else ", ")
        o = objects[group[0]]
        size = speech.size(SIZE_WORDS, o.size)
        if len(group) > 1:
            say(COUNT_WORDS[len(group)], "count", group)
        else:
            say("an" if (size or o.colour)[0] in "aeiou" else "a")
        if size:
            say(" ")
            say(size, "size", group)
        say(" ")
        say(o.colour, "colour", group)
        say(" ")
        plural = ("es" if o.shape.endswith("s") else "s") if len(group) > 1 else ""
        say(o.shape + plural, "shape", group)
    if shows_ground and not ground_first:
        say(speech.one_of(" on a ", ", on a ", " against a "))
        say(ground, "ground")
        say(speech.one_of(" background", " ground"))
    # As people type. Each keeps the length, or adds only behind the last word, so that the words' places hold.
    manner = rng.random()
    if manner < 0.3:
        speech.text = speech.text[0].upper() + speech.text[1:]
    elif manner < 0.36:
        speech.text = speech.text.upper()
    say(speech.one_of("", "", "", ".", "!"))


def _chinese(speech: _Speech, objects: Sequence[Thing], groups: Groups, ground: str, relation: str | None) -> None:
    rng, say = speech.rng, speech.say
    shows_ground = ground != "white" or rng.random() < 0.4
    ground_first = shows_ground and rng.random() < 0.4
    if ground_first:
        say(speech.one_of("", "在"))
        say(CHINESE_GROUNDS[ground], "ground")
        say(speech.one_of("背景上有", "背景上，"))
    else:
        say(speech.one_of("", "", "", "图中有", "有", "画"))
    for i, group in enumerate(groups):
        if i:
            say("在" if relation else ("和" if i == len(groups) - 1 else "、"))
        o = objects[group[0]]
        if len(group) > 1:
            say(CHINESE_COUNTS[len(group)], "count", group)
        elif not (i and relation) or rng.random() < 0.5:
            say("一个")
        if size := speech.size(CHINESE_SIZES, o.size):
            say(size, "size", group)
            say("的")
        say(CHINESE_COLOURS[o.colour], "colour", group)
        say(speech.one_of("的", ""))
        say(speech.one_of(*CHINESE_SHAPES[o.shape]), "shape", group)
    if relation:
        say("的")
        say(speech.one_of(*CHINESE_RELATIONS[relation]), "relation", (0, 1))
    if shows_ground and not ground_first:
        say(speech.one_of("，在", "，背景是", "，"))
        before = speech.text[-1]
        say(CHINESE_GROUNDS[ground], "ground")
        say({"在": "背景上", "是": "的"}.get(before, "背景"))
    say(speech.one_of("", "", "", "。", "！"))


def is_chinese(text: str) -> bool:
    """Whether a text has a Han character in it."""
    return re.search("[\u4e00-\u9fff]", text) is not None


@dataclass(frozen=True)
class Meaning:
    """What a caption says, whatever its wording and language.

    groups: (number, size, colour, shape) of each group of objects, sorted unless a relation gives them an order.
    relation: how the first group lies to the second, "left of" or "above", or None.
    """

    groups: tuple[tuple[int, str, str, str], ...]
    relation: str | None
    ground: str


def meaning(text: str) -> Meaning | None:
    """What a caption of this grammar says, in either language, or None for any other text.

    Case makes no difference, nor does the width of punctuation, which a tokenizer does not keep either.
    """
    text = unicodedata.normalize("NFKC", text.strip()).lower()
    return _meaning_of(text, *_ENGLISH) or _meaning_of(text, *_CHINESE)


def _meaning_of(text: str, sentence: re.Pattern, group: re.Pattern, name: Callable[[str], str]) -> Meaning | None:
    said = sentence.fullmatch(text)
    if not said:
        return None
    groups = []
    for found in group.finditer(said["things"]):
        size = name(found["size"]) if found["size"] else "medium"
        count = int(name(found["count"] or "一个"))
        groups.append((count, size, name(found["colour"]), name(found["shape"])))
    relation = said["relation"] and name(said["relation"])
    if relation in OPPOSITE:
        relation, groups = OPPOSITE[relation], groups[::-1]
    if not relation:
        groups.sort()
    grounds = [found for key, found in said.groupdict().items() if key.startswith("ground") and found]
    return Meaning(tuple(groups), relation, name(grounds[0]) if grounds else "white")


def _any(wordings: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, wordings), key=len, reverse=True))


def _english_grammar() -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    names = {"a": "1", "an": "1"} | {word: str(count) for count, word in COUNT_WORDS.items()}
    names |= {word: size for size, wordings in SIZE_WORDS.items() for word in wordings}
    names |= {word: relation for relation, wordings in RELATIONS.items() for word in wordings}
    names |= {shape + plural: shape for shape in CHINESE_SHAPES for plural in ("", "s", "es")}
    sizes = _any([word for wordings in SIZE_WORDS.values() for word in wordings])
    shapes = rf"(?:{_any(list(CHINESE_SHAPES))})(?:es|s)?"
    thing = rf"\b(an?|two|three) (?:({sizes}) )?({_any(list(CHINESE_COLOURS))}) ({shapes})\b"
    relations = _any([word for wordings in RELATIONS.values() for word in wordings])
    ground = rf"(?:{_any(list(CHINESE_GROUNDS))})"
    plain = re.sub(r"\((?!\?)", "(?:", thing)
    sentence = (
        rf"(?:on an? (?P<ground1>{ground}) (?:back)?ground, |a picture of |there is |there are |draw )?"
        rf"(?P<things>{plain}(?:(?: is)? (?P<relation>{relations}) {plain}|(?:, {plain})* and {plain})?)"
        rf"(?:(?:,? on| against) an? (?P<ground2>{ground}) (?:back)?ground)?[.!]?"
    )
    return re.compile(sentence), _named_groups(thing), lambda word: names.get(word, word)


def _chinese_grammar() -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    names = {"一个": "1"} | {word: str(count) for count, word in CHINESE_COUNTS.items()}
    for wordings in (CHINESE_SIZES, CHINESE_RELATIONS, CHINESE_SHAPES):
        names |= {word: name for name, words in wordings.items() for word in words}
    for words in (CHINESE_COLOURS, CHINESE_GROUNDS):
        names |= {word: name for name, word in words.items()}
    sizes, shapes, relations = (
        _any([word for words in wordings.values() for word in words])
        for wordings in (CHINESE_SIZES, CHINESE_SHAPES, CHINESE_RELATIONS)
    )
    ground = rf"(?:{_any(list(CHINESE_GROUNDS.values()))})"
    thing = rf"(一个|两个|三个)?(?:({sizes})的)?({_any(list(CHINESE_COLOURS.values()))})的?({shapes})"
    plain = re.sub(r"\((?!\?)", "(?:", thing)
    sentence = (
        rf"(?:在?(?P<ground1>{ground})背景上(?:有|,)|图中有|有|画)?"
        rf"(?P<things>{plain}(?:在{plain}的(?P<relation>{relations})|(?:、{plain})*和{plain})?)"
        rf"(?:,在(?P<ground2>{ground})背景上|,背景是(?P<ground3>{ground})的|,(?P<ground4>{ground})背景)?[。!]?"
    )
    return re.compile(sentence), _named_groups(thing), lambda word: names.get(word, word)


def _named_groups(thing: str) -> re.Pattern:
    names = iter(("count", "size", "colour", "shape"))
    return re.compile(re.sub(r"\((?!\?)", lambda _: f"(?P<{next(names)}>", thing))


_ENGLISH, _CHINESE = _english_grammar(), _chinese_grammar()
