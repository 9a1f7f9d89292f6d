"""What a trace has recorded, or will, and how much memory that takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from unet_xattn.words import CONCEPTS, Text, is_index

TRACE_BYTES = 2**30
"""Bytes that a trace may take in memory by default."""

KEEP = ("step", "head")
"""What a trace can keep apart."""

MOST = 2**14
"""More pixels of a side, heads or steps than any recording has."""

Calibration = dict[str, list[float]]
"""How far to trust each head: layer -> a weight of at least 0 for each of its heads; all weights sum to 1."""


@dataclass(frozen=True)
class Recording:
    """What a trace records.

    texts: for each branch ("prompt", and "negative" and "concepts" where there are any), a text for each image.
    size: height and width of the pictures, in pixels.
    grids: layer -> its grid (h, w), in the order the layers run.
    heads: layer -> its number of heads.
    steps: number of steps.
    settings: everything else that made the pictures (seeds, scheduler, guidance), as JSON.
    drawn: height and width, in any unit, of what was drawn, where the pictures are its middle at another ratio.
    """

    texts: Mapping[str, list[Text]]
    size: tuple[int, int]
    grids: Mapping[str, tuple[int, int]]
    heads: Mapping[str, int]
    steps: int
    calibration: Calibration | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    drawn: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """T, the number of tokens of the longest prompt or negative prompt; shorter ones are padded to it."""
        return max(len(text.tokens) for branch, texts in self.texts.items() if branch != CONCEPTS for text in texts)

    def columns(self, branch: str) -> int:
        """The number of tokens of each text of a branch: T, or that of the concepts and of what is beside them."""
        return max(len(text.tokens) for text in self.texts[CONCEPTS]) if branch == CONCEPTS else self.tokens

    def is_whole(self) -> bool:
        """Whether its parts fit each other."""
        shapes = [self.size, *self.grids.values(), *([] if self.drawn is None else [self.drawn])]
        sides = [side for shape in shapes for side in shape]
        counts = all(is_index(count, MOST) and count > 0 for count in (*sides, *self.heads.values(), self.steps))
        images = {len(texts) for texts in self.texts.values()}
        trusted = [] if self.calibration is None else list(self.calibration.items())
        return (
            (counts and all(len(shape) == 2 for shape in shapes) and self.heads.keys() == self.grids.keys())
            and ("prompt" in self.texts and len(images) == 1 and 0 not in images)
            and all(text.is_whole() for texts in self.texts.values() for text in texts)
            and all(layer in self.grids and len(weights) == self.heads[layer] for layer, weights in trusted)
            and all(isinstance(weight, Real) and 0 <= weight <= 1 for _, weights in trusted for weight in weights)
            and isinstance(self.settings, Mapping)
        )

    def bytes(self, heads: bool, steps: bool, output: bool = False) -> int:
        """Bytes of the fp32 sums of all images and layers, with heads and steps kept apart or not, and with or without
        output-space maps.
        """
        maps = {layer: (self.heads[layer] if heads else 1) + output for layer in self.grids}
        positions = sum(math.prod(grid) * maps[layer] for layer, grid in self.grids.items())
        columns = sum(len(texts) * self.columns(branch) for branch, texts in self.texts.items())
        return 4 * positions * columns * (self.steps if steps else 1)
