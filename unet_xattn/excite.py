"""Attend-and-Excite (arXiv 2301.13826): latents are moved until some position reads each of the named words.

Shapes: B rows of a batch, H heads, N = h·w positions of a layer's grid, T tokens, C channels, h×w positions of latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.attention import RecordLayer, is_named

ENOUGH = 0.3
"""Latents are moved no further once each word has this share of the attention somewhere."""

MOVES = 5
"""At most so many moves before a step."""

REACH = 0.1
"""How far a move goes at noise level 1: the root of the mean square of the change where the gradient is largest."""


@dataclass(frozen=True)
class Excited:
    """Tokens that some position is to read; layers, heads and noise as in `bias.Bias`."""

    tokens: tuple[int, ...]
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    noise: tuple[float, float] = (0.0, 1.0)

    def acts(self, sigma: float) -> bool:
        low, high = self.noise
        return low <= sigma <= high


class Peaks:
    """The `record` argument of a pass that keeps, as part of the graph, what the words of each row are read.

    excited: of each row of the batch.
    """

    def __init__(self, excited: Sequence[Sequence[Excited]]):
        self.excited = excited
        self._maps: dict[tuple[int, int], list[Tensor]] = {}  # (row, number of the words) -> maps of layers, (h, w)

    def __call__(self, layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
        for row, own in enumerate(self.excited):
            for number, words in enumerate(own):
                heads = [h for h in range(weights.shape[1]) if words.heads is None or h in words.heads]
                if heads and is_named(layer, words.layers):
                    share = weights[row, heads][..., list(words.tokens)].sum(dim=-1).mean(dim=0)  # (N,)
                    self._maps.setdefault((row, number), []).append(share.float().unflatten(0, grid))

    def least(self) -> Tensor:
        """The peak of the most neglected words of each row that has words, (rows,).

        Raises:
            ValueError: no layer has been read that the words act on.
        """
        if not self._maps:
            raise ValueError("none of the layers and heads that excite names reads the text: name others, or none")
        finest = max(own.shape for maps in self._maps.values() for own in maps)
        peaks: dict[int, list[Tensor]] = {}
        for (row, _), maps in self._maps.items():
            alike = [F.interpolate(own[None, None], finest, mode="bilinear") for own in maps]  # (1, 1, h, w)
            smooth = F.avg_pool2d(torch.stack(alike).mean(dim=0), 3, 1, 1, count_include_pad=False)
            peaks.setdefault(row, []).append(smooth.max())
        return torch.stack([torch.stack(own).min() for own in peaks.values()])


def excite(
    latents: Tensor, excited: Sequence[Sequence[Excited]], sigma: float, read: Callable[[Tensor, RecordLayer], Any]
) -> Tensor:
    """Latents (B, C, h, w) moved until each word of their row has `ENOUGH` of the attention somewhere.

    read: called with latents and the `record` argument of a pass of the network at them.
    """
    acting = [[words for words in own if words.acts(sigma)] for own in excited]
    for _ in range(MOVES if any(acting) else 0):
        # The caller may draw in inference mode, whose tensors have no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            x = latents.clone().requires_grad_()
            peaks = Peaks(acting)
            read(x, peaks)
            least = peaks.least()
            if not (least < ENOUGH).any():
                break
            (slope,) = torch.autograd.grad(least.clamp_max(ENOUGH).sum(), x)
        latents = latents + (REACH * sigma * of_size_one(slope)).to(latents)
    return latents


def of_size_one(slope: Tensor) -> Tensor:
    """A gradient (B, ...) with a mean square of 1 in each row, in fp32; a row of zeros stays."""
    sizes = slope.float().flatten(1).square().mean(dim=1).sqrt()
    return slope / sizes.clamp_min(torch.finfo(sizes.dtype).tiny).view(-1, *[1] * (slope.ndim - 1))
