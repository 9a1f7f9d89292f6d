"""What edits move, and by how much: a word's weight as a dose, and the layouts that regions draw.

    python tests/benchmarks/edit_curves.py shapes --out tests/benchmarks/results/edit-curves-shapes.json
    python tests/benchmarks/edit_curves.py shapes --picture .github/edit-curves.png

The first command measures, and writes as it goes; the second draws what the first one, and `evaluate --editing`, left
in `results/`.

Doses: the words of one thing ("red circle") of a test scene weigh 0 to 4 times as much, from the same noise. Only
scenes whose picture is right at weight 1 count. Area: pixels of the thing, 0 where it is missing. Presence: whether the
judge finds it. Mass: the share of the attention that its words have, over all positions, layers and steps.

Layouts: a first picture of one to five things, each in the box that its exact render has; with "overlapping", two of
these boxes overlap.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import TextToImagePipeline, reweight
from pipelines.edit_plan import plan
from pipelines.edited import changed_by
from pipelines.edits import paint_all
from pipelines.evaluation.agreement import TEST_SEED
from pipelines.evaluation.edit_tasks import RADII, SIDE, Box, box_iou, box_of, plain, scenes_to_edit
from pipelines.evaluation.editing import draw, find_one
from pipelines.evaluation.statistics import bootstrap, share_of
from pipelines.scenes.judge import compare, judge
from pipelines.scenes.scene import Object, Scene, place
from pipelines.scenes.worlds import WORLDS, render, world_of
from unet_xattn import AttentionTrace

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
FIGURES = ("area", "presence", "mass")
BOUNDS = ("share", "low", "high")
BATCH = 20
RESULTS = Path(__file__).parent / "results"

LAYOUTS = {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "2, overlapping": 2, "3, overlapping": 3}
"""Layout -> number of its things."""


def doses(pipe: TextToImagePipeline, count: int, seed: int = TEST_SEED) -> Iterator[dict[str, Any]]:
    """The figures of each weight, of more and more of `count` scenes."""
    data, size = world_of(pipe.tokenizer), (SIDE, SIDE)
    rows: dict[float, list[dict[str, float]]] = {weight: [] for weight in WEIGHTS}
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        scenes = scenes_to_edit("move", numbers, data, seed)
        things = [scene.objects[number % len(scene.objects)] for number, scene in zip(numbers, scenes, strict=True)]
        words = [name_of(o) for o in things]
        captions, drawn, traces = [scene.caption for scene in scenes], {}, {}
        for weight in WEIGHTS:
            plans = [
                plan([reweight(text, weight)], scene.caption, size, pipe.tokenizer)
                for text, scene in zip(words, scenes, strict=True)
            ]
            traces[weight] = AttentionTrace()
            drawn[weight] = draw(pipe, captions, numbers, change=changed_by(plans), attention=traces[weight])
        right = [judge(scene, picture).all_correct for scene, picture in zip(scenes, drawn[1.0], strict=True)]
        for weight in WEIGHTS:
            for row in np.flatnonzero(right):
                sight = WORLDS[data].see(drawn[weight][row])
                found = find_one(sight, things[row])
                heat = traces[weight].heatmap(words[row], image=int(row))
                area = 0.0 if found is None else float(sight.masks[found].sum())
                rows[weight].append({"area": area, "presence": float(found is not None), "mass": float(heat.mean())})
        yield summary(rows)


def summary(rows: dict[float, list[dict[str, float]]]) -> dict[str, Any]:
    """Means with bootstrap intervals, and between which weights a mean falls although the weight grows."""
    curves = {
        name: [bootstrap(np.array([row[name] for row in rows[weight]])).tolist() for weight in WEIGHTS]
        for name in FIGURES
    }
    falls = {
        name: [[a, b] for (a, x), (b, y) in pairwise(zip(WEIGHTS, curve, strict=True)) if y[0] < x[0]]
        for name, curve in curves.items()
    }
    return {"weights": WEIGHTS, "scenes": len(rows[1.0]), "curves": curves, "falls": falls}


def layouts(pipe: TextToImagePipeline, count: int, seed: int = TEST_SEED) -> Iterator[dict[str, Any]]:
    """The figures of each layout, of more and more of `count` scenes each."""
    data, report = world_of(pipe.tokenizer), {}
    for number, (name, things) in enumerate(LAYOUTS.items()):
        found: dict[str, list[Any]] = {"things": [], "all": [], "iou": [], "iou_found": []}
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            scenes = [placed(data, things, "overlapping" in name, (seed, number, i)) for i in numbers]
            boxes = [[box_of(mask) for mask in render(scene, SIDE)[1]] for scene in scenes]
            plans = [
                plan(paint_all(regions_of(scene, own)), scene.caption, (SIDE, SIDE), pipe.tokenizer)
                for scene, own in zip(scenes, boxes, strict=True)
            ]  # what `regions=` does, for a batch whose prompts have their own
            pictures = draw(pipe, [scene.caption for scene in scenes], numbers, change=changed_by(plans))
            for scene, own, picture in zip(scenes, boxes, pictures, strict=True):
                sight = WORLDS[data].see(picture)
                each = [find_one(sight, o) for o in scene.objects]
                overlaps = [
                    0.0 if i is None else box_iou(box_of(sight.masks[i]), box) for i, box in zip(each, own, strict=True)
                ]
                found["things"] += [i is not None for i in each]
                found["all"].append(compare(scene, sight).all_correct)
                found["iou"] += overlaps
                found["iou_found"] += [o for i, o in zip(each, overlaps, strict=True) if i is not None]
            report[name] = {key: share_of(found[key]) for key in ("things", "all")}
            report[name] |= {key: bootstrap(np.array(found[key] or [0.0])).tolist() for key in ("iou", "iou_found")}
            yield report


def placed(data: str, count: int, overlapping: bool, seed: tuple[int, ...]) -> Scene:
    """A scene of so many different things, which are medium, or small if they are more than three."""
    rng, world, size = np.random.default_rng(seed), WORLDS[data], "medium" if count <= 3 else "small"
    nouns = rng.choice(list(world.lexicon.nouns), count, replace=False).tolist()
    colours = rng.choice(list(world.lexicon.colours) or [""], count, replace=not world.lexicon.colours).tolist()
    things = [Object(n, c, size, radius=RADII[data][size]) for n, c in zip(nouns, colours, strict=True)]
    while True:
        objects, _ = place(rng, "three", things, 1.15, -0.08 if overlapping else 0.02)
        scene = plain(Scene({1: "one", 2: "two"}.get(count, "three"), objects, "white", data=data))
        boxes = [box_of(mask) for mask in render(scene, SIDE)[1]]
        if not overlapping or any(box_iou(a, b) > 0 for i, a in enumerate(boxes) for b in boxes[:i]):
            return scene


def name_of(o: Object) -> str:
    return f"{o.colour} {o.shape}".strip()


def regions_of(scene: Scene, boxes: list[Box]) -> dict[str, Box]:
    return {name_of(o): box for o, box in zip(scene.objects, boxes, strict=True)}


def table(report: dict[str, Any]) -> str:
    """Doses and layouts as two Markdown tables."""
    lines = []
    if dose := report.get("doses"):
        lines += ["| | " + " | ".join(f"× {weight:g}" for weight in dose["weights"]) + " |"]
        lines += ["|:--|" + "--:|" * len(dose["weights"])]
        for name, scale, digits in (("area", 1, 0), ("presence", 100, 1), ("mass", 100, 1)):
            lines.append(f"| {name} | " + " | ".join(f"{scale * x[0]:.{digits}f}" for x in dose["curves"][name]) + " |")
        lines += [f"Falls although the weight grows: {dose['falls']}", ""]
    lines += ["| regions | things drawn | all as asked | box IoU | of those drawn |", "|:--|--:|--:|--:|--:|"]
    for name, own in report.get("layouts", {}).items():
        shares = [
            f"{100 * s['share']:.1f} ({100 * s['low']:.0f}–{100 * s['high']:.0f})" for s in (own["things"], own["all"])
        ]
        lines.append(
            f"| {name} | " + " | ".join([*shares, f"{own['iou'][0]:.2f}", f"{own['iou_found'][0]:.2f}"]) + " |"
        )
    return "\n".join(lines)


COLOURS = {"edited": "#0072b2", "prompt-to-prompt": "#56b4e9", "anew": "#999999"}
"""Way to edit -> its colour: Okabe and Ito's, which the colour-blind can tell."""


