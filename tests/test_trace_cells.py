"""Maps of cells and largest values without the pixels are those of the whole heat maps."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from unet_xattn import AttentionTrace
from unet_xattn.trace_plan import Recording
from unet_xattn.words import Text, Word

GRIDS = {"a": (8, 8), "b": (4, 4), "c": (8, 8), "d": (3, 5)}
GROUPS = [(0,), (1, 2), (3,), (0, 1, 2, 3)]


def recorded(size: tuple[int, int], drawn: tuple[int, int] | None = None) -> AttentionTrace:
    """Two heads, two steps, four tokens, of random weights."""
    words = (Word("red", 0, 3, (0,)), Word("circle", 4, 10, (1, 2)))
    texts = {"prompt": [Text("red circle", words, ("red", "cir", "cle", "[end]"))]}
    weights = {layer: [0.1, 0.15] for layer in GRIDS}
    recording = Recording(texts, size, GRIDS, dict.fromkeys(GRIDS, 2), 2, weights)
    attention = AttentionTrace("full")
    attention.start(replace(recording, drawn=drawn))
    for step in range(2):
        for layer, grid in GRIDS.items():
            scores = 3 * torch.randn(1, 2, grid[0] * grid[1], 4)
            attention.recorder(step, {"prompt": slice(None)})(layer, scores.softmax(dim=-1), grid)
    attention.finish(torch.zeros(1, *size, 3, dtype=torch.uint8))
    return attention


@pytest.mark.parametrize(("size", "drawn"), [((64, 64), None), ((50, 37), None), ((40, 64), (8, 8)), ((7, 7), None)])
@pytest.mark.parametrize("which", [{}, {"step": 1}, {"layer": "d", "head": 1}, {"reduce": "calibrated", "step": 0}])
def test_cells_and_largest_values_are_those_of_the_heat_maps(
    size: tuple[int, int], drawn: tuple[int, int] | None, which: dict
) -> None:
    attention = recorded(size, drawn)
    heats = attention.heatmaps(range(4), **which)
    heats = torch.stack([heats[list(group)].sum(dim=0) for group in GROUPS])
    torch.testing.assert_close(attention.largest(GROUPS, **which), heats.amax(dim=(1, 2)))
    for grid in ((8, 8), (3, 5)):
        expected = F.interpolate(heats[None], grid, mode="area")[0]
        torch.testing.assert_close(attention.cells(GROUPS, grid, **which), expected)
