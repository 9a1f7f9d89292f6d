"""How accurate are the maps? Each word's map against the exact mask of what the word describes.

The model either reads the exact render of a test scene at several noise levels (`capture.attribute`), or draws the
caption itself, and the rule-based judge locates the objects it drew. Four figures compare map and mask: `pointing`,
whether the map's peak lies in the mask; `mass`, the share of the attention inside; `iou`, of the mask and the region
where the map has at least half its peak; `ap`, average precision, which needs no threshold.

Shapes: K maps of one word (layers × heads), h×w pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.evaluation.agreement import fixed_scenes
from pipelines.evaluation.statistics import bootstrap, wilson
from pipelines.scenes.judge import locate
from pipelines.scenes.scene import Scene
from pipelines.scenes.worlds import WORLDS, render, world_of
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.attribute import attribute
from pipelines.tracing.capture import trace
from unet_xattn import AttentionTrace
from unet_xattn.grounding import average_precision, iou, mass_inside, points_inside
from unet_xattn.trace_plan import Calibration
from unet_xattn.words import Word, tokens_of

CALIBRATION_SEED = 1_414_213_562
"""The seed of the scenes for calibration; training, validation and testing use other seeds."""

LEVELS = (0.3, 0.5, 0.7)
FIGURES = ("pointing", "mass", "iou", "ap")
OBJECT_WORDS = ("shape", "colour", "size")


Located = list[tuple[str, Word, Tensor]]
"""(kind, word, mask (h, w)) of each word that has a region."""


Rows = dict[str, dict[Any, list[list[float]]]]
"""Part of the report -> what is judged -> the `FIGURES` of each word."""


def read(pipe: TextToImagePipeline, scene: Scene, keep: str = "head") -> tuple[AttentionTrace, Located]:
    """The model's attention on a scene's exact render, and the exact mask of each word."""
    picture, masks = render(scene, pipe.picture_size)
    attention = attribute(pipe, Image.fromarray(picture), scene.caption, LEVELS, draws=2, keep=keep)
    return attention, _located(pipe, scene, list(masks))


def draw_and_locate(pipe: TextToImagePipeline, scene: Scene, seed: int) -> tuple[AttentionTrace, Located]:
    """The model's attention while it draws a scene's caption, and the mask of each word in that picture.

    Words of objects that were drawn in another shape or colour are left out.
    """
    with trace(pipe, keep="head") as attention:
        pipe(scene.caption, generator=torch.Generator().manual_seed(seed))
    assert attention.pictures is not None
    return attention, _located(pipe, scene, locate(scene, attention.pictures[0].numpy()))


def _located(pipe: TextToImagePipeline, scene: Scene, masks: list[np.ndarray | None]) -> Located:
    """The words of a caption with their masks. The mask of a relation covers both its objects."""
    offsets = pipe.tokenizer(scene.caption, return_offsets_mapping=True)["offset_mapping"]
    located: Located = []
    for w in scene.words:
        indices = w.objects or range(len(masks))  # the ground is where no object is
        regions = [mask for i in indices if (mask := masks[i]) is not None]
        if len(regions) < len(indices):
            continue
        mask = np.max(regions, axis=0) if w.objects else 1 - np.max(regions, axis=0)
        if mask.max() >= 0.5:
            word = Word(scene.caption[w.start : w.end], w.start, w.end, tokens_of(w.start, w.end, offsets))
            located.append((w.kind, word, torch.from_numpy(mask)))
    return located


def calibrate(pipe: TextToImagePipeline, scenes: int = 100, steps: int = 100) -> Calibration:
    """Learn a `Calibration`: the weights of layers and heads, with sum 1, whose maps overlap the masks most.

    It is learnt on scenes that are used for nothing else.
    """
    layers, heads = pipe.unet.attention_layers, pipe.unet.config.heads
    maps, masks = [], []
    world = WORLDS[world_of(pipe.tokenizer)]
    for index in range(scenes):
        attention, words = read(pipe, world.scene(CALIBRATION_SEED, index))
        for kind, word, mask in words:
            if kind in OBJECT_WORDS:
                each = [attention.heatmap(word, layer=layer, head=h) for layer in layers for h in range(heads)]
                maps.append(torch.stack(each).flatten(1))
                masks.append((mask >= 0.5).float().flatten())
    weights = _fit_weights(torch.stack(maps), torch.stack(masks), steps).reshape(len(layers), heads)
    return {name: [round(w, 4) for w in row] for name, row in zip(layers, weights.tolist(), strict=True)}


def _fit_weights(maps: Tensor, masks: Tensor, steps: int) -> Tensor:
    """Weights (K,) of the maps (n, K, h·w) for the masks (n, h·w).

    The loss is 1 − IoU of the mask and the region above half the map's peak, with a soft edge instead of a threshold.
    """
    logits = torch.zeros(maps.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(steps):
        heat = torch.einsum("k,nkp->np", logits.softmax(dim=0), maps)
        inside = ((heat / heat.amax(dim=1, keepdim=True).clamp_min(1e-12) - 0.5) / 0.05).sigmoid()
        both = inside * masks
        overlap = both.sum(dim=1) / (inside + masks - both).sum(dim=1)
        optimizer.zero_grad()
        (1 - overlap.mean()).backward()
        optimizer.step()
    weights = logits.detach().softmax(dim=0)
    weights = torch.where(weights < 0.005, 0, weights)  # negligible, and a map of weight 0 need not be computed
    return weights / weights.sum()


def daam(attention: AttentionTrace, word: Word) -> Tensor:
    """DAAM's rule (arXiv 2210.04885, section 3.2): the sum of all layers' and heads' maps, enlarged bicubically."""
    total = torch.zeros(attention.size)
    for layer in attention.layers:
        share = attention.maps(layer)[list(word.tokens)].sum(dim=0)  # (h, w), the heads' mean
        total += F.interpolate(share[None, None], attention.size, mode="bicubic")[0, 0].clamp_min(0)
    return total


