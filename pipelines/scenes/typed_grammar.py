"""The meaning of captions as people type them (`typed`), in English and Chinese.

A text is read in two steps. First each group, such as "two small red circles" or "一只猫", becomes the sign "§"; then
one short pattern reads the sentence around the signs.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pipelines.scenes.captions import CHINESE_SIZES, OPPOSITE, SIZE_WORDS, Meaning, _any
from pipelines.scenes.everyday_words import EVERYDAY_LEXICON, SHAPE_COLOURS, THINGS, default_ground
from pipelines.scenes.scene import Object, Scene
from pipelines.scenes.shapes import SHAPES
from pipelines.scenes.typed_words import (
    CHINESE_COUNTS,
    CHINESE_OPENINGS,
    CHINESE_PLACES,
    COUNTS,
    GRAY,
    MORE_PLACES,
    OPENINGS,
    PLACES,
    THERE,
    TYPED_CHINESE_COLOURS,
    TYPED_CHINESE_RELATIONS,
    TYPED_RELATIONS,
)

SIGN = "§"


@dataclass(frozen=True)
class Grammar:
    """A language: how a group and a sentence around the signs of groups are written, and what each wording means.

    places: wording of a place in the picture -> place; in Chinese "左边" is a relation too.
    plural: the names of several things, two if no number says how many.
    """

    group: re.Pattern
    sentence: re.Pattern
    names: Mapping[str, str]
    places: Mapping[str, str]
    plural: frozenset[str]


def typed_meaning(text: str) -> Meaning | None:
    """The meaning of a caption in either language, or None if the text does not follow the grammar.

    Case, the width of punctuation and repeated spaces are ignored.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return next(filter(None, (_read(text, grammar()) for grammar in (_english, _chinese))), None)


def _read(text: str, grammar: Grammar) -> Meaning | None:
    found = list(grammar.group.finditer(text))
    match = grammar.sentence.fullmatch(grammar.group.sub(SIGN, text))
    if not match:
        return None
    groups = []
    for group in found:
        several = group["noun"] in grammar.plural
        count = int(grammar.names[group["count"]]) if group["count"] not in (None, "the") else 2 if several else 1
        if count == 1 and several:
            return None
        thing = grammar.names[group["noun"]]
        colour = grammar.names[group["colour"]] if group["colour"] else SHAPE_COLOURS.get(thing, "")
        size = grammar.names[group["size"]] if group["size"] else "medium"
        groups.append((count, size, colour, thing))
    if sum(count for count, *_ in groups) > 4:
        return None
    stated = {key.rstrip("0123456789"): value for key, value in match.groupdict().items() if value}
    relation = grammar.names[stated["relation"]] if "relation" in stated else None
    places = _places(match, grammar, len(groups))
    if "there" in stated:  # "猫的左边有狗" is "狗在猫的左边"
        groups = groups[::-1]
    if relation in OPPOSITE:
        relation, groups = OPPOSITE[relation], groups[::-1]
    elif relation == "beside":
        groups = sorted(groups)
    elif relation == "between":
        if len(groups) == 2 and groups[1][0] != 2:
            return None  # nothing is between one thing, or between three
        groups = [groups[0], *sorted(groups[1:])]
    elif not relation:
        order = sorted(range(len(groups)), key=lambda i: (groups[i], places[i : i + 1]))
        groups, places = [groups[i] for i in order], tuple(places[i] for i in order if places)
    ground = grammar.names[stated["ground"]] if "ground" in stated else default_ground([(g[3], g[2]) for g in groups])
    return None if ground is None else Meaning(tuple(groups), relation, ground, places)


def _places(match: re.Match, grammar: Grammar, groups: int) -> tuple[str, ...]:
    """The place that a sentence states for each group, () if it states none."""
    if match["placed"] is None:
        return ()
    found = [grammar.places[place] for place in re.findall(_any(list(grammar.places)), match["placed"])]
    assert len(found) == groups
    return tuple(found)


def _names_of(*tables: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {word: name for table in tables for name, words in table.items() for word in words}


def _numbers(counts: Mapping[int, Sequence[str]]) -> dict[str, str]:
    return {word: str(count) for count, words in counts.items() for word in words}


def _words(table: Mapping[str, Sequence[str]]) -> str:
    return _any([word for words in table.values() for word in words])


def _pattern(text: str) -> re.Pattern:
    """A pattern in which the same name may be given to several groups by numbers after it."""
    seen: dict[str, int] = {}

    def number(name: re.Match) -> str:
        seen[name[1]] = seen.get(name[1], 0) + 1
        return f"(?P<{name[1]}{seen[name[1]] if seen[name[1]] > 1 else ''}>"

    return re.compile(re.sub(r"\(\?P<(\w+)>", number, text))


@cache
def _english() -> Grammar:
    singular = {n.text: thing for thing, t in THINGS.items() for n in t.english}
    plural = {n.plural: thing for thing, t in THINGS.items() for n in t.english if n.plural}
    numbers = _numbers({1: ("a", "an", "one", "1", "the"), **COUNTS})
    names = numbers | _names_of(SIZE_WORDS, TYPED_RELATIONS) | {c: c for c in EVERYDAY_LEXICON.colours}
    grounds = {ground: (ground,) for ground in EVERYDAY_LEXICON.grounds} | {"gray": GRAY}
    places = _names_of(MORE_PLACES, PLACES)
    names |= _names_of(grounds) | plural | singular
    shapes = _any([n for shape in SHAPES for name in THINGS[shape].english for n in (name.text, name.plural)])
    nouns = _any([*singular, *plural])
    group = (
        rf"\b(?:(?P<count>{_any(list(numbers))}) )?(?:(?P<size>{_words(SIZE_WORDS)}) )?"
        rf"(?:(?P<colour>{_any(list(EVERYDAY_LEXICON.colours))}) (?=(?:{shapes})\b))?(?P<noun>{nouns})\b(?!['-])"
    )
    relation = rf"(?P<relation>{_words({k: v for k, v in TYPED_RELATIONS.items() if k != 'between'})})"
    between = rf"(?P<relation>{_words({'between': TYPED_RELATIONS['between']})})"
    ground, place, be = rf"(?P<ground>{_words(grounds)})", f"(?:{_any(list(places))})", "(?: is| are)?"
    sentence = (
        rf"(?:on (?:an? |the )?{ground} (?:back)?ground, |{_any([*OPENINGS, *THERE])})?"
        rf"(?:§{be} {relation} §|§{be} {between} §(?: and §)?"
        rf"|(?P<placed>§{be} {place}(?:(?:,| and|, and) §{be} {place})*)|§(?:(?:,|,? and) §)*)"
        rf"(?:,? (?:on|against)(?: an?| the)? {ground}(?: (?:back)?ground)?)?[.!]?"
    )
    # "fish" names one or several.
    several = frozenset(plural) - frozenset(singular)
    return Grammar(re.compile(group), _pattern(sentence), names, places, several)


@cache
def _chinese() -> Grammar:
    nouns = {name: thing for thing, t in THINGS.items() for name in t.chinese}
    nouns |= {unicodedata.normalize("NFKC", name).lower(): thing for name, thing in nouns.items()}
    numbers = _numbers(CHINESE_COUNTS)
    grounds = {name: (word,) for name, word in EVERYDAY_LEXICON.grounds.items()}
    names = _names_of(TYPED_CHINESE_RELATIONS, CHINESE_SIZES, TYPED_CHINESE_COLOURS, grounds)
    names |= numbers | nouns
    # In speech 个 counts anything.
    measure = _any(sorted({"个"} | {thing.measure for thing in THINGS.values()}))
    shapes = _any([name for shape in SHAPES for name in THINGS[shape].chinese])
    group = (
        rf"(?:(?P<count>{_any(list(numbers))})(?:{measure}))?(?:(?P<size>{_words(CHINESE_SIZES)})的?)?"
        rf"(?:(?P<colour>{_words(TYPED_CHINESE_COLOURS)})的?(?={shapes}))?(?P<noun>{_any(list(nouns))})"
    )
    relations = {k: v for k, v in TYPED_CHINESE_RELATIONS.items() if k != "between"}
    relation = rf"的?(?P<relation>{_words(relations)})"
    between = rf"的?(?P<relation>{_words({'between': TYPED_CHINESE_RELATIONS['between']})})"
    ground, place = rf"(?P<ground>{_words(grounds)})", f"(?:{_words(CHINESE_PLACES)})"
    sentence = (
        rf"(?:在?{ground}背景上(?:有|,)|{_any(CHINESE_OPENINGS)})?"
        rf"(?:§在§{relation}|§{relation}(?P<there>有)§|§在§(?:和§)?{between}"
        rf"|(?P<placed>§在{place}(?:(?:,|和)§在{place})*|在?{place}有?§(?:,在?{place}有?§)*)|§(?:[、,和]§)*)"
        rf"(?:,在{ground}背景上|,背景是{ground}的|,{ground}背景)?[。!.]?"
    )
    return Grammar(re.compile(group), _pattern(sentence), names, _names_of(CHINESE_PLACES), frozenset())


def parse_typed(text: str) -> Scene | None:
    """The scene that a caption describes, its objects without positions; None if the text describes no scene."""
    parsed = typed_meaning(text)
    if parsed is None:
        return None
    spans: list[int] = []  # the first object of each group
    objects: list[Object] = []
    for count, size, colour, thing in parsed.groups:
        spans.append(len(objects))
        objects += [Object(thing, colour, size)] * count
    others = spans[1:] if len(spans) != 2 or parsed.relation != "between" else [spans[1], spans[1] + 1]
    relation = None if parsed.relation is None else (0, parsed.relation, *others)
    places = tuple(zip(spans, parsed.places, strict=True)) if parsed.places else ()
    kind = _kind_of(len(spans), len(objects), parsed.relation, bool(places))
    return Scene(kind, tuple(objects), parsed.ground, relation, text, data="everyday", places=places)  # type: ignore[arg-type]


def _kind_of(groups: int, objects: int, relation: str | None, placed: bool) -> str:
    """The kind of scene (`everyday.EVERYDAY_KINDS`)."""
    if relation:
        return "several" if groups < objects else "between" if relation == "between" else "relation"
    if placed:
        return "place"
    if groups < objects:
        return "count" if groups == 1 else "groups"
    return {1: "one", 2: "two", 3: "three"}.get(groups, "four")
