"""Does a model draw its training pictures again? Each sample beside the training picture that is nearest to it.

A distance says little by itself: on simple data pictures that are nobody's copy are near one another too. The yardstick
is the data's own held-out pictures, which nobody can have copied: 5 % of them are nearer to a training picture than a
threshold, and so should the samples be. Many more say that the model repeats what it was shown (the idea of Carlini et
al., arXiv 2301.13188, and Somepalli et al., arXiv 2212.03860). It finds whole pictures at their place, not mirrored
ones, nor parts.

Shapes: Q pictures that are looked up, C training pictures in a chunk, D numbers a picture, K neighbours, h×w pixels.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from pipelines.sources.read import DataError

SIDE = 64
"""Side in pixels at which pictures are compared; larger ones are averaged down to it."""

NEIGHBOURS = 50
"""Training pictures that say what is near in that part of the data, the nearest one among them."""

CHUNK = 2**22
"""Numbers of training pictures in memory at a time."""

HELD_OUT = 256
"""Held-out pictures that are looked up, at most."""

PERCENTILE = 0.05
"""Share of the held-out pictures that lie below the threshold."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of Q pictures.

    place (Q,): its number among those. distance (Q,): the root of the mean squared difference of their
    pixels, in [0, 1]. relative (Q,): that by its mean to the `NEIGHBOURS` nearest ones, in [0, 1]; near 0 for a copy.
    """

    place: Tensor
    distance: Tensor
    relative: Tensor


def nearest(pictures: np.ndarray, training: Callable[[int], np.ndarray], count: int) -> Nearest:
    """Look pictures (Q, h, w, 3) uint8 up among `count` training pictures; `training(number)` gives one, of that size.

    A flat or blurred picture is near to everything, so a plain distance takes it for a copy. Held against the distance
    of its other neighbours it is not (Carlini et al., section 5.1). Memory does not depend on `count`.
    """
    sought = _numbers(pictures)  # (Q, D)
    best = torch.full((len(sought), 0), torch.inf, dtype=sought.dtype)
    places = torch.zeros((len(sought), 0), dtype=torch.long)
    chunk = max(1, CHUNK // sought.shape[1])
    for start in range(0, count, chunk):
        here = range(start, min(start + chunk, count))
        found = _numbers(np.stack([training(place) for place in here]))  # (C, D)
        squares = (sought**2).sum(dim=1, keepdim=True) - 2 * sought @ found.T + (found**2).sum(dim=1)  # (Q, C)
        best = torch.cat([best, squares.clamp_min(0)], dim=1)
        places = torch.cat([places, torch.tensor(here).expand(len(sought), -1)], dim=1)
        best, order = best.topk(min(NEIGHBOURS, best.shape[1]), largest=False)  # (Q, K), nearest first
        places = places.gather(1, order)
    distances = (best / sought.shape[1]).sqrt()
    relative = distances[:, 0] / distances.mean(dim=1).clamp_min(1e-6)  # of a picture that is there fifty times: 0
    return Nearest(places[:, 0], distances[:, 0], relative)


def _numbers(pictures: np.ndarray) -> Tensor:
    """Pictures (N, h, w, 3) uint8 as what is compared: (N, D) in [-1/2, 1/2], in float64, for copies are at 0."""
    values = to_tensor(pictures) / 2
    size = [min(side, SIDE) for side in values.shape[-2:]]
    return F.interpolate(values, size, mode="area").flatten(1).double()


def comparable(examples: Examples) -> PictureExamples:
    """Examples of which some are held out, all of one shape.

    Raises:
        DataError: they are others.
    """
    if not isinstance(examples, PictureExamples):
        raise DataError("these are scenes without end, none is trained on twice: give captioned pictures")
    if set(examples.trained) & set(examples.kept):
        raise DataError(f"only {len(examples.rows)} pictures: with so few none is held out to compare with")
    if len(set(examples.shapes)) > 1:
        raise DataError("these are pictures of several shapes, which cannot be compared")
    return examples


Pictures = list[tuple[np.ndarray, np.ndarray]]
"""Pictures (h, w, 3) uint8, each with the training picture that is nearest to it."""


def memorised(
    pipe: Callable[..., Any], examples: Examples, count: int = 16, batch_size: int = 16
) -> tuple[dict[str, Any], dict[str, Pictures]]:
    """Draw captions of the data and look the pictures up among the training pictures.

    Args:
        pipe: called as diffusers' pipelines are, with its defaults; it has a `tokenizer`.
        examples: what the model was trained on, at the size of its pictures.
        count: captions of each kind, at most.

    Returns:
        The figures, ready for JSON: {"training_pictures", "held_out_pictures": {"n", "distance", "threshold"},
        "training_captions": {"n", "distance", "k", "share", "low", "high"}, "validation_captions": {...}}, where
        "distance" is a median, "threshold" a relative distance (`Nearest`), and k out of n samples are no farther than
        that, with Wilson's 95 % interval. Each also has "nearest", a row for each of its `count` pictures that are
        nearest to a training picture, nearest first. And by the same names the pictures of these rows.

    Raises:
        DataError: the data has no end, or nothing held out.
    """
    data = comparable(examples)
    known = len(data.trained)
    kept = data.validation(HELD_OUT)
    drawn: dict[str, list[Example]] = {
        "training_captions": _readable(pipe, map(data.trained_on, range(known)), count),
        "validation_captions": _readable(pipe, iter(kept), count),
    }
    groups = {"held_out_pictures": (np.stack([e.picture for e in kept]), [e.caption for e in kept])}
    for name, chosen in drawn.items():
        captions = [e.caption for e in chosen]
        groups[name] = (_draw(pipe, captions, batch_size), captions)
    found = nearest(
        np.concatenate([pictures for pictures, _ in groups.values()]),
        lambda place: data.trained_on(place).picture,
        known,
    )
    threshold = float(found.relative[: len(kept)].quantile(PERCENTILE))
    report: dict[str, Any] = {"training_pictures": known}
    shown: dict[str, Pictures] = {}
    start = 0
    for name, (pictures, captions) in groups.items():
        here = slice(start, start + len(pictures))
        start = here.stop
        distances, relative = found.distance[here].tolist(), found.relative[here].tolist()
        flagged = [value <= threshold + 1e-6 for value in relative]  # where held-out ones are copies too, it is 0
        report[name] = {"n": len(pictures), "distance": float(np.median(distances))}
        if name == "held_out_pictures":
            report[name]["threshold"] = threshold
        else:
            report[name] |= share_of(flagged)
        report[name]["nearest"], shown[name] = [], []
        for i in sorted(range(len(pictures)), key=relative.__getitem__)[:count]:
            near = data.trained_on(int(found.place[here][i]))
            row = {"caption": captions[i], "near_caption": near.caption, "flagged": flagged[i]}
            report[name]["nearest"].append(row | {"distance": distances[i], "relative": relative[i]})
            shown[name].append((pictures[i], near.picture))
    return report, shown


def _readable(pipe: Any, examples: Iterator[Example], count: int) -> list[Example]:
    """The first examples with captions that the model can read whole."""
    tokenizer = pipe.tokenizer
    chosen = []
    for example in examples:
        if len(tokenizer(example.caption, verbose=False)["input_ids"]) <= tokenizer.model_max_length:
            chosen.append(example)
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError("none of the captions is short enough for this model to read")
    return chosen


def _draw(pipe: Callable[..., Any], captions: list[str], batch_size: int) -> np.ndarray:
    """A picture (B, h, w, 3) uint8 for each caption, the first from seed 0."""
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


def memorised_sheet(
    report: dict[str, Any], shown: dict[str, Pictures], tile: int = 96, columns: int = 4
) -> Image.Image:
    """Every picture beside the training picture that is nearest to it, and how near; what is flagged in red."""
    label, gap, title = 22, 12, 30
    width = 2 * tile + gap
    rows = {name: -(-len(shown[name]) // columns) for name in TITLES}
    height = sum(title + count * (tile + label + gap) for count in rows.values())
    sheet = Image.new("RGB", (columns * (width + gap) + gap, height + gap), "white")
    draw, font, bold = ImageDraw.Draw(sheet), label_font([""], 13), label_font([""], 16)
    y = gap // 2
    for name, text in TITLES.items():
        draw.text((gap, y + 4), f"{text} | nearest training picture | distance", fill=(20, 20, 20), font=bold)
        y += title
        for i, (row, pair) in enumerate(zip(report[name]["nearest"], shown[name], strict=True)):
            left, top = gap + i % columns * (width + gap), y + i // columns * (tile + label + gap)
            for place, pixels in enumerate(pair):
                large = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST)
                sheet.paste(large, (left + place * tile, top))
            said = f"{row['distance']:.3f}, {row['relative']:.2f} of its neighbours'"
            draw.text((left, top + tile + 3), said, fill=(190, 20, 20) if row["flagged"] else (20, 20, 20), font=font)
        y += rows[name] * (tile + label + gap)
    return sheet


def memorised_text(report: dict[str, Any]) -> str:
    """What `memorised` found, in a few lines."""
    held = report["held_out_pictures"]
    lines = [
        f"{report['training_pictures']} training pictures. Of {held['n']} held-out pictures 5 % are nearer to one of "
        f"them than {held['threshold']:.2f} of their neighbours' distance; nearer than that are"
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
    """Measure at the end of a run: leaves `memorised.png` and `memorised.json` in `folder`, unless they are there.

    Returns:
        The figures; None where the data has no end or nothing held out, or where they were there already.
    """
    file = folder / "memorised.json"
    if file.exists():
        return None
    try:
        report, shown = memorised(pipe, examples)
    except DataError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    memorised_sheet(report, shown).save(folder / "memorised.png")
    file.write_text(json.dumps(report, indent=1) + "\n")
    return report
