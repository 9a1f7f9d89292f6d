"""Edits as a text, prompts without a thing, and the check of an edited picture."""

from typing import Any

import numpy as np
import pytest
import torch

from pipelines import TextToImagePipeline, paint, refine, replace, reweight, trace, withhold
from pipelines.edits import Edit
from ui.drawing import linked, viewer_updates
from ui.edit_text import placed_prompt, read_changes, read_regions
from ui.edit_verdict import edit_verdict
from ui.kept import Kept
from ui.left_out import without
from ui.models import Models
from ui.request import Request

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def models() -> Models:
    return Models("shapes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("replace circle=star", [replace("circle", "star")]),
        (" replace red circle = small = star ;; ", [replace("red circle", "small = star")]),
        ("reweight red=2; withhold a", [reweight("red", 2), withhold("a")]),
        ("reweight red=2; reweight RED=3", [reweight("RED", 3)]),
        ("paint circle=1,2,30,40; paint circle=5, 6, 40, 40", [paint("circle", (5, 6, 40, 40))]),
        ("replace square=star; remove circle", [replace("square", "star"), refine("a blue star")]),
        ("refine a star", [refine("a star")]),
    ],
)
def test_a_text_is_read_as_edits(text: str, expected: list[Edit]) -> None:
    changes = read_changes(text, PROMPT, "shapes")
    assert changes.edits == expected
    assert changes.kept == []


def test_edits_before_the_last_keep_make_the_picture_that_the_others_change() -> None:
    changes = read_changes("replace circle=star; paint star=1,1,9,9; keep; paint star=4,4,20,20", PROMPT, "shapes")
    assert changes.kept == [replace("circle", "star"), paint("star", (1, 1, 9, 9))]
    assert changes.new == [paint("star", (4, 4, 20, 20))]
    assert changes.edits == [replace("circle", "star"), paint("star", (4, 4, 20, 20))]
    assert [part["kind"] for part in changes.listed] == ["replace", "paint", "keep", "paint"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("enlarge circle", "an edit begins with one of replace, .*, keep, not 'enlarge circle'"),
        ("replace circle", "'replace circle' has no '=': write it like replace circle=star"),
        ("replace circle=", "nothing replaces 'circle'"),
        ("reweight red=loud", "a weight is a number such as 2 or 0.5, not 'loud'"),
        ("reweight red=-1", "weight of 'red'"),
        ("paint circle=1,2,3", "a box is four whole numbers"),
        ("remove star", "'star' is not in the prompt; its words are: a, red, circle"),
        ("remove circle; remove square", "without 'square' nothing is left to draw"),
        ("withhold a;" * 41, "at most 40 edits"),
        ("withhold " + "a" * 10_001, "the edits has 10,010 characters"),
    ],
)
def test_what_is_no_edit_is_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        read_changes(text, PROMPT, "shapes")
    assert "\n" not in str(error.value)


def test_placed_phrases_are_read_with_their_boxes_and_are_the_prompt_if_it_lacks_them() -> None:
    placed = read_regions("red circle=4,4,28,28; a = b=30,30,60,60")
    assert placed == {"red circle": (4, 4, 28, 28), "a = b": (30, 30, 60, 60)}
    for wrong in ("=1,2,3,4", "1,2,3,4", "duck=1,2,3", "duck=1,2,3,4; duck=1,2,3,4"):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read_regions(wrong)
    box = (1, 1, 9, 9)
    assert placed_prompt(PROMPT, {"blue square": box, "red circle": box}) == PROMPT
    assert placed_prompt(PROMPT, {"a duck": box}) == "a duck"
    assert placed_prompt(PROMPT, {"a duck": box, "a red circle": box, "a cat": box}) == "a duck, a red circle and a cat"


