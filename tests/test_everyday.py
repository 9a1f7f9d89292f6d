"""Properties of the world of everyday things: its table, scenes, captions and pictures."""

import hashlib
import re
from collections import Counter
from dataclasses import astuple, replace
from itertools import combinations

import numpy as np
import pytest

from pipelines.data.scenes import SceneExamples
from pipelines.scenes import shapes
from pipelines.scenes.captions import CHINESE_SIZES, LANGUAGES
from pipelines.scenes.emoji_font import EMOJI_GROUNDS, clear_grounds, find_font
from pipelines.scenes.everyday import (
    ALONE,
    EVERYDAY_KINDS,
    RELATION_NUMBERS,
    TOGETHER,
    held_out,
    held_out_grounds,
    render,
    scene,
    tellings,
)
from pipelines.scenes.everyday_words import (
    EMOJI_THINGS,
    EVERYDAY_LEXICON,
    SHAPE_COLOURS,
    THINGS,
    all_names,
    default_ground,
    plural_of,
)
from pipelines.scenes.judge import judge, locate
from pipelines.scenes.scene import Object, Scene, place_holds, related, relation_holds, word_mask
from pipelines.scenes.see_emoji import EVERYDAY_GLYPHS
from pipelines.scenes.see_glyphs import _templates
from pipelines.scenes.typed_grammar import parse_typed, typed_meaning
from pipelines.scenes.typed_words import PLACES
from pipelines.scenes.worlds import WORLDS
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TrainConfig
from pipelines.training.parts import build
from pipelines.training.vocabulary import Kept
from unet_xattn.words import unknown_words

SCENES = [scene(7, index) for index in range(2500)]
HELD_OUT_SCENES = [scene(7, index, kind, held_out=True) for index in range(15) for kind in EVERYDAY_KINDS]


# The table.


def test_there_are_many_things_and_no_name_belongs_to_two() -> None:
    assert len(EMOJI_THINGS) >= 250
    assert len({thing.emoji for thing in EMOJI_THINGS.values()}) == len(EMOJI_THINGS)
    english, chinese = Counter[str](), Counter[str]()
    for thing in THINGS.values():
        english.update({word for name in thing.english for word in (name.text, name.plural)} - {""})
        chinese.update(set(thing.chinese))
        assert any(name.plural for name in thing.english), "some name can be counted"
        assert thing.measure and thing.chinese and all(thing.chinese)
    assert max(english.values()) == max(chinese.values()) == 1


def test_no_chinese_name_is_another_with_its_size() -> None:
    names = {name for thing in THINGS.values() for name in thing.chinese}
    sizes = [word for words in CHINESE_SIZES.values() for word in words]
    assert not [name for name in names for size in sizes if name.removeprefix(size) in names - {name}]


@pytest.mark.parametrize(
    ("one", "several"), [("cat", "cats"), ("bus", "buses"), ("box", "boxes"), ("cherry", "cherries"), ("key", "keys")]
)
def test_regular_plurals(one: str, several: str) -> None:
    assert plural_of(one) == several


def test_irregular_plurals_are_in_the_table() -> None:
    plurals = {name.text: name.plural for thing in THINGS.values() for name in thing.english}
    known = {"mouse": "mice", "wolf": "wolves", "sheep": "sheep", "knife": "knives", "tooth": "teeth", "woman": "women"}
    assert {one: plurals[one] for one in known} == known
    assert plurals["bread"] == plurals["scissors"] == ""


def test_the_grounds_of_the_table_are_those_an_emoji_stands_out_on() -> None:
    font = find_font()
    for name, thing in list(EMOJI_THINGS.items())[::5]:
        # On white an outline is enough: most emoji have one.
        assert thing.grounds - {"white"} == set(clear_grounds(font, thing.emoji)) - {"white"}, name
        assert len(thing.grounds) >= 3


def test_no_two_things_look_alike_in_the_smallest_size() -> None:
    for size, cell in ((64, 2), (128, 4)):
        colours, alphas, _ = _templates(EVERYDAY_GLYPHS, round(0.22 * size), 0.8, cell)
        nearest = np.full((len(colours),) * 2, np.inf)
        for ground in EMOJI_GROUNDS.values():
            flat = (colours - alphas * np.array(ground, np.float32)).reshape(len(colours), -1)
            squares = (flat**2).sum(axis=1)
            distance = squares[:, None] + squares - 2 * flat @ flat.T
            nearest = np.minimum(nearest, distance / np.maximum(squares[:, None], squares))
        np.fill_diagonal(nearest, np.inf)
        assert nearest.min() > 0.025  # a girl and a woman


# Scenes.


