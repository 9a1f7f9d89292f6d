"""Scenes of a world as an endless stream of training examples."""

import hashlib
from collections.abc import Iterable
from itertools import chain

from pipelines.data.stream import Example
from pipelines.scenes.captions import LANGUAGES
from pipelines.scenes.scene import word_mask
from pipelines.scenes.worlds import WORLDS

VALIDATION_SEED = 2**31
"""Seed of the validation scenes. Training uses smaller seeds."""


class SceneExamples:
    """An endless stream of the scenes of one seed, every other one captioned in Chinese; `data` is in `WORLDS`."""

    translates = True
    notes = ()

    def __init__(self, size: int, seed: int, data: str = "shapes"):
        self.size, self.seed, self.world = size, seed, WORLDS[data]

    def example(self, place: int) -> Example:
        return self._render(self.seed, place)

    def validation(self, count: int) -> list[Example]:
        return [self._render(VALIDATION_SEED, place) for place in range(count)]

    def captions(self) -> Iterable[str]:
        scene = self.world.scene
        captions = (
            scene(self.seed, i, language=lang).caption
            for i in range(self.world.scenes_for_all_words)
            for lang in LANGUAGES
        )
        return chain(captions, self.world.rare_words)

    def fingerprint(self) -> str:
        """A hash of the first 32 scenes: unlike a version number, it cannot be forgotten when scenes change."""
        digest = hashlib.sha256(repr(self.seed).encode())
        for place in range(32):
            example = self._render(self.seed, place)
            digest.update(example.picture.tobytes() + f"{example.caption}\n{example.translation}\n".encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        return f"the scenes {places.start} to {places.stop - 1} of seed {self.seed}"

    def _render(self, seed: int, place: int) -> Example:
        scene, other = self.world.tellings(seed, place, ("en", "zh") if place % 2 == 0 else ("zh", "en"))
        picture, masks = self.world.render(scene, self.size)
        where = [(w.start, w.end, word_mask(w, masks)) for w in scene.words]
        regions = [(start, end, mask) for start, end, mask in where if mask is not None]
        return Example(picture, scene.caption, regions, other.caption, scene)
