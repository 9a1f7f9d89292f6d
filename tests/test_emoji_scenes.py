"""Properties of the world of emoji: pictures and captions are exact."""

import hashlib
import json
import re
from dataclasses import astuple
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.emoji_folder import write_scenes
from pipelines.data.scenes import VALIDATION_SEED, SceneExamples
from pipelines.scenes import emoji, shapes
from pipelines.scenes.captions import CHINESE_SIZES, LANGUAGES, RELATIONS, SIZE_WORDS, meaning
from pipelines.scenes.emoji import EMOJI_SIZES, glyph, is_held_out, render, scene
from pipelines.scenes.emoji_font import EMOJI_GROUNDS, find_font
from pipelines.scenes.emoji_words import EMOJI, EMOJI_LEXICON
from pipelines.scenes.scene import DIFFERENT, KINDS, Scene, parse_caption, word_mask
from pipelines.scenes.worlds import WORLDS
from pipelines.training.parts import load_examples
from pipelines.training.train import TrainConfig

SCENES = [scene(7, index) for index in range(1500)]
HELD_OUT_SCENES = [scene(7, index, kind, held_out=True) for index in range(40) for kind in KINDS]


def pairs(described: Scene) -> set[tuple[str, str]]:
    """The pairs in a scene: of two emoji, and of an emoji and the ground."""
    names = sorted({o.shape for o in described.objects})
    return {*combinations(names, 2), *((name, described.ground) for name in names)}


def test_the_scenes_of_shapes_and_their_captions_never_change() -> None:
    digest = hashlib.sha256()
    for index in range(100):
        for language in LANGUAGES:
            s = shapes.scene(0, index, language=language)
            digest.update(repr((list(map(astuple, s.objects)), s.caption, list(map(astuple, s.words)))).encode())
    # Models are trained on these: other scenes are other training data.
    assert digest.hexdigest() == "d036beeb9c4ec22ef3fc83dc0c8f34d5ae56733fcb46263eeb60fe0f67b5dd57"


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    forwards = [scene(3, index) for index in range(50)]
    assert forwards == [scene(3, index) for index in reversed(range(50))][::-1]
    assert forwards != [scene(4, index) for index in range(50)]
    assert len({s.caption for s in forwards}) > 45


def test_training_never_shows_held_out_pairs_and_testing_always_does() -> None:
    assert not any(is_held_out(*pair) for s in SCENES for pair in pairs(s))
    for s in HELD_OUT_SCENES:
        with_ground = DIFFERENT[s.kind] == 1
        assert any(is_held_out(*pair) for pair in pairs(s) if (pair[1] in EMOJI_GROUNDS) == with_ground)


def test_a_tenth_of_the_pairs_are_held_out_and_every_emoji_has_some() -> None:
    together = [pair for pair in combinations(EMOJI, 2) if is_held_out(*pair)]
    assert 0.08 < len(together) / (len(EMOJI) * (len(EMOJI) - 1) / 2) < 0.12
    assert {name for pair in together for name in pair} == set(EMOJI)
    assert all(sum(is_held_out(name, ground) for ground in EMOJI_GROUNDS) == 1 for name in EMOJI)
    assert all(is_held_out(a, b) == is_held_out(b, a) for a, b in combinations(list(EMOJI)[:20], 2))


def test_every_word_and_size_occurs() -> None:
    assert {o.shape for s in SCENES for o in s.objects} == set(EMOJI)
    assert {s.ground for s in SCENES} == set(EMOJI_GROUNDS)
    assert {o.size for s in SCENES for o in s.objects} == set(EMOJI_SIZES)
    assert {s.kind for s in SCENES} == set(KINDS)
    assert {s.relation[1] for s in SCENES if s.relation} == set(RELATIONS)
    assert {len(s.objects) for s in SCENES if s.kind == "count"} == {2, 3}


