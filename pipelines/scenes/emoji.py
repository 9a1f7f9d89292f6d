"""The world of emoji: endless scenes of one to three emoji on a coloured ground, with an exact mask per object.

Kinds of scene, grammar and layout are those of `shapes`; a scene is a pure function of (seed, index). The emoji are
those of Noto Color Emoji (SIL Open Font License 1.1). Scenes and pictures need that font; parsing captions does not.

Shapes: h×w pixels. Lengths and places are in units of the picture's shorter side, x to the right and y down.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipelines.scenes.emoji_font import EMOJI_GROUNDS, clear_grounds
from pipelines.scenes.emoji_words import EMOJI, EMOJI_LEXICON
from pipelines.scenes.glyphs import Glyph, cached_font, emoji_glyph, paste
from pipelines.scenes.scene import DIFFERENT, Object, Scene, choose_kind, place, write_captions

EMOJI_SIZES: dict[str, float] = {"small": 0.28, "medium": 0.35, "big": 0.43}
"""Name of a size -> the longer side of the emoji's box: 18, 22 and 28 pixels of 64."""


def is_held_out(name: str, other: str) -> bool:
    """Whether no training scene shows these two together: about a tenth of all pairs.

    `other` is another emoji or a ground. Two emoji are held out if the sum of their indices in `EMOJI` is 3 modulo 10;
    an emoji and a coloured ground if the sum of their indices is 0 modulo 8. So each emoji has one held-out ground. It
    is never white, because captions may omit white.
    """
    names, coloured = list(EMOJI), [ground for ground in EMOJI_GROUNDS if ground != "white"]
    if other in EMOJI:
        return name != other and (names.index(name) + names.index(other)) % 10 == 3
    return other in coloured and (names.index(name) + coloured.index(other)) % 8 == 0


def scene(seed: int, index: int, kind: str | None = None, held_out: bool = False, language: str = "en") -> Scene:
    """The scene number `index` of the endless series `seed`.

    Args:
        kind: one of `scene.KINDS`, or None for the training mixture.
        held_out: False never shows a pair that `is_held_out`; True, for testing, shows one in every scene: two of its
            emoji, or its only emoji and the ground.
        language: language of the caption, one of `captions.LANGUAGES`; the picture is the same in all.

    Raises:
        ValueError: the font is missing.
    """
    return tellings(seed, index, (language,), kind, held_out)[0]


def tellings(
    seed: int, index: int, languages: Sequence[str], kind: str | None = None, held_out: bool = False
) -> list[Scene]:
    """The same `scene` with a caption in each of several languages."""
    rng = np.random.default_rng((seed, index))
    kind = choose_kind(rng) if kind is None else kind
    names, ground = _choose(rng, DIFFERENT[kind], held_out)
    sizes = rng.choice(list(EMOJI_SIZES), len(names), p=[0.3, 0.4, 0.3])
    sized = [
        Object(name, "", size, radius=EMOJI_SIZES[size] / 2) for name, size in zip(names, sizes.tolist(), strict=True)
    ]
    if kind == "count":
        sized *= int(rng.integers(2, 4))
    objects, relation = place(rng, kind, sized, reach=1.0, gap=0.01)
    return write_captions(rng, Scene(kind, objects, ground, relation, data="emoji"), languages, EMOJI_LEXICON)


def _choose(rng: np.random.Generator, different: int, held_out: bool) -> tuple[list[str], str]:
    """Different emoji, and a ground that all of them stand out on."""
    while True:
        names = [list(EMOJI)[i] for i in rng.choice(len(EMOJI), different, replace=False)]
        together = any(is_held_out(a, b) for i, a in enumerate(names) for b in names[:i])
        if together != (held_out and different > 1):
            continue
        grounds = [ground for ground in EMOJI_GROUNDS if all(ground in _grounds(name) for name in names)]
        if different == 1 and held_out:
            grounds = [ground for ground in grounds if is_held_out(names[0], ground)]
        elif not held_out:
            grounds = [ground for ground in grounds if not any(is_held_out(name, ground) for name in names)]
        if grounds:
            # White more often than the others, because a prompt without a ground means white.
            weights = np.array([3.0 if ground == "white" else 1.0 for ground in grounds])
            return names, str(rng.choice(grounds, p=weights / weights.sum()))


def render(scene: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, see `glyphs.paste`.

    size: a side, or (height, width), in pixels -> picture (h, w, 3) uint8 and the exact mask of each object, its alpha
    (objects, h, w) float32 in [0, 1].
    """
    return paste(scene, size, lambda o, side: glyph(o.shape, side))


def glyph(name: str, side: int) -> Glyph:
    """An emoji of this world, see `glyphs.emoji_glyph`."""
    return emoji_glyph(EMOJI[name][0], side)


@cache
def _grounds(name: str) -> frozenset[str]:
    return frozenset(clear_grounds(cached_font(), EMOJI[name][0]))
