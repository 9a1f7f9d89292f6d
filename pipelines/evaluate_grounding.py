"""How true are the maps? Where words landed, against exact masks of what they speak of.

The model reads test scenes and their captions at several noise levels (`capture.attribute`). A map is judged by four
figures: `pointing`, whether its peak lies in the mask; `mass`, the share of its attention inside; `iou`, mask and map
where it is at least half its peak; `ap`, average precision, for which no threshold is needed.

Shapes: K maps of one word (layers × heads), h×w pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from pipelines.capture import attribute
from pipelines.evaluate import fixed_scenes, wilson
from pipelines.scenes import Scene, render, scene, word_mask
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import AttentionTrace
from unet_xattn.grounding import average_precision, iou, mass_inside, points_inside
from unet_xattn.trace import Calibration
from unet_xattn.words import Word, tokens_of

CALIBRATION_SEED = 1_414_213_562
"""The series of scenes that calibrations are learnt on; not that of training, validation or testing."""

LEVELS = (0.3, 0.5, 0.7)
FIGURES = ("pointing", "mass", "iou", "ap")
OBJECT_WORDS = ("shape", "colour", "size")


def read(pipe: TextToImagePipeline, described: Scene) -> tuple[AttentionTrace, list[tuple[str, Word, Tensor]]]:
    """What the model attends to in a scene's exact render, and (kind, word, mask (h, w)) for each word with a place."""
    picture, masks = render(described, pipe.unet.config.sample_size)
    attention = attribute(pipe, Image.fromarray(picture), described.caption, LEVELS, draws=2, keep="head")
    offsets = pipe.tokenizer(described.caption, return_offsets_mapping=True)["offset_mapping"]
    words = []
    for said in described.words:
        mask = word_mask(said, masks)
        if mask is not None and mask.max() >= 0.5:
            text = described.caption[said.start : said.end]
            word = Word(text, said.start, said.end, tokens_of(said.start, said.end, offsets))
            words.append((said.kind, word, torch.from_numpy(mask)))
    return attention, words


def calibrate(pipe: TextToImagePipeline, scenes: int = 200) -> Calibration:
    """Learn a `Calibration` from scenes that no figure is taken on: non-negative least squares of masks on maps."""
    layers = pipe.unet.attention_layers
    heads = pipe.unet.config.heads
    count = len(layers) * heads
    gram, target = np.zeros((count, count)), np.zeros(count)
    for index in range(scenes):
        attention, words = read(pipe, scene(CALIBRATION_SEED, index))
        for kind, word, mask in words:
            if kind in OBJECT_WORDS:
                maps = [attention.heatmap(word, layer=layer, head=h) for layer in layers for h in range(heads)]
                features = torch.stack(maps).flatten(1).double().numpy()  # (K, h·w)
                gram += features @ features.T / mask.numel()
                target += features @ mask.flatten().double().numpy() / mask.numel()
    # The normal equations as a square root, so that nnls can be asked: min ‖Rw − R⁻ᵀt‖ has the same answer.
    root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) * np.eye(count)).T
    weights, _ = nnls(root, np.linalg.solve(root.T, target))
    return dict(zip(layers, weights.reshape(len(layers), heads).tolist(), strict=True))


def daam(attention: AttentionTrace, word: Word) -> Tensor:
    """DAAM's rule (arXiv 2210.04885, section 3.2): every layer's and head's map, bicubic at picture size, summed."""
    total = torch.zeros(attention.size)
    for layer in attention.layers:
        share = attention.maps(layer)[list(word.tokens)].sum(dim=0)  # (h, w), the heads' mean
        total += F.interpolate(share[None, None], attention.size, mode="bicubic")[0, 0].clamp_min(0)
    return total


