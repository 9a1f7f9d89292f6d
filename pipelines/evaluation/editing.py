"""Do edits change what they should, and only that? Measured by the exact judge, beside two other ways to edit.

A picture of a test scene is drawn, edited as `edit_tasks` asks, and judged again. `success`: the judge reads the edited
scene, with the edited things where they should be. `locality`: the things that the edit is not about keep shape, colour
and place. The other ways draw from the same noise: the edited prompt "anew", and "prompt-to-prompt" (arXiv 2208.01626).

Shapes: h×w pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.edited import Change
from pipelines.evaluation.agreement import SPLITS, TEST_SEED
from pipelines.evaluation.edit_tasks import SCENES, STAYING, Task, box_iou, box_of, make_task, scenes_to_edit
from pipelines.evaluation.statistics import bootstrap, share_of
from pipelines.scenes.judge import compare
from pipelines.scenes.sight import Sight
from pipelines.scenes.worlds import WORLDS, world_of
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn.attention import RecordLayer
from unet_xattn.words import as_read, split_words

METHODS = ("edited", "anew", "prompt-to-prompt")

CLOSE = 2.0
"""Pixels within which the centre of a thing that stays has to stay."""

NEAR = 5.0
"""Pixels within which the centre of an edited thing has to stay: other shapes have other centres."""

CROSS_UNTIL, SELF_UNTIL = 0.8, 0.4
"""Shares of the steps in which prompt-to-prompt keeps the first picture's cross- and self-attention, as in its code."""


