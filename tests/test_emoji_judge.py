"""The judge of emoji sees what is there, sees it through small imperfections, and catches each kind of error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pipelines.data import emoji_folder
from pipelines.scenes import emoji as emoji_scenes
from pipelines.scenes import emoji_font as emoji
from pipelines.scenes import shapes as scenes
from pipelines.scenes import worlds
from pipelines.scenes.emoji import SIZES, render, scene
from pipelines.scenes.emoji_words import THINGS
from pipelines.scenes.judge import judge, locate
from pipelines.scenes.scene import KINDS, Object, Scene
from pipelines.scenes.see_emoji import see_emoji
from pipelines.scenes.sight import UNKNOWN
from pipelines.scenes.worlds import WORLDS
from ui.generate_tab import verdict

SEED = 161_803


def spoken(objects: tuple[Object, ...], ground: str = "white", relation: tuple[int, str, int] | None = None) -> Scene:
    return Scene("relation" if relation else "two", objects, ground, relation, data="emoji")


def thing(name: str, x: float, y: float, size: str = "medium") -> Object:
    return Object(name, "", size, x, y, SIZES[size] / 2)


CAT, CAR = thing("cat", 0.25, 0.5), thing("car", 0.75, 0.5)
PAIR = spoken((CAT, CAR), "green", (0, "left of", 1))


def failed(described: Scene, shown: Scene) -> set[str]:
    return {check.fact for check in judge(described, render(shown)[0]).checks if not check.ok}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_renders_are_right(kind: str) -> None:
    drawn = [scene(SEED, index, kind, held_out=index % 2 == 1) for index in range(16)]
    assert all(judge(s, render(s)[0]).all_correct for s in drawn)


@pytest.mark.parametrize("name", THINGS)
def test_every_thing_is_known_in_every_size(name: str) -> None:
    ground = sorted(emoji_scenes._grounds(name))[0]
    for size in SIZES:
        (seen,) = see_emoji(render(spoken((thing(name, 0.4, 0.6, size),), ground))[0]).objects
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
        (spoken((CAT, replace(CAR, shape="bus")), "green"), {"shape"}),
        (spoken((replace(CAT, x=0.75), replace(CAR, x=0.25)), "green"), {"relation"}),
        (spoken((replace(CAT, x=0.5, y=0.2), replace(CAR, x=0.5, y=0.8)), "green"), {"relation"}),
        (spoken((CAT, CAR, thing("cat", 0.5, 0.83, "small")), "green"), {"count"}),
        (spoken((CAT, CAR, thing("star", 0.5, 0.17, "small")), "green"), {"count"}),
        (spoken((CAT,), "green"), {"count", "shape", "size", "relation"}),
        (spoken((), "green"), {"count", "shape", "size", "relation"}),
        (spoken((CAT, CAR), "blue"), {"ground"}),
        (spoken((thing("cat", 0.25, 0.5, "big"), CAR), "green"), {"size"}),
        (spoken((CAT, thing("car", 0.75, 0.5, "small")), "green"), {"size"}),
    ],
    ids=[
        "right",
        "thing",
        "side",
        "axis",
        "count-of-a-kind",
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
    # A wrong thing has no size to be right or wrong; nothing else is blamed for it.
    assert caught - wrong <= {"size"}


def test_counts_are_counted() -> None:
    def cats(*places: tuple[float, float]) -> Scene:
        return replace(spoken(tuple(thing("cat", x, y, "small") for x, y in places), "pink"), kind="count")

    two, three = cats((0.2, 0.3), (0.7, 0.7)), cats((0.2, 0.3), (0.7, 0.7), (0.75, 0.2))
    assert failed(two, two) == failed(three, three) == set()
    assert "count" in failed(two, three) and "count" in failed(three, two)
    mixed = replace(three, objects=(*two.objects, thing("dog", 0.75, 0.2, "small")))
    assert "shape" in failed(three, mixed)


def test_what_is_no_emoji_of_ours_is_there_but_unknown() -> None:
    drawn = spoken((CAT,), "white")
    picture = render(drawn)[0].copy()
    picture[10:26, 40:56] = (200, 30, 120)
    assert sorted(o.shape for o in see_emoji(picture).objects) == sorted(["cat", UNKNOWN])
    half_gone = render(drawn)[0].copy()
    half_gone[:, :16] = 248
    assert "cat" not in [o.shape for o in see_emoji(half_gone).objects]
    assert see_emoji(np.full((64, 64, 3), (0, 90, 0), np.uint8)).ground == UNKNOWN
    assert see_emoji(np.full((64, 64, 3), 248, np.uint8)).objects == ()


def test_few_emoji_that_are_none_of_ours_pass_for_one() -> None:
    font, ours = emoji.find_font(), {row[0] for row in THINGS.values()}
    passed, total = 0, 0
    for other in [e for e in emoji_folder.EVERYDAY if e not in ours][::3]:
        for ground in emoji.clear_grounds(font, other)[:1]:
            whole = emoji.bitmap(font, other)
            box = whole.crop(whole.getchannel(3).getbbox()).resize((22, 22), Image.Resampling.LANCZOS)
            picture = Image.new("RGB", (64, 64), emoji.GROUNDS[ground])
            picture.paste(box, (20, 18), box)
            passed += any(o.shape != UNKNOWN for o in see_emoji(np.asarray(picture)).objects)
            total += 1
    assert total > 30 and passed / total < 0.15


def test_what_is_seen_is_where_it_is() -> None:
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
def test_any_picture_is_looked_at_in_the_end(size: int) -> None:
    rng = np.random.default_rng(0)
    for smooth in (0, 1, 3):
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size, 3)), (smooth, smooth, 0))
        picture = (128 + 128 * noise / np.abs(noise).max()).astype(np.uint8)
        assert len(see_emoji(picture).objects) < 64


def test_a_picture_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        see_emoji(np.zeros((64, 64, 3), np.float32))


def test_each_caption_is_read_and_judged_as_what_it_speaks_of() -> None:
    for text, data in (("a red circle", "shapes"), ("a cat", "emoji"), ("一只猫", "emoji"), ("红色的圆形", "shapes")):
        understood = worlds.parse(text)
        assert understood is not None and understood.data == data
    assert worlds.parse("a red cat") is None
    circle = scenes.scene(1, 1, "one")
    assert judge(circle, worlds.render(circle)[0]).all_correct


def test_the_page_judges_emoji_and_goes_on_where_there_is_no_font(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = AttentionOf("a cat left of a car on a green background", render(PAIR)[0])
    assert all(ok for _, ok in verdict(drawn))
    blind = replace(WORLDS["emoji"], see=lambda picture: emoji.find_font([tmp_path]))
    monkeypatch.setitem(WORLDS, "emoji", blind)
    assert verdict(drawn) is None


class AttentionOf:
    """What the page keeps of one drawing: its prompt and its picture."""

    def __init__(self, prompt: str, picture: np.ndarray):
        self.prompts, self.pictures = [prompt], torch.from_numpy(picture)[None]
