"""What a trace is about to hold, all of it known before the first step, and how much room that takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_xattn.words import Text

BUDGET = 2**30
"""Bytes a trace may take in memory unless it is told otherwise."""

Calibration = dict[str, list[float]]
"""How far to trust each head: layer -> a weight of 0 or more for each of its heads, one in sum."""


@dataclass(frozen=True)
class Recording:
    """What is about to be recorded, all of it known before the first step.

    texts: of each branch ("prompt", and "negative" if there is one), a text for each image.
    size: height and width of the pictures.
    grids: of each layer that attends, in the order they run.
    heads: of each layer.
    steps: how many there will be.
    settings: whatever else made the pictures (seeds, scheduler, guidance), as JSON can carry it.
    """

    texts: Mapping[str, list[Text]]
    size: tuple[int, int]
    grids: Mapping[str, tuple[int, int]]
    heads: int
    steps: int
    calibration: Calibration | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """T: shorter texts are padded to the longest."""
        return max(len(text.tokens) for texts in self.texts.values() for text in texts)

    def bytes(self, heads: bool, steps: bool) -> int:
        """What sums in fp32 of all images and layers take, with heads and steps apart or not."""
        positions = sum(math.prod(grid) for grid in self.grids.values())
        images = sum(map(len, self.texts.values()))
        apart = (self.heads if heads else 1) * (self.steps if steps else 1)
        return 4 * images * positions * self.tokens * apart
