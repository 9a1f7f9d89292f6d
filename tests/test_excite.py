"""Latents are moved until words are read, and only as far as that; on a tiny untrained UNet."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unet_xattn import CrossAttentionUNet
from unet_xattn.attention import RecordLayer
from unet_xattn.excite import ENOUGH, Excited, Peaks, excite

TOKENS = 12
"""So many that a word has less than `ENOUGH` of the attention of an untrained UNet."""


@pytest.fixture(scope="module")
def read() -> Callable[[Tensor, RecordLayer], Any]:
    torch.manual_seed(0)
    unet = CrossAttentionUNet(
        16, block_out_channels=(16, 32), layers_per_block=1, cross_attention=(True, True), self_attention=(False, True)
    ).eval()
    for parameter in unet.parameters():  # its branches end in zeros
        torch.nn.init.normal_(parameter, std=0.2)
    memory = torch.randn(2, TOKENS, 128)
    return lambda x, record: unet(x, 900.0, memory, record=record)


def least(read: Callable[[Tensor, RecordLayer], Any], x: Tensor, excited: list[list[Excited]]) -> list[float]:
    peaks = Peaks(excited)
    with torch.no_grad():
        read(x, peaks)
    return peaks.least().tolist()


def test_words_are_read_more_and_rows_without_words_stay(read: Callable) -> None:
    latents, excited = torch.randn(2, 3, 16, 16), [[Excited((3,)), Excited((5, 6))], []]
    moved = excite(latents, excited, 0.9, read)
    (before,), (after,) = (least(read, x, excited) for x in (latents, moved))
    assert before < ENOUGH and after > before + 0.01
    assert torch.equal(moved[1], latents[1]) and not moved.requires_grad


def test_it_stops_where_each_word_is_read_enough(read: Callable) -> None:
    latents = torch.randn(2, 3, 16, 16)
    everything = [[Excited(tuple(range(TOKENS)))]] * 2
    assert torch.equal(excite(latents, everything, 0.9, read), latents)


def test_it_acts_at_its_noise_levels_and_by_its_layers_and_heads(read: Callable) -> None:
    latents = torch.randn(2, 3, 16, 16)
    late = [[Excited((3,), noise=(0.0, 0.5))], []]
    assert torch.equal(excite(latents, late, 0.9, read), latents)
    assert not torch.equal(excite(latents, late, 0.4, read), latents)
    ways = ({}, {"layers": ("mid",)}, {"layers": ("mid",), "heads": (1,)})
    moved = [excite(latents, [[Excited((3,), **how)], []], 0.9, read) for how in ways]
    assert not any(torch.equal(a, b) for a, b in pairwise(moved))


def test_in_inference_mode_it_does_the_same(read: Callable) -> None:
    latents, excited = torch.randn(2, 3, 16, 16), [[Excited((3,))], [Excited((4,))]]
    expected = excite(latents, excited, 0.9, read)
    with torch.inference_mode():
        torch.testing.assert_close(excite(latents, excited, 0.9, read), expected)
