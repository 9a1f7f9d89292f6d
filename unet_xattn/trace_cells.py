"""Heat maps of large pictures without the pixels: their means over the cells of a grid, and their largest values.

A heat map is linear in the maps of its layers, so both follow from small matrices, one for rows and one for columns.

Shapes: K groups of tokens, h×w the grid of a layer.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.trace_maps import TraceMaps

Grid = tuple[int, int]


class TraceCells(TraceMaps):
    """A recording that is asked for many words at once."""

    def cells(
        self,
        groups: Sequence[Sequence[int]],
        grid: Grid,
        *,
        step: int | None = None,
        layer: str | None = None,
        head: int | None = None,
        image: int = 0,
        reduce: str = "mean",
    ) -> Tensor:
        """The heat map of each group of tokens as its mean over each cell of a grid: (K, rows, columns).

        The same as `heatmaps` (whose arguments these are), added up over each group and averaged over each cell.
        """
        maps = self._by_grid(groups, step, layer, head, image, reduce)
        total = torch.zeros(len(groups), *grid)
        for (h, w), share in maps.items():
            down, across = self._spread(0, h), self._spread(1, w)
            rows, columns = (
                F.adaptive_avg_pool1d(m.T[None], n)[0].T for m, n in zip((down, across), grid, strict=True)
            )
            total += rows @ share @ columns.T
        return total

    def largest(
        self,
        groups: Sequence[Sequence[int]],
        *,
        step: int | None = None,
        layer: str | None = None,
        head: int | None = None,
        image: int = 0,
        reduce: str = "mean",
    ) -> Tensor:
        """The largest value of the heat map of each group of tokens, (K,); arguments as for `heatmaps`."""
        maps = self._by_grid(groups, step, layer, head, image, reduce)
        # Between the centres of cells a map is linear along rows and along columns, so its largest pixel is next to a
        # centre in both.
        rows, columns = (
            {pixel for grid in maps for pixel in self._next_to_centres(side, grid[side])} for side in (0, 1)
        )
        total = torch.zeros(len(groups), len(rows), len(columns))
        for (h, w), share in maps.items():
            total += self._spread(0, h)[sorted(rows)] @ share @ self._spread(1, w)[sorted(columns)].T
        return total.amax(dim=(1, 2))

    def _by_grid(
        self,
        groups: Sequence[Sequence[int]],
        step: int | None,
        layer: str | None,
        head: int | None,
        image: int,
        reduce: str,
    ) -> dict[Grid, Tensor]:
        """The weighted sum of the maps of all layers of one grid, added up over each group: grid -> (K, h, w)."""
        tokens = [token for group in groups for token in group]
        owners = torch.tensor([k for k, group in enumerate(groups) for _ in group], dtype=torch.long)
        sums: dict[Grid, Tensor] = {}
        for name, its_head, weight in self._weighted(layer, head, reduce):
            share = weight * self.maps(name, step=step, head=its_head, image=image)[tokens]
            grid = self.recording.grids[name]
            sums.setdefault(grid, torch.zeros(len(groups), *grid)).index_add_(0, owners, share)
        return sums

    def _spread(self, side: int, cells: int) -> Tensor:
        """The share of each cell in each pixel of the rows (side 0) or columns (1): (pixels, cells)."""
        start = (self._whole[side] - self.size[side]) // 2
        return _interpolation(self._whole[side], cells)[start : start + self.size[side]]

    def _next_to_centres(self, side: int, cells: int) -> list[int]:
        """The rows (side 0) or columns (1) of pixels on both sides of each cell's centre, and those at the edges."""
        whole, length = self._whole[side], self.size[side]
        centres = [(i + 0.5) * whole / cells - 0.5 - (whole - length) // 2 for i in range(cells)]
        near = {0, length - 1, *(math.floor(x) for x in centres), *(math.ceil(x) for x in centres)}
        return [pixel for pixel in near if 0 <= pixel < length]


@lru_cache(maxsize=64)
def _interpolation(length: int, cells: int) -> Tensor:
    """The matrix of torch's linear interpolation, (length, cells)."""
    return F.interpolate(torch.eye(cells)[None], size=length, mode="linear")[0].T.contiguous()
