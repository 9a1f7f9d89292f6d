"""How accurate are the maps? Each word's map against the exact mask of what the word describes.

The model reads the exact render of a test scene at several noise levels (`tracing.attribute`), and renders that are
harder to read (`hard_scenes`); or it draws the caption itself, and the rule-based judge locates the objects it drew.
`maps.FIGURES` compare map and mask.

Shapes: h×w pixels.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.evaluation.agreement import TEST_SEED, fixed_scenes
from pipelines.evaluation.hard_scenes import HARDNESSES, HardScene, hard_scene
from pipelines.evaluation.maps import FIGURES, RECORD, Reading, head, judge_map, lines, maps_of, recording_self, summary
from pipelines.evaluation.outlines import drawn_outlines
from pipelines.scenes.judge import locate
from pipelines.scenes.scene import Scene
from pipelines.scenes.worlds import render, world_of
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.attribute import attribute
from pipelines.tracing.capture import trace
from unet_xattn import AttentionTrace
from unet_xattn.refine import refine
from unet_xattn.words import Word, tokens_of

LEVELS = (0.3, 0.5, 0.7)
OBJECT_WORDS, OBJECTS = ("shape", "colour", "size"), "object words"
PARTS = {
    "renders": "renders",
    "drawn": "drawn, the judge's masks (of emoji the exact outline where one was found)",
    "as_drawn": "drawn, masks of what differs from the ground",
}

Located = list[tuple[str, Word, Tensor]]
"""(kind, word, mask (h, w)) of each word that has a region."""


Rows = dict[str, dict[Any, list[list[float]]]]
"""Part of the report -> what is judged -> the `FIGURES` of each word."""


def read(pipe: TextToImagePipeline, scene: Scene, keep: str = "head") -> tuple[Reading, Located]:
    """The model's attention on a scene's exact render, and the exact mask of each word."""
    picture, masks = render(scene, pipe.picture_size)
    return _read(pipe, scene, picture, list(masks), keep)


def read_hard(pipe: TextToImagePipeline, hard: HardScene) -> tuple[Reading, Located]:
    """The same on the render of a scene that is hard to read."""
    return _read(pipe, hard.scene, hard.picture, list(hard.masks), "head")


def _read(
    pipe: TextToImagePipeline, scene: Scene, picture: np.ndarray, masks: Sequence[np.ndarray | None], keep: str
) -> tuple[Reading, Located]:
    with recording_self(pipe.unet) as self_attention:
        attention = attribute(pipe, Image.fromarray(picture), scene.caption, LEVELS, draws=2, **RECORD | {"keep": keep})
    return Reading(attention, self_attention), _located(pipe, scene, masks)


def draw_and_locate(pipe: TextToImagePipeline, scene: Scene, seed: int) -> tuple[Reading, Located, Located]:
    """The model's attention while it draws a scene's caption, and the mask of each word in that picture.

    Masks are first those of the judge and then `drawn_outlines`. Words of objects that were drawn in another shape or
    colour are left out.
    """
    with recording_self(pipe.unet) as self_attention, trace(pipe, **RECORD) as attention:
        pipe(scene.caption, generator=torch.Generator().manual_seed(seed))
    assert attention.pictures is not None
    picture = attention.pictures[0].numpy()
    located, outlined = (_located(pipe, scene, find(scene, picture)) for find in (locate, drawn_outlines))
    return Reading(attention, self_attention), located, outlined


def _located(pipe: TextToImagePipeline, scene: Scene, masks: Sequence[np.ndarray | None]) -> Located:
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


def evaluate_grounding(pipe: TextToImagePipeline, count_per_kind: int = 20) -> dict[str, Any]:
    """Judge a model's maps on test scenes with seen pairs: on exact renders, hard ones, and pictures it draws itself.

    Returns:
        {"settings", "renders", "drawn", "as_drawn", "hard", "layers", "heads", "levels"}, ready for JSON. `PARTS` and
        each of `HARDNESSES` in "hard" hold, for each of `maps.METHODS` and "chance", the score of an uninformative map,
        figures for each class of word. Classes are the kinds of words, and "object words" for shape, colour and size
        together, the only class of hard scenes; layers, heads and noise levels are judged on these, on renders. Figures
        hold n and, for each of `FIGURES`, [mean, low, high] with a 95 % interval: Wilson's for shares of hits, else
        that of 1,000 bootstrap resamples of the words.
    """
    rows: Rows = defaultdict(lambda: defaultdict(list))
    world = world_of(pipe.tokenizer)
    scenes = fixed_scenes(count_per_kind, held_out=False, data=world)
    for seed, scene in enumerate(scenes):
        reading, words = read(pipe, scene, keep="full")
        for kind, word, mask in words:
            _judge_methods(rows, "renders", maps_of(reading, word), kind, mask)
            if kind in OBJECT_WORDS:
                _judge_parts(rows, reading.attention, word, mask)
        reading, located, outlined = draw_and_locate(pipe, scene, seed)
        for (kind, word, mask), (_, _, outline) in zip(located, outlined, strict=True):
            maps = maps_of(reading, word)
            _judge_methods(rows, "drawn", maps, kind, mask)
            _judge_methods(rows, "as_drawn", maps, kind, outline)
    for hardness in HARDNESSES:
        for index in range(count_per_kind):
            reading, words = read_hard(pipe, hard_scene(world, TEST_SEED, index, hardness, pipe.picture_size))
            for kind, word, mask in words:
                if kind in OBJECT_WORDS:
                    _judge_methods(rows, hardness, maps_of(reading, word), kind, mask)
    settings = {"scenes": len(scenes), "hard": count_per_kind, "levels": list(LEVELS), "refine_ms": refining_time()}
    report: dict[str, Any] = {"settings": settings | {"iou": "mask and map at half its peak"}}
    report |= {part: _by_method(rows[part]) for part in PARTS}
    report["hard"] = {
        hardness: {method: {OBJECTS: classes[OBJECTS]} for method, classes in _by_method(rows[hardness]).items()}
        for hardness in HARDNESSES
    }
    for part in ("layers", "heads", "levels"):
        report[part] = {name: summary(figures) for name, figures in rows[part].items()}
    return report


def _by_method(rows: dict[Any, list[list[float]]]) -> dict[str, dict[str, Any]]:
    """(method, class of word) -> figures of words, as method -> class -> `summary`."""
    report: dict[str, dict[str, Any]] = defaultdict(dict)
    for (method, label), figures in rows.items():
        report[method][label] = summary(figures)
    return report


def _judge_methods(rows: Rows, part: str, maps: dict[str, Tensor], kind: str, mask: Tensor) -> None:
    """Add one word's figures by every method, under (method, class of word)."""
    methods = {name: judge_map(heat, mask) for name, heat in maps.items()}
    methods["chance"] = [float(mask.mean())] * len(FIGURES)
    for name, figures in methods.items():
        for label in (kind, *([OBJECTS] if kind in OBJECT_WORDS else [])):
            rows[part][name, label].append(figures)


