"""Regions of a picture, and measures of how well attention maps agree with the regions that words describe.

Shapes: B batch, T tokens, h×w the grid of one attention layer. Masks are in [0, 1]; a token whose mask is zero
everywhere describes no region and is ignored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.words import shown


def mass_inside(attention: Tensor, masks: Tensor) -> Tensor:
    """Share of each token's attention that is inside its mask: (B, T, h, w) twice -> (B, T) in [0, 1]."""
    return (attention * masks).sum(dim=(-2, -1)) / attention.sum(dim=(-2, -1)).clamp_min(1e-8)


def points_inside(attention: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Whether each token's attention peaks where its mask is at least `threshold`: (B, T, h, w) twice -> (B, T)."""
    peak = attention.flatten(2).argmax(dim=-1, keepdim=True)  # (B, T, 1)
    return masks.flatten(2).gather(-1, peak).squeeze(-1) >= threshold


def iou(attention: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each mask, where it is at least `threshold`, and its map, where it is at least
    `threshold` of its own peak: (B, T, h, w) twice -> (B, T) in [0, 1].
    """
    peak = attention.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    seen, true = attention >= threshold * peak, masks >= threshold
    both = (seen & true).sum(dim=(-2, -1))
    return both / (seen | true).sum(dim=(-2, -1)).clamp_min(1)


def average_precision(attention: Tensor, masks: Tensor) -> Tensor:
    """Average precision of each map as a ranking of positions, with those inside its mask as the positives.

    It needs no threshold. It is 1 if the map ranks all positions of the mask first, and the mask's share of the area
    if the map is constant. (B, T, h, w) twice -> (B, T).
    """
    true = (masks >= 0.5).flatten(2)  # (B, T, h·w)
    order = attention.flatten(2).sort(dim=-1, descending=True)
    hits = true.gather(-1, order.indices).cumsum(dim=-1)
    # Positions of equal attention share one rank, that of the last of them.
    last = torch.searchsorted(-order.values, -order.values, right=True)  # (B, T, h·w)
    precision = hits.gather(-1, last - 1) / last
    chosen = true.gather(-1, order.indices)
    return (precision * chosen).sum(dim=-1) / chosen.sum(dim=-1).clamp_min(1)


def deletion_curve(attention: Tensor, change: Tensor, shares: Sequence[float]) -> np.ndarray:
    """The share of a change that is inside the strongest part of a map, for parts of several shares of the area.

    attention and change (h, w), shares in [0, 1] -> (len(shares),), from 0 to 1. A map unrelated to the change gives
    the diagonal. Positions of equal attention are interpolated.
    """
    levels, place = attention.flatten().unique(return_inverse=True)  # ascending
    amount = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, place, change.flatten().double()).flip(0)
    area = torch.bincount(place, minlength=len(levels)).double().flip(0)
    reached = [np.append(0.0, x.cumsum(0) / x.sum().clamp_min(1e-12)) for x in (area, amount)]
    return np.interp(np.asarray(shares), reached[0], reached[1])


def token_loss(weights: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """1 − the cosine similarity of each token's map and its mask, averaged over the tokens of each picture.

    TokenCompose (arXiv 2312.03626, eq. 3) rewards only the mass inside the mask, so a single position inside it is
    enough. The cosine rewards covering the full mask, at any height.

    weights (B, heads, h·w, T) of one cross-attention layer, masks (B, T, H, W) -> (B,), 0 for a picture without masks.
    """
    attention = weights.mean(dim=1, dtype=torch.float32).transpose(1, 2)  # (B, T, h·w)
    covered = F.adaptive_avg_pool2d(masks, grid).flatten(2)  # (B, T, h·w)
    has_mask = covered.amax(dim=-1) > 0  # (B, T)
    missed = 1 - F.cosine_similarity(attention, covered, dim=-1)
    return torch.where(has_mask, missed, 0.0).sum(dim=1) / has_mask.sum(dim=1).clamp_min(1)


@dataclass(frozen=True)
class Measures:
    """Numbers that describe a heat map.

    mass: its mean share of attention.
    entropy: relative to the largest possible one, 1 for a constant map and 0 for a single pixel.
    area: the share of the picture with at least half the peak.
    centre: the centre of mass (x, y), in pixels.
    """

    mass: float
    entropy: float
    area: float
    centre: tuple[float, float]


def measure(heat: Tensor) -> Measures:
    """The `Measures` of a heat map (height, width)."""
    height, width = heat.shape
    p = heat / heat.sum().clamp_min(1e-12)
    entropy = -(p * p.clamp_min(1e-12).log()).sum() / math.log(height * width)
    x = p.sum(dim=0) @ (torch.arange(width) + 0.5)
    y = p.sum(dim=1) @ (torch.arange(height) + 0.5)
    area = (heat >= heat.max() / 2).float().mean()
    return Measures(float(heat.mean()), float(entropy), float(area), (float(x), float(y)))


Region = Sequence[int] | Sequence[Sequence[float]] | Tensor
"""A box (x0, y0, x1, y1) in whole pixels, x1 and y1 exclusive; a point (x, y); or a mask (height, width) in [0, 1].

Each may also be an array of numpy.
"""


def region_mask(region: Region, size: tuple[int, int]) -> Tensor:
    """A region of a picture of this size as a mask (height, width) float32.

    Raises:
        ValueError: the region is empty, not inside the picture, or of another form.
    """
    try:
        given = torch.as_tensor(region).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = torch.empty(0)  # of no form
    if given.ndim == 2 and not given.is_complex():
        return _checked(given.float(), size)
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if tuple(given.shape) not in ((2,), (4,)) or not whole:
        raise ValueError(f"a region is 4 or 2 whole numbers, or a mask (height, width), not {shown(region)!r}")
    box, (height, width) = given.tolist(), size
    x0, y0, x1, y1 = box if len(box) == 4 else (*box, box[0] + 1, box[1] + 1)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        what = "point (x, y)" if len(box) == 2 else "box (x0, y0, x1, y1)"
        raise ValueError(f"region {tuple(box)} is not a {what} inside the picture, {width}×{height}")
    mask = torch.zeros(size)
    mask[y0:y1, x0:x1] = 1
    return mask


def _checked(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != size:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the picture {size} (height, width)")
    if not (mask.min() >= 0 and mask.max() <= 1 and mask.sum() > 0):  # not NaN either
        raise ValueError("a mask needs values from 0 to 1, at least one of them above 0")
    return mask
