"""Is a word's map faithful? Withhold the word, draw again from the same seed, and compare the change with the map.

The word's tokens are masked in every cross-attention layer and nothing else changes. So every difference between the
two pictures is an effect of the word. A faithful map contains that change.

Shapes: h×w pixels.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from pipelines.evaluation.agreement import fixed_scenes
from pipelines.evaluation.maps import RECORD, Reading, maps_of, recording_self
from pipelines.evaluation.statistics import bootstrap
from pipelines.scenes.scene import Scene
from pipelines.scenes.worlds import world_of
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.capture import trace
from unet_xattn.grounding import deletion_curve
from unet_xattn.words import Word, tokens_of

CUTS = (1.0, 0.8)
"""Noise levels below which a word is withheld: from the first step on, or after the layout is fixed."""

SHARES = tuple(i / 20 for i in range(21))
"""Shares of the picture's area at which a deletion curve is evaluated."""

Row = tuple[float, float, np.ndarray]
"""The figures of one map: area under the deletion curve, density ratio, deletion curve; see `judge_change`."""


def evaluate_faithfulness(pipe: TextToImagePipeline, count_per_kind: int = 10) -> dict[str, Any]:
    """Withhold each noun and each colour in prompts with several objects, and compare its map with the change.

    Returns:
        {"settings", "cuts": {"noise 1.0": {method: figures}, ...}}, ready for JSON. Methods are those of
        `maps.METHODS`, "another word" (the map of a word for another object of the same prompt) and "change itself",
        the upper bound. Figures hold n, the mean deletion "curve" at `SHARES` of the area, and two figures as [mean,
        low, high], a 95 % interval of 1,000 bootstrap resamples: "auc", the area under the deletion curve (chance:
        0.5), and "inside", the density of the change where the map has at least half its peak, divided by the density
        elsewhere (chance: 1).
    """
    scenes = [
        s
        for s in fixed_scenes(count_per_kind, False, data=world_of(pipe.tokenizer))
        if s.kind in ("two", "relation", "three")
    ]
    rows: dict[float, dict[str, list[Row]]] = {cut: defaultdict(list) for cut in CUTS}
    for seed, scene in enumerate(scenes):
        words = _object_words(pipe, scene)
        with recording_self(pipe.unet) as self_attention, trace(pipe, **RECORD) as attention:
            complete = _draw(pipe, [scene.caption], seed)[0]
        methods = _maps(Reading(attention, self_attention), words)
        for cut in CUTS:
            ignore = [word.tokens for _, word in words]
            without = _draw(pipe, [scene.caption] * len(words), seed, ignore=ignore, ignore_below=cut)
            changes = (without - complete).abs().mean(dim=1)  # (words, h, w)
            for name, maps in (methods | {"change itself": list(changes)}).items():
                rows[cut][name] += [judge_change(heat, change) for heat, change in zip(maps, changes, strict=True)]
    return {
        "settings": {"scenes": len(scenes), "words": len(rows[CUTS[0]]["mean"]), "shares": SHARES},
        "cuts": {
            f"noise {cut}": {name: _summary(figures) for name, figures in methods.items()}
            for cut, methods in rows.items()
        },
    }


def _object_words(pipe: TextToImagePipeline, scene: Scene) -> list[tuple[tuple[int, ...], Word]]:
    """(indices of its objects, word) for each noun and each colour of a caption."""
    offsets = pipe.tokenizer(scene.caption, return_offsets_mapping=True)["offset_mapping"]
    return [
        (w.objects, Word(scene.caption[w.start : w.end], w.start, w.end, tokens))
        for w in scene.words
        if w.kind in ("shape", "colour") and (tokens := tokens_of(w.start, w.end, offsets))
    ]


def _maps(reading: Reading, words: list[tuple[tuple[int, ...], Word]]) -> dict[str, list[Tensor]]:
    """Method -> the map of each word."""
    by_word = [maps_of(reading, word) for _, word in words]
    methods = {name: [maps[name] for maps in by_word] for name in by_word[0]}
    best = methods.get("calibrated", methods["mean"])
    methods["another word"] = [
        next(heat for heat, (others, _) in zip(best, words, strict=True) if others != own) for own, _ in words
    ]
    return methods


def judge_change(heat: Tensor, change: Tensor) -> Row:
    """(area under the deletion curve, density of the change inside the map over outside, the curve), (h, w) twice."""
    curve = deletion_curve(heat, change, SHARES)
    inside = heat >= heat.max() / 2
    outside = change[~inside].mean() if (~inside).any() else change.mean()
    return float(trapezoid(curve, SHARES)), float(change[inside].mean() / outside.clamp_min(1e-6)), curve


def _draw(pipe: TextToImagePipeline, captions: list[str], seed: int, **settings: Any) -> Tensor:
    """Pictures (B, 3, h, w) in [0, 1], on the CPU as the maps are, all from the same seed."""
    generators = [torch.Generator().manual_seed(seed) for _ in captions]
    return pipe(captions, generator=generators, output_type="pt", **settings).images.cpu()


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    report: dict[str, Any] = {"n": len(rows), "curve": np.mean([row[2] for row in rows], axis=0).round(4).tolist()}
    for column, name in enumerate(("auc", "inside")):
        values = np.array([row[column] for row in rows])
        # A geometric mean, because these are ratios: 10 and 1/10 cancel.
        values = np.log(np.maximum(values, 1e-3)) if name == "inside" else values
        figures = bootstrap(values)
        report[name] = (np.exp(figures) if name == "inside" else figures).tolist()
    return report


def faithfulness_table(report: dict[str, Any]) -> str:
    """The report of `evaluate_faithfulness` as a Markdown table."""
    settings = report["settings"]
    lines = [
        f"{settings['words']} words of {settings['scenes']} prompts; the prompt is drawn again, from the same seed, "
        "without each word.",
        "",
        f"| {'withheld below, map':34} |    n | area under deletion curve | change inside / outside |",
        f"|:{'-' * 35}|-----:|--------------------------:|------------------------:|",
    ]
    for cut, methods in report["cuts"].items():
        for name, figures in methods.items():
            auc, inside = ("{:.2f} ({:.2f}–{:.2f})".format(*figures[key]) for key in ("auc", "inside"))
            lines.append(f"| {f'{cut}, {name}':34} | {figures['n']:>4} | {auc:>25} | {inside:>23} |")
    return "\n".join(lines)
