"""The two worlds of scenes that models are trained and tested on, by the names that `--data` takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipelines.scenes import captions, emoji, emoji_words, shapes
from pipelines.scenes.captions import Vocabulary
from pipelines.scenes.scene import Scene, parse_caption
from pipelines.scenes.see_emoji import see_emoji
from pipelines.scenes.see_shapes import see_shapes
from pipelines.scenes.sight import Sight
from unet_xattn.words import unknown_words


@dataclass(frozen=True)
class World:
    """One world of scenes: what can be drawn in it, and how its pictures are written, drawn and seen.

    scene(seed, index, kind=None, held_out=False, language="en"): the scene at a place of an endless series.
    tellings(seed, index, languages, kind=None, held_out=False): the same scene, captioned in each language.
    render(scene, size): the picture (h, w, 3) uint8 and the coverage of each object, (objects, h, w).
    see(picture): the objects and the ground of a picture, for the judge.
    vocabulary: the words of its captions, in each language.
    scenes_for_all_words: length of a series after which every word has appeared in a caption.
    """

    name: str
    scene: Callable[..., Scene]
    tellings: Callable[..., list[Scene]]
    render: Callable[..., tuple[np.ndarray, np.ndarray]]
    see: Callable[[np.ndarray], Sight]
    vocabulary: Vocabulary
    scenes_for_all_words: int

    def parse(self, text: str) -> Scene | None:
        """The scene of this world that a caption describes, or None for a text that describes none."""
        return parse_caption(text, self.vocabulary, self.name)


WORLDS = {
    world.name: world
    for world in (
        World("shapes", shapes.scene, shapes.tellings, shapes.render, see_shapes, captions.SHAPES, 2000),
        World("emoji", emoji.scene, emoji.tellings, emoji.render, see_emoji, emoji_words.EMOJI, 3500),
    )
}


def render(scene: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of either world: picture (h, w, 3) uint8 and the coverage of each object, (objects, h, w)."""
    return WORLDS[scene.data].render(scene, size)


def parse(text: str) -> Scene | None:
    """The scene that a caption of either world describes, or None for a text that describes none."""
    return next(filter(None, (world.parse(text) for world in WORLDS.values())), None)


def world_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The world a model was trained on: the first one whose every noun its tokenizer knows, or "shapes"."""
    known = (name for name, w in WORLDS.items() if not unknown_words(" ".join(w.vocabulary.nouns), tokenizer))
    return next(known, "shapes")