def picture(model: str, out: Path) -> None:
    """How often edits are right and leave the rest as it was, with Wilson's intervals, and the curves of the doses."""
    import matplotlib.pyplot as plt

    kinds = json.loads((RESULTS / f"editing-{model}.json").read_text())["kinds"]
    dose = json.loads((RESULTS / f"edit-curves-{model}.json").read_text())["doses"]
    figure, (bars, *axes) = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained", width_ratios=(2.4, 1, 1, 1))
    for i, (method, colour) in enumerate(COLOURS.items()):
        shares, low, high = (100 * np.array([own[method]["both"][key] for own in kinds.values()]) for key in BOUNDS)
        at = np.arange(len(kinds)) + 0.27 * (i - 1)
        errors = np.maximum((shares - low, high - shares), 0)  # a share of 1 may be above its bound by rounding
        bars.bar(at, shares, 0.25, color=colour, label=method, yerr=errors, ecolor="#444444")
    bars.set_xticks(range(len(kinds)), list(kinds))
    bars.set(title="right, and the rest as it was, %", ylim=(0, 101))
    bars.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, -0.1), ncols=3)
    titles = {"area": "area, pixels", "presence": "presence, %", "mass": "mass of the words, %"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        mean, low, high = (1 if name == "area" else 100) * np.array(dose["curves"][name]).T
        ax.fill_between(dose["weights"], low, high, color="#0072b2", alpha=0.2, linewidth=0)
        ax.plot(dose["weights"], mean, color="#0072b2", marker=".")
        ax.set(title=title, xlabel="weight of the words", ylim=(0, None))
    for ax in (bars, *axes):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=200, help="Scenes of doses; a quarter for each layout.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path)
    where.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.picture:
        picture(args.model, args.picture)
        return
    pipe = TextToImagePipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {"model": args.model}
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "doses": lambda: doses(pipe, args.scenes),
        "layouts": lambda: layouts(pipe, max(args.scenes // 4, 1)),
    }
    for name, part in parts.items():
        for found in part():
            report[name] = found
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