def evaluate_grounding(pipe: TextToImagePipeline, count_per_kind: int = 20) -> dict[str, Any]:
    """Judge a model's maps on the exact renders of the test scenes with seen pairs.

    Returns:
        {"settings", "methods": {method: {class of word: figures}}, "layers": {layer: figures}}, ready for JSON.
        Methods are "mean", "DAAM's rule", "calibrated" where the model has a calibration, and "chance", what a map
        that says nothing would score. Classes are the kinds of word, and "object words" for shape, colour and size
        together; layers are judged on these. Figures hold n and, for each of `FIGURES`, [mean, low, high]: a 95 %
        interval, Wilson's where each word is a hit or a miss, else of 1,000 bootstrap draws over words.
    """
    methods: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    layers: dict[str, list[list[float]]] = defaultdict(list)
    scenes = fixed_scenes(count_per_kind, held_out=False)
    for described in scenes:
        attention, words = read(pipe, described)
        for kind, word, mask in words:
            maps = {"mean": attention.heatmap(word), "DAAM's rule": daam(attention, word)}
            if attention.recording.calibration is not None:
                maps["calibrated"] = attention.heatmap(word, reduce="calibrated")
            found = {name: judge_map(heat, mask) for name, heat in maps.items()}
            found["chance"] = [float(mask.mean())] * len(FIGURES)
            for name, figures in found.items():
                for label in (kind, *(["object words"] if kind in OBJECT_WORDS else [])):
                    methods[name][label].append(figures)
            if kind in OBJECT_WORDS:
                for layer in attention.layers:
                    layers[layer].append(judge_map(attention.heatmap(word, layer=layer), mask))
    settings = {"scenes": len(scenes), "levels": list(LEVELS), "iou": "mask and map at half its peak"}
    return {
        "settings": settings,
        "methods": {
            name: {label: summary(rows) for label, rows in classes.items()} for name, classes in methods.items()
        },
        "layers": {layer: summary(rows) for layer, rows in layers.items()},
    }


def judge_map(heat: Tensor, mask: Tensor) -> list[float]:
    """The four `FIGURES` of one map, (h, w) twice."""
    heat, mask = heat[None, None], mask[None, None]
    return [float(f(heat, mask)) for f in (points_inside, mass_inside, iou, average_precision)]


def summary(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """n and, for each of the `FIGURES`, [mean, low, high]."""
    values = np.array(rows)  # (n, 4)
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    report: dict[str, Any] = {"n": len(values)}
    for column, name in enumerate(FIGURES):
        if np.isin(values[:, column], (0, 1)).all():  # a share of hits and misses
            low, high = wilson(int(values[:, column].sum()), len(values))
        else:
            low, high = np.quantile(values[draws, column].mean(axis=1), [0.025, 0.975])
        report[name] = [float(values[:, column].mean()), float(low), float(high)]
    return report


def table(report: dict[str, Any]) -> str:
    """What `evaluate_grounding` gave, as Markdown tables: methods by class of word, and layers, best first."""
    settings = report["settings"]
    lines = [
        f"{settings['scenes']} exact renders, noise levels {', '.join(map(str, settings['levels']))}; "
        "IoU of mask and map at half its peak; mean (95 % interval).",
        "",
        *_head("method, class of word"),
    ]
    for name, classes in report["methods"].items():
        lines += list(_lines({f"{name}: {label}": figures for label, figures in classes.items()}))
    ranked = sorted(report["layers"].items(), key=lambda item: -item[1]["iou"][0])
    return "\n".join([*lines, "", *_head("layer, object words"), *_lines(dict(ranked))])


def _head(title: str) -> list[str]:
    return [
        f"| {title:26} | {'n':>4} | {'pointing':>16} | {'mass inside':>16} | {'mIoU':>16} | {'AP':>16} |",
        f"|:{'-' * 27}|{'-' * 5}:|" + f"{'-' * 17}:|" * 4,
    ]


def _lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, figures in rows.items():
        cells = [f"{mean:.2f} ({low:.2f}–{high:.2f})" for mean, low, high in (figures[f] for f in FIGURES)]
        yield f"| {name:26} | {figures['n']:>4} | " + " | ".join(f"{cell:>16}" for cell in cells) + " |"
