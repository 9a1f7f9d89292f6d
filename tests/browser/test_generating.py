"""The page in a real browser: generating, Your picture, and the layout."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from of_page import FIRST, Open, chip, draw, lit, look_closer, pixels, slowly, wait_for_prompt
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page


# Generating


def test_stopping_leaves_the_picture_the_words_and_the_maps_of_the_steps_so_far(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("number input for Steps").fill("100")
    prompt = "a green star above a red heart"
    with slowly():
        draw(page, prompt)
        page.wait_for_function("/^Step [2-9]/.test(document.querySelector('.at').textContent)")
        # Nothing of the picture before stands beside the one that is being made.
        assert page.locator(".main .chip").count() == 0 and page.locator(".verdict li").count() == 0
        assert page.locator(".prompt").first.inner_text() == prompt
        assert pixels(page) == "" and not page.locator(".saving").first.is_visible()
        page.locator(".frame").first.hover()
        assert pixels(page) == "" and page.locator(".caption").first.inner_text() == ""
        picture = page.locator(".picture").first.get_attribute("src")
        assert page.get_by_text("Being made").first.is_visible()
        page.get_by_role("button", name="Stop").click()
    wait_for_prompt(page, prompt)
    found = re.match(r"Stopped at step (\d+) of 100", page.locator(".note").first.inner_text())
    assert found and 2 <= int(found[1]) < 100
    assert [text for text in page.locator(".chip:not(.special) > :first-child").all_inner_texts()] == prompt.split()
    look_closer(page)
    assert page.locator(".step").first.get_attribute("max") == found[1]
    assert page.locator(".picture").first.get_attribute("src") != picture
    assert not page.get_by_role("button", name="Link").is_visible()  # its settings alone do not make it again
    with page.expect_download() as saved:
        page.get_by_role("button", name="Picture", exact=True).click()
    with Image.open(saved.value.path()) as file:
        settings = json.loads(file.text["settings"])
    assert (settings["prompt"], settings["stopped"]) == (prompt, int(found[1]))
    assert not page.get_by_role("button", name="Stop").is_visible()


def test_an_error_during_a_picture_brings_back_the_last_one_whole(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Guidance interval: highest").fill("0")
    draw(page, "a green star")
    page.wait_for_selector(".note.error")
    wait_for_prompt(page, FIRST)
    assert chip(page, "circle").is_visible() and page.locator(".verdict li").count() > 0
    assert not page.locator(".progress").first.is_visible()


def test_a_closed_browser_cancels_its_job(open_page: Open) -> None:
    page = open_page()
    with slowly(0.05) as passes:
        page.get_by_label("number input for Steps").fill("100")
        draw(page, "a green star")
        page.wait_for_selector(".progress:visible")
        page.close()
        time.sleep(2)
        before = len(passes)
        time.sleep(1)
        assert len(passes) == before < 90


def test_live_mode_draws_while_one_types_and_ends_with_the_last_prompt(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Live").check()
    box = page.get_by_role("textbox", name="Prompt", exact=True)
    box.fill("")
    box.press_sequentially("a purple cross", delay=30)
    wait_for_prompt(page, "a purple cross")
    assert page.locator(".history button").count() <= 1  # live pictures are not added


def test_unknown_words_are_marked_while_one_types(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a red <b>zebra</b>")
    page.wait_for_selector(".reading u")
    assert page.locator(".reading u").all_inner_texts() == ["b", "zebra"]
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a red circle")
    page.wait_for_function("document.querySelector('.reading').textContent === ''")


def test_the_judge_checks_each_statement_of_the_prompt(open_page: Open) -> None:
    page = open_page()
    items = page.get_by_role("list", name="Checks of the picture against the prompt").get_by_role("listitem")
    texts = items.all_inner_texts()
    assert any(text.endswith("red circle left of blue square") for text in texts)
    assert all(text[0] in "✓✗?" for text in texts)


def test_everything_can_be_done_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a red star")
    page.keyboard.press("Enter")
    wait_for_prompt(page, "a red star")  # a later picture would clear the marks
    page.locator(".frame").focus()
    page.keyboard.press("ArrowLeft")
    assert lit(page)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert page.locator(".caption").inner_text().startswith("Marked region")
    page.keyboard.press("Escape")
    assert lit(page) == []
    page.keyboard.press("Tab")
    first = pixels(page)
    page.keyboard.press("Tab")
    assert len({"", first, pixels(page)}) == 3
    page.keyboard.press("Space")
    assert chip(page, "red").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("prompt", ["<img src=x onerror=alert(1)>", "${alert(1)} {{7*7}}", "`+alert(1)+` <b>a</b>"])
def test_a_hostile_prompt_is_shown_as_it_was_typed_and_runs_nothing(open_page: Open, prompt: str) -> None:
    page = open_page()
    draw(page, prompt)
    wait_for_prompt(page, prompt)
    shown = page.evaluate("""() => {
      const line = document.querySelector(".prompt").cloneNode(true);
      for (const no of line.querySelectorAll(".specials, .part, .opener, .share")) no.remove();
      return line.textContent;
    }""")
    assert shown == prompt
    assert page.locator(".attention-viewer :is(.prompt, .multiples, .history) :is(b, script)").count() == 0
    assert page.locator("img[src=x]").count() == 0
    page.locator(".chip").first.hover()
    page.wait_for_timeout(200)  # for a script that it might have started


@pytest.mark.parametrize("prompt", ["‮red‬ circle مربع", "a\x00circle", "half \ud83d smile", "a" * 100_000])
def test_odd_text_is_shown_or_refused_in_a_line(open_page: Open, prompt: str) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("something else")
    page.evaluate(
        """text => {
          const box = document.querySelector("textarea");
          box.value = text;
          box.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        prompt,
    )
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function(
        "() => document.querySelector('.note.error') || !document.querySelector('.picture').alt.endsWith('blue square')"
    )
    error = page.locator(".note.error")
    assert error.count() == 0 or 10 < len(error.inner_text()) < 200


