"""The judge of emoji passes correct pictures despite small imperfections, and finds each kind of error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipelines.data.emoji_folder import EVERYDAY
from pipelines.scenes import shapes, worlds
from pipelines.scenes.emoji import EMOJI_SIZES, _grounds, render, scene
from pipelines.scenes.emoji_font import EMOJI_GROUNDS, bitmap, clear_grounds, find_font
from pipelines.scenes.emoji_words import EMOJI
from pipelines.scenes.judge import judge, locate
from pipelines.scenes.scene import KINDS, Object, Scene
from pipelines.scenes.see_emoji import see_emoji
from pipelines.scenes.sight import UNKNOWN
from pipelines.scenes.worlds import WORLDS
from ui.verdict import verdict

SEED = 161_803


def scene_of(objects: tuple[Object, ...], ground: str = "white", relation: tuple[int, str, int] | None = None) -> Scene:
    return Scene("relation" if relation else "two", objects, ground, relation, data="emoji")


def emoji(name: str, x: float, y: float, size: str = "medium") -> Object:
    return Object(name, "", size, x, y, EMOJI_SIZES[size] / 2)


CAT, CAR = emoji("cat", 0.25, 0.5), emoji("car", 0.75, 0.5)
PAIR = scene_of((CAT, CAR), "green", (0, "left of", 1))


def failed(described: Scene, shown: Scene) -> set[str]:
    return {check.fact for check in judge(described, render(shown)[0]).checks if not check.ok}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_renders_are_all_correct(kind: str) -> None:
    drawn = [scene(SEED, index, kind, held_out=index % 2 == 1) for index in range(16)]
    assert all(judge(s, render(s)[0]).all_correct for s in drawn)


@pytest.mark.parametrize("name", EMOJI)
def test_every_emoji_is_recognised_in_every_size(name: str) -> None:
    ground = sorted(_grounds(name))[0]
    for size in EMOJI_SIZES:
        (seen,) = see_emoji(render(scene_of((emoji(name, 0.4, 0.6, size),), ground))[0]).objects
        assert (seen.shape, seen.size) == (name, size)
        assert abs(seen.x - 0.4) < 0.02 and abs(seen.y - 0.6) < 0.02


def test_small_imperfections_change_nothing() -> None:
    rng = np.random.default_rng(0)
    right = 0
    for index in range(30):
        drawn = scene(SEED, 1000 + index)
        picture = ndimage.shift(render(drawn)[0].astype(float), (0.5, 0.5, 0), order=1, mode="nearest")
        picture = ndimage.gaussian_filter(picture, (0.5, 0.5, 0)) + rng.normal(size=picture.shape) * 8
        picture += rng.uniform(-10, 10, 3)  # a cast
        right += judge(drawn, picture.clip(0, 255).round().astype(np.uint8)).all_correct
    assert right >= 29


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (PAIR, set()),
        (scene_of((CAT, replace(CAR, shape="bus")), "green"), {"shape"}),
        (scene_of((replace(CAT, x=0.75), replace(CAR, x=0.25)), "green"), {"relation"}),
        (scene_of((replace(CAT, x=0.5, y=0.2), replace(CAR, x=0.5, y=0.8)), "green"), {"relation"}),
        (scene_of((CAT, CAR, emoji("cat", 0.5, 0.83, "small")), "green"), {"count"}),
        (scene_of((CAT, CAR, emoji("star", 0.5, 0.17, "small")), "green"), {"count"}),
        (scene_of((CAT,), "green"), {"count", "shape", "size", "relation"}),
        (scene_of((), "green"), {"count", "shape", "size", "relation"}),
        (scene_of((CAT, CAR), "blue"), {"ground"}),
        (scene_of((emoji("cat", 0.25, 0.5, "big"), CAR), "green"), {"size"}),
        (scene_of((CAT, emoji("car", 0.75, 0.5, "small")), "green"), {"size"}),
    ],
    ids=[
        "right",
        "shape",
        "side",
        "axis",
        "one-more",
        "another",
        "missing",
        "empty",
        "ground",
        "bigger",
        "smaller",
    ],
)
def test_each_kind_of_error_is_caught(shown: Scene, wrong: set[str]) -> None:
    caught = failed(PAIR, shown)
    assert wrong <= caught and bool(caught) == bool(wrong)
    # A wrong object may also count as a wrong size; nothing else is blamed.
    assert caught - wrong <= {"size"}


def test_counts_are_counted() -> None:
    def cats(*places: tuple[float, float]) -> Scene:
        return replace(scene_of(tuple(emoji("cat", x, y, "small") for x, y in places), "pink"), kind="count")

    two, three = cats((0.2, 0.3), (0.7, 0.7)), cats((0.2, 0.3), (0.7, 0.7), (0.75, 0.2))
    assert failed(two, two) == failed(three, three) == set()
    assert "count" in failed(two, three) and "count" in failed(three, two)
    mixed = replace(three, objects=(*two.objects, emoji("dog", 0.75, 0.2, "small")))
    assert "shape" in failed(three, mixed)


def test_other_objects_are_found_but_unknown() -> None:
    drawn = scene_of((CAT,), "white")
    picture = render(drawn)[0].copy()
    picture[10:26, 40:56] = (200, 30, 120)
    assert sorted(o.shape for o in see_emoji(picture).objects) == sorted(["cat", UNKNOWN])
    half = render(drawn)[0].copy()
    half[:, :16] = 248
    assert "cat" not in [o.shape for o in see_emoji(half).objects]
    assert see_emoji(np.full((64, 64, 3), (0, 90, 0), np.uint8)).ground == UNKNOWN
    assert see_emoji(np.full((64, 64, 3), 248, np.uint8)).objects == ()


def test_few_other_emoji_are_taken_for_one_of_this_world() -> None:
    font, known = find_font(), {row[0] for row in EMOJI.values()}
    passed, total = 0, 0
    for other in [e for e in EVERYDAY if e not in known][::3]:
        for ground in clear_grounds(font, other)[:1]:
            uncropped = bitmap(font, other)
            box = uncropped.crop(uncropped.getchannel(3).getbbox()).resize((22, 22), Image.Resampling.LANCZOS)
            picture = Image.new("RGB", (64, 64), EMOJI_GROUNDS[ground])
            picture.paste(box, (20, 18), box)
            passed += any(o.shape != UNKNOWN for o in see_emoji(np.asarray(picture)).objects)
            total += 1
    assert total > 30 and passed / total < 0.15


def test_located_masks_are_the_exact_masks() -> None:
    for index in range(10):
        drawn = scene(SEED, 500 + index)
        picture, masks = render(drawn)
        for mask, seen in zip(masks, locate(drawn, picture), strict=True):
            if drawn.kind != "count":
                assert seen is not None and np.abs(mask - seen).max() < 1e-6


@pytest.mark.parametrize("size", [48, (64, 96)])
def test_other_sizes_are_judged_too(size: int | tuple[int, int]) -> None:
    drawn = [scene(SEED, 700 + index) for index in range(10)]
    assert sum(judge(s, render(s, size)[0]).all_correct for s in drawn) >= 9


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_search_ends_on_any_picture(size: int) -> None:
    rng = np.random.default_rng(0)
    for smooth in (0, 1, 3):
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size, 3)), (smooth, smooth, 0))
        picture = (128 + 128 * noise / np.abs(noise).max()).astype(np.uint8)
        assert len(see_emoji(picture).objects) < 64


def test_a_picture_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        see_emoji(np.zeros((64, 64, 3), np.float32))


def test_each_caption_is_parsed_and_judged_in_its_own_world() -> None:
    for text, data in (("a red circle", "shapes"), ("a cat", "emoji"), ("一只猫", "emoji"), ("红色的圆形", "shapes")):
        parsed = worlds.parse(text)
        assert parsed is not None and parsed.data == data
    assert worlds.parse("a red cat") is None
    circle = shapes.scene(1, 1, "one")
    assert judge(circle, worlds.render(circle)[0]).all_correct


def test_the_page_judges_emoji_and_works_without_the_font(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = "a cat left of a car on a green background", render(PAIR)[0]
    checked = verdict(*asked)
    assert checked and all(statement.ok for statement in checked)
    blind = replace(WORLDS["emoji"], see=lambda picture: find_font([tmp_path]))
    monkeypatch.setitem(WORLDS, "emoji", blind)
    assert verdict(*asked) is None
