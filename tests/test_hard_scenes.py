"""Scenes that are harder to read than those of training, and the outlines of things as they were drawn."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pipelines.evaluation.hard_scenes import HARDNESSES, LEAST_VISIBLE, MOST_VISIBLE, NOISE, hard_scene
from pipelines.evaluation.outlines import drawn_outlines
from pipelines.scenes.emoji import EMOJI_SIZES
from pipelines.scenes.judge import locate
from pipelines.scenes.scene import Object, Scene
from pipelines.scenes.worlds import WORLDS, parse, render

SEED = 161_803
EVERY = [(data, hardness) for data in WORLDS for hardness in HARDNESSES]


@pytest.mark.parametrize(("data", "hardness"), EVERY)
def test_a_hard_scene_is_a_function_of_its_number_and_its_caption_names_every_thing(data: str, hardness: str) -> None:
    first, again, other = (hard_scene(data, SEED, index, hardness) for index in (3, 3, 4))
    assert first.scene == again.scene and (first.picture == again.picture).all()
    assert first.picture.shape == (64, 64, 3) and not (first.picture == other.picture).all()
    for hard in (first, other):
        nouns = [word for word in hard.scene.words if word.kind == "shape"]
        assert sorted(i for noun in nouns for i in noun.objects) == list(range(len(hard.scene.objects)))
        named = parse(hard.scene.caption, data)
        if named is None:  # the grammar of typed captions knows no lists of five
            assert (data, hardness) == ("everyday", "many")
            continue
        things = [sorted((o.shape, o.colour, o.size) for o in scene.objects) for scene in (named, hard.scene)]
        assert named.ground == hard.scene.ground and things[0] == things[1]


@pytest.mark.parametrize(("data", "hardness"), EVERY)
def test_masks_are_of_what_is_visible(data: str, hardness: str) -> None:
    for index in range(4):
        hard = hard_scene(data, SEED, index, hardness)
        alone = [render(replace(hard.scene, objects=(o,)))[1][0] for o in hard.scene.objects]
        assert hard.masks.sum(axis=0).max() <= 1 + 1e-5
        for i, mask in enumerate(hard.masks):
            above = np.prod([1 - later for later in alone[i + 1 :]], axis=0) if alone[i + 1 :] else 1
            assert np.abs(mask - alone[i] * above).max() < 1e-5
        visible = [float(mask.sum() / one.sum()) for mask, one in zip(hard.masks, alone, strict=True)]
        if HARDNESSES[hardness][0].__name__ == "_overlapping":
            assert LEAST_VISIBLE <= min(visible) <= MOST_VISIBLE
        else:
            assert min(visible) > 0.99


@pytest.mark.parametrize("data", WORLDS)
def test_many_are_four_or_five_different_things(data: str) -> None:
    shapes = [{o.shape for o in hard_scene(data, SEED, index, "many").scene.objects} for index in range(6)]
    assert [len(shape) for shape in shapes] == [4, 5, 4, 5, 4, 5]


@pytest.mark.parametrize("data", WORLDS)
def test_grounds_are_restless_and_of_the_colour_of_the_first_thing(data: str) -> None:
    def ground(hardness: str, index: int) -> np.ndarray:
        hard = hard_scene(data, SEED, index, hardness)
        return hard.picture[hard.masks.sum(axis=0) == 0].astype(float)  # (n, 3)

    for index in range(5):
        plain = ground("many", index)
        assert plain.std(axis=0).max() < 1
        assert 5 < ground("texture", index).std(axis=0).mean() < 25
        assert 5 < ground("gradient", index).std(axis=0).mean() < 40
        assert NOISE / 3 < ground("noise", index).std(axis=0).mean() < 1.2 * NOISE  # white is cut off at 255
        hard = hard_scene(data, SEED, index, "camouflage")
        usual = render(hard.scene)[0].astype(float)
        free, thing = hard.masks.sum(axis=0) == 0, usual[hard.masks[0] > 0.99].mean(axis=0)
        before, now = (np.linalg.norm(p[free].mean(axis=0) - thing) for p in (usual, hard.picture.astype(float)))
        assert now == pytest.approx(before / 2, rel=0.1, abs=3)


def test_the_outline_of_an_emoji_is_what_was_drawn_of_it() -> None:
    whole = Object("crab", "", "big", 0.5, 0.5, EMOJI_SIZES["big"] / 2)
    scene = Scene("one", (whole,), "green", None, data="emoji")
    picture, (mask,) = render(scene)
    outline = drawn_outlines(scene, picture)[0]
    assert outline is not None
    body = ndimage.binary_opening(mask >= 0.5, iterations=2)
    legs = (mask >= 0.5) & ~ndimage.binary_dilation(body, iterations=2)
    assert legs.sum() > 20 and (outline[legs] >= 0.5).mean() > 0.9
    picture[ndimage.binary_dilation(legs)] = picture[0, 0]
    drawn, judged = drawn_outlines(scene, picture)[0], locate(scene, picture)[0]
    assert drawn is not None and judged is not None
    assert (judged[legs] >= 0.5).mean() > 0.9 and (drawn[legs] >= 0.5).mean() < 0.1
    assert (drawn[body] >= 0.5).mean() > 0.97


@pytest.mark.parametrize(("data", "overlap"), [("shapes", 0.99), ("emoji", 0.96)])
def test_outlines_of_exact_renders_are_their_masks(data: str, overlap: float) -> None:
    found = []
    for index in range(30):
        scene = WORLDS[data].scene(SEED, index, kind="three")
        picture, masks = render(scene)
        for outline, mask in zip(drawn_outlines(scene, picture), masks, strict=True):
            assert outline is not None
            inside, true = outline >= 0.5, mask >= 0.5
            found.append((inside & true).sum() / (inside | true).sum())
    assert np.mean(found) > overlap


def test_a_thing_that_was_not_drawn_has_no_outline() -> None:
    scene = WORLDS["emoji"].scene(SEED, 0, kind="two")
    missing = replace(scene, objects=scene.objects[:1])
    outlines = drawn_outlines(scene, render(missing)[0])
    assert outlines[0] is not None and outlines[1] is None