def _judge_parts(rows: Rows, attention: AttentionTrace, word: Word, mask: Tensor) -> None:
    """Add one word's figures for each layer, each head and each noise level alone."""
    for layer in attention.layers:
        rows["layers"][layer].append(judge_map(attention.heatmap(word, layer=layer), mask))
        for number in range(attention.recording.heads[layer]):
            heat = attention.heatmap(word, layer=layer, head=number)
            rows["heads"][f"{layer} head {number}"].append(judge_map(heat, mask))
    for step, level in enumerate(LEVELS):
        rows["levels"][f"noise {level}"].append(judge_map(attention.heatmap(word, step=step), mask))


def refining_time(side: int = 512, grid: int = 32, repeats: int = 9) -> float:
    """Milliseconds of processor time that refining one map of a picture takes, the median."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 16, 16, generator=generator)
    picture = F.interpolate(coarse, (side, side), mode="bilinear")[0].permute(1, 2, 0)
    picture = (picture + 0.03 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        refine(picture[None, ..., 0], picture, side / grid)
        taken.append(1000 * (time.process_time() - start))
    return round(float(np.median(taken)), 1)


def grounding_table(report: dict[str, Any], most: int = 8) -> str:
    """The report of `evaluate_grounding` as Markdown tables, with the best layers, heads and levels by IoU."""
    return "\n".join(_table(report, most))


def _table(report: dict[str, Any], most: int) -> Iterator[str]:
    settings = report["settings"]
    yield (
        f"{settings['scenes']} scenes; renders read at noise {', '.join(map(str, settings['levels']))}; "
        "IoU of the mask and the map above half its peak; mean (95 % interval)."
    )
    yield f"Refining a map of a 512×512 picture takes {settings['refine_ms']} ms of processor time."
    parts = {title: report[part] for part, title in PARTS.items()}
    parts |= {f"hard renders, {hardness}": methods for hardness, methods in report["hard"].items()}
    for title, methods in parts.items():
        yield from ("", f"{title.capitalize()}:", "", *head(f"method, {OBJECTS}"))
        yield from lines({method: classes[OBJECTS] for method, classes in methods.items() if OBJECTS in classes})
        if PARTS["renders"] == title:
            best = "calibrated" if "calibrated" in methods else "mean"
            yield from ("", *head(f"class of word, {best}"), *lines(methods[best]))
    for part in ("layers", "heads", "levels"):
        ranked = sorted(report[part].items(), key=lambda item: -item[1]["iou"][0])
        yield from ("", *head(f"{part}, {OBJECTS}"), *lines(dict(ranked[:most])))
