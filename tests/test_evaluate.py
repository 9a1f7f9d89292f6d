"""Properties of the evaluation: prompts, noise, and figures."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.evaluation.agreement import SPLITS, agreement_table, evaluate, fixed_scenes
from pipelines.evaluation.statistics import wilson
from pipelines.scenes import worlds
from pipelines.scenes.judge import GENEVAL
from pipelines.scenes.scene import KINDS, Scene
from pipelines.scenes.shapes import HELD_OUT, scene

COUNT = 3
KNOWN = {s.caption: s for split in SPLITS.values() for s in fixed_scenes(COUNT, split)}


class Painter:
    """Called like a pipeline: it renders the scene that `choose` returns for a prompt, and records the calls."""

    def __init__(self, choose: Callable[[str], Scene]):
        self.choose = choose
        self.drawn: list[tuple[str, int]] = []
        self.settings: list[tuple[int, float]] = []

    def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type):
        assert output_type == "np"
        self.drawn += [(text, g.initial_seed()) for text, g in zip(prompt, generator, strict=True)]
        self.settings.append((num_inference_steps, guidance_scale))
        return SimpleNamespace(images=np.stack([worlds.render(self.choose(text))[0] for text in prompt]) / 255)


@pytest.fixture(scope="module")
def perfect():
    painter = Painter(KNOWN.__getitem__)
    return painter, evaluate(painter, COUNT, seeds=(0, 1), num_inference_steps=7, guidance_scale=2.5, batch_size=8)


def test_pictures_of_their_prompts_are_all_correct(perfect):
    _, report = perfect
    for split in SPLITS:
        for source in ("model", "ceiling"):
            counted = report[split][source]
            entries = [*counted["kinds"].values(), *(counted[tag] for tag in (*GENEVAL, "all_correct"))]
            assert all(entry["k"] == entry["n"] > 0 and entry["share"] == 1 for entry in entries)


def test_pictures_of_other_scenes_are_wrong():
    report = evaluate(Painter(lambda text: scene(1, len(text))), COUNT, seeds=(0,))
    for split in SPLITS:
        assert report[split]["model"]["all_correct"]["share"] <= 0.1
        assert report[split]["model"]["colour_attribution"]["share"] <= 0.2


def test_the_floor_is_low(perfect):
    _, report = perfect
    assert all(report[split]["floor"]["all_correct"]["share"] <= 0.1 for split in SPLITS)


def test_every_kind_is_drawn_equally_often_in_both_splits(perfect):
    _, report = perfect
    for split in SPLITS:
        assert {kind: entry["n"] for kind, entry in report[split]["model"]["kinds"].items()} == dict.fromkeys(KINDS, 6)
        assert report[split]["model"]["all_correct"]["n"] == 6 * len(KINDS)
        assert report[split]["model"]["two_objects"]["n"] == 12
        assert report[split]["ceiling"]["all_correct"]["n"] == 3 * len(KINDS)


def test_no_two_pictures_of_a_kind_share_their_noise(perfect):
    painter, _ = perfect
    for kind in KINDS:
        for split in SPLITS.values():
            prompts = {s.caption for s in fixed_scenes(COUNT, split) if s.kind == kind}
            noise = [seed for text, seed in painter.drawn if text in prompts]
            assert len(set(noise)) == len(noise) == 2 * COUNT


def test_the_report_contains_its_settings_and_is_json(perfect):
    painter, report = perfect
    assert set(painter.settings) == {(7, 2.5)}
    settings = report["settings"]
    assert (settings["num_inference_steps"], settings["guidance_scale"], settings["seeds"]) == (7, 2.5, [0, 1])
    assert settings["prompts"] == len(KNOWN) == 2 * COUNT * len(KINDS)
    assert json.loads(json.dumps(report)) == report


def test_the_table_fits_and_names_everything(perfect):
    text = agreement_table(perfect[1])
    assert max(map(len, text.splitlines())) <= 100
    for name in (*GENEVAL, "all_correct", *KINDS, "seen", "held-out", "ceiling", "floor"):
        assert name.replace("_", " ") in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_progress_counts_to_the_end():
    calls: list[tuple[int, int]] = []
    evaluate(Painter(KNOWN.__getitem__), 2, seeds=(0,), batch_size=8, progress=lambda *done: calls.append(done))
    assert calls == [(8, 20), (10, 20), (18, 20), (20, 20)]


def test_a_larger_count_starts_with_the_same_prompts():
    few, many = fixed_scenes(2, held_out=True), fixed_scenes(5, held_out=True)
    assert few == [s for kind in KINDS for s in [s for s in many if s.kind == kind][:2]]
    assert all({(o.shape, o.colour) for o in s.objects} & HELD_OUT for s in many)
    assert not any({(o.shape, o.colour) for o in s.objects} & HELD_OUT for s in fixed_scenes(5, held_out=False))


@pytest.mark.parametrize("wrong", [{"count_per_kind": 1}, {"seeds": ()}, {"batch_size": 0}])
def test_nothing_to_draw_is_refused(wrong):
    with pytest.raises(ValueError, match="or more"):
        evaluate(Painter(KNOWN.__getitem__), **wrong)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (90, 100, 0.8256, 0.9448)],
)
def test_wilson_agrees_with_textbook_intervals(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-4)


def test_a_model_of_emoji_is_evaluated_on_emoji() -> None:
    known = {s.caption: s for split in SPLITS.values() for s in fixed_scenes(2, split, "zh", "emoji")}
    report = evaluate(Painter(known.__getitem__), 2, seeds=(0,), language="zh", data="emoji")
    for split in SPLITS:
        assert report[split]["model"]["all_correct"] == report[split]["ceiling"]["all_correct"]
        assert report[split]["ceiling"]["all_correct"]["share"] == 1
        assert report[split]["floor"]["all_correct"]["share"] == 0
        assert {"single_object", "counting", "position"} < set(report[split]["model"])
        assert "colour_attribution" not in report[split]["model"]
    assert "emoji in Chinese" in agreement_table(report)
