"""The folder of emoji: its contents, and the errors if it cannot be written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from pipelines.data import emoji_folder
from pipelines.data.pictures import PictureExamples
from pipelines.scenes.emoji_font import EMOJI_GROUNDS, FONT_FILE, find_font
from pipelines.sources.check import check
from pipelines.sources.read import read_source


@pytest.fixture(scope="module")
def font() -> ImageFont.FreeTypeFont:
    try:
        return find_font()
    except ValueError as error:
        pytest.fail(f"these tests draw with a real font: {error}", pytrace=False)


@pytest.fixture(scope="module")
def folder(font: ImageFont.FreeTypeFont, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "emoji"
    assert emoji_folder.write_emoji(folder) == 600
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets caches a table of every folder it has read; these go with the tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def rows_of(folder: Path) -> list[tuple[Path, str]]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return [(folder / row["file_name"], row["text"]) for row in rows]


def parts_of(caption: str) -> tuple[str, str]:
    """The noun of a caption, and its ground."""
    found = re.fullmatch(r"(?:an? )?(.+) on a (\w+) background", caption)
    assert found, caption
    return found[1], found[2]


def pixels_of(picture: Path) -> np.ndarray:
    with Image.open(picture) as file:
        assert file.mode == "RGB"
        return np.asarray(file, int)


def test_the_trainers_reader_finds_every_picture_with_its_caption(folder: Path) -> None:
    rows = read_source(folder).rows
    assert sorted((folder / row.name, row.caption) for row in rows) == sorted(rows_of(folder))
    assert len(list(folder.iterdir())) == 601


def test_validation_pictures_show_emoji_of_training_on_other_grounds(folder: Path) -> None:
    examples = PictureExamples(check(folder, progress=False).rows, [(64, 64)], seed=0)
    held_back = [parts_of(example.caption)[0] for example in examples.validation(100)]
    assert 15 < len(held_back) < 50
    known = {parts_of(caption)[0] for caption in examples.captions()}
    assert sum(name in known for name in held_back) > 0.9 * len(held_back)
    assert examples.example(0).picture.shape == (64, 64, 3)


def test_the_same_pictures_every_time(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert emoji_folder.write_emoji(again, count=40) == 40
    for picture, caption in rows_of(again):
        assert (folder / picture.name).read_bytes() == picture.read_bytes()
        assert (folder / picture.name, caption) in rows_of(folder)


def test_the_ground_a_caption_names_is_all_around_the_picture(folder: Path) -> None:
    for picture, caption in rows_of(folder):
        pixels, ground = pixels_of(picture), EMOJI_GROUNDS[parts_of(caption)[1]]
        assert pixels.shape == (64, 64, 3)
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == ground).all(), picture.name
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert abs(border - ground).max() <= 8, f"{picture.name}: the emoji runs out of the picture"


def test_every_emoji_stands_out_from_its_ground(folder: Path) -> None:
    for picture, caption in rows_of(folder):
        distance = np.linalg.norm(pixels_of(picture) - np.array(EMOJI_GROUNDS[parts_of(caption)[1]]), axis=-1)
        assert 0.06 < (distance > 80).mean() < 0.7, picture.name


def test_all_emoji_differ_and_none_is_the_missing_glyph(font: ImageFont.FreeTypeFont) -> None:
    shown = [emoji_folder.draw_emoji(font, e, "turquoise", 64, index=0).tobytes() for e in emoji_folder.EVERYDAY]
    assert len(set(shown)) == len(emoji_folder.EVERYDAY)
    assert emoji_folder.draw_emoji(font, "\U0010fffe", "turquoise", 64, index=0).tobytes() not in shown


def test_every_emoji_has_three_grounds_and_a_name_of_its_own(font: ImageFont.FreeTypeFont) -> None:
    pairs = emoji_folder.emoji_on_grounds(font)
    assert len(set(pairs)) == len(pairs)
    seen = [e for e, _ in pairs[: 3 * len(emoji_folder.EVERYDAY)]]
    assert all(seen.count(e) == 3 for e in emoji_folder.EVERYDAY)
    assert len({emoji_folder.name_of(e) for e in emoji_folder.EVERYDAY}) == len(emoji_folder.EVERYDAY)
    assert {ground for _, ground in pairs} == set(EMOJI_GROUNDS)


def test_no_emoji_is_on_a_ground_of_its_own_colour(font: ImageFont.FreeTypeFont) -> None:
    pairs = emoji_folder.emoji_on_grounds(font)
    assert not {("💛", "yellow"), ("🖤", "black"), ("💜", "purple"), ("🤍", "white")} & set(pairs)


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("🍎", "a red apple"),
        ("❤", "a red heart"),
        ("🐘", "an elephant"),
        ("🦄", "a unicorn face"),
        ("🏰", "a european castle"),
        ("🐙", "an octopus"),
        ("👗", "a dress"),
        ("🍒", "cherries"),
        ("🍞", "bread"),
        ("😂", "a face with tears of joy"),
        ("😎", "a smiling face with sunglasses"),
    ],
)
def test_captions_have_natural_articles_and_names(character: str, name: str) -> None:
    assert emoji_folder.caption_of(character, "blue") == f"{name} on a blue background"


def test_other_sizes_and_nested_folders_are_possible(tmp_path: Path, font: ImageFont.FreeTypeFont) -> None:
    emoji_folder.write_emoji(tmp_path / "new" / "small", count=3, size=32)
    assert {pixels_of(picture).shape for picture, _ in rows_of(tmp_path / "new" / "small")} == {(32, 32, 3)}


@pytest.mark.parametrize("content", [None, b"no font"])
def test_a_missing_font_is_one_line_that_says_what_to_install(tmp_path: Path, content: bytes | None) -> None:
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    if content:
        (fonts / FONT_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="apt-get install fonts-noto-color-emoji") as caught:
        emoji_folder.write_emoji(tmp_path / "emoji", font_folders=[fonts, tmp_path / "nowhere"])
    assert str(fonts) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [fonts]


def test_a_folder_with_something_in_it_is_left_untouched(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for target in (tmp_path, mine):
        with pytest.raises(ValueError, match="left untouched"):
            emoji_folder.write_emoji(target, count=3)
    assert list(tmp_path.iterdir()) == [mine] and mine.read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path, font: ImageFont.FreeTypeFont) -> None:
    (tmp_path / "empty").mkdir()
    emoji_folder.write_emoji(tmp_path / "empty", count=3)
    assert len(rows_of(tmp_path / "empty")) == 3


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the current folder"):
        emoji_folder.write_emoji(".", count=3)


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, font: ImageFont.FreeTypeFont, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = emoji_folder.draw_emoji

    def draw_four(*given: object) -> Image.Image:
        if given[-1] == 4:
            raise KeyboardInterrupt
        return draw(*given)

    monkeypatch.setattr(emoji_folder, "draw_emoji", draw_four)
    with pytest.raises(KeyboardInterrupt):
        emoji_folder.write_emoji(tmp_path / "emoji")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, font: ImageFont.FreeTypeFont) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written: File exists"):
        emoji_folder.write_emoji(tmp_path / "file" / "emoji", count=3)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"count": 0}, "1 to 1"), ({"count": 10**6}, "1 to 1"), ({"size": 4}, "16 to 512")]
)
def test_numbers_out_of_range_are_named(
    tmp_path: Path, font: ImageFont.FreeTypeFont, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        emoji_folder.write_emoji(tmp_path / "emoji", **arguments)
    assert list(tmp_path.iterdir()) == []
