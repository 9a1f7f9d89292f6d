"""Shapes: B rows, H heads, N = h·w positions, T tokens."""

import math

import pytest
import torch
from torch import Tensor

from unet_xattn.attention import attention_weights, in_turn
from unet_xattn.bias import NEVER, Bias, bias_hook, biased, total_bias

B, H, T, GRID = 2, 3, 5, (4, 4)
N = math.prod(GRID)


def scores() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, H, N, 8, generator=generator), torch.randn(B, H, T, 8, generator=generator)


def test_a_bias_on_weights_is_a_bias_on_scores() -> None:
    q, k = scores()
    bias = torch.randn(B, H, N, T, generator=torch.Generator().manual_seed(1))
    expected = (q @ k.transpose(-2, -1) * 8**-0.5 + bias).softmax(dim=-1)
    torch.testing.assert_close(biased(attention_weights(q, k), bias), expected)


def test_a_withheld_token_gets_nothing_and_rows_still_sum_to_one() -> None:
    weights = attention_weights(*scores())
    bias = total_bias([[Bias((1,), NEVER)], []], "mid", 0.5, GRID, H, T)
    assert bias is not None
    changed = biased(weights, bias)
    assert (changed[0, ..., 1] == 0).all()
    torch.testing.assert_close(changed.sum(dim=-1), torch.ones(B, H, N))
    torch.testing.assert_close(changed[1], weights[1])
    nothing = biased(weights, torch.full_like(weights, NEVER))
    assert (nothing == 0).all()


@pytest.mark.parametrize("side", [4, 8, 32])
def test_a_region_of_any_size_is_inside_where_it_covers_the_grid(side: int) -> None:
    region = torch.zeros(side, side)
    region[: side // 2] = 1  # the upper half
    inside = Bias((0,), 8.0, -8.0, region).over(GRID).unflatten(0, GRID)
    assert (inside[:2] == 8).all() and (inside[2:] == -8).all()
    assert (Bias((0,), 8.0, region=region).over(GRID).unflatten(0, GRID)[2:] == 0).all()


def test_a_thing_smaller_than_a_position_is_inside_of_one() -> None:
    region = torch.zeros(64, 64)
    region[5, 5] = 1
    assert Bias((0,), 8.0, -8.0, region).over(GRID).tolist() == [8.0] + [-8.0] * (N - 1)


def test_layers_heads_and_noise_limit_a_bias() -> None:
    bias = Bias((0,), 1.0, layers=("up.*",), heads=(2,), noise=(0.5, 0.8))
    assert bias.acts("up.0.0", 0.5) and bias.acts("up.1.0", 0.8)
    assert not any((bias.acts("down.0.0", 0.6), bias.acts("up.0.0", 0.4), bias.acts("up.0.0", 0.9)))
    total = total_bias([[bias]], "up.0.0", 0.6, GRID, H, T)
    assert total is not None and total[0, 2, :, 0].tolist() == [1.0] * N and total.sum() == N
    assert total_bias([[bias]], "mid", 0.6, GRID, H, T) is None


def test_the_hook_changes_the_rows_of_the_prompt_only() -> None:
    weights = attention_weights(*scores())
    hook = bias_hook({"negative": slice(0, 1), "prompt": slice(1, 2)}, [[Bias((0,), NEVER)]], 0.5)
    changed = hook("mid", weights, GRID)
    assert changed is not None and (changed[1, ..., 0] == 0).all()
    assert changed[0].equal(weights[0])
    fewer = hook("up.0.0", weights[:, :1], GRID)  # a layer of the same grid, with fewer heads
    assert fewer is not None and torch.equal(fewer, changed[:, :1])
    assert bias_hook({"prompt": slice(0, 2)}, [[], []], 0.5)("mid", weights, GRID) is None


def test_hooks_in_turn_see_what_those_before_them_left() -> None:
    seen: list[float] = []
    double = in_turn([lambda layer, w, grid: 2 * w, lambda layer, w, grid: seen.append(float(w.sum())), None])
    assert double is not None
    assert double("mid", torch.ones(1, 1, 1, 1), (1, 1)).item() == 2 and seen == [2.0]  # type: ignore[union-attr]
    assert in_turn([None]) is None
