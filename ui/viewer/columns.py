"""What has a map of its own in the viewer: every token, or, where that is too much to send at first, every word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unet_xattn import AttentionTrace
from unet_xattn.words import OTHER

FIRST_BYTES = 200_000
"""The most bytes of maps that come with a picture, one for each cell of each map. As text they are a third more; with
the picture they stay below 500,000."""


@dataclass(frozen=True)
class Columns:
    """The maps of one picture: the name of each, the tokens that it is the sum of, and which of them each word has."""

    names: list[str]
    groups: list[tuple[int, ...]]
    words: list[list[int]]

    def summed(self, maps: Tensor) -> Tensor:
        """The maps of all tokens (T, h, w) -> those of the groups."""
        return torch.stack([maps[list(group)].sum(dim=0) for group in self.groups])


def columns_of(attention: AttentionTrace, image: int = 0) -> Columns:
    """A map for each token of a prompt without padding; or one for each word, each kind of other columns, and the rest.

    The latter if the maps of all tokens on the finest grid take more than `FIRST_BYTES`: several encoders with long
    texts have hundreds of tokens.
    """
    text, words = attention.recording.texts["prompt"][image], attention.words_of(image)
    if _fits(_finest(attention), len(text.tokens)):
        each: list[tuple[int, ...]] = [(i,) for i in range(len(text.tokens))]
        return Columns(list(text.tokens), each, [list(word.tokens) for word in words])
    groups = [(str(word), word.tokens) for word in words]
    groups += list(text.named.items())
    seen = {token for _, tokens in groups for token in tokens}
    if rest := tuple(i for i in range(len(text.tokens)) if i not in seen):
        groups.append((OTHER, rest))
    return Columns([name for name, _ in groups], [own for _, own in groups], [[i] for i in range(len(words))])


def mean_grid(attention: AttentionTrace, columns: Columns) -> tuple[int, int]:
    """The grid of maps of all layers: the finest layer's, with half as many rows and columns until they fit."""
    rows, cells = _finest(attention)
    while not _fits((rows, cells), len(columns.groups)) and min(rows, cells) > 1:
        rows, cells = math.ceil(rows / 2), math.ceil(cells / 2)
    return rows, cells


def _finest(attention: AttentionTrace) -> tuple[int, int]:
    return max(attention.recording.grids.values(), key=math.prod)


def _fits(grid: Sequence[int], maps: int) -> bool:
    return maps * math.prod(grid) <= FIRST_BYTES
