"""The page in a real browser: Playwright drives Chromium."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

FIRST = "a red circle left of a blue square"


def wait_for_prompt(page: "Page", prompt: str) -> None:
    """Until the viewer shows a picture of this prompt."""
    page.wait_for_function("text => document.querySelector('.prompt')?.textContent === text", arg=prompt)


def draw(page: "Page", prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def chip(page: "Page", word: str) -> "Locator":
    return page.get_by_role("group", name="Words of the prompt").get_by_role("button", name=word)


def pixels(page: "Page") -> str:
    """What the map's canvas shows; nothing while it is hidden."""
    return page.evaluate("(canvas => canvas.hidden ? '' : canvas.toDataURL())(document.querySelector('.heat'))")


def lit(page: "Page") -> list[str]:
    return [text for text in page.locator(".chip .share").all_text_contents() if text]


def test_pointing_at_words_shows_their_maps_without_asking_the_server(
    open_page: Callable[..., "Page"], requests: list[str]
) -> None:
    page = open_page()
    draw(page, "a green star above a red heart")
    wait_for_prompt(page, "a green star above a red heart")
    page.wait_for_load_state("networkidle")
    asked = len(requests)
    assert pixels(page) == ""
    maps = []
    for word in ("green", "star", "heart"):
        chip(page, word).hover()
        maps.append(pixels(page))
        assert f"“{word}” is strongest at the " in page.locator(".caption").inner_text()
    assert len({"", *maps}) == 4
    page.mouse.move(0, 0)
    assert pixels(page) == ""
    assert len(requests) == asked


def test_a_pinned_word_stays_through_the_next_picture_of_the_prompt(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    circle = chip(page, "circle")
    circle.click()
    page.mouse.move(0, 0)
    assert circle.get_attribute("aria-pressed") == "true"
    before = pixels(page)
    assert before
    page.get_by_role("button", name="New seed").click()
    page.wait_for_function("!document.querySelector('.note').textContent.startsWith('Seed 0,')")
    assert circle.get_attribute("aria-pressed") == "true"
    assert pixels(page) not in ("", before)
    circle.click()
    page.mouse.move(0, 0)
    assert pixels(page) == ""


def test_pointing_at_the_picture_lights_the_words_with_their_shares(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    assert lit(page) == []
    page.locator(".frame").hover(position={"x": 100, "y": 300})
    shares = [float(text.rstrip("%").strip()) for text in lit(page)]
    assert len(shares) == len(FIRST.split())
    assert 0 < sum(shares) <= 100
    assert "no word" in page.locator(".caption").inner_text()
    page.mouse.move(0, 0)
    assert lit(page) == []


def test_everything_can_be_done_with_the_keyboard(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt").press("Enter")
    page.locator(".frame").focus()
    page.keyboard.press("ArrowLeft")
    assert lit(page)
    page.keyboard.press("Escape")
    assert lit(page) == []
    page.keyboard.press("Tab")
    first = pixels(page)
    page.keyboard.press("Tab")
    assert len({"", first, pixels(page)}) == 3
    page.keyboard.press("Space")
    assert chip(page, "red").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("prompt", ["<img src=x onerror=alert(1)>", "${alert(1)} {{7*7}}", "`+alert(1)+` <b>a</b>"])
def test_a_hostile_prompt_is_shown_as_it_was_typed_and_runs_nothing(
    open_page: Callable[..., "Page"], prompt: str
) -> None:
    page = open_page()
    draw(page, prompt)
    wait_for_prompt(page, prompt)
    assert page.locator(".prompt img, .prompt b").count() == 0
    page.locator(".chip").first.hover()
    page.wait_for_timeout(200)  # for what it might have started


def test_what_is_wrong_is_said_in_a_line_and_the_picture_stays(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Seed").fill("<img src=x onerror=alert(1)>")
    draw(page, FIRST)
    page.wait_for_selector(".note.error")
    assert "the seed is a whole number" in page.locator(".note").inner_text()
    assert page.locator(".note img").count() == 0
    assert page.locator(".picture").is_visible()
    wait_for_prompt(page, FIRST)


def test_an_example_draws_itself(open_page: Callable[..., "Page"]) -> None:
    page = open_page()
    page.get_by_text("a large purple star above a small orange heart").click()
    wait_for_prompt(page, "a large purple star above a small orange heart")


def test_a_phone_shows_it_all_and_answers_to_taps(open_page: Callable[..., "Page"]) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.querySelector('.frame').clientWidth") > 300
    square = chip(page, "square")
    square.tap()
    assert pixels(page)
    page.locator(".frame").tap(position={"x": 50, "y": 50})
    assert lit(page)
    square.tap()
    assert pixels(page) == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(open_page: Callable[..., "Page"], contrasts: Callable, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    chip(page, "circle").click()
    page.locator(".frame").hover(position={"x": 100, "y": 300})
    found = contrasts(page)
    assert len(found) > 20
    assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []
