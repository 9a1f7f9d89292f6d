"""Minimal pairs: they differ in one fact, and count only if both pictures are correct."""

import json
import re
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.evaluation.agreement import SPLITS, agreement_table, evaluate
from pipelines.evaluation.pairs import evaluate_pairs, minimal_pairs
from pipelines.scenes.captions import LANGUAGES, meaning
from pipelines.scenes.scene import REVERSED, Scene, relation_between
from pipelines.scenes.shapes import HELD_OUT, SWAPS, render

COUNT = 4
EVERY = [(swap, held_out, language) for swap in SWAPS for held_out in SPLITS.values() for language in LANGUAGES]


class Painter:
    """Called like a pipeline: it renders the scene that `choose` returns for a prompt, and records the calls."""

    def __init__(self, choose: Callable[[str], Scene]):
        self.choose = choose
        self.drawn: list[tuple[str, int]] = []

    def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type):
        self.drawn += [(text, g.initial_seed()) for text, g in zip(prompt, generator, strict=True)]
        return SimpleNamespace(images=np.stack([render(self.choose(text))[0] for text in prompt]) / 255)


def known(language: str = "en", count: int = COUNT) -> dict[str, Scene]:
    pairs = [p for swap in SWAPS for split in SPLITS.values() for p in minimal_pairs(count, swap, split, language)]
    return {s.caption: s for pair in pairs for s in pair}


@pytest.mark.parametrize(("swap", "held_out", "language"), EVERY)
def test_a_pair_differs_in_one_fact_and_keeps_its_wording(swap: str, held_out: bool, language: str) -> None:
    pairs = minimal_pairs(COUNT, swap, held_out, language)
    assert len(pairs) == COUNT and pairs[:3] == minimal_pairs(3, swap, held_out, language)
    for one, other in pairs:
        assert meaning(one.caption) != meaning(other.caption)
        assert len(one.words) == len(other.words) and one.ground == other.ground
        changed = [
            w.kind
            for w, v in zip(one.words, other.words, strict=True)
            if one.caption[w.start : w.end] != other.caption[v.start : v.end]
        ]
        assert set(changed) == {"colour" if swap == "colours" else "relation"}, (one.caption, other.caption)
        kept = [(o.shape, o.size) for o in one.objects]
        assert kept == [(o.shape, o.size) for o in other.objects]
        shown = {(o.shape, o.colour) for o in (*one.objects, *other.objects)}
        assert bool(shown & HELD_OUT) == held_out


def test_exchanged_colours_leave_the_objects_in_place() -> None:
    for one, other in minimal_pairs(COUNT, "colours", False):
        assert [o.colour for o in other.objects] == [o.colour for o in reversed(one.objects)]
        assert [(o.x, o.y) for o in one.objects] == [(o.x, o.y) for o in other.objects]
        an = re.findall(r"\b(an?) (\w)", other.caption.lower())
        assert all((article == "an") == (letter in "aeiou") for article, letter in an), other.caption


def test_a_reversed_relation_holds_and_both_objects_stay_inside() -> None:
    for one, other in minimal_pairs(COUNT, "relation", False):
        (_, relation, _), (_, reverse, _) = one.relation, other.relation
        assert reverse == REVERSED[relation] and REVERSED[reverse] == relation
        assert relation_between(*other.objects) == reverse
        masks = [render(s)[1].sum(axis=(1, 2)) for s in (one, other)]
        np.testing.assert_allclose(*masks, rtol=0.02)  # nothing is cut off, nothing covered


@pytest.mark.parametrize("language", LANGUAGES)
def test_drawing_both_scenes_is_correct_and_only_a_pair_shares_its_noise(language: str) -> None:
    painter = Painter(known(language).__getitem__)
    report = evaluate_pairs(painter, COUNT, language=language, batch_size=7)
    for split, swap in [(split, swap) for split in SPLITS for swap in SWAPS]:
        for source, share in (("model", 1), ("ceiling", 1), ("floor", 0)):
            entry = report[split][source][swap]
            assert entry["share"] == share and entry["low"] <= share <= entry["high"]
        assert report[split]["model"][swap]["n"] == 2 * COUNT
        pairs = minimal_pairs(COUNT, swap, SPLITS[split], language)
        noise = [[seed for text, seed in painter.drawn if text == s.caption] for pair in pairs for s in pair]
        assert noise[::2] == noise[1::2]
        assert len({seed for seeds in noise for seed in seeds}) == 2 * COUNT
    assert json.loads(json.dumps(report)) == report


def test_drawing_the_same_picture_for_both_never_counts() -> None:
    first = {
        s.caption: pair[0]
        for swap in SWAPS
        for split in SPLITS.values()
        for pair in minimal_pairs(COUNT, swap, split)
        for s in pair
    }
    report = evaluate_pairs(Painter(first.__getitem__), COUNT, seeds=(0,))
    assert all(report[split]["model"][swap]["k"] == 0 for split in SPLITS for swap in SWAPS)


def test_ignoring_relations_is_correct_only_for_colours() -> None:
    scenes = known()
    deaf = {s.caption: one for held_out in SPLITS.values() for one, s in minimal_pairs(COUNT, "relation", held_out)}
    report = evaluate_pairs(Painter((scenes | deaf).__getitem__), COUNT, seeds=(0,))
    assert [report["seen"]["model"][swap]["share"] for swap in SWAPS] == [1, 0]


def test_the_table_has_a_line_for_each_kind_of_pair() -> None:
    painter = Painter(lambda text: next(iter(known(count=1).values())))
    report = evaluate(painter, 2, seeds=(0,)) | {"pairs": evaluate_pairs(painter, 2, seeds=(0,))}
    text = agreement_table(report)
    assert max(map(len, text.splitlines())) <= 100
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    for swap in SWAPS:
        assert re.search(rf"^\| pairs: {swap} +\| +2 \| .* 100.0 / 100.0 \| +0.0 / 0.0 \|$", text, re.MULTILINE)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seeds": ()}])
def test_nothing_to_draw_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="or more"):
        evaluate_pairs(Painter(known().__getitem__), **wrong)