def evaluate_editing(
    pipe: TextToImagePipeline,
    count: int = 300,
    kinds: Sequence[str] = tuple(SCENES),
    methods: Sequence[str] = METHODS,
    batch_size: int = 20,
    seed: int = TEST_SEED,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Edit the pictures of `count` scenes for each kind of edit, and judge them.

    Only pictures that are right before the edit, and have room for it, are edited.

    Args:
        seed: of the scenes and of what is asked for. The noise of a picture has the number of its scene as seed.
        save: called with the report so far after each batch of scenes of a kind; the kinds take turns.

    Returns:
        {"settings", "kinds": {kind: {method: figures}}}, ready for JSON; the settings have the scenes so far.
        Figures are {"success", "locality", "both", "iou", "outside", "seen", "held_out"}. The first three are shares
        with Wilson's interval; locality counts scenes with things that no edit is about. "iou", of the masks of such a
        thing before and after, and "outside", the mean difference of pixels outside the things that it is about, in
        [0, 1], are means with a bootstrap interval. The last two: figures of scenes without and with held-out pairs.
    """
    data = world_of(pipe.tokenizer)
    if not WORLDS[data].lexicon.colours:
        kinds = [kind for kind in kinds if kind != "recolour"]
    settings: dict[str, Any] = {"data": data, "seed": seed, "scenes": dict.fromkeys(kinds, 0)}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {method: [] for method in methods} for kind in kinds}
    report: dict[str, Any] = {"settings": settings, "kinds": {}}
    for start in range(0, count, batch_size):
        numbers = range(start, min(start + batch_size, count))
        for kind in kinds:
            tasks, first = _first_pictures(pipe, kind, numbers, data, seed)
            for method in methods if tasks else ():
                after = EDITORS[method](pipe, tasks, first)
                for task, number, before, picture in zip(tasks, first.seeds, first.pictures, after, strict=True):
                    rows[kind][method].append(judge_edit(task, before, picture) | {"held_out": number % 2 == 1})
            settings["scenes"][kind] = numbers[-1] + 1
            report["kinds"][kind] = {method: _figures(found) for method, found in rows[kind].items() if found}
            if save is not None:
                save(report)
    return report


@dataclass(frozen=True)
class First:
    """First pictures (B, h, w, 3) uint8, the seeds of their noise, and their attention, for prompt-to-prompt.

    kept: (step, layer, whether it is self-attention) -> weights (B, H, N, T or N).
    """

    pictures: np.ndarray
    seeds: list[int]
    kept: dict[tuple[int, str, bool], Tensor]


def _first_pictures(
    pipe: TextToImagePipeline, kind: str, numbers: Sequence[int], data: str, seed: int
) -> tuple[list[Task], First]:
    """Edits for the first pictures of these scenes, and those pictures, if they are right and have room for an edit."""
    scenes = scenes_to_edit(kind, numbers, data, seed)
    kept: dict[tuple[int, str, bool], Tensor] = {}

    def keep(of_self: bool, until: float) -> Change:
        def change(step: int, sigma: float, rows: Mapping[str, slice]) -> RecordLayer | None:
            if step >= until * pipe.config.num_inference_steps:
                return None
            return lambda layer, weights, grid: kept.__setitem__((step, layer, of_self), weights[rows["prompt"]])

        return change

    captions = [scene.caption for scene in scenes]
    pictures = draw(pipe, captions, numbers, change=keep(False, CROSS_UNTIL), change_self=keep(True, SELF_UNTIL))
    tasks = {}
    for row, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        sight = WORLDS[data].see(picture)
        if compare(scene, sight).all_correct and (task := make_task(kind, scene, sight, numbers[row], seed)):
            tasks[row] = task
    edited = list(tasks)
    kept = {where: weights[edited] for where, weights in kept.items()}
    return list(tasks.values()), First(pictures[edited], [numbers[row] for row in edited], kept)


def draw(pipe: TextToImagePipeline, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> np.ndarray:
    """Pictures (B, h, w, 3) uint8."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe(list(prompts), generator=generators, output_type="np", **how).images
    return (images * 255).round().astype(np.uint8)


def _edited(pipe: TextToImagePipeline, tasks: Sequence[Task], first: First) -> np.ndarray:
    return draw(pipe, [task.scene.caption for task in tasks], first.seeds, edits=[list(task.edits) for task in tasks])


def _anew(pipe: TextToImagePipeline, tasks: Sequence[Task], first: First) -> np.ndarray:
    if all(task.prompt == task.scene.caption for task in tasks):  # only places were asked for
        return first.pictures
    return draw(pipe, [task.prompt for task in tasks], first.seeds)


def _prompt_to_prompt(pipe: TextToImagePipeline, tasks: Sequence[Task], first: First) -> np.ndarray:
    """Attention refinement of prompt-to-prompt (arXiv 2208.01626, section 3.1).

    In the first steps, tokens that both prompts have keep their maps of the first picture, and all others have their
    own; positions keep what they read of each other.
    """
    if all(task.prompt == task.scene.caption for task in tasks):
        return first.pictures
    steps = pipe.config.num_inference_steps
    aligned = [_aligned_tokens(pipe, task.scene.caption, task.prompt) for task in tasks]

    def use(of_self: bool, until: float, inject: Callable[[Tensor, Tensor], Tensor]) -> Change:
        def change(step: int, sigma: float, rows: Mapping[str, slice]) -> RecordLayer | None:
            if step >= until * steps:
                return None

            def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> Tensor:
                changed = weights.clone()
                changed[rows["prompt"]] = inject(first.kept[step, layer, of_self], weights[rows["prompt"]])
                return changed

            return record

        return change

    def inject(kept: Tensor, own: Tensor) -> Tensor:
        mixed = own.clone()
        for row, (old, new) in enumerate(aligned):
            mixed[row][..., new] = kept[row][..., old]
        return mixed

    return draw(
        pipe,
        [task.prompt for task in tasks],
        first.seeds,
        change=use(False, CROSS_UNTIL, inject),
        change_self=use(True, SELF_UNTIL, lambda kept, own: kept),
    )


def _aligned_tokens(pipe: TextToImagePipeline, before: str, after: str) -> tuple[list[int], list[int]]:
    """Positions of the tokens of the words that two prompts share, in each of them."""
    old, new = (split_words(text, pipe.tokenizer) for text in (before, after))
    a, b = ([as_read(word.text) for word in words] for words in (old, new))
    pairs: list[tuple[int, int]] = []
    for match in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        for i in range(match.size):
            pairs += zip(old[match.a + i].tokens, new[match.b + i].tokens, strict=False)
    return [i for i, _ in pairs], [j for _, j in pairs]


EDITORS: dict[str, Callable[[TextToImagePipeline, Sequence[Task], First], np.ndarray]] = {
    "edited": _edited,
    "anew": _anew,
    "prompt-to-prompt": _prompt_to_prompt,
}


def judge_edit(task: Task, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Whether an edit did what it should, and only that; pictures (h, w, 3) uint8.

    "locality" and "iou" are None where the edit is about all things.
    """
    world = WORLDS[task.scene.data]
    old, new = world.see(before), world.see(after)
    first = {i: found for i, o in enumerate(task.scene.objects) if (found := find_one(old, o)) is not None}
    then = {i: found for i, o in enumerate(task.target.objects) if (found := find_one(new, o)) is not None}
    success = compare(task.target, new).all_correct and len(then) == len(task.target.objects)
    if success:
        for number, box in task.boxes.items():
            success &= box_iou(box_of(new.masks[then[number]]), box) >= 0.5
        for number in task.named if task.kind in STAYING else ():
            success &= _distance(old, first[number], new, then[number]) <= NEAR
    staying = [number for number in range(len(task.scene.objects)) if number not in task.named]
    overlaps, stay = [], True
    for number in staying:
        found = find_one(new, task.scene.objects[number])
        if found is None:
            overlaps.append(0.0)
            stay = False
            continue
        overlap, is_same = how_it_stayed(old, first[number], new, found)
        overlaps.append(overlap)
        stay &= is_same
    outside = np.ones(before.shape[:2], bool)
    for sight, found_in, numbers in ((old, first, task.named), (new, then, task.becomes)):
        for number in numbers:
            outside &= sight.masks[found_in[number]] < 0.02 if number in found_in else True
    difference = np.abs(before.astype(float) - after)[outside].mean() / 255
    return {
        "success": success,
        "locality": stay if staying else None,
        "both": success and stay,
        "iou": float(np.mean(overlaps)) if staying else None,
        "outside": float(difference),
    }


def how_it_stayed(old: Sight, i: int, new: Sight, j: int) -> tuple[float, bool]:
    """The overlap (IoU) of an object before and after an edit, and whether it stayed where it was."""
    a, b = old.masks[i], new.masks[j]
    overlap = float(np.minimum(a, b).sum() / np.maximum(a, b).sum())
    return overlap, overlap >= 0.9 and _distance(old, i, new, j) <= CLOSE


def find_one(sight: Sight, wanted: Any) -> int | None:
    """The one object of this shape and colour, by its number."""
    found = [i for i, o in enumerate(sight.objects) if (o.shape, o.colour) == (wanted.shape, wanted.colour)]
    return found[0] if len(found) == 1 else None


def _distance(a: Sight, i: int, b: Sight, j: int) -> float:
    """Pixels between the centres of two objects."""
    height, width = a.masks.shape[1:]
    return float(np.hypot((a.objects[i].x - b.objects[j].x) * width, (a.objects[i].y - b.objects[j].y) * height))


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    splits = {split: [row for row in rows if row["held_out"] == held_out] for split, held_out in SPLITS.items()}
    return _summary(rows) | {split: _summary(found) for split, found in splits.items()}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shares = {name: [row[name] for row in rows if row[name] is not None] for name in ("success", "locality", "both")}
    means = {name: [row[name] for row in rows if row[name] is not None] for name in ("iou", "outside")}
    return {name: share_of(found) for name, found in shares.items() if found} | {
        name: bootstrap(np.array(found)).tolist() for name, found in means.items() if found
    }


def editing_table(report: dict[str, Any]) -> str:
    """The report of `evaluate_editing` as two Markdown tables: of all methods, and of edits of each split."""
    lines = [
        f"Edits of {report['settings']['data']}; % (95 % interval).",
        "",
        "| edit: method | n | success | locality | both | IoU of the rest | difference outside |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    names = ("success", "locality", "both")
    for kind, methods in report["kinds"].items():
        for method, found in methods.items():
            shares = [_percent(found.get(name)) for name in names]
            means = [f"{found[name][0]:.3f}" if name in found else "–" for name in ("iou", "outside")]
            lines.append(f"| {kind}: {method} | {found['success']['n']} | " + " | ".join([*shares, *means]) + " |")
    lines += ["", "| edited | pairs | n | success | locality | both |", "|:--|:--|--:|--:|--:|--:|"]
    for kind, methods in report["kinds"].items():
        for split in SPLITS if "edited" in methods else ():
            found = methods["edited"][split]
            if found:
                shares = [_percent(found.get(name)) for name in names]
                lines.append(
                    f"| {kind} | {split.replace('_', '-')} | {found['success']['n']} | " + " | ".join(shares) + " |"
                )
    return "\n".join(lines)


def _percent(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return f"{100 * entry['share']:.1f} ({100 * entry['low']:.0f}–{100 * entry['high']:.0f})"