def test_an_error_is_one_line_and_the_picture_stays(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Seed").fill("<img src=x onerror=alert(1)>")
    draw(page, FIRST)
    page.wait_for_selector(".note.error")
    assert "The seed is a whole number" in page.locator(".note").first.inner_text()
    assert page.locator(".note img").count() == 0
    assert page.locator(".picture").first.is_visible()
    wait_for_prompt(page, FIRST)


def test_an_example_draws_itself(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="a large purple star above a small orange heart").click()
    wait_for_prompt(page, "a large purple star above a small orange heart")


def test_an_uploaded_picture_is_attributed(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Your picture").click()
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "mine.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.png")
    page.get_by_label("Caption").fill("a red <b>circle</b>")
    page.get_by_role("button", name="Where is each word?").click()
    viewer = page.locator(".attention-viewer:visible")
    viewer.get_by_role("button", name="circle").first.click()
    assert viewer.locator(".step").get_attribute("max") == "3"
    assert viewer.locator(".heat").is_visible()


# Layout


def test_a_phone_shows_it_all_and_answers_to_taps(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.querySelector('.frame').clientWidth") > 300
    square = chip(page, "square")
    square.tap()
    assert pixels(page)
    page.locator(".frame").first.tap(position={"x": 50, "y": 50})
    assert lit(page)
    square.tap()
    assert pixels(page) == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(
    open_page: Open, contrasts: Callable[["Page"], list[tuple[str, float]]], scheme: str
) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    chip(page, "circle").click()
    page.locator(".frame").first.hover(position={"x": 100, "y": 300})
    found = contrasts(page)
    assert len(found) > 40
    assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []


def test_an_error_stands_beside_its_field(open_page: Open) -> None:
    page = open_page()
    seed, line = page.get_by_role("textbox", name="Seed"), page.get_by_text("The seed must be a whole number")
    seed.fill("seven")
    line.wait_for()
    field, said = seed.bounding_box(), line.bounding_box()
    assert 0 <= said["y"] - field["y"] - field["height"] < 80 and abs(said["x"] - field["x"]) < 60
    seed.fill("7")
    line.wait_for(state="detached")
    page.get_by_role("button", name="More settings").click()
    lowest = page.get_by_label("number input for Guidance interval: lowest noise level")
    lowest.fill("1")
    lowest.press("Tab")
    page.get_by_text("The lowest noise level must be below the highest.").wait_for()
