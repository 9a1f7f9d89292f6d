"""Biases on the scores of tokens: they make a word louder, withhold it, or hold it in a region.

A bias b on the scores turns the weights w = softmax(s) into softmax(s + b), which is w · exp(b), scaled to a sum of 1.
So it can be applied to the weights, without the scores.

Shapes: B rows of a batch, H heads, h×w the grid of a layer, N = h·w its positions, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.attention import RecordLayer, is_named

NEVER = -math.inf
"""The bias that withholds a token."""


@dataclass(frozen=True)
class Bias:
    """What is added to the scores of some tokens.

    tokens: their positions in the text.
    inside, outside: what is added in the region, and at all other positions.
    region: (height, width) of values in [0, 1], at any size; None is everywhere.
    layers: names of layers, or patterns such as "up.*"; None is all. heads: their numbers; None is all.
    noise: it acts at noise levels in [low, high] of [0, 1].
    """

    tokens: tuple[int, ...]
    inside: float
    outside: float = 0.0
    region: Tensor | None = None
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    noise: tuple[float, float] = (0.0, 1.0)

    def acts(self, layer: str, sigma: float) -> bool:
        """Whether it acts on a layer at a noise level."""
        low, high = self.noise
        return is_named(layer, self.layers) and low <= sigma <= high

    def over(self, grid: tuple[int, int]) -> Tensor:
        """What is added at each position of a grid, (h·w)."""
        if self.region is None:
            return torch.full((math.prod(grid),), self.inside)
        share = F.adaptive_avg_pool2d(self.region[None].float(), grid).flatten()
        # At least half of the largest share, so that a thing smaller than a position is inside of one.
        return torch.where(share >= share.max() / 2, self.inside, self.outside)


def total_bias(
    rows: Sequence[Sequence[Bias]], layer: str, sigma: float, grid: tuple[int, int], heads: int, tokens: int
) -> Tensor | None:
    """The sum of the biases of each row, (B, H, N, T); None where none of them acts."""
    acting = [(row, bias) for row, biases in enumerate(rows) for bias in biases if bias.acts(layer, sigma)]
    if not acting:
        return None
    total = torch.zeros(len(rows), heads, math.prod(grid), tokens)
    for row, bias in acting:
        chosen = range(heads) if bias.heads is None else [head for head in bias.heads if head < heads]
        for token in bias.tokens:
            total[row, list(chosen), :, token] += bias.over(grid)
    return total


def biased(weights: Tensor, bias: Tensor) -> Tensor:
    """Weights (B, H, N, T) as they are with this bias on their scores; zeros where every token is withheld."""
    changed = weights * bias.to(weights.device).exp()
    return (changed / changed.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).to(weights.dtype)


def bias_hook(rows: Mapping[str, slice], biases: Sequence[Sequence[Bias]], sigma: float) -> RecordLayer:
    """The `record` argument of a pass that biases the images of the branch "prompt", each by its own biases."""
    known: dict[tuple, Tensor | None] = {}  # layers of one grid mostly have the same bias

    def change(layer: str, weights: Tensor, grid: tuple[int, int]) -> Tensor | None:
        part = rows["prompt"]
        acting = tuple(bias.acts(layer, sigma) for own in biases for bias in own)
        key = (acting, grid, weights.shape[1])
        if key not in known:
            known[key] = total_bias(biases, layer, sigma, grid, weights.shape[1], weights.shape[-1])
        bias = known[key]
        if bias is None:
            return None
        changed = weights.clone()
        changed[part] = biased(weights[part], bias)
        return changed

    return change
