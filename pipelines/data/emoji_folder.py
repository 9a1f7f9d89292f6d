"""Folders of real captioned pictures to train on: everyday emoji on coloured grounds, or scenes of emoji with masks.

Drawn from Noto Color Emoji (SIL Open Font License 1.1), named by the Unicode Character Database. Which emoji stands on
which ground, where and how big, is a function of the picture's index: the same pictures every time.
"""

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from pipelines.scenes.emoji_font import FONT_FOLDERS, GROUNDS, HEIGHT, WIDTH, clear_grounds, draw_glyph, find_font
from pipelines.scenes.scene import Scene, word_mask
from pipelines.scenes.worlds import WORLDS

EVERYDAY = (
    "🐄🐈🐊🐌🐍🐎🐑🐓🐕🐘🐙🐝🐞🐟🐢🐤🐧🐨🐪🐬🐭🐯🐰🐱🐵🐶🐷🐸🐻🐼🦀🦁🦄🦆🦈🦞🦉🦊🦋🦒🦓🦚🦜🦢🦩"
    "🌲🌳🌴🌵🌷🌹🌻🍀🍁🍄🍅🍆🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥑🥕🥦🌽🌶🍔🍕🍞🍟🍦🍩🍪🍭🎂🧁🥐🥚🥞🧀🍿🌭🌮☕🥛"
    "🚀🚁🚂🚌🚑🚒🚕🚗🚜🚲🛹✈⛵🚢🛸☀☁☃⭐🌈🌙🌋❄☂🔥💧🏠⛺🏰🏝"
    "⚽🏈🏀🏆🎲🎈🎁🎄🎃🎸🎻🎺🥁🎩🎀👑👓👕👖👗👟👠🎒🧦💍💎💡💣💰💻📷📺📱📖📦✏🔑🔒🔔🔨⚓⏰🕯🪑🧸🪁🧲🪐"
    "❤🧡💛💚💙💜🖤🤍🤎💔👻💀👽🤖😀😂😍😎😡😭😱😴🤡🤢👀👂👃👄"
)
"""What people know at 64 pixels: animals; plants and food; vehicles, weather, places; things; hearts and faces."""

# Where Unicode's name is not what one sees: in its names "black" means filled, whatever the colour.
NAMES = {"🦒": "giraffe", "🚗": "car", "☀": "sun", "⭐": "star", "❤": "red heart", "🏠": "house", "🏀": "basketball"}
UNCOUNTED = ("bread", "broccoli", "fire", "popcorn")


def write_emoji(
    folder: str | Path, count: int = 600, size: int = 64, font_folders: Sequence[str | Path] = FONT_FOLDERS
) -> int:
    """Write a new folder of `count` captioned pictures, size×size pixels, to train on.

    Every emoji is shown once before any is shown again, on another ground; 600 pictures show each three times. The
    folder (PNG files and a metadata.jsonl) appears whole or, if anything stops the work, not at all. Returns `count`.

    Raises:
        ValueError: the font is missing, the folder has something in it or cannot be written, a number is out of range.
    """
    target = free_folder(folder)
    if not 16 <= size <= 512:
        raise ValueError(f"no pictures of {size} pixels: the size must be 16 to 512")
    font = find_font(font_folders)
    pairs = emoji_on_grounds(font)
    if not 1 <= count <= len(pairs):
        raise ValueError(f"no folder of {count} pictures: the count must be 1 to {len(pairs)}")
    with appearing_whole(target) as new:
        rows = []
        for index, (emoji, ground) in enumerate(pairs[:count]):
            file_name = f"{index:04d}-{name_of(emoji).replace(' ', '-')}.png"
            draw_emoji(font, emoji, ground, size, index).save(new / file_name)
            rows.append(json.dumps({"file_name": file_name, "text": caption_of(emoji, ground)}) + "\n")
        (new / "metadata.jsonl").write_text("".join(rows))
    return count


