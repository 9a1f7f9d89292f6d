"""The evaluation of edits: what is asked for, and how it is judged."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from pipelines import TextToImagePipeline
from pipelines.data.scenes import SceneExamples
from pipelines.evaluation.edit_tasks import RADII, SCENES, SIDE, Task, box_iou, box_of, make_task, scenes_to_edit
from pipelines.evaluation.editing import editing_table, evaluate_editing, judge_edit
from pipelines.scenes.captions import OPPOSITE
from pipelines.scenes.everyday_words import all_names
from pipelines.scenes.scene import REVERSED, Object, Scene
from pipelines.scenes.worlds import WORLDS, parse, render
from pipelines.tokenizer import train_tokenizer
from unet_xattn import CrossAttentionUNet, Transformer

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import edit_curves

KINDS = [(data, kind) for data in RADII for kind in SCENES if (data, kind) != ("emoji", "recolour")]


@cache
def tasks_of(data: str, kind: str) -> list[tuple[Task, Any]]:
    """Edits of exact renders of some scenes, with those."""
    made, count = [], 4 if data == "everyday" and kind != "recolour" else 12  # those take long to judge
    for number, scene in enumerate(scenes_to_edit(kind, range(count), data)):
        picture = render(scene, SIDE)[0]
        if task := make_task(kind, scene, WORLDS[data].see(picture), number):
            made.append((task, picture))
    return made


def as_asked(task: Task) -> Scene:
    """The target with its things in the boxes that they are asked into."""
    objects: list[Object] = []
    for number, o in enumerate(task.target.objects):
        if box := task.boxes.get(number):
            x, y = ((box[axis] + box[axis + 2]) / 2 / SIDE for axis in (0, 1))
            o = replace(o, x=x, y=y, radius=o.radius if task.kind in ("move", "swap", "turn") else radius(task, o))
        objects.append(o)
    return replace(task.target, objects=tuple(objects))


def radius(task: Task, o: Object) -> float:
    return RADII[task.scene.data][o.size]


@pytest.mark.parametrize(("data", "kind"), KINDS)
def test_a_picture_of_what_is_asked_succeeds_and_one_of_what_was_does_not(data: str, kind: str) -> None:
    made = tasks_of(data, kind)
    assert made
    right = 0
    for task, before in made:
        found = judge_edit(task, before, render(as_asked(task), SIDE)[0])
        right += found["both"]
        assert found["iou"] is None or found["iou"] > 0.9
        assert not judge_edit(task, before, before)["success"]
    assert right >= 0.9 * len(made)  # a star's centre is not that of its box


def content(scene: Scene) -> tuple[Any, ...]:
    """What a caption has to say of a scene."""
    a, relation, *rest = scene.relation or (0, "")
    if relation in OPPOSITE.values():  # the parser turns "below" into "above"
        (a, rest), relation = (rest[0], [a]), REVERSED[relation]
    if relation == "beside":
        a = min(a, *rest, key=lambda i: scene.objects[i].shape)
    things = sorted((o.shape, o.colour, o.size) for o in scene.objects)
    return things, scene.ground, relation, scene.objects[a].shape if relation else ""


@pytest.mark.parametrize(("data", "kind"), KINDS)
def test_edited_prompts_say_the_target_and_nothing_else(data: str, kind: str) -> None:
    for task, _ in tasks_of(data, kind):
        for scene, text in ((task.scene, task.scene.caption), (task.target, task.prompt)):
            read = parse(text, data)
            assert read is not None
            assert content(read) == content(scene)


def test_half_of_the_scenes_of_each_kind_show_held_out_pairs() -> None:
    scenes = scenes_to_edit("move", range(8), "shapes")
    assert [scene.kind for scene in scenes] == ["two", "two", "three", "three"] * 2
    assert scenes[3:5] == scenes_to_edit("move", range(3, 5), "shapes")
    assert scenes != scenes_to_edit("move", range(8), "shapes", seed=5)


@pytest.fixture(scope="module")
def fast() -> TextToImagePipeline:
    """A model of four steps."""
    pipe = TextToImagePipeline.from_pretrained("shapes-fast")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def report(fast: TextToImagePipeline) -> tuple[dict[str, Any], list[list[int]]]:
    """With the numbers of scenes at each save."""
    saved: list[list[int]] = []
    found = evaluate_editing(
        fast,
        6,
        ("recolour", "move"),
        batch_size=3,
        save=lambda r: saved.append([*r["settings"]["scenes"].values()]),
    )
    return found, saved


def test_figures_are_saved_as_they_come_and_splits_add_up(report: tuple[dict[str, Any], list[list[int]]]) -> None:
    found, saved = report
    assert saved == [[3, 0], [3, 3], [6, 3], [6, 6]]  # the kinds take turns
    for methods in found["kinds"].values():
        assert list(methods) == ["edited", "anew", "prompt-to-prompt"]
        for figures in methods.values():
            parts = [figures[split].get("success", {"n": 0})["n"] for split in ("seen", "held_out")]
            assert sum(parts) == figures["success"]["n"] > 0


def test_edits_reach_what_other_ways_do_not(report: tuple[dict[str, Any], list[list[int]]]) -> None:
    kinds = report[0]["kinds"]
    for method in ("anew", "prompt-to-prompt"):  # they cannot take a box: the picture is the first one
        assert kinds["move"][method]["success"]["k"] == 0 and kinds["move"][method]["outside"][0] == 0
        assert kinds["move"][method]["locality"]["share"] == 1
    assert kinds["recolour"]["edited"]["both"]["share"] > kinds["recolour"]["anew"]["both"]["share"]
    assert "| recolour | held-out |" in editing_table(report[0])


def test_a_model_of_everyday_things_is_measured_too(make_unet: Callable[..., CrossAttentionUNet]) -> None:
    captions = [*all_names(), *islice(SceneExamples(32, 0, data="everyday").captions(), 3000)]
    tokenizer = train_tokenizer(captions)
    encoder = Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1)
    pipe = TextToImagePipeline(
        tokenizer, encoder, make_unet(), FlowMatchEulerDiscreteScheduler(), num_inference_steps=1, guidance_scale=1.0
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        found = evaluate_editing(pipe, 2)
    assert found["settings"]["data"] == "everyday" and list(found["kinds"]) == list(SCENES)
    assert not any(found["kinds"].values())  # untrained: no first picture is right
    assert editing_table(found)


def test_a_louder_word_takes_more_attention_and_without_it_its_thing_is_missing(
    fast: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_curves, "WEIGHTS", (0.0, 1.0, 4.0))
    (found,) = edit_curves.doses(fast, 4)
    silent, usual, loud = (point[0] for point in found["curves"]["mass"])
    assert found["scenes"] > 0 and silent == 0 < usual < loud and found["falls"]["mass"] == []
    assert found["curves"]["presence"][0][0] < found["curves"]["presence"][1][0] == 1
    assert edit_curves.table({"doses": found}).startswith("| | × 0 | × 1 | × 4 |")


def test_falling_means_are_reported() -> None:
    rows = {weight: [{"area": -weight, "presence": 1.0, "mass": weight}] for weight in edit_curves.WEIGHTS}
    falls = edit_curves.summary(rows)["falls"]
    assert len(falls["area"]) == len(rows) - 1 and falls["presence"] == falls["mass"] == []


def test_layouts_overlap_where_they_should_and_regions_draw_them(
    fast: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, overlapping in ((5, False), (3, True)):
        scene = edit_curves.placed("shapes", count, overlapping, (0, count))
        boxes = [box_of(mask) for mask in render(scene, SIDE)[1]]
        pairs = [box_iou(a, b) > 0 for i, a in enumerate(boxes) for b in boxes[:i]]
        assert len(set(scene.objects)) == count and any(pairs) == overlapping
    monkeypatch.setattr(edit_curves, "LAYOUTS", {"2": 2})
    (found,) = edit_curves.layouts(fast, 3)
    assert found["2"]["things"]["share"] >= 0.8 and found["2"]["iou_found"][0] > 0.5