def evaluate_grounding(pipe: TextToImagePipeline, count_per_kind: int = 20) -> dict[str, Any]:
    """Judge a model's maps on test scenes with seen pairs: on exact renders, and on the pictures it draws itself.

    Returns:
        {"settings", "renders", "drawn", "layers", "heads", "levels"}, ready for JSON. "renders" and "drawn" hold, for
        each method, figures for each class of word. Methods are "mean", "DAAM's rule", "calibrated" if the model has a
        calibration, these two "refined" along the picture's edges, and "chance", the score of an uninformative map.
        Classes are the kinds of words, and "object words" for shape, colour and size together; layers, heads and noise
        levels are judged on these, on renders. Figures hold n and, for each of `FIGURES`, [mean, low, high] with a 95 %
        interval: Wilson's for shares of hits, else that of 1,000 bootstrap resamples of the words.
    """
    rows: Rows = defaultdict(lambda: defaultdict(list))
    scenes = fixed_scenes(count_per_kind, held_out=False, data=world_of(pipe.tokenizer))
    for seed, scene in enumerate(scenes):
        attention, words = read(pipe, scene, keep="full")
        for kind, word, mask in words:
            _judge_methods(rows, "renders", attention, kind, word, mask)
            if kind in OBJECT_WORDS:
                _judge_parts(rows, attention, word, mask)
        attention, words = draw_and_locate(pipe, scene, seed)
        for kind, word, mask in words:
            _judge_methods(rows, "drawn", attention, kind, word, mask)
    report: dict[str, Any] = {
        "settings": {"scenes": len(scenes), "levels": list(LEVELS), "iou": "mask and map at half its peak"}
    }
    for part in ("renders", "drawn"):
        report[part] = defaultdict(dict)
        for (method, label), figures in rows[part].items():
            report[part][method][label] = summary(figures)
    for part in ("layers", "heads", "levels"):
        report[part] = {name: summary(figures) for name, figures in rows[part].items()}
    return report


def _judge_methods(rows: Rows, part: str, attention: AttentionTrace, kind: str, word: Word, mask: Tensor) -> None:
    """Add one word's figures by every method, under (method, class of word)."""
    maps = {"mean": attention.heatmap(word), "DAAM's rule": daam(attention, word)}
    maps["mean, refined"] = attention.heatmap(word, refine="edges")
    if attention.recording.calibration is not None:
        maps["calibrated"] = attention.heatmap(word, reduce="calibrated")
        maps["calibrated, refined"] = attention.heatmap(word, reduce="calibrated", refine="edges")
    methods = {name: judge_map(heat, mask) for name, heat in maps.items()}
    methods["chance"] = [float(mask.mean())] * len(FIGURES)
    for name, figures in methods.items():
        for label in (kind, *(["object words"] if kind in OBJECT_WORDS else [])):
            rows[part][name, label].append(figures)


def _judge_parts(rows: Rows, attention: AttentionTrace, word: Word, mask: Tensor) -> None:
    """Add one word's figures for each layer, each head and each noise level alone."""
    for layer in attention.layers:
        rows["layers"][layer].append(judge_map(attention.heatmap(word, layer=layer), mask))
        for head in range(attention.recording.heads[layer]):
            heat = attention.heatmap(word, layer=layer, head=head)
            rows["heads"][f"{layer} head {head}"].append(judge_map(heat, mask))
    for step, level in enumerate(LEVELS):
        rows["levels"][f"noise {level}"].append(judge_map(attention.heatmap(word, step=step), mask))


def judge_map(heat: Tensor, mask: Tensor) -> list[float]:
    """The four `FIGURES` of one map, (h, w) twice."""
    heat, mask = heat[None, None], mask[None, None]
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


def grounding_table(report: dict[str, Any], best: int = 8) -> str:
    """The report of `evaluate_grounding` as Markdown tables, with the `best` layers, heads and levels by IoU."""
    settings = report["settings"]
    lines = [
        f"{settings['scenes']} scenes; renders read at noise {', '.join(map(str, settings['levels']))}; "
        "IoU of the mask and the map above half its peak; mean (95 % interval)."
    ]
    for part in ("renders", "drawn"):
        lines += ["", *_head(f"{part}: method, class of word")]
        for method, classes in report[part].items():
            lines += _lines({f"{method}: {label}": figures for label, figures in classes.items()})
    for part in ("layers", "heads", "levels"):
        ranked = sorted(report[part].items(), key=lambda item: -item[1]["iou"][0])
        lines += ["", *_head(f"{part}, object words"), *_lines(dict(ranked[:best]))]
    return "\n".join(lines)


def _head(title: str) -> list[str]:
    return [
        f"| {title:26} | {'n':>4} | {'pointing':>16} | {'mass inside':>16} | {'mIoU':>16} | {'AP':>16} |",
        f"|:{'-' * 27}|{'-' * 5}:|" + f"{'-' * 17}:|" * 4,
    ]


def _lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, figures in rows.items():
        cells = [f"{mean:.2f} ({low:.2f}–{high:.2f})" for mean, low, high in (figures[f] for f in FIGURES)]
        yield f"| {name:26} | {figures['n']:>4} | " + " | ".join(f"{cell:>16}" for cell in cells) + " |"
