"""Minimal pairs: does the picture follow the one fact in which two prompts differ?

"a red circle and a blue square" becomes "a blue circle and a red square", or "left of" becomes "right of"; everything
else stays, and both are drawn from the same noise. A pair counts only if both pictures are all-correct, each by its own
prompt. A model that ignores the difference gets at most one of them right (the idea of Winoground, arXiv 2204.03162).

Shapes: h×w pixels.
"""

from collections.abc import Callable, Sequence
from itertools import count as count_from
from typing import Any

from pipelines.evaluation.agreement import SPLITS, TEST_SEED, draw_and_judge
from pipelines.evaluation.statistics import share_of
from pipelines.scenes.judge import judge
from pipelines.scenes.scene import Scene
from pipelines.scenes.shapes import HELD_OUT, SWAPS, render, scene


def minimal_pairs(count: int, swap: str, held_out: bool, language: str = "en") -> list[tuple[Scene, Scene]]:
    """Pairs of scenes that differ in `swap`, one of `shapes.SWAPS`; a larger count starts with the same pairs.

    held_out: whether one of the two shows a held-out pair of shape and colour; if False, neither does.
    """
    pairs: list[tuple[Scene, Scene]] = []
    for index in count_from():
        if len(pairs) == count:
            break
        one, other = (scene(TEST_SEED, index, SWAPS[swap], held_out, language, swap=s) for s in (None, swap))
        a, b = one.objects
        same = swap == "colours" and (a.shape == b.shape or a.colour == b.colour)  # then nothing changes
        shown = {(o.shape, o.colour) for o in (*one.objects, *other.objects)}
        if not same and bool(shown & HELD_OUT) == held_out:
            pairs.append((one, other))
    return pairs


def evaluate_pairs(
    pipe: Callable[..., Any],
    count: int = 50,
    seeds: Sequence[int] = (0, 1),
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    batch_size: int = 50,
    language: str = "en",
) -> dict[str, Any]:
    """Draw minimal pairs with `pipe`, `count` per swap and split, and count those with both pictures correct.

    The arguments are those of `agreement.evaluate`. The prompts of a pair share their noise; different pairs do not.

    Returns:
        {"seen": {"model": {swap: entry}, "ceiling": {...}, "floor": {...}}, "held_out": {...}}, with the swaps of
        `shapes.SWAPS` and entries as in `evaluate`. The ceiling is the judge on exact renders of both scenes; the floor
        is the judge on pictures that ignore the difference: the render of the first scene for both.

    Raises:
        ValueError: no pairs or no seeds.
    """
    if count < 1 or not seeds:
        raise ValueError(f"needs 1 or more pairs and 1 or more seeds; got {count} and {len(seeds)}")
    report: dict[str, Any] = {}
    for split, held_out in SPLITS.items():
        report[split] = {"model": {}, "ceiling": {}, "floor": {}}
        for swap in SWAPS:
            pairs = minimal_pairs(count, swap, held_out, language)
            jobs = [(s, seed * count + i) for seed in seeds for i, pair in enumerate(pairs) for s in pair]
            verdicts, size = draw_and_judge(
                pipe, jobs, batch_size, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
            )
            correct = [verdict.all_correct for verdict in verdicts]
            renders = [[render(s, size)[0] for s in pair] for pair in pairs]
            for source, both in {
                "model": [a and b for a, b in zip(correct[::2], correct[1::2], strict=True)],
                "ceiling": [_both_correct(pair, a, b) for pair, (a, b) in zip(pairs, renders, strict=True)],
                "floor": [_both_correct(pair, a, a) for pair, (a, _) in zip(pairs, renders, strict=True)],
            }.items():
                report[split][source][swap] = share_of(both)
    return report


def _both_correct(pair: tuple[Scene, Scene], *pictures: Any) -> bool:
    return all(judge(s, picture).all_correct for s, picture in zip(pair, pictures, strict=True))