def test_the_scenes_and_their_captions_never_change() -> None:
    digest = hashlib.sha256()
    for index in range(150):
        for s in tellings(0, index, tuple(LANGUAGES)):
            digest.update(
                repr((list(map(astuple, s.objects)), s.ground, s.caption, list(map(astuple, s.words)))).encode()
            )
    # Models are trained on these: other scenes are other training data.
    assert digest.hexdigest() == "e8e966b8df6d9dab5a5b4a472ee9a8d6c850868465555a4954cf81d2b370f174"


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    forwards = [scene(3, index) for index in range(50)]
    assert forwards == [scene(3, index) for index in reversed(range(50))][::-1]
    assert forwards != [scene(4, index) for index in range(50)]
    for index in range(60):
        languages = ("zh", "en") if index % 2 else ("en", "zh")
        assert tellings(7, index, languages) == [scene(7, index, language=language) for language in languages]


def test_training_never_shows_what_is_held_out_and_testing_always_does() -> None:
    assert not any(map(held_out, SCENES))
    assert all(map(held_out, HELD_OUT_SCENES))
    shown = {fact[0] for s in HELD_OUT_SCENES for fact in held_out(s)}
    assert shown == {"things", "ground", "colour", "relation"}


def test_some_pairs_grounds_and_relations_of_every_thing_are_held_out() -> None:
    def shows(ground: str, relation: str | None, *names: str) -> bool:
        objects = tuple(Object(name, "", "medium") for name in names)
        return bool(held_out(Scene("two", objects, ground, relation and (0, relation, 1))))

    assert set(held_out_grounds()) == set(EMOJI_THINGS)
    assert not set(held_out_grounds().values()) & {"white", "turquoise"}
    pairs = [shows("white", None, *pair) for pair in combinations(THINGS, 2)]
    assert 0.08 < sum(pairs) / len(pairs) < 0.12
    for relation in RELATION_NUMBERS:
        subjects = [shows("white", relation, name, name) for name in EMOJI_THINGS]
        assert 0.1 < sum(subjects) / len(subjects) < 0.15


def test_everything_occurs() -> None:
    assert {shown.shape for s in SCENES for shown in s.objects} == set(THINGS)
    assert {s.kind for s in SCENES} == set(EVERYDAY_KINDS)
    assert {s.ground for s in SCENES} == set(EMOJI_GROUNDS)
    assert {s.relation[1] for s in SCENES if s.relation} == set(RELATION_NUMBERS)
    assert {place for s in SCENES for _, place in s.places} == set(PLACES)
    assert {len(s.objects) for s in SCENES if s.kind == "count"} == {2, 3, 4}


def test_sizes_are_those_of_one_object_or_of_several() -> None:
    for s in SCENES:
        sizes = ALONE if len(s.objects) == 1 else TOGETHER
        assert all(shown.radius == sizes[shown.size] / 2 for shown in s.objects)
    assert all(ALONE[size] > TOGETHER[size] for size in ALONE)


def test_relations_and_places_hold() -> None:
    for s in SCENES + HELD_OUT_SCENES:
        if s.relation:
            subject, relation, *others = s.relation
            assert (subject, *others) in related(s)
            for a, *b in related(s):
                assert relation_holds(relation, s.objects[a], [s.objects[i] for i in b])
        assert all(place_holds(place, s.objects[i]) for i, place in s.places)


def test_lists_are_in_reading_order() -> None:
    for s in SCENES:
        if s.kind in ("two", "three", "four"):
            x, y = ([getattr(shown, axis) for shown in s.objects] for axis in "xy")
            along = x if max(x) - min(x) > max(y) - min(y) else y
            assert along == sorted(along)


