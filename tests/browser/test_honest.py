"""The page in a real browser shows nothing that is not so. It opens with the bundled model `shapes`."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from of_page import Open, chip, draw, wait_for_prompt

from pipelines import TextToImagePipeline
from pipelines.pixels import read_picture
from pipelines.scenes.see_shapes import see_shapes
from unet_xattn import AttentionTrace

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page is started in."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], start: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        yield serve(TextToImagePipeline.from_pretrained("shapes"))


def saved(page: "Page", kind: str) -> bytes:
    with page.expect_download() as file:
        page.get_by_role("button", name=kind, exact=True).click()
    return Path(file.value.path()).read_bytes()


def test_a_word_is_said_to_lie_where_its_thing_is(open_page: Open) -> None:
    page = open_page()
    sight = see_shapes(np.asarray(read_picture(saved(page, "Picture"))))
    said = []
    for seen in sight.objects:
        chip(page, seen.shape).hover()
        found = re.search(r"centred at the ([a-z ]+)\.", page.locator(".caption").first.inner_text())
        assert found, page.locator(".caption").first.inner_text()
        said.append(found[1])
        down = "top" if seen.y < 0.4 else "bottom" if seen.y > 0.6 else ""
        across = "left" if seen.x < 0.4 else "right" if seen.x > 0.6 else ""
        # At the border of two names either is right.
        assert (
            found[1] == (" ".join(filter(None, (down, across))) or "middle")
            or min(abs(abs(place - 0.5) - 0.1) for place in (seen.x, seen.y)) < 0.05
        )
    assert len(set(said)) == 2
    chip(page, "of").hover()  # its map is spread over the picture: no place is named
    assert "centred" not in page.locator(".caption").first.inner_text()


def test_the_numbers_are_those_of_the_files_that_it_saves(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "trace").write_bytes(saved(page, "Trace"))
    attention = AttentionTrace.load(tmp_path / "trace")
    # `pipelines.tracing.overlay.word_sheet` labels its maps so.
    expected = [f"{word} {100 * attention.heatmap(word).max():.2g}" for word in attention.words]
    shown = [text.replace("\u202f%", "") for text in page.locator(".tile").all_inner_texts()]
    assert shown == expected
    chip(page, "blue").hover()
    assert f"has at most {expected[6].split()[1]}\u202f%" in page.locator(".caption").first.inner_text()


def test_words_of_no_meaning_and_settings_of_no_effect_are_said(open_page: Open) -> None:
    page = open_page()
    draw(page, "😀🔥")
    wait_for_prompt(page, "😀🔥")
    assert "knows none of these words" in page.locator(".warnings").first.inner_text()
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Negative prompt").fill("blue")
    page.get_by_label("number input for Steps").fill("2")
    draw(page, "a red star")
    wait_for_prompt(page, "a red star")
    assert "At guidance scale 1 the negative prompt has no effect" in page.locator(".warnings").first.inner_text()
    page.get_by_label("number input for Guidance scale").fill("0")
    draw(page, "a red heart")
    wait_for_prompt(page, "a red heart")
    assert "At guidance scale 0 the prompt has no effect" in page.locator(".warnings").first.inner_text()


def test_the_live_mode_shows_its_own_settings(open_page: Open) -> None:
    page = open_page()
    assert page.get_by_label("number input for Steps").is_visible()
    page.get_by_label("Live").check()
    page.get_by_text("Live: model this pipeline, 6 steps, guidance scale 1.").wait_for()
    assert not page.get_by_label("number input for Steps").is_visible()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a purple cross")
    wait_for_prompt(page, "a purple cross")
    assert ", 6 steps, guidance scale 1:" in page.locator(".note").first.inner_text()


def test_a_model_that_is_saved_later_is_in_the_menu(
    open_page: Open, start: Path, tiny_pipe: TextToImagePipeline
) -> None:
    page = open_page()
    tiny_pipe.save_pretrained(start / "runs" / "later")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="runs/later").click()
    page.wait_for_function("document.querySelector('.note').textContent.startsWith('Model runs/later')")


def test_nothing_but_a_listed_model_can_be_chosen(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Model").fill("nope")
    page.keyboard.press("Tab")
    page.wait_for_function("() => !document.querySelector('[role=listbox]')")
    assert page.get_by_label("Model").input_value() in ("this pipeline", "shapes")


def test_a_link_to_a_missing_model_is_an_error_and_the_first_click_draws(open_page: Open, address: str) -> None:
    page = open_page()
    page.goto(f"{address}?model=nope&prompt=a+green+star")
    page.wait_for_selector(".note.error")
    assert "Model 'nope' not found" in page.locator(".note").first.inner_text()
    assert not page.locator(".picture").first.is_visible() and page.locator(".progress:visible").count() == 0
    draw(page, "a green star")
    wait_for_prompt(page, "a green star")


def test_the_translation_is_that_of_the_chosen_model(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Model").click()
    page.get_by_role("option", name="emoji").click()
    page.wait_for_function("document.querySelector('.note').textContent.startsWith('Model emoji')")
    page.get_by_role("tab", name="Translate").click()
    page.get_by_label("Text").wait_for()
    page.wait_for_function("document.querySelectorAll('.alignment [role=group] button').length > 4")
    assert page.locator(".alignment .error:visible").count() == 0
    shown = page.get_by_label("Translation", exact=True).input_value()
    page.get_by_role("button", name="Translate").click()
    page.wait_for_timeout(3000)
    assert page.get_by_label("Translation", exact=True).input_value() == shown