def test_lists_are_in_reading_order_and_relations_in_either() -> None:
    def rises(described: Scene) -> bool:
        x, y = ([getattr(o, axis) for o in described.objects] for axis in "xy")
        along = x if max(x) - min(x) > max(y) - min(y) else y
        return along == sorted(along)

    assert all(rises(s) for s in SCENES if s.kind in ("two", "three"))
    related = [rises(s) for s in SCENES if s.kind == "relation"]
    assert 0.4 < sum(related) / len(related) < 0.6


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_means_its_scene(language: str) -> None:
    for index in range(600):
        shown = scene(11, index, language=language)
        parsed = WORLDS["emoji"].parse(shown.caption)
        assert parsed is not None, shown.caption
        assert (parsed.kind, parsed.ground, parsed.data) == (shown.kind, shown.ground, "emoji")
        assert meaning(shown.caption, EMOJI_LEXICON) == meaning(scene(11, index).caption, EMOJI_LEXICON)
        named = [(o.shape, o.size) for o in shown.objects]
        assert sorted(named) == sorted((o.shape, o.size) for o in parsed.objects)
        assert parse_caption(shown.caption) is None


def test_captions_of_shapes_describe_no_scene_of_emoji() -> None:
    assert all(WORLDS["emoji"].parse(shapes.scene(1, i).caption) is None for i in range(100))


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a car left of a carrot", [("car", "medium"), ("carrot", "medium")]),
        ("two fish", [("fish", "medium")] * 2),
        ("an umbrella and a tiny ice cream", [("umbrella", "medium"), ("ice cream", "small")]),
        ("三个大象", [("elephant", "medium")] * 3),
        ("一只小猫", [("cat", "small")]),
        ("一头大的大象", [("elephant", "big")]),
        ("一只猫头鹰在一棵树的左边", [("owl", "medium"), ("tree", "medium")]),
    ],
)
def test_prompts_as_people_type_them_are_understood(text: str, objects: list[tuple[str, str]]) -> None:
    parsed = WORLDS["emoji"].parse(text)
    assert parsed is not None
    assert [(o.shape, o.size) for o in parsed.objects] == objects


def test_articles_plurals_and_measure_words_are_right() -> None:
    captions = [s.caption.lower() for s in SCENES]
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", caption) for caption in captions)
    for shown in SCENES:
        for word in shown.words:
            if word.kind == "shape":
                name = shown.objects[word.objects[0]].shape
                noun = EMOJI[name][1] if len(word.objects) > 1 else name
                assert shown.caption[word.start : word.end].lower() == noun
    for index in range(300):
        shown = scene(7, index, language="zh")
        sizes = "|".join(word for words in CHINESE_SIZES.values() for word in words)
        for name, (_, _, measure, chinese) in EMOJI.items():
            if any(o.shape == name for o in shown.objects) and shown.kind != "relation":
                assert re.search(f"[一两三]{measure}(({sizes})的?)?{chinese}", shown.caption), shown.caption


def test_no_two_emoji_share_a_word() -> None:
    for column in range(2):
        assert len({row[column] for row in EMOJI.values()}) == len(EMOJI) >= 60
    assert len({row[3] for row in EMOJI.values()}) == len(EMOJI)
    assert len({word for name, row in EMOJI.items() for word in {name, row[1]}}) == 2 * len(EMOJI) - 1  # two fish


def test_a_caption_names_everything_except_a_medium_size_and_a_white_ground() -> None:
    for shown in SCENES:
        for i, o in enumerate(shown.objects):
            words = {w.kind: shown.caption[w.start : w.end].lower() for w in shown.words if i in w.objects}
            assert words.get("size", "medium") in SIZE_WORDS[o.size] and "colour" not in words
        grounds = [shown.caption[w.start : w.end].lower() for w in shown.words if w.kind == "ground"]
        assert (grounds or ["white"]) == [shown.ground]


@pytest.mark.parametrize("size", [64, 32, (64, 96)])
def test_the_masks_are_exact(size: int | tuple[int, int]) -> None:
    for shown in SCENES[:80]:
        picture, masks = render(shown, size)
        ground = np.array(EMOJI_GROUNDS[shown.ground])
        covered = masks.sum(axis=0)
        assert covered.max() <= 1, "objects overlap"
        assert (picture[covered == 0] == ground).all()
        for o, mask in zip(shown.objects, masks, strict=True):
            assert mask.sum() == pytest.approx(glyph(o.shape, round(2 * o.radius * min(mask.shape)))[1].sum())
            solid = mask == 1
            distance = np.linalg.norm(picture[solid].astype(float) - ground, axis=1)
            assert (distance > 80).mean() > 0.5, f"a {o.shape} cannot be seen on {shown.ground}"
        for word in shown.words:
            if word.kind == "shape":
                assert np.array_equal(word_mask(word, masks), masks[list(word.objects)].max(axis=0))


