"""Does a word's map say what the word did? Cut the word out, draw again from the same seed, and see what changed.

The word's tokens are withheld from every cross-attention layer and nothing else is touched, so whatever differs between
the two pictures the word did. A faithful map has that change inside it.

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
from pipelines.evaluation.statistics import bootstrap
from pipelines.scenes.worlds import world_of
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.capture import trace
from unet_xattn.grounding import deletion_curve
from unet_xattn.words import Word, tokens_of

CUTS = (1.0, 0.8)
"""Noise levels from which on a word is withheld: from the first step, or once the layout stands."""

SHARES = tuple(i / 20 for i in range(21))
"""Shares of the picture's area at which a deletion curve is read."""


def evaluate_faithfulness(pipe: TextToImagePipeline, count_per_kind: int = 10) -> dict[str, Any]:
    """Cut each shape's and each colour's word in prompts with several things, and hold its map against the change.

    Returns:
        {"settings", "cuts": {"noise 1.0": {method: figures}, ...}}, ready for JSON. Methods are "mean", "calibrated"
        where the model has a calibration, "another word" (the map of a word that speaks of another thing of the same
        prompt) and "change itself", the best any map could do. Figures hold n and [mean, low, high], a 95 % interval
        of 1,000 bootstrap draws, of "auc", the area under the deletion curve (0.5 by chance), and of "inside", how
        many times denser the change is where the map has at least half its peak than elsewhere (1 by chance); "curve"
        is the mean deletion curve at `SHARES` of the area.
    """
    scenes = [
        s
        for s in fixed_scenes(count_per_kind, False, data=world_of(pipe.tokenizer))
        if s.kind in ("two", "relation", "three")
    ]
    found: dict[float, dict[str, list[tuple[float, float, np.ndarray]]]] = {c: defaultdict(list) for c in CUTS}
    for seed, described in enumerate(scenes):
        offsets = pipe.tokenizer(described.caption, return_offsets_mapping=True)["offset_mapping"]
        words = [
            (said.objects, Word(described.caption[said.start : said.end], said.start, said.end, tokens))
            for said in described.words
            if said.kind in ("shape", "colour") and (tokens := tokens_of(said.start, said.end, offsets))
        ]
        with trace(pipe, keep="head") as attention:
            whole = _draw(pipe, [described.caption], seed)[0]
        methods = {"mean": [attention.heatmap(word) for _, word in words]}
        if attention.recording.calibration is not None:
            methods["calibrated"] = [attention.heatmap(word, reduce="calibrated") for _, word in words]
        best = list(methods.values())[-1]
        methods["another word"] = [
            next(m for m, (o, _) in zip(best, words, strict=True) if o != mine) for mine, _ in words
        ]
        for cut in CUTS:
            ignore = [word.tokens for _, word in words]
            without = _draw(pipe, [described.caption] * len(words), seed, ignore=ignore, ignore_below=cut)
            changes = (without - whole).abs().mean(dim=1)  # (words, h, w)
            for name, maps in (methods | {"change itself": list(changes)}).items():
                for heat, change in zip(maps, changes, strict=True):
                    found[cut][name].append(judge_change(heat, change))
    settings = {"scenes": len(scenes), "words": len(found[CUTS[0]]["mean"]), "shares": SHARES}
    return {
        "settings": settings,
        "cuts": {
            f"noise {cut}": {name: _summary(rows) for name, rows in methods.items()} for cut, methods in found.items()
        },
    }


def judge_change(heat: Tensor, change: Tensor) -> tuple[float, float, np.ndarray]:
    """(area under the deletion curve, density of change inside the map over outside, the curve), (h, w) twice."""
    curve = deletion_curve(heat, change, SHARES)
    inside = heat >= heat.max() / 2
    outside = change[~inside].mean() if (~inside).any() else change.mean()
    return float(trapezoid(curve, SHARES)), float(change[inside].mean() / outside.clamp_min(1e-6)), curve


def _draw(pipe: TextToImagePipeline, captions: list[str], seed: int, **settings: Any) -> Tensor:
    """Pictures (B, 3, h, w) in [0, 1], all from one seed."""
    generators = [torch.Generator().manual_seed(seed) for _ in captions]
    return pipe(captions, generator=generators, output_type="pt", **settings).images


def _summary(rows: Sequence[tuple[float, float, np.ndarray]]) -> dict[str, Any]:
    report: dict[str, Any] = {"n": len(rows), "curve": np.mean([row[2] for row in rows], axis=0).round(4).tolist()}
    for column, name in enumerate(("auc", "inside")):
        values = np.array([row[column] for row in rows])
        # Ratios: what is ten times denser and what is ten times thinner cancel.
        values = np.log(np.maximum(values, 1e-3)) if name == "inside" else values
        figures = bootstrap(values)
        report[name] = (np.exp(figures) if name == "inside" else figures).tolist()
    return report


def table(report: dict[str, Any]) -> str:
    """What `evaluate_faithfulness` gave, as a Markdown table."""
    settings = report["settings"]
    lines = [
        f"{settings['words']} words of {settings['scenes']} prompts, each cut out and drawn again from the same seed.",
        "",
        "| word withheld from, map      |    n | area under deletion curve | change inside / outside |",
        "|:-----------------------------|-----:|--------------------------:|------------------------:|",
    ]
    for cut, methods in report["cuts"].items():
        for name, figures in methods.items():
            auc, inside = ("{:.2f} ({:.2f}–{:.2f})".format(*figures[key]) for key in ("auc", "inside"))
            lines.append(f"| {f'{cut}, {name}':28} | {figures['n']:>4} | {auc:>25} | {inside:>23} |")
    return "\n".join(lines)
