"""Properties of the judge: correct pictures pass, and each error is found without blaming anything else."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pipelines.scenes.captions import RELATIONS
from pipelines.scenes.judge import GENEVAL, Verdict, judge
from pipelines.scenes.scene import COLOURS, KINDS, SHAPE_GROUNDS, Object, Scene
from pipelines.scenes.see_shapes import CLEAR, PALETTE, see_shapes, unit_centroid
from pipelines.scenes.shapes import SHAPE_SIZES, SHAPES, coverage, render, scene
from pipelines.scenes.sight import UNKNOWN

SCENES = [scene(2024, index, held_out=bool(index % 2)) for index in range(400)]
PICTURES = [render(described)[0] for described in SCENES]


def wrong(verdict: Verdict) -> set[str]:
    """The facts that the judge finds wrong."""
    return {check.fact for check in verdict.checks if not check.ok}


def with_first(described: Scene, **changes: str) -> Scene:
    """The scene with a changed first object."""
    return replace(described, objects=(replace(described.objects[0], **changes), *described.objects[1:]))


def draw(*objects: Object, ground: str = "white") -> np.ndarray:
    return render(Scene("two", objects, ground))[0]


def test_exact_renders_are_all_correct():
    failures = [s.caption for s, picture in zip(SCENES, PICTURES, strict=True) if not judge(s, picture).all_correct]
    assert failures == []


@pytest.mark.parametrize("size", [48, 96, (64, 96), (96, 64)])
def test_the_size_of_the_picture_does_not_matter(size):
    for described in SCENES[:40]:
        assert judge(described, render(described, size)[0]).all_correct, described.caption


def test_exchanged_captions_are_hardly_ever_all_correct():
    same = sum(judge(s, picture).all_correct for s, picture in zip(SCENES[1:200], PICTURES, strict=False))
    assert same <= 2


@pytest.mark.parametrize(
    ("noise", "blur", "shift"),
    [(8, 0, 0), (0, 0.7, 0), (0, 0, 20), (8, 0.5, 10)],
    ids=["noise", "blur", "shift", "all"],
)
def test_imperfect_pictures_are_judged_correctly(noise, blur, shift):
    """Noise and colour shift in units of 1/255, blur in pixels."""
    rng = np.random.default_rng(0)
    right = []
    for described, picture in zip(SCENES[:100], PICTURES, strict=False):
        blurred = ndimage.gaussian_filter(picture.astype(float), (blur, blur, 0))
        drawn = blurred + rng.uniform(-shift, shift, 3) + rng.normal(0, noise, picture.shape)
        right.append(judge(described, drawn.round().clip(0, 255).astype(np.uint8)).all_correct)
    assert np.mean(right) >= 0.99


def test_noisy_brown_on_black_is_not_taken_for_faint_orange():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        described = Scene("one", (Object(shape, "brown", "big", 0.5, 0.5, 0.18),), "black")
        drawn = render(described)[0] + rng.normal(0, 8, (64, 64, 3))
        assert judge(described, drawn.round().clip(0, 255).astype(np.uint8)).all_correct


def test_found_objects_have_the_true_position_and_size():
    for described, picture in zip(SCENES[:60], PICTURES, strict=False):
        sight, masks = see_shapes(picture), render(described)[1]
        assert sight.masks.shape == masks.shape and sight.masks.dtype == np.float32
        for o, mask in zip(described.objects, masks, strict=True):
            at, found = min(enumerate(sight.objects), key=lambda seen, o=o: abs(seen[1].x - o.x) + abs(seen[1].y - o.y))
            assert (found.x, found.y, found.radius) == pytest.approx((o.x, o.y, o.radius), abs=0.7 / 64)
            assert np.abs(sight.masks[at] - mask).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_found_and_nothing_else_is_blamed(kind):
    for index in range(8):
        described = scene(99, index, kind)
        picture = render(described)[0]
        first = described.objects[0]
        shape = next(s for s in SHAPES if s not in {o.shape for o in described.objects})
        colour = next(c for c in COLOURS if c not in {o.colour for o in described.objects})
        for size in set(SHAPE_SIZES) - {first.size}:
            assert wrong(judge(with_first(described, size=size), picture)) == {"size"}
        for ground in set(SHAPE_GROUNDS) - {described.ground}:
            assert wrong(judge(replace(described, ground=ground), picture)) == {"ground"}
        assert wrong(judge(with_first(described, shape=shape), picture)) == {"shape"}
        assert wrong(judge(with_first(described, colour=colour), picture)) == {"colour"}
        fewer = replace(described, objects=described.objects[:-1], relation=None, words=())
        assert wrong(judge(fewer, picture)) == {"count"}
        missing = Object(shape, colour, "big")
        verdict = judge(replace(described, objects=(*described.objects, missing)), picture)
        assert wrong(verdict) == {"count", "shape", "colour", "size"}
        assert all(c.fact == "count" or shape in c.text for c in verdict.checks if not c.ok)


@pytest.mark.parametrize("relation", RELATIONS)
def test_only_the_stated_relation_holds(relation):
    stated = [s for s in (scene(5, index, "relation") for index in range(60)) if s.relation[1] == relation]
    for described in stated[:6]:
        picture = render(described)[0]
        a, _, b = described.relation
        for other in set(RELATIONS) - {relation}:
            assert wrong(judge(replace(described, relation=(a, other, b)), picture)) == {"relation"}
        assert wrong(judge(replace(described, relation=(b, relation, a)), picture)) == {"relation"}


def test_colours_on_the_wrong_objects_are_caught():
    red, blue = Object("circle", "red", "medium", 0.3, 0.5, 0.13), Object("square", "blue", "medium", 0.7, 0.5, 0.13)
    described = Scene("relation", (red, blue), "white", (0, "left of", 1))
    assert judge(described, draw(red, blue)).all_correct
    exchanged = judge(described, draw(replace(red, colour="blue"), replace(blue, colour="red")))
    assert wrong(exchanged) == {"colour"}
    assert exchanged.tags == {"two_objects": True, "position": True, "colour_attribution": False}
    assert wrong(judge(described, draw(replace(red, x=0.7), replace(blue, x=0.3)))) == {"relation"}


def test_touching_objects_of_different_colours_are_two():
    for ground in SHAPE_GROUNDS:
        circle = Object("circle", "orange", "medium", 0.35, 0.5, 0.13)
        square = Object("square", "brown", "medium", 0.35 + 0.13 + 0.9 * 0.13, 0.5, 0.13)
        assert judge(Scene("two", (circle, square), ground), draw(circle, square, ground=ground)).all_correct


def test_an_object_of_two_colours_is_not_the_object():
    circle = Object("circle", "red", "big", 0.5, 0.5, 0.18)
    picture = draw(circle)
    picture[:, 32:] = draw(replace(circle, colour="blue"))[:, 32:]
    assert {"count", "shape"} <= wrong(judge(Scene("one", (circle,), "white"), picture))


def test_other_colours_and_shapes_are_unknown():
    picture = np.full((64, 64, 3), (255, 0, 255), np.uint8)
    assert see_shapes(picture).ground == UNKNOWN and see_shapes(picture).objects == ()
    picture[10:14, 5:60] = COLOURS["blue"]
    picture[30:50, 20:40] = (0, 255, 255)
    stripe, patch = sorted(see_shapes(picture).objects, key=lambda o: o.y)
    assert (stripe.shape, stripe.colour) == (UNKNOWN, "blue")
    assert (patch.shape, patch.colour) == ("square", UNKNOWN)


def test_an_object_in_a_grounds_colour_is_an_object_too():
    picture = draw(Object("circle", "red", "small", 0.2, 0.2, 0.09))
    picture[40:55, 40:55] = SHAPE_GROUNDS["gray"]
    assert sorted((o.shape, o.colour) for o in see_shapes(picture).objects) == [("circle", "red"), ("square", "gray")]


def test_specks_are_ignored():
    described = SCENES[0]
    picture = PICTURES[0].copy()
    picture[0:3, 0:3] = COLOURS["blue"]
    assert judge(described, picture).all_correct


def test_any_picture_has_a_verdict():
    rng = np.random.default_rng(0)
    for index in range(8):
        noise = ndimage.gaussian_filter(rng.normal(128, 300, (64, 64, 3)), (index / 2, index / 2, 0))
        assert not judge(SCENES[index], noise.clip(0, 255).astype(np.uint8)).all_correct
    assert see_shapes(np.zeros((1, 1, 3), np.uint8)).objects == ()


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_only_8_bit_colour_pictures_are_accepted(picture):
    with pytest.raises(ValueError, match="uint8"):
        see_shapes(picture)


def test_every_kind_except_three_counts_for_a_tag_and_every_tag_has_a_kind():
    tags = {kind: judge(described, render(described)[0]).tags for kind in KINDS for described in [scene(0, 0, kind)]}
    assert set().union(*tags.values()) == set(GENEVAL)
    assert [kind for kind in KINDS if not tags[kind]] == ["three"]


def test_clear_is_half_the_smallest_contrast():
    contrast = min(np.linalg.norm(np.subtract(c, g)) for c in COLOURS.values() for g in SHAPE_GROUNDS.values())
    assert pytest.approx(contrast / 2, abs=1) == CLEAR
    assert len(PALETTE) == len(COLOURS) + len(SHAPE_GROUNDS)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centroid_is_that_of_the_drawn_shape(shape):
    mask = coverage(shape, 100, 100, 60, 200, 200)
    drawn = np.array([mask.sum(axis=0) @ np.arange(200), mask.sum(axis=1) @ np.arange(200)]) / mask.sum() + 0.5 - 100
    assert drawn / 60 == pytest.approx(unit_centroid(shape), abs=0.01)
