"""How true are the maps? Where words landed, against exact masks of what they speak of.

Of a test scene the model either reads the exact render at several noise levels (`capture.attribute`), or draws the
caption itself, and the rule-based judge finds what it drew. A map is judged by four figures: `pointing`, whether its
peak lies in the mask; `mass`, the share of its attention inside; `iou`, mask and map where it is at least half its
peak; `ap`, average precision, for which no threshold is needed.

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
from pipelines.tracing.capture import attribute, trace
from unet_xattn import AttentionTrace
from unet_xattn.grounding import average_precision, iou, mass_inside, points_inside
from unet_xattn.recording import Calibration
from unet_xattn.words import Word, tokens_of

CALIBRATION_SEED = 1_414_213_562
"""The series of scenes that calibrations are learnt on; not that of training, validation or testing."""

LEVELS = (0.3, 0.5, 0.7)
FIGURES = ("pointing", "mass", "iou", "ap")
OBJECT_WORDS = ("shape", "colour", "size")


Located = list[tuple[str, Word, Tensor]]
"""(kind, word, mask (h, w)) of each word that has a place."""


Rows = dict[str, dict[Any, list[list[float]]]]
"""Part of the report -> what is judged -> the `FIGURES` of each word."""


def read(pipe: TextToImagePipeline, described: Scene, keep: str = "head") -> tuple[AttentionTrace, Located]:
    """What the model attends to in a scene's exact render, and where each word truly lies."""
    picture, masks = render(described, pipe.picture_size)
    attention = attribute(pipe, Image.fromarray(picture), described.caption, LEVELS, draws=2, keep=keep)
    return attention, _located(pipe, described, list(masks))


def draw(pipe: TextToImagePipeline, described: Scene, seed: int) -> tuple[AttentionTrace, Located]:
    """What the model attends to while it draws a scene's caption, and where the judge finds what it drew.

    Words of what was not drawn as told (another shape or colour) are left out.
    """
    with trace(pipe, keep="head") as attention:
        pipe(described.caption, generator=torch.Generator().manual_seed(seed))
    assert attention.pictures is not None
    return attention, _located(pipe, described, locate(described, attention.pictures[0].numpy()))


def _located(pipe: TextToImagePipeline, described: Scene, masks: list[np.ndarray | None]) -> Located:
    """A relation lies where both its things are."""
    offsets = pipe.tokenizer(described.caption, return_offsets_mapping=True)["offset_mapping"]
    found: Located = []
    for said in described.words:
        spoken_of = said.objects or range(len(masks))  # the ground is where no object is
        places = [mask for i in spoken_of if (mask := masks[i]) is not None]
        if len(places) < len(spoken_of):
            continue
        mask = np.max(places, axis=0) if said.objects else 1 - np.max(places, axis=0)
        if mask.max() >= 0.5:
            text = described.caption[said.start : said.end]
            word = Word(text, said.start, said.end, tokens_of(said.start, said.end, offsets))
            found.append((said.kind, word, torch.from_numpy(mask)))
    return found


def calibrate(pipe: TextToImagePipeline, scenes: int = 100, steps: int = 100) -> Calibration:
    """Learn a `Calibration` from scenes that no figure is taken on: weights, one in sum, whose maps overlap masks most.

    What is descended is 1 − IoU of mask and map at half its peak, with a soft edge instead of a threshold.
    """
    layers, heads = pipe.unet.attention_layers, pipe.unet.config.heads
    found, true = [], []
    world = WORLDS[world_of(pipe.tokenizer)]
    for index in range(scenes):
        attention, words = read(pipe, world.scene(CALIBRATION_SEED, index))
        for kind, word, mask in words:
            if kind in OBJECT_WORDS:
                each = [attention.heatmap(word, layer=layer, head=h) for layer in layers for h in range(heads)]
                found.append(torch.stack(each).flatten(1))
                true.append((mask >= 0.5).float().flatten())
    maps, masks = torch.stack(found), torch.stack(true)  # (n, K, h·w), (n, h·w)
    logits = torch.zeros(len(layers) * heads, requires_grad=True)
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
    weights = torch.where(weights < 0.005, 0, weights)  # what hardly counts need not be added up
    weights = (weights / weights.sum()).reshape(len(layers), heads)
    return {name: [round(w, 4) for w in row] for name, row in zip(layers, weights.tolist(), strict=True)}


