"""Captions mean the same in both languages, and the parser of the grammar understands them."""

import re

import pytest

from pipelines.scenes import captions
from pipelines.scenes.captions import (
    CHINESE_COLOURS,
    CHINESE_GROUNDS,
    CHINESE_NUMERALS,
    CHINESE_RELATIONS,
    CHINESE_SHAPES,
    CHINESE_SIZES,
    LANGUAGES,
    Meaning,
    meaning,
)
from pipelines.scenes.scene import COLOURS, SHAPE_GROUNDS, Scene
from pipelines.scenes.shapes import SHAPE_SIZES, SHAPES, scene

SCENES = {language: [scene(7, index, language=language) for index in range(1000)] for language in LANGUAGES}
SPELLINGS = {
    "shape": {word for words in CHINESE_SHAPES.values() for word in words},
    "colour": set(CHINESE_COLOURS.values()),
    "size": {word for words in CHINESE_SIZES.values() for word in words},
    "count": {CHINESE_NUMERALS[count] + "个" for count in (2, 3)},
    "relation": {word for words in CHINESE_RELATIONS.values() for word in words},
    "ground": set(CHINESE_GROUNDS.values()),
}


def meaning_of(described: Scene) -> Meaning:
    """The meaning of a scene from its objects, without the caption."""
    groups = [(1, o.size, o.colour, o.shape) for o in described.objects]
    if described.kind == "count":
        groups = [(len(groups), *groups[0][1:])]
    relation = described.relation and described.relation[1]
    if relation in ("right of", "below"):
        relation, groups = {"right of": "left of", "below": "above"}[relation], groups[::-1]
    return Meaning(tuple(groups if relation else sorted(groups)), relation, described.ground)


def test_every_word_has_a_chinese_name_of_its_own() -> None:
    for names, words in ((SHAPES, CHINESE_SHAPES), (SHAPE_SIZES, CHINESE_SIZES)):
        assert set(names) == set(words)
        assert len({word for wordings in words.values() for word in wordings}) == sum(map(len, words.values()))
    for names, words in ((COLOURS, CHINESE_COLOURS), (SHAPE_GROUNDS, CHINESE_GROUNDS)):
        assert set(names) == set(words)
        assert len(set(words.values())) == len(words)
    assert set(captions.RELATIONS) == set(CHINESE_RELATIONS)


def test_the_picture_does_not_depend_on_the_language() -> None:
    for english, chinese in zip(SCENES["en"], SCENES["zh"], strict=True):
        assert english.objects == chinese.objects and english.relation == chinese.relation
        assert english.ground == chinese.ground and english.caption != chinese.caption


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_means_its_scene(language: str) -> None:
    for described in SCENES[language]:
        assert meaning(described.caption) == meaning_of(described), described.caption


def test_chinese_spans_cover_exactly_the_words_of_their_class() -> None:
    for described in SCENES["zh"]:
        rest = described.caption
        for word in reversed(described.words):
            assert described.caption[word.start : word.end] in SPELLINGS[word.kind]
            rest = rest[: word.start] + "#" + rest[word.end :]
        assert not re.search("|".join(set().union(*SPELLINGS.values())), rest), rest


def test_both_languages_describe_the_same_objects() -> None:
    for english, chinese in zip(SCENES["en"], SCENES["zh"], strict=True):
        for kind in ("shape", "colour", "count", "relation"):
            indices = [sorted(w.objects for w in s.words if w.kind == kind) for s in (english, chinese)]
            assert indices[0] == indices[1]


def test_every_chinese_wording_occurs() -> None:
    for kind, words in SPELLINGS.items():
        assert words == {s.caption[w.start : w.end] for s in SCENES["zh"] for w in s.words if w.kind == kind}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red circle", Meaning(((1, "medium", "red", "circle"),), None, "white")),
        ("A RED CIRCLE.", Meaning(((1, "medium", "red", "circle"),), None, "white")),
        ("在灰色背景上，两个大的绿色星星！", Meaning(((2, "big", "green", "star"),), None, "gray")),
        ("一个红色的圆", Meaning(((1, "medium", "red", "circle"),), None, "white")),
        (
            "three tiny green crosses on a gray background",
            Meaning(((3, "small", "green", "cross"),), None, "gray"),
        ),
        (
            "a blue square right of a red circle",
            Meaning(((1, "medium", "red", "circle"), (1, "medium", "blue", "square")), "left of", "white"),
        ),
        (
            "一个红色的圆在蓝色正方形的左边",
            Meaning(((1, "medium", "red", "circle"), (1, "medium", "blue", "square")), "left of", "white"),
        ),
    ],
)
def test_captions_are_parsed(text: str, expected: Meaning) -> None:
    assert meaning(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a circle",
        "a red cat",
        "red circle blue square",
        "a red circle left of",
        "一个红色的猫",
        "红色",
        "a red circles left",
    ],
)
def test_a_text_outside_the_grammar_has_no_meaning(text: str) -> None:
    assert meaning(text) is None


def test_order_matters_only_with_a_relation() -> None:
    assert meaning("a red circle and a blue star") == meaning("a blue star and a red circle")
    assert meaning("a red circle above a blue star") == meaning("a blue star under a red circle")
    assert meaning("a red circle above a blue star") != meaning("a blue star above a red circle")
