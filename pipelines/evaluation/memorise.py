"""Does a model copy its training pictures? Each sample is compared with its nearest training picture.

A distance alone says little: in simple data even unrelated pictures are similar. So the threshold comes from the data's
own held-out pictures, which cannot be copies: 5 % of them are nearer to a training picture than the threshold. If many
more of the samples are, the model repeats its training pictures (the idea of Carlini et al., arXiv 2301.13188, and
Somepalli et al., arXiv 2212.03860). The comparison finds full pictures, but neither mirrored or shifted ones nor parts.

Shapes: Q query pictures, C training pictures in a chunk, D values per picture, K neighbours, h×w pixels.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from pipelines.components import to_tensor
from pipelines.data.pictures import PictureExamples
from pipelines.data.stream import Example, Examples
from pipelines.drawing import label_font
from pipelines.evaluation.statistics import share_of
from pipelines.sources.findings import DataError
from pipelines.tokenizer import fits

SIDE = 64
"""Largest side in pixels for the comparison; larger pictures are averaged down to it."""

NEIGHBOURS = 50
"""Number of nearest training pictures, the nearest included, whose mean distance scales a distance."""

CHUNK = 2**22
"""Number of values of training pictures in memory at a time."""

HELD_OUT = 256
"""Largest number of held-out pictures to compare."""

PERCENTILE = 0.05
"""Share of the held-out pictures below the threshold."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of Q pictures.

    place (Q,): its index among the training pictures. distance (Q,): the root mean squared difference of their pixels,
    in [0, 1]. relative (Q,): that distance divided by the mean distance to the `NEIGHBOURS` nearest, in [0, 1]; near 0
    for a copy.
    """

    place: Tensor
    distance: Tensor
    relative: Tensor


def nearest(pictures: np.ndarray, training: Callable[[int], np.ndarray], count: int) -> Nearest:
    """Find the nearest of `count` training pictures for each of the pictures (Q, h, w, 3) uint8.

    `training(index)` returns one of them, of the same size. Flat or blurred pictures are near to everything, so by
    distance alone they look like copies; relative to the distance of their other neighbours they do not (Carlini et
    al., section 5.1). Memory does not depend on `count`.
    """
    queries = _values(pictures)  # (Q, D)
    best = torch.full((len(queries), 0), torch.inf, dtype=queries.dtype)
    places = torch.zeros((len(queries), 0), dtype=torch.long)
    chunk = max(1, CHUNK // queries.shape[1])
    for start in range(0, count, chunk):
        indices = range(start, min(start + chunk, count))
        keys = _values(np.stack([training(index) for index in indices]))  # (C, D)
        squares = (queries**2).sum(dim=1, keepdim=True) - 2 * queries @ keys.T + (keys**2).sum(dim=1)  # (Q, C)
        best = torch.cat([best, squares.clamp_min(0)], dim=1)
        places = torch.cat([places, torch.tensor(indices).expand(len(queries), -1)], dim=1)
        best, order = best.topk(min(NEIGHBOURS, best.shape[1]), largest=False)  # (Q, K), nearest first
        places = places.gather(1, order)
    distances = (best / queries.shape[1]).sqrt()
    relative = distances[:, 0] / distances.mean(dim=1).clamp_min(1e-6)  # 0 for a picture with fifty copies
    return Nearest(places[:, 0], distances[:, 0], relative)


def _values(pictures: np.ndarray) -> Tensor:
    """Pictures (N, h, w, 3) uint8 for comparison: (N, D) in [-1/2, 1/2], in float64 so that copies have distance 0."""
    values = to_tensor(pictures) / 2
    size = [min(side, SIDE) for side in values.shape[-2:]]
    return F.interpolate(values, size, mode="area").flatten(1).double()


def comparable(examples: Examples) -> PictureExamples:
    """The same examples, if they are pictures of one shape and some are held out.

    Raises:
        DataError: they are not.
    """
    if not isinstance(examples, PictureExamples):
        raise DataError("scenes without end are never trained on twice, so none is copied: give captioned pictures")
    if set(examples.trained) & set(examples.held_out):
        raise DataError(f"only {len(examples.rows)} pictures: none is held out for the comparison, give more pictures")
    if len(set(examples.shapes)) > 1:
        raise DataError("these pictures have several shapes, but only pictures of one shape can be compared")
    return examples


Pairs = list[tuple[np.ndarray, np.ndarray]]
"""Pictures (h, w, 3) uint8, each with its nearest training picture."""


def memorised(
    pipe: Callable[..., Any], examples: Examples, count: int = 16, batch_size: int = 16
) -> tuple[dict[str, Any], dict[str, Pairs]]:
    """Draw captions of the data and compare the samples with the training pictures.

    Args:
        pipe: called like diffusers' pipelines, with its defaults; it has a `tokenizer`.
        examples: the data that the model was trained on, at the size of its pictures.
        count: largest number of captions from training and from validation.

    Returns:
        The figures, ready for JSON: {"training_pictures", "held_out_pictures": {"n", "distance", "threshold"},
        "training_captions": {"n", "distance", "k", "share", "low", "high"}, "validation_captions": {...}}, where
        "distance" is a median, "threshold" a relative distance (`Nearest`), and k out of n samples lie within it, with
        Wilson's 95 % interval. Each also has "nearest", a row for each of the `count` pictures that are nearest to a
        training picture, nearest first. And, under the same names, the pictures of these rows.

    Raises:
        DataError: the data is endless scenes, or nothing is held out.
    """
    data = comparable(examples)
    known = len(data.trained)
    kept = data.validation(HELD_OUT)
    chosen: dict[str, list[Example]] = {
        "training_captions": _readable(pipe, map(data.trained_on, range(known)), count),
        "validation_captions": _readable(pipe, iter(kept), count),
    }
    groups = {"held_out_pictures": (np.stack([e.picture for e in kept]), [e.caption for e in kept])}
    for name, from_data in chosen.items():
        captions = [e.caption for e in from_data]
        groups[name] = (_draw(pipe, captions, batch_size), captions)
    found = nearest(
        np.concatenate([pictures for pictures, _ in groups.values()]),
        lambda index: data.trained_on(index).picture,
        known,
    )
    threshold = float(found.relative[: len(kept)].quantile(PERCENTILE))
    report: dict[str, Any] = {"training_pictures": known}
    pairs: dict[str, Pairs] = {}
    start = 0
    for name, (pictures, captions) in groups.items():
        part = slice(start, start + len(pictures))
        start = part.stop
        group = Nearest(found.place[part], found.distance[part], found.relative[part])
        # The margin counts, because the threshold is 0 if the held-out pictures are copies too.
        flagged = (group.relative <= threshold + 1e-6).tolist()
        figures = {"threshold": threshold} if name == "held_out_pictures" else share_of(flagged)
        report[name] = {"n": len(pictures), "distance": float(np.median(group.distance.numpy()))} | figures
        report[name]["nearest"], pairs[name] = _closest(data, pictures, captions, group, flagged, count)
    return report, pairs


def _closest(
    data: PictureExamples,
    pictures: np.ndarray,
    captions: list[str],
    found: Nearest,
    flagged: list[bool],
    count: int,
) -> tuple[list[dict[str, Any]], Pairs]:
    """Rows and pictures of the `count` pictures with the smallest relative distance, the smallest first."""
    rows, pairs = [], []
    relative = found.relative.tolist()
    for i in sorted(range(len(pictures)), key=relative.__getitem__)[:count]:
        near = data.trained_on(int(found.place[i]))
        row = {"caption": captions[i], "near_caption": near.caption, "flagged": flagged[i]}
        rows.append(row | {"distance": float(found.distance[i]), "relative": relative[i]})
        pairs.append((pictures[i], near.picture))
    return rows, pairs


def _readable(pipe: Any, examples: Iterator[Example], count: int) -> list[Example]:
    """The first examples whose captions fit into the model's context."""
    chosen = list(islice((example for example in examples if fits(example.caption, pipe.tokenizer)), count))
    if not chosen:
        raise DataError(f"all captions are longer than this model's {pipe.tokenizer.model_max_length} tokens")
    return chosen


