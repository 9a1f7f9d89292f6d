"""What edits mean for a prompt, its words and their places; the pictures are judged in test_edited.py."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline, trace
from pipelines.edit_plan import align, lay_out, plan
from pipelines.edits import (
    Edit,
    check_known,
    edited_prompt,
    excite,
    paint,
    pin,
    refine,
    replace,
    reweight,
    withhold,
    within,
)

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def shapes() -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_edits_of_the_prompt_compose_in_order() -> None:
    assert edited_prompt(PROMPT, [replace("red circle", "green star"), replace("star", "heart")]) == (
        "a green heart left of a blue square"
    )
    assert edited_prompt(PROMPT, [refine("a cat"), replace("cat", "dog")]) == "a dog"
    assert edited_prompt(PROMPT, [reweight("red", 2), paint("circle", (0, 0, 4, 4))]) == PROMPT


def aligned(old: str, new: str, *things: list[int]) -> list[str]:
    a, b = old.split(), new.split()
    return [" ".join(b[j] + str(j) for j in become) for become in align(a, b, things)]


def test_a_left_out_phrase_is_the_one_whose_things_stay_whole() -> None:
    """difflib alone would keep "a red" and the last "cross"."""
    kept = aligned("a red cross right of a blue cross on gray", "a red cross on gray", [1, 2], [6, 7])
    assert kept == ["a0", "red1", "cross2", "", "", "", "", "", "on3", "gray4"]


def test_a_phrase_put_in_does_not_cut_a_thing_in_two() -> None:
    assert aligned("a green circle", "a green star and a green circle", [1, 2]) == ["a4", "green5", "circle6"]
    assert aligned("a green circle", "a green circle and a green star", [1, 2]) == ["a0", "green1", "circle2"]


def test_words_of_things_are_aligned_before_those_between_them() -> None:
    """The longest common part is "and a", which would make the melon a robot."""
    kept = aligned("a cactus and a melon on blue", "a cactus a melon and a robot on blue", [1], [4])
    assert kept == ["a0", "cactus1", "", "a2", "melon3", "on7", "blue8"]


def test_replaced_words_become_all_that_replace_them() -> None:
    assert aligned("a cat", "a very big dog") == ["a0", "very1 big2 dog3"]


@pytest.fixture(scope="module")
def first(shapes: TextToImagePipeline):
    with trace(shapes, "head") as attention:
        shapes(PROMPT, generator=torch.Generator().manual_seed(7))
    return attention


def test_things_have_places_and_articles_and_relations_have_none(shapes: TextToImagePipeline, first) -> None:
    layout = lay_out(PROMPT, PROMPT, shapes.tokenizer, first)
    places = {word.text: place for word, place in layout.places.items()}
    assert {"red", "circle", "blue", "square"} <= places.keys() and not {"left", "of"} & places.keys()
    assert not (places["circle"] & places["square"]).any() and layout.gone == [] and layout.new == []


def box_around(place: torch.Tensor) -> torch.Tensor:
    return place.any(dim=0)[None] & place.any(dim=1)[:, None]


def test_a_replaced_word_takes_the_place_and_the_other_thing_stays(shapes: TextToImagePipeline, first) -> None:
    circle, square = first.mask("circle"), first.mask("square")
    planned = plan([replace("circle", "star")], PROMPT, (64, 64), shapes.tokenizer, first)
    assert planned.prompt == "a red star left of a blue square"
    (star,) = [w for w in lay_out(PROMPT, planned.prompt, shapes.tokenizer).after if w.text == "star"]
    (held,) = [bias for bias in planned.biases if bias.tokens == star.tokens]
    assert held.region is not None and held.region.equal(circle) and held.inside > 0 > held.outside
    assert planned.kept[square].all() and not planned.kept[circle].any()


STAR = "a green circle above a yellow star"


@pytest.fixture(scope="module")
def star(shapes: TextToImagePipeline):
    with trace(shapes, "head") as attention:
        shapes(STAR, generator=torch.Generator().manual_seed(1004))
    return attention


@pytest.mark.parametrize(
    ("word", "other", "phrase", "has_room"),
    [
        ("star", "heart", "yellow heart", True),
        ("yellow", "red", "red star", False),  # it keeps its outline
        ("circle", "heart", "green heart", False),  # a circle has room for others as it is
    ],
)
def test_a_sparse_thing_with_another_name_has_room_for_its_outline(
    shapes: TextToImagePipeline, star, word: str, other: str, phrase: str, has_room: bool
) -> None:
    planned = plan([replace(word, other)], STAR, (64, 64), shapes.tokenizer, star)
    layout = lay_out(STAR, planned.prompt, shapes.tokenizer, star)
    for found in (word for word in layout.find(phrase) if word in layout.places):
        (held,) = [bias for bias in planned.biases if bias.tokens == found.tokens]
        place = layout.places[found]
        assert held.region is not None and held.region.equal(box_around(place) if has_room else place)


def test_a_word_around_a_thing_has_no_place(shapes: TextToImagePipeline, star) -> None:
    """This article fills the ground around the star, which then would not have room to become a heart."""
    layout = lay_out(STAR, STAR, shapes.tokenizer, star)
    assert [word.text for word in layout.places] == ["green", "circle", "yellow", "star"]


def test_a_painted_word_takes_the_words_of_its_thing_along(shapes: TextToImagePipeline, first) -> None:
    planned = plan([paint("circle", (40, 40, 60, 60))], PROMPT, (64, 64), shapes.tokenizer, first)
    red, circle = (next(w for w in first.words if w.text == text) for text in ("red", "circle"))
    (moved,) = [bias for bias in planned.biases if set(circle.tokens) <= set(bias.tokens)]
    assert set(red.tokens) <= set(moved.tokens) and moved.region is not None
    assert moved.region[40:60, 40:60].all() and moved.region.sum() == 400
    assert not planned.kept[first.mask("circle")].any() and not planned.kept[40:60, 40:60].any()


@pytest.mark.parametrize(
    ("edits", "word", "moves"),
    [
        ([], "circle", True),
        ([replace("square", "star")], "circle", True),  # the other thing
        ([replace("red", "green")], "circle", False),
        ([replace("circle", "star")], "star", False),
        ([refine("a big red circle left of a blue square")], "a big red circle", False),
    ],
)
def test_a_painted_thing_moves_if_it_stays_as_it_is(
    shapes: TextToImagePipeline, first, edits: list[Edit], word: str, moves: bool
) -> None:
    planned = plan([*edits, paint(word, (40, 40, 60, 60))], PROMPT, (64, 64), shapes.tokenizer, first)
    assert len(planned.moved) == moves
    assert not plan(
        [*edits, paint(word, (40, 40))], PROMPT, (64, 64), shapes.tokenizer, first
    ).moved  # as large as what?
    for moved in planned.moved:
        assert (moved.place & first.mask("circle")).sum() > 0.9 * moved.place.sum()
        assert moved.region[40:60, 40:60].all() and moved.region.sum() == 400


@pytest.mark.parametrize("where", [{"layers": ["up.*"]}, {"heads": [0]}, {"noise": (0.0, 0.5)}])
def test_to_paint_in_some_layers_or_at_other_noise_moves_nothing(shapes: TextToImagePipeline, first, where) -> None:
    assert not plan([paint("circle", (40, 40, 60, 60), **where)], PROMPT, (64, 64), shapes.tokenizer, first).moved


def test_a_thing_in_the_place_of_another_is_let_go_earlier(shapes: TextToImagePipeline, first) -> None:
    """Its outline is the model's own; a painted region is what was asked for."""

    def lowest(word: str, *edits: Edit) -> float:
        planned = plan(edits, PROMPT, (64, 64), shapes.tokenizer, first)
        (token,) = next(w.tokens for w in lay_out(PROMPT, planned.prompt, shapes.tokenizer).after if w.text == word)
        return min(bias.noise[0] for bias in planned.biases if token in bias.tokens and bias.inside > 0)

    box = (40, 40, 60, 60)
    star = replace("circle", "star")
    assert lowest("star", star) == lowest("red", star) == 0.5
    assert lowest("square", star) == lowest("green", replace("red", "green")) == 0.3
    assert lowest("star", star, paint("star", box)) == lowest("circle", paint("circle", box)) == 0.3
    assert lowest("circle", paint("circle", box, noise=(0.6, 1.0))) == 0.6


