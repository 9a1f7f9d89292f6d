"""Heat maps spread along the edges of their picture, which they hold from then on as well as the attention.

Shapes: K maps, h×w the picture's pixels, m×n the smaller picture that is worked on, P pixels of a window.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PASSES, COLOUR, CELLS = 3, 0.1, 2
"""How often a map is filtered, the difference of colours, of [0, 1], that counts as an edge, and how far a pass reaches
in cells of the map's own grid."""

WORK, CELL = 128, 4
"""The most pixels of the longer side, and of a cell, that are worked on; larger pictures get their edges back at the
end."""


def refine(maps: Tensor, picture: Tensor, cell: float) -> Tensor:
    """A joint bilateral filter (Petschnig et al. 2004; Eisemann and Durand 2004): maps averaged over pixels that are
    near and of like colour.

    Args:
        maps: (K, h, w). picture: (h, w, 3) in [0, 1].
        cell: pixels on a side of a cell of the maps' own grid.

    Returns:
        (K, h, w), in the range of the maps.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, WORK / max(height, width), CELL / cell)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    channels = picture.permute(2, 0, 1)
    small, spread = (F.interpolate(x[None], size, mode="area")[0] for x in (channels, maps))
    cell = cell * scale
    radius = max(1, round(CELLS * cell))
    weights = _likeness(small, small, radius) * _nearness(radius, cell)[:, None, None]  # (P, m, n)
    weights /= weights.sum(dim=0)
    for _ in range(PASSES):
        spread = _averaged(spread, weights, radius)
    return spread if scale == 1 else _enlarged(spread, small, channels)


def _nearness(radius: int, sigma: float) -> Tensor:
    """Weights of the pixels of a window by their distance from its middle, (P,)."""
    steps = torch.arange(-radius, radius + 1.0)
    return torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2)).flatten()


def _likeness(inside: Tensor, around: Tensor, radius: int) -> Tensor:
    """Weights of the pixels of a window of `around` (3, h, w) by their likeness to those `inside`: (P, h, w)."""
    padded = F.pad(around[None], (radius,) * 4, mode="replicate")[0]
    (_, height, width), side = inside.shape, 2 * radius + 1
    windows = [padded[:, y : y + height, x : x + width] for y in range(side) for x in range(side)]
    apart = torch.stack([(window - inside).square().sum(dim=0) for window in windows])
    return torch.exp(-apart / (2 * COLOUR**2))


def _averaged(maps: Tensor, weights: Tensor, radius: int) -> Tensor:
    """Maps (K, h, w) averaged over windows with weights (P, h, w)."""
    padded = F.pad(maps[:, None], (radius,) * 4, mode="replicate")[:, 0]
    height, width, side = *maps.shape[1:], 2 * radius + 1
    total = torch.zeros_like(maps)
    for place, weight in enumerate(weights):
        y, x = divmod(place, side)
        total.addcmul_(padded[:, y : y + height, x : x + width], weight)
    return total


def _enlarged(maps: Tensor, small: Tensor, large: Tensor) -> Tensor:
    """Joint bilateral upsampling (Kopf et al. 2007): each large pixel gets the map where the small picture is like it.

    maps (K, m, n), small (3, m, n), large (3, h, w) -> (K, h, w)
    """
    size = large.shape[1:]
    total, sum_of_weights = torch.zeros(len(maps), *size), torch.full(size, 1e-12)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            moved, guide = (F.interpolate(_moved(part, y, x)[None], size, mode="nearest")[0] for part in (maps, small))
            weight = torch.exp(-(guide - large).square().sum(dim=0) / (2 * COLOUR**2)) + 1e-6
            weight = weight * math.exp(-(y * y + x * x) / 2)
            total.addcmul_(moved, weight)
            sum_of_weights += weight
    return total / sum_of_weights


def _moved(x: Tensor, rows: int, columns: int) -> Tensor:
    """The last two dimensions moved, with the border repeated."""
    height, width = x.shape[-2:]
    padded = F.pad(x[None], (1,) * 4, mode="replicate")[0]
    return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
