"""The ways to make a word's map of a recording, which the evaluation compares, and the figures of a map.

Shapes: h×w pixels of the picture; B rows of a batch, H heads, N positions of a layer's grid.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.evaluation.statistics import bootstrap, wilson
from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.grounding import average_precision, iou, mass_inside, points_inside
from unet_xattn.refine import refine
from unet_xattn.words import Word

FIGURES = ("pointing", "mass", "iou", "ap")
"""Whether the map's peak lies in the mask; the share of the attention inside; IoU of the mask and the region where the
map has at least half its peak; average precision, which needs no threshold."""

RECORD: dict[str, Any] = {"keep": "head", "output": True}
"""How the evaluation records, as arguments of `trace` and `attribute`: all that the `METHODS` need."""

DIFFUSED = 1
"""k of cross-attention × self-attentionᵏ. Chosen on scenes for calibration: the map is wider with every step."""


@dataclass(frozen=True)
class Reading:
    """What was recorded of a picture.

    self_attention: layer -> the mean weights (N, N) of its self-attention; empty where it was not recorded.
    """

    attention: AttentionTrace
    self_attention: Mapping[str, Tensor] = field(default_factory=dict)


@contextmanager
def recording_self(unet: CrossAttentionUNet) -> Iterator[dict[str, Tensor]]:
    """Record self-attention of all passes in this block: layer -> mean weights (N, N), complete when the block ends."""
    sums: dict[str, Tensor] = {}
    passes: dict[str, int] = {}

    def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
        mean = weights.detach().mean(dim=(0, 1), dtype=torch.float32).cpu()  # (B, H, N, N) -> (N, N)
        sums[layer], passes[layer] = sums.get(layer, 0) + mean, passes.get(layer, 0) + 1

    def ask(module: CrossAttentionUNet, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "record_self": record}

    hook = unet.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        yield sums
    finally:
        hook.remove()
    for layer, count in passes.items():
        sums[layer] /= count


# The methods


class Method(NamedTuple):
    """A way to make a map: (reading, word) -> (h, w), and what it needs beside the cross-attention."""

    make: Callable[[Reading, Word], Tensor]
    needs: str = ""  # "calibration" or "self-attention"


def heatmap(**which: Any) -> Callable[[Reading, Word], Tensor]:
    """The map that `AttentionTrace.heatmap` makes with these arguments."""
    return lambda reading, word: reading.attention.heatmap(word, **which)


def daam(reading: Reading, word: Word) -> Tensor:
    """DAAM's rule (arXiv 2210.04885, section 3.2): the sum of all layers' and heads' maps, enlarged bicubically."""
    attention = reading.attention
    total = torch.zeros(attention.size)
    for layer in attention.layers:
        share = attention.maps(layer)[list(word.tokens)].sum(dim=0)  # (h, w), the heads' mean
        total += F.interpolate(share[None, None], attention.size, mode="bicubic")[0, 0].clamp_min(0)
    return total


def diffused(reading: Reading, word: Word) -> Tensor:
    """Cross-attention × self-attentionᵏ (DiffSegmenter, arXiv 2309.02773), in the last of the finest layers."""
    attention = reading.attention
    calibrated = attention.recording.calibration is not None
    heat = attention.heatmap(word, reduce="calibrated" if calibrated else "mean")
    finest = max(map(len, reading.self_attention.values()))
    layer = [name for name, weights in reading.self_attention.items() if len(weights) == finest][-1]
    grid, weights = attention.recording.grids[layer], reading.self_attention[layer]
    on_grid = F.interpolate(heat[None, None], grid, mode="area").flatten()  # (N,)
    for _ in range(DIFFUSED):
        on_grid = weights @ on_grid
    return F.interpolate(on_grid.view(1, 1, *grid), attention.size, mode="bilinear")[0, 0]


def diffused_and_refined(reading: Reading, word: Word) -> Tensor:
    """The same, spread along the picture's edges."""
    assert reading.attention.pictures is not None
    heat = diffused(reading, word)
    cell = heat.shape[0] / math.sqrt(max(map(len, reading.self_attention.values())))
    return refine(heat[None], reading.attention.pictures[0].float() / 255, cell)[0]


METHODS = {
    "mean": Method(heatmap()),
    "DAAM's rule": Method(daam),
    "mean, refined": Method(heatmap(refine="edges")),
    "contrast": Method(heatmap(of="words")),
    "contrast, refined": Method(heatmap(of="words", refine="edges")),
    "output": Method(heatmap(reduce="output")),
    "output, refined": Method(heatmap(reduce="output", refine="edges")),
    "calibrated": Method(heatmap(reduce="calibrated"), "calibration"),
    "calibrated, refined": Method(heatmap(reduce="calibrated", refine="edges"), "calibration"),
    "self-attention": Method(diffused, "self-attention"),
    "self-attention, refined": Method(diffused_and_refined, "self-attention"),
}
"""Another way is another line here, and in `RECORD` what is to be recorded for it."""


def maps_of(reading: Reading, word: Word, methods: Collection[str] | None = None) -> dict[str, Tensor]:
    """A word's map (h, w) by each of these methods, or of all, that has what it needs."""
    available = {"": True, "self-attention": bool(reading.self_attention)}
    available["calibration"] = reading.attention.recording.calibration is not None
    return {name: METHODS[name].make(reading, word) for name in methods or METHODS if available[METHODS[name].needs]}


# Their figures


def judge_map(heat: Tensor, mask: Tensor) -> list[float]:
    """The four `FIGURES` of one map, both of the same shape, (h, w) or (n,)."""
    heat, mask = (x.view(1, 1, -1, x.shape[-1]) for x in (heat, mask))
    return [float(f(heat, mask)) for f in (points_inside, mass_inside, iou, average_precision)]


def summary(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """n and, for each of the `FIGURES`, [mean, low, high]."""
    values = np.array(rows)  # (n, 4)
    report: dict[str, Any] = {"n": len(values)}
    for column, name in enumerate(FIGURES):
        if np.isin(values[:, column], (0, 1)).all():  # hits and misses
            report[name] = [float(values[:, column].mean()), *wilson(int(values[:, column].sum()), len(values))]
        else:
            report[name] = bootstrap(values[:, column]).tolist()
    return report


def head(title: str) -> list[str]:
    """The head of a table of `summary`s."""
    return [
        f"| {title:26} | {'n':>4} | {'pointing':>16} | {'mass inside':>16} | {'mIoU':>16} | {'AP':>16} |",
        f"|:{'-' * 27}|{'-' * 5}:|" + f"{'-' * 17}:|" * 4,
    ]


def lines(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Its lines: name -> a `summary`."""
    for name, figures in rows.items():
        cells = [f"{mean:.2f} ({low:.2f}–{high:.2f})" for mean, low, high in (figures[f] for f in FIGURES)]
        yield f"| {name:26} | {figures['n']:>4} | " + " | ".join(f"{cell:>16}" for cell in cells) + " |"