def test_within_a_word_everything_else_stays(shapes: TextToImagePipeline, first) -> None:
    planned = plan([replace("red", "green"), within("circle")], PROMPT, (64, 64), shapes.tokenizer, first)
    circle = first.mask("circle")
    assert (
        not planned.kept[circle].any()
        and planned.kept.float().mean() > 0.8
        and planned.kept[first.mask("square")].all()
    )


def test_a_weight_alone_holds_nothing(shapes: TextToImagePipeline, first) -> None:
    planned = plan([reweight("red", 2.0), withhold("blue")], PROMPT, (64, 64), shapes.tokenizer, first)
    assert not planned.kept.any() and len(planned.biases) == 2
    assert [round(bias.inside, 3) for bias in planned.biases] == [0.693, -float("inf")]


def test_an_excited_word_is_held_nowhere_and_the_others_are(shapes: TextToImagePipeline, first) -> None:
    planned = plan([excite("circle", layers=["up.*"])], PROMPT, (64, 64), shapes.tokenizer, first)
    (circle,) = [word for word in first.words if word.text == "circle"]
    (excited,) = planned.excited
    assert excited.tokens == circle.tokens and excited.layers == ("up.*",) and excited.noise == (0.5, 1.0)
    assert planned.biases and not any(set(circle.tokens) & set(bias.tokens) for bias in planned.biases)
    assert planned.kept[first.mask("square")].all()


