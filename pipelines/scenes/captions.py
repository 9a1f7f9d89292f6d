"""What is said of a scene, in English or in Chinese: the wording, which word speaks of what, and what a caption means.

A caption names everything visible; what goes unsaid is what everybody assumes, a medium size and a white ground, so a
short prompt still has one meaning.
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
    """What a kind of thing is called: several of it, its Chinese names, and the measure word that counts them there."""

    plural: str
    chinese: tuple[str, ...]
    measure: str = "个"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that scenes of a sort are told with: English word -> noun or Chinese word.

    There are no colours where every thing has its own.
    """

    nouns: Mapping[str, Noun]
    colours: Mapping[str, str]
    grounds: Mapping[str, str]


SHAPES = Vocabulary(
    {shape: Noun(shape + ("es" if shape.endswith("s") else "s"), names) for shape, names in CHINESE_SHAPES.items()},
    CHINESE_COLOURS,
    CHINESE_GROUNDS,
)


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
    kind: str  # shape (what a thing is), colour, size, count, relation or ground
    objects: tuple[int, ...] = ()


@dataclass
class _Speech:
    """A caption as it is being said."""

    rng: np.random.Generator
    vocabulary: Vocabulary
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
    vocabulary: Vocabulary = SHAPES,
) -> tuple[str, tuple[Word, ...]]:
    """Say a scene in one of many wordings, keeping account of what each word speaks of.

    Args:
        counted: the objects are of a kind and are named as one group, "three small green triangles".
        relation: how the first object lies to the second, if that is to be said.
        language: one of `LANGUAGES`.
    """
    groups = [tuple(range(len(objects)))] if counted else [(i,) for i in range(len(objects))]
    speech = _Speech(rng, vocabulary)
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
            say("an" if (size or o.colour or o.shape)[0] in "aeiou" else "a")
        if size:
            say(" ")
            say(size, "size", group)
        if o.colour:
            say(" ")
            say(o.colour, "colour", group)
        say(" ")
        say(speech.vocabulary.nouns[o.shape].plural if len(group) > 1 else o.shape, "shape", group)
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
    rng, say, grounds = speech.rng, speech.say, speech.vocabulary.grounds
    shows_ground = ground != "white" or rng.random() < 0.4
    ground_first = shows_ground and rng.random() < 0.4
    if ground_first:
        say(speech.one_of("", "在"))
        say(grounds[ground], "ground")
        say(speech.one_of("背景上有", "背景上，"))
    else:
        say(speech.one_of("", "", "", "图中有", "有", "画"))
    for i, group in enumerate(groups):
        if i:
            say("在" if relation else ("和" if i == len(groups) - 1 else "、"))
        o = objects[group[0]]
        noun = speech.vocabulary.nouns[o.shape]
        counted = CHINESE_NUMERALS[len(group)] + noun.measure
        if len(group) > 1:
            say(counted, "count", group)
        elif not (i and relation) or rng.random() < 0.5:
            say(counted)
        if size := speech.size(CHINESE_SIZES, o.size):
            say(size, "size", group)
            alone = o.colour or len(size) > 1 or noun.chinese[0].startswith(size)  # 小猫, but 很小的猫 and 大的大象
            say("的" if alone else speech.one_of("的", ""))
        if o.colour:
            say(speech.vocabulary.colours[o.colour], "colour", group)
            say(speech.one_of("的", ""))
        say(speech.one_of(*noun.chinese), "shape", group)
    if relation:
        say("的")
        say(speech.one_of(*CHINESE_RELATIONS[relation]), "relation", (0, 1))
    if shows_ground and not ground_first:
        say(speech.one_of("，在", "，背景是", "，"))
        before = speech.text[-1]
        say(grounds[ground], "ground")
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


def meaning(text: str, vocabulary: Vocabulary = SHAPES) -> Meaning | None:
    """What a caption of this grammar says, in either language, or None for any other text.

    Case makes no difference, nor does the width of punctuation, which a tokenizer does not keep either.
    """
    text = unicodedata.normalize("NFKC", text.strip()).lower()
    return _meaning_of(text, *_english_grammar(vocabulary)) or _meaning_of(text, *_chinese_grammar(vocabulary))


def _meaning_of(text: str, sentence: re.Pattern, group: re.Pattern, name: Callable[[str], str]) -> Meaning | None:
    said = sentence.fullmatch(text)
    if not said:
        return None
    groups = []
    for found in group.finditer(said["things"]):
        size = name(found["size"]) if found["size"] else "medium"
        count = int(name(found["count"] or "一"))
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


@cache
def _english_grammar(vocabulary: Vocabulary) -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    names = {"a": "1", "an": "1"} | {word: str(count) for count, word in COUNT_WORDS.items()}
    names |= {word: size for size, wordings in SIZE_WORDS.items() for word in wordings}
    names |= {word: relation for relation, wordings in RELATIONS.items() for word in wordings}
    names |= {noun.plural: name for name, noun in vocabulary.nouns.items()}
    sizes = _any([word for wordings in SIZE_WORDS.values() for word in wordings])
    colour = rf"({_any(list(vocabulary.colours))}) " if vocabulary.colours else "()"
    nouns = _any([word for name, noun in vocabulary.nouns.items() for word in (name, noun.plural)])
    thing = rf"\b(an?|two|three) (?:({sizes}) )?{colour}({nouns})\b"
    relations = _any([word for wordings in RELATIONS.values() for word in wordings])
    ground = rf"(?:{_any(list(vocabulary.grounds))})"
    plain = re.sub(r"\((?!\?)", "(?:", thing)
    sentence = (
        rf"(?:on an? (?P<ground1>{ground}) (?:back)?ground, |a picture of |there is |there are |draw )?"
        rf"(?P<things>{plain}(?:(?: is)? (?P<relation>{relations}) {plain}|(?:, {plain})* and {plain})?)"
        rf"(?:(?:,? on| against) an? (?P<ground2>{ground}) (?:back)?ground)?[.!]?"
    )
    return re.compile(sentence), _named_groups(thing), lambda word: names.get(word, word)


@cache
def _chinese_grammar(vocabulary: Vocabulary) -> tuple[re.Pattern, re.Pattern, Callable[[str], str]]:
    nouns = {name: noun.chinese for name, noun in vocabulary.nouns.items()}
    names = {word: str(count) for count, word in CHINESE_NUMERALS.items()}
    for wordings in (CHINESE_SIZES, CHINESE_RELATIONS, nouns):
        names |= {word: name for name, words in wordings.items() for word in words}
    for words in (vocabulary.colours, vocabulary.grounds):
        names |= {word: name for name, word in words.items()}
    sizes, things, relations = (
        _any([word for words in wordings.values() for word in words])
        for wordings in (CHINESE_SIZES, nouns, CHINESE_RELATIONS)
    )
    ground = rf"(?:{_any(list(vocabulary.grounds.values()))})"
    colour = rf"({_any(list(vocabulary.colours.values()))})的?" if vocabulary.colours else "()"
    # 个 counts anything, as people speak.
    measure = _any(sorted({"个"} | {noun.measure for noun in vocabulary.nouns.values()}))
    thing = rf"(?:([{''.join(CHINESE_NUMERALS.values())}])(?:{measure}))?(?:({sizes})的?)?{colour}({things})"
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
