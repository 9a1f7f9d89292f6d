"""Writers of folders of captioned pictures: everyday emoji on coloured grounds, or scenes of emoji with masks.

The glyphs are those of Noto Color Emoji (SIL Open Font License 1.1), the names those of the Unicode Character Database.
Emoji, ground, position and size are functions of the picture's index, so the same pictures are written every time.
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

from pipelines.scenes.emoji_font import EMOJI_GROUNDS, FONT_FOLDERS, HEIGHT, WIDTH, clear_grounds, draw_glyph, find_font
from pipelines.scenes.scene import Scene, word_mask
from pipelines.scenes.worlds import WORLDS

EVERYDAY = (
    "🐄🐈🐊🐌🐍🐎🐑🐓🐕🐘🐙🐝🐞🐟🐢🐤🐧🐨🐪🐬🐭🐯🐰🐱🐵🐶🐷🐸🐻🐼🦀🦁🦄🦆🦈🦞🦉🦊🦋🦒🦓🦚🦜🦢🦩"
    "🌲🌳🌴🌵🌷🌹🌻🍀🍁🍄🍅🍆🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥑🥕🥦🌽🌶🍔🍕🍞🍟🍦🍩🍪🍭🎂🧁🥐🥚🥞🧀🍿🌭🌮☕🥛"
    "🚀🚁🚂🚌🚑🚒🚕🚗🚜🚲🛹✈⛵🚢🛸☀☁☃⭐🌈🌙🌋❄☂🔥💧🏠⛺🏰🏝"
    "⚽🏈🏀🏆🎲🎈🎁🎄🎃🎸🎻🎺🥁🎩🎀👑👓👕👖👗👟👠🎒🧦💍💎💡💣💰💻📷📺📱📖📦✏🔑🔒🔔🔨⚓⏰🕯🪑🧸🪁🧲🪐"
    "❤🧡💛💚💙💜🖤🤍🤎💔👻💀👽🤖😀😂😍😎😡😭😱😴🤡🤢👀👂👃👄"
)
"""Emoji recognised at 64 pixels: animals; plants and food; vehicles, weather, places; objects; hearts and faces."""

# Where the Unicode name does not fit the picture: in Unicode names "black" means filled, in any colour.
NAMES = {"🦒": "giraffe", "🚗": "car", "☀": "sun", "⭐": "star", "❤": "red heart", "🏠": "house", "🏀": "basketball"}
UNCOUNTED = ("bread", "broccoli", "fire", "popcorn")


def write_emoji(
    folder: str | Path, count: int = 600, size: int = 64, font_folders: Sequence[str | Path] = FONT_FOLDERS
) -> int:
    """Write a new folder of `count` captioned pictures, size×size pixels, to train on.

    Every emoji is shown once before any is shown again on another ground; 600 pictures show each three times. The
    folder (PNG files and a metadata.jsonl) is complete or, if anything stops the work, absent. Returns `count`.

    Raises:
        ValueError: the font is missing, the folder is not empty or cannot be written, or a number is out of range.
    """
    target = free_folder(folder)
    if not 16 <= size <= 512:
        raise ValueError(f"the size must be 16 to 512 pixels, got {size}")
    font = find_font(font_folders)
    pairs = emoji_on_grounds(font)
    if not 1 <= count <= len(pairs):
        raise ValueError(f"the count must be 1 to {len(pairs)}, got {count}")
    with appearing_complete(target) as new:
        rows = []
        for index, (emoji, ground) in enumerate(pairs[:count]):
            file_name = f"{index:04d}-{name_of(emoji).replace(' ', '-')}.png"
            draw_emoji(font, emoji, ground, size, index).save(new / file_name)
            rows.append(json.dumps({"file_name": file_name, "text": caption_of(emoji, ground)}) + "\n")
        (new / "metadata.jsonl").write_text("".join(rows))
    return count


def free_folder(folder: str | Path) -> Path:
    """The path of a folder that may be written. Raises ValueError if it is not empty or is the current folder."""
    target = Path(folder).resolve()
    if target.exists() and (target == Path.cwd() or not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{folder} is not empty or is the current folder: it was left untouched, give a new folder")
    return target


@contextmanager
def appearing_complete(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `target` at the end, or is removed if anything stops the work.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            new.rename(target)  # also replaces an empty folder
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or error}") from error


def emoji_on_grounds(font: ImageFont.FreeTypeFont) -> list[tuple[str, str]]:
    """Every (emoji, ground) where the emoji stands out, in rounds that show each emoji once."""
    turns = []
    for index, emoji in enumerate(EVERYDAY):
        clear = clear_grounds(font, emoji)
        if not clear:
            continue  # the font is older than this emoji
        start = index % len(clear)
        turns.append([(emoji, ground) for ground in clear[start:] + clear[:start]])
    return [pair for shown in zip_longest(*turns) for pair in shown if pair]


def draw_emoji(font: ImageFont.FreeTypeFont, emoji: str, ground: str, size: int, index: int) -> Image.Image:
    """One emoji on a ground, size×size pixels. `index` varies its position and scale a little."""
    scale, *shift = np.random.default_rng(index).uniform((0.7, -0.05, -0.05), (0.82, 0.05, 0.05)).tolist()
    side = round(WIDTH / scale)  # draw at the size of the font's bitmaps, then reduce
    place = round((side - WIDTH) / 2 + side * shift[0]), round((side - HEIGHT) / 2 + side * shift[1])
    canvas = draw_glyph(font, emoji, Image.new("RGB", (side, side), EMOJI_GROUNDS[ground]), place)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def caption_of(emoji: str, ground: str) -> str:
    """A caption such as "a red apple on a blue background"."""
    name = name_of(emoji)
    noun = name.split(" with ")[0]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us"))
    article = "" if plural or name in UNCOUNTED else "an " if re.match("(?!uni|eu)[aeiou]", name) else "a "
    return f"{article}{name} on a {ground} background"


def name_of(emoji: str) -> str:
    """The name of an emoji: the one in `NAMES`, or its Unicode name in lower case."""
    return NAMES.get(emoji) or unicodedata.name(emoji).lower()


def write_scenes(folder: str | Path, count: int = 600, size: int = 64) -> int:
    """Write a new folder of `count` scenes, size×size pixels, with masks of the objects and grounds in the captions.

    Its metadata.jsonl has for each picture `file_name`, `text` in English, `translation` in Chinese, and `masks`: a
    phrase of the text -> a grey picture, white in the phrase's region. The folder is complete or absent. Returns
    `count`.

    Raises:
        ValueError: as `write_emoji`.
    """
    target = free_folder(folder)
    if not 16 <= size <= 512:
        raise ValueError(f"the size must be 16 to 512 pixels, got {size}")
    if count < 1:
        raise ValueError(f"the count must be 1 or more, got {count}")
    find_font()
    with appearing_complete(target) as new:
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
    """The phrase of each object with its count and size, "two small cats", and of the ground, with their masks."""
    for noun in (word for word in shown.words if word.kind in ("shape", "ground")):
        mask = word_mask(noun, masks)
        assert mask is not None
        first = min(word.start for word in shown.words if word.objects == noun.objects)
        yield shown.caption[first : noun.end], mask