def test_a_word_is_found_in_the_first_prompt_too(shapes: TextToImagePipeline, first) -> None:
    """`paint("circle")` of a circle that became a star is about the star."""
    planned = plan(
        [replace("circle", "star"), paint("circle", (0, 0, 20, 20))], PROMPT, (64, 64), shapes.tokenizer, first
    )
    star = next(w for w in lay_out(PROMPT, planned.prompt, shapes.tokenizer).after if w.text == "star")
    assert any(
        set(star.tokens) <= set(b.tokens) and b.region is not None and b.region[:20, :20].all() for b in planned.biases
    )


def test_a_thing_that_an_edit_leaves_out_cannot_be_painted(shapes: TextToImagePipeline, first) -> None:
    edits = [refine("a blue square"), paint("circle", (0, 0, 20, 20))]
    with pytest.raises(ValueError, match=r"^nothing of 'circle' is left in the edited prompt, 'a blue square'$"):
        plan(edits, PROMPT, (64, 64), shapes.tokenizer, first)


def test_chinese_words_are_aligned_too(shapes: TextToImagePipeline) -> None:
    layout = lay_out("一个红色圆形", "一个绿色圆形", shapes.tokenizer)
    assert [(word.text, [new.text for new in words]) for word, words in layout.before.items()] == [
        ("一", ["一"]),
        ("个", ["个"]),
        ("红", ["绿"]),
        ("色", ["色"]),
        ("圆", ["圆"]),
        ("形", ["形"]),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace("circle", " "), "nothing replaces 'circle': withhold it, or refine to a prompt without it"),
        (lambda: replace("", "star"), "an edit is about a word or a phrase of the prompt, not ''"),
        (lambda: replace(3, "star"), "an edit is about a word or a phrase of the prompt, not '3'"),  # type: ignore[arg-type]
        (lambda: refine(" "), "the prompt is empty: describe what to draw"),
        (lambda: reweight("red", -1), "the weight of 'red' must be a number between 0 and 100"),
        (lambda: reweight("red", float("nan")), "the weight of 'red' must be a number between 0 and 100"),
        (lambda: reweight("red", "loud"), "the weight of 'red' must be a number between 0 and 100"),  # type: ignore[arg-type]
        (lambda: pin("red", noise=(0.2, 3)), "the noise level of an edit must be a number between 0 and 1, got 3"),
        (lambda: pin("red", noise=(0.2,)), r"noise= is two levels, \(low, high\), not"),
        (lambda: pin("red", layers=[3]), "layers= are names, not"),
        (lambda: pin("red", heads=["a"]), "heads= are numbers from 0, not"),
        (lambda: pin("red", steps=3), "an edit can be limited by layers=, heads= and noise=, not by steps"),
        (lambda: edited_prompt(PROMPT, [replace("cat", "dog")]), "'cat' is not in the prompt; its words are: a, red"),
    ],
)
def test_edits_that_make_no_sense_are_one_line(make: Callable[[], Edit], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_word_that_the_model_does_not_know_names_its_nearest(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"^'sqare' is unknown to this model.*near it are: square"):
        check_known(PROMPT, [replace("circle", "sqare")], tokenizer)
    check_known("a sqare", [refine("a red sqare")], tokenizer)  # the prompt had it already