# Captions.


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_means_its_scene(language: str) -> None:
    for index in range(1200):
        shown = scene(11, index, language=language)
        parsed = parse_typed(shown.caption)
        assert parsed is not None, shown.caption
        assert (parsed.kind, parsed.ground, parsed.data) == (shown.kind, shown.ground, "everyday")
        assert typed_meaning(shown.caption) == typed_meaning(scene(11, index).caption)
        named = [(thing.shape, thing.colour, thing.size) for thing in shown.objects]
        assert sorted(named) == sorted((thing.shape, thing.colour, thing.size) for thing in parsed.objects)
        assert sorted(place for _, place in shown.places) == sorted(place for _, place in parsed.places)


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("cat", ["cat"]),
        ("A Cat.", ["cat"]),
        ("the moon", ["moon"]),
        ("cats", ["cat", "cat"]),
        ("2 puppies", ["dog", "dog"]),
        ("two cats and a moon", ["cat", "cat", "moon"]),
        ("dog, cat and bird", ["dog", "cat", "bird"]),
        ("a dog and a cat and a bird", ["dog", "cat", "bird"]),
        ("show me a hot dog", ["hot dog"]),
        ("an orange", ["orange"]),
        ("bread", ["loaf of bread"]),
        ("two pairs of scissors", ["pair of scissors"] * 2),
        ("the cat is next to the dog", ["cat", "dog"]),
        ("a bee between a rose and a tulip", ["bee", "rose", "tulip"]),
        ("two birds above a tree", ["bird", "bird", "tree"]),
        ("The cats are left of a dog.", ["cat", "cat", "dog"]),
        ("a cat between two trees", ["cat", "tree", "tree"]),
        ("一只猫", ["cat"]),
        ("猫和月亮", ["cat", "moon"]),
        ("三只小猫", ["cat"] * 3),
        ("大象", ["elephant"]),
        ("小提琴", ["violin"]),
        ("T恤", ["t-shirt"]),
        ("左上角有太阳", ["sun"]),
        ("猫在狗旁边", ["cat", "dog"]),
        ("猫在树和房子之间", ["cat", "tree", "house"]),
        ("猫在两棵树之间", ["cat", "tree", "tree"]),
    ],
)
def test_prompts_as_people_type_them_are_understood(text: str, things: list[str]) -> None:
    parsed = parse_typed(text)
    assert parsed is not None
    assert sorted(thing.shape for thing in parsed.objects) == sorted(things)
    assert all(thing.size == ("small" if "小猫" in text else "medium") for thing in parsed.objects)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "five cats",
        "a cats",
        "a red cat",
        "cat dog",
        "a cat on a chair",
        "a cat between a tree",
        "a cat between three trees",
        "猫狗",
    ],
)
def test_other_texts_describe_no_scene(text: str) -> None:
    assert parse_typed(text) is None


def test_shapes_and_grounds_have_defaults() -> None:
    for text, colour in [("circle", "red"), ("a star", "yellow"), ("an orange circle", "orange"), ("红圆", "red")]:
        parsed = parse_typed(text)
        assert parsed is not None and [thing.colour for thing in parsed.objects] == [colour]
    assert not {(shape, colour) for shape, colour in SHAPE_COLOURS.items()} & shapes.HELD_OUT
    grounds = [parse_typed(text) for text in ("a cat", "a cat on blue", "a cloud", "a cat and a cloud")]
    assert [parsed and parsed.ground for parsed in grounds] == ["white", "blue", "turquoise", "turquoise"]
    assert default_ground([("circle", "red")]) == "white"


@pytest.mark.parametrize(
    ("text", "relation", "places"),
    [
        ("a cat on the left", None, ["left"]),
        ("cat in the top left", None, ["top left"]),
        ("a cat in the lower right corner and a dog at the top", None, ["bottom right", "top"]),
        ("a cat on the left of a dog", "left of", []),
        ("a dog to the right of a cat", "left of", []),
        ("a cat on top of a box", "above", []),
        ("a sun over a house", "above", []),
        ("猫在狗左边", "left of", []),
        ("左边一只猫，右边一只狗", None, ["left", "right"]),
        ("左边有猫，右边有狗", None, ["left", "right"]),
    ],
)
def test_places_and_relations_are_told_apart(text: str, relation: str | None, places: list[str]) -> None:
    parsed = parse_typed(text)
    assert parsed is not None
    assert (parsed.relation and parsed.relation[1]) == relation
    assert sorted(place for _, place in parsed.places) == sorted(places)


def test_there_is_something_beside_what_a_chinese_caption_names_first() -> None:
    for text in ("猫的左边有一只狗", "猫左边有狗", "狗在猫的左边"):
        parsed = parse_typed(text)
        assert parsed is not None and parsed.relation == (0, "left of", 1)
        assert [thing.shape for thing in parsed.objects] == ["dog", "cat"]


def test_captions_in_two_languages_state_the_same() -> None:
    for index in range(600):
        stated = [
            sorted((word.kind, sorted(word.objects)) for word in s.words if word.kind != "count")  # "cats" are two
            for s in tellings(13, index, ("en", "zh"))
        ]
        assert stated[0] == stated[1]


def test_articles_are_right() -> None:
    captions = [s.caption.lower() for s in SCENES]
    wrong = re.compile(
        r"\ba (?!unicorn|ufo|ewe)[aeiou]|\ba hourglass|\ban (?![aeiou]|hourglass)|\ban (unicorn|ufo|ewe)"
    )
    assert not [caption for caption in captions if wrong.search(caption)]


def test_spans_are_the_words_of_their_objects() -> None:
    for s in SCENES:
        for word in s.words:
            text = s.caption[word.start : word.end].lower()
            if word.kind == "shape":
                names = THINGS[s.objects[word.objects[0]].shape].english
                assert text in {name.plural if len(word.objects) > 1 else name.text for name in names}
            elif word.kind == "ground":
                assert text.replace("grey", "gray") == s.ground
            elif word.kind == "colour":
                assert {s.objects[i].colour for i in word.objects} == {text}


