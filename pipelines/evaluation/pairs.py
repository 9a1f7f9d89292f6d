"""Does the picture follow what differs? Minimal pairs: two prompts alike but for one thing, drawn from the same noise.

"a red circle and a blue square" becomes "a blue circle and a red square", "left of" becomes "right of", and nothing
else is said differently. A pair counts only if both pictures are all-correct, each by its own prompt: a model that
draws what usually goes with the words is right in one of the two at most (the idea of Winoground, arXiv 2204.03162).

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
    """Pairs of scenes that differ in one thing, `swap`, one of `scenes.SWAPS`; a larger count begins with the same.

    held_out: whether one of the two shows a shape in a colour that no training scene shows it in; else neither does.
    """
    pairs: list[tuple[Scene, Scene]] = []
    for index in count_from():
        if len(pairs) == count:
            break
        one, other = (scene(TEST_SEED, index, SWAPS[swap], held_out, language, swap=s) for s in (None, swap))
        a, b = one.objects
        same = swap == "colours" and (a.shape == b.shape or a.colour == b.colour)  # then both say the same
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
    """Draw minimal pairs with `pipe`, `count` of each kind in each split, and count those with both pictures right.

    The arguments are those of `evaluate.evaluate`. Both prompts of a pair are drawn from the same noise, other pairs of
    its kind from other noise.

    Returns:
        {"seen": {"model": {kind: entry}, "ceiling": {...}, "floor": {...}}, "held_out": {...}}, kinds and entries as
        `SWAPS` and `evaluate` have them. The ceiling is the judge's, on exact renders of both; the floor is that of
        pictures that do not change: the first one's render for both.

    Raises:
        ValueError: no pairs or no seeds.
    """
    if count < 1 or not seeds:
        raise ValueError(f"needs a pair or more and a seed or more, got {count} pairs, {len(seeds)} seeds")
    report: dict[str, Any] = {}
    for split, held_out in SPLITS.items():
        report[split] = {"model": {}, "ceiling": {}, "floor": {}}
        for swap in SWAPS:
            pairs = minimal_pairs(count, swap, held_out, language)
            jobs = [(s, seed * count + i) for seed in seeds for i, pair in enumerate(pairs) for s in pair]
            verdicts, size = draw_and_judge(
                pipe, jobs, batch_size, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
            )
            right = [verdict.all_correct for verdict in verdicts]
            renders = [[render(s, size)[0] for s in pair] for pair in pairs]
            for source, both in {
                "model": [a and b for a, b in zip(right[::2], right[1::2], strict=True)],
                "ceiling": [_both(pair, *drawn) for pair, drawn in zip(pairs, renders, strict=True)],
                "floor": [_both(pair, drawn[0], drawn[0]) for pair, drawn in zip(pairs, renders, strict=True)],
            }.items():
                report[split][source][swap] = share_of(both)
    return report


def _both(pair: tuple[Scene, Scene], *pictures: Any) -> bool:
    return all(judge(s, picture).all_correct for s, picture in zip(pair, pictures, strict=True))
