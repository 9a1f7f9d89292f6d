"""The worlds of scenes for training and testing, by the names that `--data` accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.scenes import emoji, everyday, shapes
from pipelines.scenes.captions import SHAPE_LEXICON, Lexicon, Meaning, meaning
from pipelines.scenes.emoji_words import EMOJI_LEXICON
from pipelines.scenes.everyday_words import EVERYDAY_LEXICON, all_names
from pipelines.scenes.scene import KINDS, Scene, parse_caption
from pipelines.scenes.see_emoji import see_emoji, see_everyday
from pipelines.scenes.see_shapes import see_shapes
from pipelines.scenes.sight import Sight
from pipelines.scenes.typed_grammar import parse_typed, typed_meaning
from unet_xattn.words import unknown_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class World:
    """One world of scenes: its captions, its renderer, and the rules that find its objects in a picture.

    scene(seed, index, kind=None, held_out=False, language="en"): the scene number `index` of an endless series.
    tellings(seed, index, languages, kind=None, held_out=False): the same scene with a caption in each language.
    render(scene, size): the picture (h, w, 3) uint8 and the exact mask of each object, (objects, h, w).
    see(picture): the objects and the ground of a picture, for the judge.
    lexicon: the words of its captions, in each language.
    scenes_for_all_words: number of scenes after which every word but the rare ones has appeared in a caption.
    kinds: the kinds of its scenes.
    meaning(text), parse(text): the meaning of a caption, and the scene that it describes, or None if the text describes
        no scene of this world.
    rare_words: words that a model of this world shall know although its scenes show them rarely.
    """

    name: str
    scene: Callable[..., Scene]
    tellings: Callable[..., list[Scene]]
    render: Callable[..., tuple[np.ndarray, np.ndarray]]
    see: Callable[[np.ndarray], Sight]
    lexicon: Lexicon
    scenes_for_all_words: int
    kinds: tuple[str, ...]
    meaning: Callable[[str], Meaning | None]
    parse: Callable[[str], Scene | None]
    rare_words: tuple[str, ...] = ()


def _named(name: str, lexicon: Lexicon) -> tuple[Callable[[str], Meaning | None], Callable[[str], Scene | None]]:
    """`meaning` and `parse` of a world with the grammar of `captions`."""
    return lambda text: meaning(text, lexicon), lambda text: parse_caption(text, lexicon, name)


WORLDS = {
    world.name: world
    for world in (
        World(
            "shapes",
            shapes.scene,
            shapes.tellings,
            shapes.render,
            see_shapes,
            SHAPE_LEXICON,
            2000,
            KINDS,
            *_named("shapes", SHAPE_LEXICON),
        ),
        World(
            "emoji",
            emoji.scene,
            emoji.tellings,
            emoji.render,
            see_emoji,
            EMOJI_LEXICON,
            3500,
            KINDS,
            *_named("emoji", EMOJI_LEXICON),
        ),
        World(
            "everyday",
            everyday.scene,
            everyday.tellings,
            everyday.render,
            see_everyday,
            EVERYDAY_LEXICON,
            6000,
            tuple(everyday.EVERYDAY_KINDS),
            typed_meaning,
            parse_typed,
            all_names(),
        ),
    )
}


def render(scene: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of any world: picture (h, w, 3) uint8 and the exact mask of each object, (objects, h, w)."""
    return WORLDS[scene.data].render(scene, size)


def parse(text: str, data: str | None = None) -> Scene | None:
    """The scene that a caption describes in this world, or in the first that has such a scene; else None."""
    worlds = WORLDS.values() if data is None else [WORLDS[data]]
    return next(filter(None, (world.parse(text) for world in worlds)), None)


def world_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The world that a model was trained on: the last one whose nouns its tokenizer all knows, or "shapes".

    Tokenizers of others can spell every noun: for them it is "shapes" too.
    """
    if tokenizer.init_kwargs.get("known_words") is None:
        return "shapes"
    worlds = reversed(WORLDS.items())  # everyday things include the shapes
    known = (name for name, w in worlds if not unknown_words(" ".join(w.lexicon.nouns), tokenizer))
    return next(known, "shapes")
