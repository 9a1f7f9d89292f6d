"""A folder of real captioned pictures to train on: everyday emoji on coloured grounds.

Drawn from Noto Color Emoji (SIL Open Font License 1.1), named by the Unicode Character Database. Which emoji stands on
which ground, where and how big, is a function of the picture's index: the same pictures every time.
"""

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines import scenes

FONT_FILE = "NotoColorEmoji.ttf"
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
STRIKE, WIDTH, HEIGHT = 109, 136, 128  # the font holds bitmaps of this width and height, and answers to this size only

GROUNDS = scenes.GROUNDS | {name: scenes.COLOURS[name] for name in ("yellow", "green", "blue", "pink", "purple")}
"""Name of a ground -> its colour, the same as in the scenes."""

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
    """Write a new folder of `count` captioned pictures, size×size pixels, for `dataset.FolderExamples`.

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


def find_font(folders: Sequence[str | Path] = FONT_FOLDERS) -> ImageFont.FreeTypeFont:
    """The emoji font, from the first folder that has it.

    Raises:
        ValueError: none has it, or only as outlines (COLRv1), of which Pillow draws nothing.
    """
    for path in (path for folder in folders for path in sorted(Path(folder).expanduser().rglob(FONT_FILE))):
        with suppress(OSError):
            font = ImageFont.FreeTypeFont(path, STRIKE)  # truetype() would look elsewhere too
            if font.getmask(EVERYDAY[0], mode="RGBA").getbbox():
                return font
    places = ", ".join(map(str, folders))
    raise ValueError(f"the font {FONT_FILE} is missing: apt-get install fonts-noto-color-emoji (looked in {places})")


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


def clear_grounds(font: ImageFont.FreeTypeFont, emoji: str) -> list[str]:
    """The grounds that an emoji stands out on: three quarters of it are of other colours. None if the font lacks it."""
    grounds = np.array(list(GROUNDS.values()), np.float32)
    glyph = np.asarray(bitmap(font, emoji), np.float32)
    colours = glyph[glyph[..., 3] == 255][::8, :3]  # (n, 3): one opaque pixel in eight tells enough
    if len(colours) == 0:
        return []
    distance = np.linalg.norm(colours[:, None] - grounds, axis=-1)  # (n, grounds)
    return [name for name, share in zip(GROUNDS, (distance > 100).mean(axis=0), strict=True) if share > 0.75]


def bitmap(font: ImageFont.FreeTypeFont, emoji: str) -> Image.Image:
    """An emoji at the font's own size: RGBA, `WIDTH`×`HEIGHT` pixels."""
    # Drawn on nothing, its colours come multiplied by their alpha ("RGBa").
    drawn = _drawn(font, emoji, Image.new("RGBA", (WIDTH, HEIGHT)), (0, 0))
    return Image.frombytes("RGBa", drawn.size, drawn.tobytes()).convert("RGBA")


def _drawn(font: ImageFont.FreeTypeFont, emoji: str, canvas: Image.Image, place: tuple[int, int]) -> Image.Image:
    ImageDraw.Draw(canvas).text(place, emoji, font=font, embedded_color=True, anchor="lt")
    return canvas


def draw_emoji(font: ImageFont.FreeTypeFont, emoji: str, ground: str, size: int, index: int) -> Image.Image:
    """One emoji on a ground, size×size pixels; `index` decides, a little, on its place and scale."""
    scale, *shift = np.random.default_rng(index).uniform((0.7, -0.05, -0.05), (0.82, 0.05, 0.05)).tolist()
    side = round(WIDTH / scale)  # everything is drawn at the font's own size, then reduced
    place = round((side - WIDTH) / 2 + side * shift[0]), round((side - HEIGHT) / 2 + side * shift[1])
    canvas = _drawn(font, emoji, Image.new("RGB", (side, side), GROUNDS[ground]), place)
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
