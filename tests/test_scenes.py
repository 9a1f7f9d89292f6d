"""Properties of the world of shapes: pictures and captions are exact."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipelines.scenes.captions import COUNT_WORDS, RELATIONS, SIZE_WORDS
from pipelines.scenes.scene import COLOURS, KINDS, SHAPE_GROUNDS, Scene, word_mask
from pipelines.scenes.shapes import HELD_OUT, SHAPE_SIZES, SHAPES, coverage, render, scene, tellings, unit_area

SCENES = [scene(7, index) for index in range(1500)]
HELD_OUT_SCENES = [scene(7, index, kind, held_out=True) for index in range(60) for kind in KINDS]
SPELLINGS = {
    "shape": {shape + plural for shape in SHAPES for plural in ("", "s", "es")},
    "colour": set(COLOURS),
    "size": {word for words in SIZE_WORDS.values() for word in words},
    "count": set(COUNT_WORDS.values()),
    "relation": {wording for wordings in RELATIONS.values() for wording in wordings},
    "ground": set(SHAPE_GROUNDS),
}


def spelled(described: Scene, kind: str) -> list[str]:
    """The words of a kind in a caption, in order."""
    return [described.caption[w.start : w.end].lower() for w in described.words if w.kind == kind]


def pairs(described: Scene) -> set[tuple[str, str]]:
    return {(o.shape, o.colour) for o in described.objects}


def test_a_scene_is_a_pure_function_of_seed_and_index():
    forwards = [scene(3, index) for index in range(50)]
    backwards = [scene(3, index) for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert len({s.caption for s in forwards}) > 45
    assert forwards != [scene(4, index) for index in range(50)]


def test_no_training_scene_shows_a_held_out_pair():
    assert not any(pairs(s) & HELD_OUT for s in SCENES)


def test_every_held_out_scene_shows_a_held_out_pair():
    assert all(pairs(s) & HELD_OUT for s in HELD_OUT_SCENES)
    assert set().union(*map(pairs, HELD_OUT_SCENES)) >= HELD_OUT


def test_every_shape_and_every_colour_is_seen_in_training_in_another_pair():
    seen = set().union(*map(pairs, SCENES))
    assert seen == {(shape, colour) for shape in SHAPES for colour in COLOURS} - HELD_OUT


def test_lists_are_in_reading_order_and_relations_in_either():
    def rises(described: Scene) -> bool:
        x, y = ([getattr(o, axis) for o in described.objects] for axis in "xy")
        along = x if max(x) - min(x) > max(y) - min(y) else y
        return along == sorted(along)

    assert all(rises(s) for s in SCENES if s.kind in ("two", "three"))
    related = [rises(s) for s in SCENES if s.kind == "relation"]
    assert 0.4 < sum(related) / len(related) < 0.6


def test_every_word_of_the_grammar_occurs():
    assert {s.kind for s in SCENES} == set(KINDS)
    assert {s.ground for s in SCENES} == set(SHAPE_GROUNDS)
    assert {o.size for s in SCENES for o in s.objects} == set(SHAPE_SIZES)
    assert {len(s.objects) for s in SCENES} == {1, 2, 3}
    assert {s.relation[1] for s in SCENES if s.relation} == set(RELATIONS)
    for kind in ("size", "count", "relation", "ground"):
        assert {text for s in SCENES for text in spelled(s, kind)} == SPELLINGS[kind]
    captions = [s.caption for s in SCENES]
    for style in (str.islower, str.isupper, lambda text: text[0].isupper() and not text.isupper()):
        assert any(map(style, captions))
    assert {caption[-1] for caption in captions} > {".", "!"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_what_it_says(kind):
    for index in range(60):
        described = scene(11, index, kind)
        assert described.kind == kind
        assert (described.relation is not None) == (kind == "relation")
        different = {(o.shape, o.colour, o.size) for o in described.objects}
        assert len(different) == {"one": 1, "count": 1, "two": 2, "relation": 2, "three": 3}[kind]
        assert len(described.objects) in ((2, 3) if kind == "count" else (len(different),))


def test_every_stated_relation_holds_and_is_in_the_caption():
    stated = [s for s in SCENES if s.relation]
    for described in stated:
        subject, relation, other = described.relation
        a, b = described.objects[subject], described.objects[other]
        ahead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
        assert ahead[relation] == max(ahead.values())
        # Clear of the diagonal, where both relations would be acceptable.
        assert ahead[relation] > 1.2 * sorted(ahead.values())[-2]
        assert spelled(described, "relation")[0] in RELATIONS[relation]
        first, second = (w.start for w in described.words if w.kind == "shape")
        assert first < next(w.start for w in described.words if w.kind == "relation") < second
    assert stated


def test_spans_cover_exactly_the_words_of_their_class():
    for described in SCENES + HELD_OUT_SCENES:
        rest = described.caption
        for word in reversed(described.words):
            assert described.caption[word.start : word.end].lower() in SPELLINGS[word.kind]
            rest = rest[: word.start] + "#" + rest[word.end :]
        # Outside the spans there is only grammar.
        assert not re.search(rf"\b({'|'.join(set().union(*SPELLINGS.values()))})\b", rest.lower()), rest


def test_a_caption_names_everything_except_a_medium_size_and_a_white_ground():
    for described in SCENES:
        for i, o in enumerate(described.objects):
            words = {w.kind: described.caption[w.start : w.end].lower() for w in described.words if i in w.objects}
            assert words["shape"].startswith(o.shape)
            assert words["colour"] == o.colour
            assert words.get("size", "medium") in SIZE_WORDS[o.size]
            assert words.get("count", "") == (COUNT_WORDS[len(described.objects)] if described.kind == "count" else "")
        assert (spelled(described, "ground") or ["white"]) == [described.ground]


def test_a_words_mask_is_what_it_describes():
    for described in SCENES[:200]:
        picture, masks = render(described)
        for word in described.words:
            mask = word_mask(word, masks)
            text = described.caption[word.start : word.end].lower()
            if word.kind == "relation":
                assert mask is None
            elif word.kind in ("colour", "ground"):
                named = (np.abs(picture.astype(int) - (COLOURS | SHAPE_GROUNDS)[text]) <= 1).all(axis=-1)
                alike = [i for i, o in enumerate(described.objects) if o.colour == text]
                assert named[mask == 1].all()
                assert not (named & (mask == 0))[masks[alike].sum(axis=0) == 0].any()
            else:
                assert np.array_equal(mask, masks[list(word.objects)].sum(axis=0))


@pytest.mark.parametrize("size", [64, 32, (64, 96), (100, 70)])
def test_masks_add_up_to_the_picture_at_any_size(size):
    for described in SCENES[:60]:
        picture, masks = render(described, size)
        height, width = (size, size) if isinstance(size, int) else size
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
        assert masks.shape == (len(described.objects), height, width) and masks.dtype == np.float32
        palette = np.array([COLOURS[o.colour] for o in described.objects], np.float32)
        mixed = np.tensordot(masks, palette, axes=(0, 0))
        mixed += (1 - masks.sum(axis=0))[..., None] * np.array(SHAPE_GROUNDS[described.ground], np.float32)
        assert np.abs(picture - mixed).max() <= 1


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_objects_never_touch_nor_leave_the_picture(size):
    for described in SCENES[:400]:
        _, masks = render(described, size)
        assert ((masks > 0).sum(axis=0) <= 1).all()
        for mask, o in zip(masks, described.objects, strict=True):
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert border.max() < 1
            area = unit_area(o.shape) * (o.radius * 64) ** 2
            assert mask.sum() == pytest.approx(area, rel=0.12)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_has_the_area_and_the_place_of_the_outline(shape):
    mask = coverage(shape, 50.3, 45.8, 30, 100, 100)
    assert mask.sum() == pytest.approx(unit_area(shape) * 30**2, rel=0.02)
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.2), np.flatnonzero(mask.max(axis=0) > 0.2)
    outline = SHAPES[shape] * 30 + (50.3, 45.8)
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert found == pytest.approx([*outline.min(axis=0), *outline.max(axis=0)], abs=1.5)


def test_sizes_stay_apart():
    radii = {size: [o.radius for s in SCENES for o in s.objects if o.size == size] for size in SHAPE_SIZES}
    assert max(radii["small"]) < min(radii["medium"]) and max(radii["medium"]) < min(radii["big"])


def test_a_shape_is_cut_off_at_the_edge_of_the_picture():
    uncut = coverage("circle", 32, 32, 10, 64, 64)
    assert np.array_equal(coverage("circle", 0, 32, 10, 64, 64)[:, :32], uncut[:, 32:])
    assert coverage("circle", -40, 32, 10, 64, 64).max() == 0


# Optimisations change nothing.


def drawn_plainly(shown: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the masks of a scene, computed for the full picture."""
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = SHAPE_GROUNDS[shown.ground]
    side, masks = min(height, width), []
    for o in shown.objects:
        mask = coverage(o.shape, o.x * width, o.y * height, o.radius * side, height, width)
        picture += mask[..., None] * (np.array(COLOURS[o.colour], np.float32) - picture)
        masks.append(mask)
    return picture.round().astype(np.uint8), np.stack(masks)


@pytest.mark.parametrize("shape", [(64, 64), (32, 48)])
def test_drawing_only_the_boxes_of_objects_changes_no_pixel(shape: tuple[int, int]) -> None:
    for index in range(150):
        shown = scene(11, index)
        if index % 3 == 0:  # partly or entirely outside the picture
            moved = [replace(o, x=o.x * 2.5 - 0.7, y=1.4 - 2 * o.y) for o in shown.objects]
            shown = replace(shown, objects=tuple(moved))
        for found, expected in zip(render(shown, shape), drawn_plainly(shown, *shape), strict=True):
            assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_captions_in_several_languages_are_those_of_each_language_alone() -> None:
    for index in range(100):
        languages = ("zh", "en") if index % 2 else ("en", "zh")
        expected = [scene(7, index, language=language) for language in languages]
        assert tellings(7, index, languages) == expected