def _draw(pipe: Callable[..., Any], captions: list[str], batch_size: int) -> np.ndarray:
    """A picture (B, h, w, 3) uint8 for each caption; the seed is its index."""
    batches = []
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        batches.append((pipe(batch, generator=seeds, output_type="np").images * 255).round().astype(np.uint8))
    return np.concatenate(batches)


TITLES = {
    "training_captions": "drawn from captions of training pictures",
    "validation_captions": "drawn from captions of held-out pictures",
    "held_out_pictures": "held-out pictures themselves, those nearest to a training picture",
}


def memorised_sheet(report: dict[str, Any], pairs: dict[str, Pairs], tile: int = 96, columns: int = 4) -> Image.Image:
    """Every picture beside its nearest training picture, with their distance; flagged pictures in red."""
    label, gap, title = 22, 12, 30
    width = 2 * tile + gap
    rows = {name: -(-len(pairs[name]) // columns) for name in TITLES}
    height = sum(title + count * (tile + label + gap) for count in rows.values())
    sheet = Image.new("RGB", (columns * (width + gap) + gap, height + gap), "white")
    draw, font, bold = ImageDraw.Draw(sheet), label_font([""], 13), label_font([""], 16)
    y = gap // 2
    for name, text in TITLES.items():
        draw.text((gap, y + 4), f"{text} | nearest training picture | distance", fill=(20, 20, 20), font=bold)
        y += title
        for i, (row, pair) in enumerate(zip(report[name]["nearest"], pairs[name], strict=True)):
            left, top = gap + i % columns * (width + gap), y + i // columns * (tile + label + gap)
            for place, pixels in enumerate(pair):
                large = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST)
                sheet.paste(large, (left + place * tile, top))
            distance = f"{row['distance']:.3f}, {row['relative']:.2f} of its neighbours'"
            draw.text(
                (left, top + tile + 3), distance, fill=(190, 20, 20) if row["flagged"] else (20, 20, 20), font=font
            )
        y += rows[name] * (tile + label + gap)
    return sheet


def memorised_text(report: dict[str, Any]) -> str:
    """The report of `memorised` in a few lines."""
    held = report["held_out_pictures"]
    lines = [
        f"{report['training_pictures']} training pictures. Of {held['n']} held-out pictures 5 % are nearer to one of "
        f"them than {held['threshold']:.2f} of their neighbours' mean distance. As near as that are"
    ]
    for name in ("training_captions", "validation_captions"):
        e = report[name]
        lines.append(
            f"  {e['k']} of {e['n']} samples {TITLES[name]}: {100 * e['share']:.0f} % "
            f"({100 * e['low']:.0f}–{100 * e['high']:.0f}), median distance {e['distance']:.3f} "
            f"(held-out pictures {held['distance']:.3f})"
        )
    return "\n".join(lines)


def leave_memorised(pipe: Any, examples: Examples, folder: Path) -> dict[str, Any] | None:
    """Measure at the end of a run: write `memorised.png` and `memorised.json` to `folder`, unless they exist.

    Returns:
        The figures; None if the files exist, the data is endless scenes, or nothing is held out.
    """
    file = folder / "memorised.json"
    if file.exists():
        return None
    try:
        report, pairs = memorised(pipe, examples)
    except DataError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    memorised_sheet(report, pairs).save(folder / "memorised.png")
    file.write_text(json.dumps(report, indent=1) + "\n")
    return report
