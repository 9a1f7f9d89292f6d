"""What a trace has recorded, or will, and how much memory that takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_xattn.words import Text

TRACE_BYTES = 2**30
"""Bytes that a trace may take in memory by default."""

Calibration = dict[str, list[float]]
"""How far to trust each head: layer -> a weight of at least 0 for each of its heads; all weights sum to 1."""


@dataclass(frozen=True)
class Recording:
    """What a trace records.

    texts: for each branch ("prompt", and "negative" where there is one), a text for each image.
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
        """T, the number of tokens of the longest text; shorter texts are padded to it."""
        return max(len(text.tokens) for texts in self.texts.values() for text in texts)

    def bytes(self, heads: bool, steps: bool) -> int:
        """Bytes of the fp32 sums of all images and layers, with heads and steps kept apart or not."""
        positions = sum(math.prod(grid) * (self.heads[layer] if heads else 1) for layer, grid in self.grids.items())
        images = sum(map(len, self.texts.values()))
        return 4 * images * positions * self.tokens * (self.steps if steps else 1)