def free_folder(folder: str | Path) -> Path:
    """The folder, if it may be written: ValueError if it has something in it, or is where one stands."""
    target = Path(folder).resolve()
    if target.exists() and (target == Path.cwd() or not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{folder} is not empty, or is where you are: it was left untouched, give a new folder")
    return target


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end, or nothing if anything stops the work.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            new.rename(target)  # over an empty folder too
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or error}") from error


def emoji_on_grounds(font: ImageFont.FreeTypeFont) -> list[tuple[str, str]]:
    """Every (emoji, ground) where the emoji can be made out, in rounds that show each emoji once."""
    turns = []
    for index, emoji in enumerate(EVERYDAY):
        clear = clear_grounds(font, emoji)
        if not clear:
            continue  # the font is older than the emoji
        start = index % len(clear)
        turns.append([(emoji, ground) for ground in clear[start:] + clear[:start]])
    return [pair for shown in zip_longest(*turns) for pair in shown if pair]


def draw_emoji(font: ImageFont.FreeTypeFont, emoji: str, ground: str, size: int, index: int) -> Image.Image:
    """One emoji on a ground, size×size pixels; `index` decides, a little, on its place and scale."""
    scale, *shift = np.random.default_rng(index).uniform((0.7, -0.05, -0.05), (0.82, 0.05, 0.05)).tolist()
    side = round(WIDTH / scale)  # everything is drawn at the font's own size, then reduced
    place = round((side - WIDTH) / 2 + side * shift[0]), round((side - HEIGHT) / 2 + side * shift[1])
    canvas = draw_glyph(font, emoji, Image.new("RGB", (side, side), GROUNDS[ground]), place)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def caption_of(emoji: str, ground: str) -> str:
    """Such as "a red apple on a blue background"."""
    name = name_of(emoji)
    noun = name.split(" with ")[0]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us"))
    article = "" if plural or name in UNCOUNTED else "an " if re.match("(?!uni|eu)[aeiou]", name) else "a "
    return f"{article}{name} on a {ground} background"


def name_of(emoji: str) -> str:
    """What an emoji shows: its name in Unicode, in small letters, or the one in `NAMES`."""
    return NAMES.get(emoji) or unicodedata.name(emoji).lower()


def write_scenes(folder: str | Path, count: int = 600, size: int = 64) -> int:
    """Write a new folder of `count` scenes, size×size pixels, with a mask for each thing and each ground that is named.

    Its metadata.jsonl has for each picture `file_name`, `text` in English, `translation` in Chinese, and `masks`: a
    phrase of the text -> a grey picture, white where it lies. The folder appears whole or not at all. Returns `count`.

    Raises:
        ValueError: as `write_emoji`.
    """
    target = free_folder(folder)
    if not 16 <= size <= 512:
        raise ValueError(f"no pictures of {size} pixels: the size must be 16 to 512")
    if count < 1:
        raise ValueError(f"no folder of {count} pictures: the count must be 1 or more")
    find_font()
    with appearing_whole(target) as new:
        rows = []
        (new / "masks").mkdir()
        for index in range(count):
            shown, chinese = WORLDS["emoji"].tellings(0, index, ("en", "zh"))
            picture, coverage = WORLDS["emoji"].render(shown, size)
            Image.fromarray(picture).save(new / f"{index:05d}.png")
            masks = {}
            for phrase, mask in _phrases(shown, coverage):
                masks[phrase] = f"masks/{index:05d}-{phrase.lower().replace(' ', '-')}.png"
                Image.fromarray((mask * 255).round().astype(np.uint8)).save(new / masks[phrase])
            row = {
                "file_name": f"{index:05d}.png",
                "text": shown.caption,
                "translation": chinese.caption,
                "masks": masks,
            }
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        (new / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    return count


def _phrases(shown: Scene, masks: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each thing with its count and size, "two small cats", and the ground, and where in the picture they are."""
    for noun in (word for word in shown.words if word.kind in ("shape", "ground")):
        mask = word_mask(noun, masks)
        assert mask is not None
        first = min(word.start for word in shown.words if word.objects == noun.objects)
        yield shown.caption[first : noun.end], mask
