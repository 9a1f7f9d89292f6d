"""Shapes: B batch, T tokens, h×w the grid of one attention layer."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.grounding import (
    Measures,
    average_precision,
    deletion_curve,
    iou,
    mass_inside,
    measure,
    points_inside,
    token_loss,
)


def box(y: slice, x: slice, side: int = 16) -> Tensor:
    """A mask of one token, (1, 1, side, side)."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., y, x] = 1
    return mask


LEFT = box(slice(None), slice(0, 8))
QUARTER = box(slice(0, 8), slice(0, 8))


def test_mass_inside_is_one_inside_zero_outside_and_the_area_if_spread_evenly() -> None:
    even = torch.full((1, 1, 16, 16), 0.3)
    assert mass_inside(LEFT, LEFT).item() == pytest.approx(1)
    assert mass_inside(1 - LEFT, LEFT).item() == 0
    assert mass_inside(even, LEFT).item() == pytest.approx(1 / 2)
    assert mass_inside(even, QUARTER).item() == pytest.approx(1 / 4)


def test_mass_inside_of_a_token_nobody_looks_at_is_zero_not_nan() -> None:
    assert mass_inside(torch.zeros(1, 1, 16, 16), LEFT).item() == 0


@pytest.mark.parametrize(
    "measured", [mass_inside, points_inside, iou, average_precision], ids=lambda function: function.__name__
)
def test_each_token_of_each_picture_is_measured_by_its_own_mask(measured: Callable[[Tensor, Tensor], Tensor]) -> None:
    attention = torch.rand(3, 5, 4, 6) * torch.tensor([1.0, 0.1, 0.01, 0.001, 0.0])[:, None, None]
    masks = torch.rand(3, 5, 4, 6)
    together = measured(attention, masks)
    assert together.shape == (3, 5)
    for b in range(3):
        for t in range(5):
            alone = measured(attention[b : b + 1, t : t + 1], masks[b : b + 1, t : t + 1])
            torch.testing.assert_close(alone[0, 0], together[b, t])


def test_pointing_asks_where_the_peak_is() -> None:
    attention = torch.rand(1, 1, 16, 16) / 2
    attention[0, 0, 3, 4] = 1
    assert points_inside(attention, LEFT).tolist() == [[True]]
    assert points_inside(attention, 1 - LEFT).tolist() == [[False]]
    assert points_inside(attention, 0.4 * LEFT).tolist() == [[False]]
    assert points_inside(attention, 0.4 * LEFT, threshold=0.3).tolist() == [[True]]


def test_a_cell_that_is_half_in_the_mask_is_in() -> None:
    half = QUARTER / 2
    assert points_inside(QUARTER, half).tolist() == [[True]]
    assert iou(QUARTER, half).item() == average_precision(QUARTER, half).item() == 1
    almost = 0.49 * QUARTER
    assert points_inside(QUARTER, almost).tolist() == [[False]]
    assert iou(QUARTER, almost).item() == average_precision(QUARTER, almost).item() == 0


def weights_of(maps: Tensor, heads: int = 2) -> Tensor:
    """Maps (B, T, h, w) as attention weights (B, heads, h·w, T)."""
    return maps.flatten(2).transpose(1, 2)[:, None].expand(-1, heads, -1, -1)


def pooled(mask: Tensor) -> Tensor:
    """A mask at the resolution of a layer, (1, 1, 4, 4)."""
    return F.adaptive_avg_pool2d(mask, (4, 4))


def test_token_loss_is_nothing_on_the_mask_at_any_height_and_everything_beside_it() -> None:
    inside = pooled(QUARTER)
    assert token_loss(weights_of(0.3 * inside), QUARTER, (4, 4)).item() == pytest.approx(0)
    assert token_loss(weights_of(1 - inside), QUARTER, (4, 4)).item() == pytest.approx(1)
    even = torch.ones(1, 1, 4, 4)
    assert token_loss(weights_of(even), QUARTER, (4, 4)).item() == pytest.approx(1 - math.sqrt(1 / 4))


def test_token_loss_asks_for_the_whole_of_the_mask() -> None:
    one_place = torch.zeros(1, 1, 4, 4)
    one_place[..., 0, 0] = 1
    assert mass_inside(one_place, pooled(QUARTER)).item() == 1
    assert token_loss(weights_of(one_place), QUARTER, (4, 4)).item() == pytest.approx(1 - math.sqrt(1 / 4))


def test_token_loss_keeps_what_is_smaller_than_a_cell() -> None:
    small = box(slice(5, 6), slice(9, 10))
    there = torch.zeros(1, 1, 4, 4)
    there[..., 1, 2] = 1
    assert token_loss(weights_of(there), small, (4, 4)).item() == pytest.approx(0)
    assert token_loss(weights_of(1 - there), small, (4, 4)).item() == pytest.approx(1)


def test_token_loss_leaves_out_tokens_without_a_mask() -> None:
    masks = torch.cat([QUARTER, torch.zeros_like(QUARTER)], dim=1)  # (1, 2, 16, 16)
    maps = torch.cat([torch.ones(1, 1, 4, 4), torch.rand(1, 1, 4, 4)], dim=1)
    expected = token_loss(weights_of(maps[:, :1]), masks[:, :1], (4, 4))
    torch.testing.assert_close(token_loss(weights_of(maps), masks, (4, 4)), expected)
    assert token_loss(weights_of(maps), torch.zeros_like(masks), (4, 4)).item() == 0


