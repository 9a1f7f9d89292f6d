"""Captioned pictures of real emoji without end: one to three things on a coloured ground, with exact masks.

The same kinds of scene, the same grammar and the same rules of layout as `scenes`; a scene is a pure function of
(seed, index). The emoji are Noto Color Emoji's (SIL Open Font License 1.1), so pictures, and what stands out on
which ground, need that font; what a caption means does not.

Shapes: h×w pixels. Lengths and places are in units of the picture's shorter side, x to the right and y down.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageFont

from pipelines.scenes.emoji_font import GROUNDS, bitmap, clear_grounds, find_font
from pipelines.scenes.emoji_words import EMOJI as VOCABULARY
from pipelines.scenes.emoji_words import THINGS
from pipelines.scenes.scene import DIFFERENT, Object, Scene, kind_of, place, tell

SIZES: dict[str, float] = {"small": 0.28, "medium": 0.35, "big": 0.43}
"""Name of a size -> the longer side of the emoji's box: 18, 22 and 28 pixels of 64."""


def is_held_out(thing: str, other: str) -> bool:
    """Whether no training scene shows these two: about a tenth of all pairs of things, and of things and grounds.

    `other` is another thing or a ground. By their places in the tables: two things whose sum divided by 10 leaves 3, a
    thing and a ground whose sum is a multiple of 8. Each thing has one such ground, never white, which goes unsaid.
    """
    names, coloured = list(THINGS), [ground for ground in GROUNDS if ground != "white"]
    if other in THINGS:
        return thing != other and (names.index(thing) + names.index(other)) % 10 == 3
    return other in coloured and (names.index(thing) + coloured.index(other)) % 8 == 0


def scene(seed: int, index: int, kind: str | None = None, held_out: bool = False, language: str = "en") -> Scene:
    """The scene at place `index` of the endless series `seed`.

    Args:
        kind: one of `scene.KINDS`, or None for training's mixture of them.
        held_out: False never shows what `is_held_out`; True, for testing, shows two things that are in every scene of
            several, and a ground that is for one thing or things of a kind.
        language: of the caption, one of `captions.LANGUAGES`; the picture is the same in all.

    Raises:
        ValueError: the font is missing.
    """
    return tellings(seed, index, (language,), kind, held_out)[0]


def tellings(
    seed: int, index: int, languages: Sequence[str], kind: str | None = None, held_out: bool = False
) -> list[Scene]:
    """A `scene` once in each of these languages."""
    rng = np.random.default_rng((seed, index))
    kind = kind_of(rng) if kind is None else kind
    names, ground = _choose(rng, DIFFERENT[kind], held_out)
    sizes = rng.choice(list(SIZES), len(names), p=[0.3, 0.4, 0.3])
    described = [
        Object(name, "", size, radius=SIZES[size] / 2) for name, size in zip(names, sizes.tolist(), strict=True)
    ]
    if kind == "count":
        described *= int(rng.integers(2, 4))
    objects, relation = place(rng, kind, described, reach=1.0, gap=0.01)
    return tell(rng, Scene(kind, objects, ground, relation, data="emoji"), languages, VOCABULARY)


def _choose(rng: np.random.Generator, different: int, held_out: bool) -> tuple[list[str], str]:
    """Things that are told apart and a ground that all of them stand out on."""
    while True:
        names = [list(THINGS)[i] for i in rng.choice(len(THINGS), different, replace=False)]
        together = any(is_held_out(a, b) for i, a in enumerate(names) for b in names[:i])
        if together != (held_out and different > 1):
            continue
        grounds = [ground for ground in GROUNDS if all(ground in _grounds(name) for name in names)]
        if different == 1 and held_out:
            grounds = [ground for ground in grounds if is_held_out(names[0], ground)]
        elif not held_out:
            grounds = [ground for ground in grounds if not any(is_held_out(name, ground) for name in names)]
        if grounds:
            # White goes without saying: half of the pictures that can have it do, short prompts mean it.
            weights = np.array([3.0 if ground == "white" else 1.0 for ground in grounds])
            return names, str(rng.choice(grounds, p=weights / weights.sum()))


def render(described: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, each emoji at the font's own size, then reduced, at whole pixels.

    size: a side, or (height, width), in pixels -> picture (h, w, 3) uint8 and the coverage of each object,
    (objects, h, w) float32 in [0, 1], which is its exact mask: the emoji's alpha.
    """
    height, width = (size, size) if isinstance(size, int) else size
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = GROUNDS[described.ground]
    masks = np.zeros((len(described.objects), height, width), np.float32)
    for i, o in enumerate(described.objects):
        paint, alpha = glyph(o.shape, max(1, round(2 * o.radius * min(height, width))))
        h, w = alpha.shape
        top, left = round(o.y * height - h / 2), round(o.x * width - w / 2)
        rows, columns = slice(top, top + h), slice(left, left + w)
        masks[:i, rows, columns] *= 1 - alpha  # corners of boxes may meet
        masks[i, rows, columns] = alpha
        picture[rows, columns] = paint + (1 - alpha[..., None]) * picture[rows, columns]
    return picture.round().astype(np.uint8), masks


@cache
def glyph(thing: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An emoji cut to its box, the longer side `side` pixels: its light (h, w, 3) up to 255, and its alpha (h, w).

    The light is alpha times colour, so that paint + (1 − alpha) · ground is the picture.
    """
    whole = bitmap(_font(), THINGS[thing][0])
    box = whole.crop(whole.getchannel(3).getbbox())
    scale = side / max(box.size)
    width, height = (max(1, round(scale * length)) for length in box.size)
    pixels = np.asarray(box.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    alpha = pixels[..., 3] / 255
    paint = pixels[..., :3] * alpha[..., None]
    for array in (paint, alpha):
        array.setflags(write=False)  # every picture shares them
    return paint, alpha


@cache
def _grounds(thing: str) -> frozenset[str]:
    return frozenset(clear_grounds(_font(), THINGS[thing][0]))


@cache
def _font() -> ImageFont.FreeTypeFont:
    return find_font()