def test_every_emoji_is_drawn_in_its_size() -> None:
    for shown in SCENES[:200]:
        for o, mask in zip(shown.objects, render(shown)[1], strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            side = 1 + max(np.ptp(rows), np.ptp(columns))
            assert abs(side - {"small": 18, "medium": 22, "big": 28}[o.size]) <= 1


def test_reduced_glyphs_keep_their_colours() -> None:
    premultiplied, alpha = glyph("apple", 24)
    solid = alpha > 0.99
    assert (premultiplied[solid][:, 0] > premultiplied[solid][:, 2] + 40).mean() > 0.7  # red, not blue
    edge = (alpha > 0.3) & (alpha < 0.7)
    assert (premultiplied[edge] / alpha[edge][:, None]).max(axis=1).mean() > 120  # no dark fringe


def test_training_takes_scenes_of_emoji_in_both_languages() -> None:
    examples = load_examples(TrainConfig(data="emoji", seed=3))
    for place in range(4):
        example = examples.example(place)
        assert example.picture.shape == (64, 64, 3) and example.regions
        assert WORLDS["emoji"].parse(example.caption) is not None
        assert meaning(example.translation, EMOJI_LEXICON) == meaning(example.caption, EMOJI_LEXICON)
        assert (max(example.caption) > "\u4e00") == (place % 2 == 1)
    assert examples.validation(1)[0].caption == scene(VALIDATION_SEED, 0).caption


def test_the_captions_a_tokenizer_learns_from_have_every_name() -> None:
    captions = " ".join(SceneExamples(64, 1, "emoji").captions()).lower()
    words = set(re.findall(r"[a-z-]+", captions))
    assert {word for name, row in EMOJI.items() for text in (name, row[1]) for word in text.split()} <= words
    assert all(row[3] in captions and row[2] in captions for row in EMOJI.values())


def test_a_folder_of_scenes_has_a_mask_for_every_object_and_ground_it_names(tmp_path: Path) -> None:
    assert write_scenes(tmp_path / "emoji", count=12) == 12
    lines = (tmp_path / "emoji" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    for index, row in enumerate(map(json.loads, lines)):
        shown = scene(0, index)
        picture, masks = render(shown)
        assert (row["text"], row["translation"]) == (shown.caption, scene(0, index, language="zh").caption)
        with Image.open(tmp_path / "emoji" / row["file_name"]) as file:
            assert np.array_equal(np.asarray(file), picture)
        assert len(row["masks"]) == sum(word.kind in ("shape", "ground") for word in shown.words)
        for phrase, name in row["masks"].items():
            assert row["text"].count(phrase) == 1
            with Image.open(tmp_path / "emoji" / name) as file:
                mask = np.asarray(file) / 255
            fits = [*masks, masks.max(axis=0), 1 - masks.max(axis=0)]
            assert min(np.abs(mask - fit).max() for fit in fits) < 0.01
    with pytest.raises(ValueError, match="left untouched"):
        write_scenes(tmp_path / "emoji", count=1)
    with pytest.raises(ValueError, match="1 or more"):
        write_scenes(tmp_path / "none", count=0)


def test_without_the_font_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emoji, "cached_font", lambda: find_font([tmp_path]))
    monkeypatch.setattr(emoji, "_grounds", emoji._grounds.__wrapped__)
    for attempt in (
        lambda: write_scenes(tmp_path / "emoji"),
        lambda: load_examples(TrainConfig(data="emoji")).validation(1),
    ):
        with pytest.raises(ValueError, match="apt-get install fonts-noto-color-emoji"):
            attempt()
    assert WORLDS["emoji"].parse("a cat") is not None
    assert list(tmp_path.iterdir()) == []
