"""The scenes without end that models are trained and tested on, by the names `--data` knows them by.

Each is a module with `scene(seed, index, kind, held_out, language)`, `tellings` of it in several languages,
`render(scene, size)`, `described(text)`, its
`VOCABULARY`, and `WORDY`, after how many scenes every word of it has been said.
"""

from types import ModuleType

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipelines import emoji_scenes, scenes
from pipelines.scenes import Scene
from unet_xattn.words import unknown_words

WORLDS: dict[str, ModuleType] = {"shapes": scenes, "emoji": emoji_scenes}


def render(described: Scene, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of any of them: picture (h, w, 3) uint8 and the coverage of each object, (objects, h, w)."""
    return WORLDS[described.data].render(described, size)


def described(text: str) -> Scene | None:
    """The scene a caption of any of them describes, or None for a text that describes none."""
    return next(filter(None, (world.described(text) for world in WORLDS.values())), None)


def world_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The scenes a model speaks of: the first of `WORLDS` whose every noun its tokenizer has read, or "shapes"."""
    known = (name for name, w in WORLDS.items() if not unknown_words(" ".join(w.VOCABULARY.nouns), tokenizer))
    return next(known, "shapes")
