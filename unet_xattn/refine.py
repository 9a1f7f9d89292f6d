"""Heat maps spread along the edges of their picture, which they hold from then on as well as the attention.

Shapes: K maps, h×w the picture's pixels, m×n the smaller picture that is worked on, P pixels of a window.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PASSES, COLOUR, CELLS = 4, 0.07, 2
"""How often a map is averaged, the difference of colours, of [0, 1], that counts as an edge, and how far a pass reaches
in cells of the map's own grid."""

CONTRAST, LEAST = 0.4, 0.05
"""In the last pass, the difference that counts as an edge as a share of the deviation of the colours around, and the
least such difference."""

WORK, CELL = 96, 4
"""The most pixels of the longer side, and of a cell, that are worked on; larger pictures get their edges back at the
end."""


def refine(maps: Tensor, picture: Tensor, cell: float) -> Tensor:
    """A joint bilateral filter (Petschnig et al. 2004; Eisemann and Durand 2004): maps averaged over pixels that are
    near and of like colour.

    A pixel does not count for itself, and the last pass judges colours by how much they differ around it. So the pixels
    of an outline, whose colours are mixed of two sides, take the value of one of them.

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
    apart, near = _distances(small, radius), _nearness(radius, cell)
    weights = _weights(apart, near, torch.tensor(COLOUR))
    for _ in range(PASSES):
        spread = _averaged(spread, weights, radius)
    relative = CONTRAST * _deviation(small, max(1, round(cell / 2)))
    spread = _averaged(spread, _weights(apart, near, relative.clamp_min(LEAST)), radius)
    return spread if scale == 1 else _enlarged(spread, small, channels)


def _nearness(radius: int, sigma: float) -> Tensor:
    """Logarithms of the weights of a window's pixels by their distance from its middle, which has none, (P, 1, 1)."""
    steps = torch.arange(-radius, radius + 1.0)
    nearness = (steps[:, None] ** 2 + steps**2) / (-2 * sigma**2)
    nearness[radius, radius] = -torch.inf
    return nearness.flatten()[:, None, None]


def _distances(picture: Tensor, radius: int) -> Tensor:
    """Squared difference of colour between each pixel and those of its window: (3, m, n) -> (P, m, n)."""
    padded = F.pad(picture[None], (radius,) * 4, mode="replicate")[0]
    (_, height, width), side = picture.shape, 2 * radius + 1
    windows = (padded[:, y : y + height, x : x + width] for y in range(side) for x in range(side))
    return torch.stack([(window - picture).square().sum(dim=0) for window in windows])


def _deviation(picture: Tensor, radius: int) -> Tensor:
    """Standard deviation of the colours in each pixel's window: (3, m, n) -> (m, n)."""
    padded = F.pad(torch.cat([picture, picture.square()])[None], (radius,) * 4, mode="replicate")
    mean, square = F.avg_pool2d(padded, 2 * radius + 1, 1)[0].chunk(2)
    return (square - mean.square()).sum(dim=0).clamp_min(0).sqrt()


def _weights(apart: Tensor, near: Tensor, sigma: Tensor) -> Tensor:
    """Weights of the pixels of each window, with sum 1: those of near and of like colour are large, (P, m, n)."""
    return (apart / (-2 * sigma.square())).add_(near).softmax(dim=0)


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
    (height, width), size, count = small.shape[1:], large.shape[1:], len(maps)
    padded = F.pad(torch.cat([maps, small])[None], (1,) * 4, mode="replicate")
    total, sum_of_weights = torch.zeros(count, *size), torch.full(size, 1e-12)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            moved = padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
            near = F.interpolate(moved, size, mode="nearest")[0]  # (K + 3, h, w)
            apart = (near[count:] - large).square_().sum(dim=0)
            weight = apart.div_(-2 * COLOUR**2).exp_().add_(1e-6).mul_(math.exp(-(y * y + x * x) / 2))
            total.addcmul_(near[:count], weight)
            sum_of_weights += weight
    return total / sum_of_weights
