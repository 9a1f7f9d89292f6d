"""The page's verdict: prompts as people type them, colours as people name them, and what it is not sure of."""

import numpy as np
import pytest

from pipelines.scenes.scene import COLOURS
from pipelines.scenes.shapes import render, scene
from ui.verdict import nearest_colour, read, verdict


def square(colour: tuple[int, int, int], ground: int = 255) -> np.ndarray:
    """A picture (64, 64, 3) of one square."""
    picture = np.full((64, 64, 3), ground, np.uint8)
    picture[20:40, 20:40] = colour
    return picture


def said(prompt: str, picture: np.ndarray, data: str | None = None) -> dict[str, bool | None]:
    return {str(one.as_json()["text"]): one.ok for one in verdict(prompt, picture, data) or []}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["one", "count", "two", "relation", "three"])
def test_an_exact_render_shows_all_and_another_does_not(kind: str, language: str) -> None:
    right, other = scene(3, 0, kind, language=language), scene(3, 1, kind, language=language)
    assert all(ok for ok in said(right.caption, render(right)[0]).values())
    assert not all(ok for ok in said(right.caption, render(other)[0]).values())


@pytest.mark.parametrize(
    ("typed", "proper"),
    [
        ("red circle", "a red circle"),
        ("Red Circle.", "a red circle"),
        ("the red circle", "a red circle"),
        ("RED CIRCLE left of BLUE SQUARE!", "a red circle left of a blue square"),
        ("red circle, blue square", "a red circle and a blue square"),
        ("a small red circle on a grey background", "a small red circle on a gray background"),
        ("big duck above frog", "a big duck above a frog"),
    ],
)
def test_a_prompt_is_read_as_people_type_it(typed: str, proper: str) -> None:
    scene, whole = read(typed)
    expected, _ = read(proper)
    assert whole and scene is not None and expected is not None
    assert (scene.objects, scene.relation, scene.ground) == (expected.objects, expected.relation, expected.ground)


def test_what_is_not_read_is_said_to_be_unchecked() -> None:
    statements = said("two green stars and a moon", square((45, 160, 70)), "shapes")
    assert statements == {"A star is there": False, "The rest of the prompt is not checked": None}
    assert verdict("a dream of red", square((0, 0, 0))) is None


@pytest.mark.parametrize(
    ("colour", "name"),
    [((255, 0, 0), "red"), ((0, 0, 255), "blue"), ((255, 255, 0), "yellow"), ((255, 165, 0), "orange")],
)
def test_a_pure_colour_has_the_name_that_a_person_gives_it(colour: tuple[int, int, int], name: str) -> None:
    assert nearest_colour(np.array(colour), COLOURS) == (name, set())
    assert said(f"{name} square", square(colour))[f"The square is {name}"] is True


def test_a_colour_between_two_names_is_unsure() -> None:
    assert said("a red square", square((222, 95, 40)))["The square is red"] is None


def test_a_shapeless_blob_is_not_counted() -> None:
    blob = square((220, 40, 40))
    blob[20:26, 20:40] = blob[20:40, 30:34] = 255
    blob[18:22, 40:56] = (220, 40, 40)
    blob[22:50, 52:56] = (220, 40, 40)
    statements = said("a red circle", blob)
    assert statements["Number of things: 1"] is None and True not in statements.values()


def test_what_the_prompt_leaves_open_is_not_judged() -> None:
    assert not any(
        "background" in text or "medium" in text for text in said("a red square", square((220, 40, 40), 100))
    )


def test_what_is_not_there_has_no_colour() -> None:
    assert said("a red circle", square((220, 40, 40))) == {"Number of things: 1": True, "A circle is there": False}