def test_token_loss_is_each_picture_s_own() -> None:
    masks = torch.cat([QUARTER, torch.zeros_like(QUARTER), LEFT])  # (3, 1, 16, 16)
    maps = torch.rand(3, 1, 4, 4)
    together = token_loss(weights_of(maps), masks, (4, 4))
    alone = [token_loss(weights_of(maps[i : i + 1]), masks[i : i + 1], (4, 4)) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together[1] == 0 < together[0]


def test_token_loss_averages_the_heads_before_it_asks() -> None:
    """A head may look elsewhere as long as the layer as a whole looks inside: half inside, not half of each loss."""
    inside, outside = pooled(LEFT), pooled(1 - LEFT)
    weights = torch.cat([weights_of(inside, 1), weights_of(outside, 1)], dim=1)
    assert token_loss(weights, LEFT, (4, 4)).item() == pytest.approx(1 - math.sqrt(1 / 2))


@pytest.mark.parametrize("has_mask", [True, False])
def test_descending_the_token_loss_moves_attention_into_the_mask(has_mask: bool) -> None:
    scores = torch.zeros(1, 2, 16, 3, requires_grad=True)  # (B, heads, h·w, T)
    masks = torch.cat([QUARTER, 1 - QUARTER, torch.zeros_like(QUARTER)], dim=1) * has_mask
    before = token_loss(scores.softmax(-1), masks, (4, 4))
    before.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    after = token_loss((scores - scores.grad).softmax(-1), masks, (4, 4))
    assert after < before if has_mask else after == before == 0


def test_token_loss_of_half_precision_weights_is_taken_in_fp32() -> None:
    weights = torch.rand(1, 2, 16, 1).half()
    loss = token_loss(weights, QUARTER, (4, 4))
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), token_loss(weights.float(), QUARTER, (4, 4)).item(), rel_tol=1e-6)


# Map and mask as sets, and as a ranking.


def test_iou_is_that_of_the_two_where_each_is_at_least_half_its_peak() -> None:
    attention = 0.2 * LEFT + 0.05 * (1 - LEFT)
    assert iou(attention, LEFT).item() == 1
    assert iou(attention, QUARTER).item() == pytest.approx(1 / 2)
    assert iou(attention, 1 - LEFT).item() == 0
    assert iou(torch.ones(1, 1, 16, 16), QUARTER).item() == pytest.approx(1 / 4)


def test_average_precision_is_a_matter_of_order_alone() -> None:
    torch.manual_seed(0)
    attention = QUARTER + torch.rand(1, 1, 16, 16) / 2
    assert average_precision(attention, QUARTER).item() == 1
    assert average_precision(attention**3, QUARTER).item() == 1
    assert average_precision(1 - QUARTER, QUARTER).item() == pytest.approx(1 / 4)  # last, all at once


def test_average_precision_of_a_map_that_says_nothing_is_the_area() -> None:
    assert average_precision(torch.ones(1, 1, 16, 16), QUARTER).item() == pytest.approx(1 / 4)


def test_average_precision_by_hand() -> None:
    attention = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert average_precision(attention, mask).item() == pytest.approx((1 + 2 / 3) / 2)


# Map and change.


def test_the_deletion_curve_rises_at_once_where_the_map_is_the_change_and_last_where_it_is_not() -> None:
    change = QUARTER[0, 0]  # a quarter of the area
    shares = (0, 0.125, 0.25, 0.75, 1)
    assert deletion_curve(change, change, shares).tolist() == pytest.approx([0, 0.5, 1, 1, 1])
    assert deletion_curve(1 - change, change, shares).tolist() == pytest.approx([0, 0, 0, 0, 1])


def test_a_map_that_says_nothing_gives_the_diagonal() -> None:
    shares = (0, 0.3, 0.5, 1)
    assert deletion_curve(torch.ones(8, 8), torch.rand(8, 8), shares).tolist() == pytest.approx(list(shares))


def test_only_the_order_of_a_map_matters_to_the_deletion_curve() -> None:
    heat, change = torch.rand(8, 8), torch.rand(8, 8)
    shares = [i / 10 for i in range(11)]
    found = deletion_curve(heat, change, shares)
    assert found.tolist() == pytest.approx(deletion_curve(heat.square() * 3, change, shares).tolist())
    assert (np.diff(found) >= 0).all() and (deletion_curve(change, change, shares) >= found - 1e-9).all()


# One map in numbers.


def test_the_measures_of_a_map_by_hand() -> None:
    heat = torch.zeros(8, 4)
    heat[2, 1], heat[6, 3] = 0.6, 0.3  # at least half the peak
    heat[6, 1] = 0.1
    found = measure(heat)
    assert found.mass == pytest.approx(1 / 32) and found.area == pytest.approx(2 / 32)
    assert found.centre == pytest.approx((1.5 + 0.3 * 2, 2.5 + 0.4 * 4))
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.6, 0.3, 0.1)) / math.log(32))
    assert Measures(**json.loads(json.dumps(asdict(found))) | {"centre": found.centre}) == found  # plain numbers


def test_a_map_of_nothing_has_measures_too() -> None:
    found = measure(torch.zeros(8, 4))
    assert (found.mass, found.entropy, found.centre) == (0, 0, (0, 0))