@pytest.mark.parametrize(
    ("data", "prompt", "phrase", "expected"),
    [
        ("shapes", PROMPT, "circle", "a blue square"),
        ("shapes", PROMPT, "square", "a red circle"),
        ("shapes", PROMPT, "red", "a circle left of a blue square"),
        ("shapes", "red circle, a star and two small hearts on a gray background", "star",
         "a red circle and two small hearts on a gray background"),
        ("shapes", "a red circle and a blue circle", "blue circle", "a red circle"),
        ("shapes", "一个红色的圆形在蓝色方块的左边", "圆", "蓝色方块"),
        ("shapes", "一个红色的圆形在蓝色方块的左边", "红", "一个圆形在蓝色方块的左边"),
        ("emoji", "a duck left of a big frog", "duck", "a big frog"),
        (None, "a duck left of a big frog", "duck", "a left of a big frog"),
    ],
)  # fmt: skip
def test_a_thing_leaves_a_prompt_with_all_its_words(data: str | None, prompt: str, phrase: str, expected: str) -> None:
    assert without(prompt, phrase, data) == expected


def checked(pipe: TextToImagePipeline, edits: list[Edit]) -> dict[str, bool | None]:
    generator = torch.Generator().manual_seed(0)
    with trace(pipe) as attention:
        out: Any = pipe(PROMPT, edits=edits, generator=generator, output_type="np")
    before, after = ((batch[0] * 255).round().astype(np.uint8) for batch in (out.before, out.images))
    found = edit_verdict((PROMPT, attention.prompts[0]), (before, after), edits, "shapes")
    return {statement.says[0].rpartition(".")[2]: statement.ok for statement in found or []}


def test_an_edited_picture_is_checked_for_what_was_asked_and_for_the_rest(models: Models) -> None:
    pipe = models.get("shapes")
    right = {"asked": True, "elsewhere": True}
    assert checked(pipe, [replace("circle", "star")]) == right
    assert checked(pipe, [paint("circle", (32, 0, 60, 24))]) == right  # although it is not left of the square any more
    assert checked(pipe, [reweight("red", 2)]) == {"elsewhere": True}  # no rule tells whether a word is louder
    before = np.full((64, 64, 3), 248, np.uint8)
    pictures = before.copy(), before.copy()
    pictures[0][10:30, 10:30] = pictures[1][10:30, 14:34] = (40, 90, 220)  # the square moved, and there is no star
    found = edit_verdict((PROMPT, "a red star and a blue square"), pictures, [replace("circle", "star")], "shapes")
    assert found is not None and [statement.ok for statement in found] == [False, False]
    assert edit_verdict(("fog", "mist"), pictures, [replace("fog", "mist")], "shapes") is None


def test_an_edited_picture_comes_with_the_one_before_and_its_text_draws_it_again(models: Models) -> None:
    kept = Kept()

    def shown(**settings: Any) -> dict[str, Any]:
        *_, answer = viewer_updates(models, kept, Request(PROMPT, num_inference_steps=6, **settings))
        return answer["pictures"][0]

    plain, edited = shown(), shown(edits="replace circle=star")
    assert plain["edit"] is None and edited["edit"]["before"] == plain["picture"]
    assert edited["prompt"] == "a red star left of a blue square" and edited["picture"] != plain["picture"]
    assert edited["edit"]["listed"] == [{"kind": "replace", "word": "circle", "value": "star"}]
    assert [check["text"] for check in edited["edit"]["checks"]] == ["Asked for", "Elsewhere unchanged"]
    assert edited["settings"]["edits"] == "replace circle=star" and edited["settings"]["prompt"] == PROMPT
    again = linked({name: str(value) for name, value in edited["settings"].items()}, models)
    assert again == Request(**edited["settings"])
    alone = shown(edits="replace circle=star; keep")
    assert alone["picture"] == edited["picture"] and alone["edit"]["before"] is None
    further = shown(edits="replace circle=star; keep; replace blue=green")
    assert further["edit"]["before"] == edited["picture"] and further["prompt"] == "a red star left of a green square"


def test_placed_words_are_drawn_in_their_boxes_and_edited_there(models: Models) -> None:
    where = "red circle=2,36,26,60; blue square=36,2,60,26"
    pictures = []
    for edits in ("", "replace circle=star"):
        *_, answer = viewer_updates(models, Kept(), Request(PROMPT, edits=edits, regions=where))
        pictures.append(answer["pictures"][0])
    assert all(statement["ok"] for statement in pictures[1]["verdict"])
    assert pictures[1]["edit"]["before"] == pictures[0]["picture"]
    with pytest.raises(ValueError, match="'duck' is not in the prompt"):
        list(viewer_updates(models, Kept(), Request(PROMPT, regions="duck=1,1,9,9")))