def test_a_tokenizer_of_this_world_knows_every_name_and_only_it_is_of_this_world() -> None:
    captions = [*(s.caption for s in SCENES[:200]), *all_names()]
    tokenizer = train_tokenizer(captions)
    assert not unknown_words(" ".join(EVERYDAY_LEXICON.nouns), tokenizer)
    examples = SceneExamples(64, 1, "everyday")
    assert set(all_names()) <= set(examples.captions())


# Pictures.


@pytest.mark.parametrize("size", [64, 128, (64, 96)])
def test_the_masks_are_exact(size: int | tuple[int, int]) -> None:
    for shown in SCENES[:60]:
        picture, masks = render(shown, size)
        covered = masks.sum(axis=0)
        assert covered.max() <= 1, "objects overlap"
        assert (picture[covered == 0] == np.array(EMOJI_GROUNDS[shown.ground])).all()
        for thing, mask in zip(shown.objects, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            side = 1 + max(np.ptp(rows), np.ptp(columns))
            assert abs(side - 2 * thing.radius * min(mask.shape)) <= 2.5
        for word in shown.words:
            region = word_mask(word, masks)
            assert (region is None) == (word.kind == "relation")


def test_a_larger_picture_shows_the_same_in_proportion() -> None:
    for shown in SCENES[:40]:
        small, large = (render(shown, size)[1].mean(axis=(1, 2)) for size in (64, 128))
        assert np.abs(small - large).max() < 0.01


# The judge.


@pytest.mark.parametrize("size", [64, 128])
def test_exact_renders_are_all_correct(size: int) -> None:
    shown = [scene(5, index, kind, held_out=index % 2 == 1) for kind in EVERYDAY_KINDS for index in range(2)]
    verdicts = [judge(s, render(s, size)[0]) for s in shown]
    assert [s.caption for s, v in zip(shown, verdicts, strict=True) if not v.all_correct] == []
    assert all(atom.ok for v in verdicts for atom in v.atoms)


def test_a_relation_to_several_things_is_one_to_each() -> None:
    described = parse_typed("a cat left of two bananas")
    assert described is not None and described.relation is not None
    assert related(described) == [(0, 1), (0, 2)]
    for places, right in ((((0.2, 0.5), (0.6, 0.3), (0.8, 0.6)), True), (((0.5, 0.5), (0.2, 0.4), (0.8, 0.6)), False)):
        objects = [
            replace(o, x=x, y=y, radius=TOGETHER[o.size] / 2)
            for o, (x, y) in zip(described.objects, places, strict=True)
        ]
        picture, _ = render(replace(described, objects=tuple(objects)))
        assert judge(described, picture).all_correct == right


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a cat between two trees", [(0, 1, 2)]),
        ("two birds above a tree", [(0, 2), (1, 2)]),
        ("a cat next to a cat", [(0, 1)]),
        ("猫在猫旁边", [(0, 1)]),
    ],
)
def test_what_is_related_to_what(text: str, objects: list[tuple[int, ...]]) -> None:
    described = parse_typed(text)
    assert described is not None and related(described) == objects


def test_objects_are_located() -> None:
    for index in range(4):
        shown = scene(6, index)
        picture, masks = render(shown, 128)
        located = [
            (o, found) for o, found in zip(shown.objects, locate(shown, picture), strict=True) if found is not None
        ]
        assert len(located) == len(masks)
        for drawn, mask in zip(shown.objects, masks, strict=True):
            alike = [found for o, found in located if (o.shape, o.colour) == (drawn.shape, drawn.colour)]
            # Which of two cats is the first cannot be seen.
            assert max(np.minimum(found, mask).sum() / np.maximum(found, mask).sum() for found in alike) > 0.8


def test_the_world_has_its_own_kinds_and_parser() -> None:
    world = WORLDS["everyday"]
    assert world.kinds == tuple(EVERYDAY_KINDS)
    assert world.parse("a cat") == parse_typed("a cat")
    assert sum(EVERYDAY_KINDS.values()) == pytest.approx(1)


# Training.


def test_pictures_of_128_pixels_cost_what_those_of_64_do() -> None:
    kept = Kept(train_tokenizer([s.caption for s in SCENES[:50]]), True, [])
    grids = []
    for size in (64, 128):
        config = TrainConfig(data="everyday", size=size)
        _, _, unet, _ = build(config, SceneExamples(size, 0, "everyday"), kept)
        grids.append(unet.attention_grids(size, size))
    assert grids[0] == grids[1]