def daam(attention: AttentionTrace, word: Word) -> Tensor:
    """DAAM's rule (arXiv 2210.04885, section 3.2): every layer's and head's map, bicubic at picture size, summed."""
    total = torch.zeros(attention.size)
    for layer in attention.layers:
        share = attention.maps(layer)[list(word.tokens)].sum(dim=0)  # (h, w), the heads' mean
        total += F.interpolate(share[None, None], attention.size, mode="bicubic")[0, 0].clamp_min(0)
    return total


def evaluate_grounding(pipe: TextToImagePipeline, count_per_kind: int = 20) -> dict[str, Any]:
    """Judge a model's maps on test scenes with seen pairs: on their exact renders, and on what it draws itself.

    Returns:
        {"settings", "renders", "drawn", "layers", "heads", "levels"}, ready for JSON. Renders and drawn hold, for each
        method, figures for each class of word. Methods are "mean", "DAAM's rule", "calibrated" where the model has a
        calibration, and "chance", what a map that says nothing would score. Classes are the kinds of word, and "object
        words" for shape, colour and size together; layers, heads and noise levels are judged on these, on renders.
        Figures hold n and, for each of `FIGURES`, [mean, low, high]: a 95 % interval, Wilson's where each word is a hit
        or a miss, else of 1,000 bootstrap draws over words.
    """
    rows: Rows = defaultdict(lambda: defaultdict(list))
    scenes = fixed_scenes(count_per_kind, held_out=False, data=world_of(pipe.tokenizer))
    for seed, described in enumerate(scenes):
        attention, words = read(pipe, described, keep="full")
        for kind, word, mask in words:
            _judge_methods(rows, "renders", attention, kind, word, mask)
            if kind in OBJECT_WORDS:
                for layer in attention.layers:
                    rows["layers"][layer].append(judge_map(attention.heatmap(word, layer=layer), mask))
                    for head in range(attention.recording.heads):
                        heat = attention.heatmap(word, layer=layer, head=head)
                        rows["heads"][f"{layer} head {head}"].append(judge_map(heat, mask))
                for step, level in enumerate(LEVELS):
                    rows["levels"][f"noise {level}"].append(judge_map(attention.heatmap(word, step=step), mask))
        attention, words = draw(pipe, described, seed)
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


def _judge_methods(
    rows: Rows,
    part: str,
    attention: AttentionTrace,
    kind: str,
    word: Word,
    mask: Tensor,
) -> None:
    """Add one word's figures by every method, under (method, class of word)."""
    maps = {"mean": attention.heatmap(word), "DAAM's rule": daam(attention, word)}
    if attention.recording.calibration is not None:
        maps["calibrated"] = attention.heatmap(word, reduce="calibrated")
    found = {name: judge_map(heat, mask) for name, heat in maps.items()}
    found["chance"] = [float(mask.mean())] * len(FIGURES)
    for name, figures in found.items():
        for label in (kind, *(["object words"] if kind in OBJECT_WORDS else [])):
            rows[part][name, label].append(figures)


def judge_map(heat: Tensor, mask: Tensor) -> list[float]:
    """The four `FIGURES` of one map, (h, w) twice."""
    heat, mask = heat[None, None], mask[None, None]
    return [float(f(heat, mask)) for f in (points_inside, mass_inside, iou, average_precision)]


def summary(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """n and, for each of the `FIGURES`, [mean, low, high]."""
    values = np.array(rows)  # (n, 4)
    report: dict[str, Any] = {"n": len(values)}
    for column, name in enumerate(FIGURES):
        if np.isin(values[:, column], (0, 1)).all():  # a share of hits and misses
            report[name] = [float(values[:, column].mean()), *wilson(int(values[:, column].sum()), len(values))]
        else:
            report[name] = bootstrap(values[:, column]).tolist()
    return report


def table(report: dict[str, Any], best: int = 8) -> str:
    """What `evaluate_grounding` gave, as Markdown tables; of layers, heads and levels the `best`, best first."""
    settings = report["settings"]
    lines = [
        f"{settings['scenes']} scenes; renders read at noise {', '.join(map(str, settings['levels']))}; "
        "IoU of mask and map at half its peak; mean (95 % interval)."
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
