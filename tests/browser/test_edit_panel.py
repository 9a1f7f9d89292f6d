"""The page in a real browser: changing words of a picture, and placing words before it is drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from gradio_client import Client
from of_page import FIRST, Open, away, chip, drop, wait_for_prompt
from PIL import Image

from pipelines import TextToImagePipeline

if TYPE_CHECKING:
    from playwright.sync_api import Page

STAR = "a red star left of a blue square"


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str]) -> str:
    return serve(TextToImagePipeline.from_pretrained("shapes-fast"))


def opened(page: "Page", word: str) -> None:
    """Open the panel of a word."""
    chip(page, word).click()
    page.locator(".word-panel").wait_for()


def replaced(page: "Page", word: str, other: str) -> None:
    opened(page, word)
    page.get_by_label("Replace with").fill(other)
    page.keyboard.press("Enter")


def edits(page: "Page") -> list[str]:
    return [text.removesuffix("✕") for text in page.get_by_role("list", name="Edits").locator("li").all_inner_texts()]


def wait_for_edits(page: "Page", *expected: str) -> None:
    page.wait_for_function(
        """expected => !document.querySelector(".forming-now") && expected.join()
          === [...document.querySelectorAll(".edits li")].map((one) => one.firstChild.textContent).join()""",
        arg=list(expected),
    )


def source(page: "Page", part: str) -> str:
    return page.locator(part).first.get_attribute("src")


def test_a_replaced_word_is_shown_beside_the_first_picture_with_what_changed_and_a_check(open_page: Open) -> None:
    page = open_page()
    first = source(page, ".picture")
    replaced(page, "circle", "star")
    wait_for_prompt(page, STAR)
    assert edits(page) == ["circle → star"] and "edits=replace+circle%3Dstar" in page.url
    checks = page.locator(".edit-checks li").all_inner_texts()
    assert checks == ["✓ Asked for", "✓ Elsewhere unchanged"]
    assert source(page, ".other") == first != source(page, ".picture")
    assert page.locator(".left-name").inner_text() == "Before" and page.locator(".right-name").inner_text() == "After"
    divider = page.get_by_role("slider", name="Compare")
    middle = int(divider.get_attribute("aria-valuenow"))
    assert 20 < middle < 45  # on the circle, which is on the left
    divider.focus()
    page.keyboard.press("ArrowLeft")
    clip = page.locator(".other").evaluate("one => one.style.clipPath")
    assert clip == f"inset(0px {105 - middle}% 0px 0px)"  # the left side
    page.get_by_role("button", name="What changed").click()
    changed = page.locator(".differences")
    assert changed.is_visible() and changed.evaluate("one => one.naturalWidth") == 64
    page.get_by_role("button", name="Undo").click()
    wait_for_prompt(page, FIRST)
    assert source(page, ".picture") == first and edits(page) == []
    assert not page.locator(".compared").is_visible() and not changed.is_visible() and "edits=&" in page.url


def test_edits_compose_and_a_kept_picture_is_the_one_that_changes_next(open_page: Open) -> None:
    page = open_page()
    replaced(page, "circle", "star")
    wait_for_prompt(page, STAR)
    replaced(page, "blue", "green")
    wait_for_prompt(page, "a red star left of a green square")
    wait_for_edits(page, "circle → star", "blue → green")
    page.get_by_role("button", name="Take back: circle → star").click()
    wait_for_prompt(page, "a red circle left of a green square")
    both = source(page, ".picture")
    page.get_by_role("button", name="Keep as the new picture").click()
    page.wait_for_function("location.search.includes('keep')")
    assert source(page, ".picture") == both and not page.locator(".compared").is_visible()
    replaced(page, "circle", "heart")
    wait_for_prompt(page, "a red heart left of a green square")
    assert source(page, ".other") == both
    assert page.locator(".edits .kept").count() == 1 and page.locator(".edits li button").count() == 1


def test_a_thing_is_removed_with_its_words(open_page: Open) -> None:
    page = open_page()
    opened(page, "circle")
    page.get_by_role("button", name="Remove", exact=True).click()
    wait_for_prompt(page, "a blue square")
    assert edits(page) == ["without circle"] and page.locator(".edit-checks .wrong").count() == 0


def test_an_unknown_replacement_is_named_with_the_nearest_word(open_page: Open) -> None:
    page = open_page()
    opened(page, "circle")
    page.get_by_label("Replace with").fill("<b>stra</b>")
    page.get_by_text("The model does not know “stra”.").wait_for()
    assert page.locator(".word-panel b").count() == 0
    page.get_by_label("Replace with").fill("stra")
    page.get_by_role("button", name="Take “star”").click()
    assert page.get_by_label("Replace with").input_value() == "star"
    page.get_by_label("Replace with").fill("zebra")
    page.keyboard.press("Enter")
    page.wait_for_selector(".note.error")
    assert page.locator(".note").first.inner_text().startswith("'zebra' is unknown to this model")
    wait_for_prompt(page, FIRST)  # the picture stays


def test_a_word_is_made_louder_and_silent_by_the_keyboard(open_page: Open) -> None:
    page = open_page()
    chip(page, "red").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # the panel follows its word: first its button to close, then the slider
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    wait_for_edits(page, "red × 2")
    slider = page.get_by_role("slider", name="How loud the word is")
    page.wait_for_function("document.activeElement.className === 'loudness'")  # one may turn further
    assert (
        slider.get_attribute("aria-valuetext") == "× 2" and chip(page, "red").get_attribute("aria-expanded") == "true"
    )
    page.keyboard.press("Home")
    wait_for_edits(page, "red not read")
    page.wait_for_function("document.activeElement.className === 'loudness'")
    page.keyboard.press("Escape")
    assert not page.locator(".word-panel").is_visible()
    assert page.evaluate("document.activeElement.textContent").startswith("red")
    page.get_by_role("button", name="Undo").click()
    wait_for_edits(page, "red × 2")  # what the picture was made from, not the picture without edits


def test_a_word_is_painted_with_the_pointer_and_with_keys(open_page: Open) -> None:
    page = open_page()
    opened(page, "square")
    page.get_by_role("button", name="Paint its place").click()
    box = page.locator(".frame").first.bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * x / 64, box["y"] + box["height"] * y / 64)  # noqa: E731
    page.mouse.move(*at(4.5, 36.5))
    page.mouse.down()
    page.mouse.move(*at(20, 50), steps=3)
    page.mouse.move(*at(27.5, 59.5))
    page.mouse.up()
    wait_for_edits(page, "square placed")
    assert "paint+square%3D4%2C36%2C28%2C60" in page.url
    assert page.locator(".edit-checks .wrong").count() == 0
    opened(page, "circle")
    page.get_by_role("button", name="Paint its place").click()
    sides = page.locator(".word-box input")
    before = [int(value) for value in sides.evaluate_all("all => all.map((one) => one.value)")]
    assert page.evaluate("document.activeElement.className").startswith("frame")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    moved = [int(value) for value in sides.evaluate_all("all => all.map((one) => one.value)")]
    assert moved == [before[0] + 1, before[1] + 1, before[2] + 2, before[3] + 1]
    sides.nth(0).fill(str(moved[0] - 1))
    page.get_by_role("button", name="Paint", exact=True).click()
    wait_for_edits(page, "square placed", "circle placed")
    assert page.url.endswith(f"{moved[0] - 1}%2C{moved[1]}%2C{moved[2]}%2C{moved[3]}&regions=")


def test_words_are_placed_before_there_is_a_picture(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Place words").click()
    page.get_by_role("button", name="Add a box").click()
    page.keyboard.type("a yellow heart")
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.95, steps=3)
    page.mouse.up()
    page.keyboard.type("a green cross")
    assert page.locator(".boxes .box").all_inner_texts() == ["a yellow heart", "a green cross"]
    page.keyboard.press("Enter")
    prompt = "a yellow heart and a green cross"
    wait_for_prompt(page, prompt)
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value() == prompt
    assert edits(page) == ["a yellow heart placed", "a green cross placed"] and "regions=a+yellow+heart" in page.url
    page.get_by_role("button", name="Place words").click()
    assert page.locator(".places .phrase").count() == 2  # to place them elsewhere


def test_placed_words_stay_until_they_are_let_go_or_leave_the_prompt(open_page: Open, address: str) -> None:
    placed = {"a yellow heart": "2,2,26,26", "a green cross": "36,34,62,60"}
    prompt = "a yellow heart and a green cross"
    page = open_page()
    page.goto(address + "?" + urlencode({"prompt": prompt, "regions": "; ".join(map("=".join, placed.items()))}))
    wait_for_edits(page, "a yellow heart placed", "a green cross placed")
    first = source(page, ".picture")
    page.get_by_role("button", name="New seed").click()
    page.wait_for_function("one => document.querySelector('.picture').src !== one", arg=first)
    wait_for_edits(page, "a yellow heart placed", "a green cross placed")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a yellow heart and a red star")
    page.keyboard.press("Control+Enter")
    wait_for_edits(page, "a yellow heart placed")
    page.get_by_role("button", name="Take back: a yellow heart placed").click()
    wait_for_edits(page)
    assert "regions=&" in page.url + "&"
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function("document.querySelector('.forming-now')")
    wait_for_edits(page)


def test_an_edited_picture_is_in_its_link_its_file_and_the_api(open_page: Open, address: str) -> None:
    page = open_page()
    replaced(page, "circle", "star")
    wait_for_prompt(page, STAR)
    link, picture = page.url, source(page, ".picture")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Picture", exact=True).click()
    assert saved.value.suggested_filename == "a-red-star-left-of-a-blue-square-seed0.png"
    with Image.open(saved.value.path()) as file:
        settings = json.loads(file.text["settings"])
    assert (settings["prompt"], settings["edits"]) == (FIRST, "replace circle=star")
    content = Path(saved.value.path()).read_bytes()
    page.goto(link)
    wait_for_prompt(page, STAR)
    assert source(page, ".picture") == picture and edits(page) == ["circle → star"]
    page.get_by_role("button", name="Undo").click()
    wait_for_prompt(page, FIRST)
    drop(page, content, "edited.png")
    wait_for_prompt(page, STAR)
    client = Client(address, verbose=False)
    answer = client.predict(FIRST, edits="replace circle=star", api_name="/generate")
    assert answer["pictures"][0]["picture"] == picture
    assert [check["ok"] for check in answer["pictures"][0]["edit"]["checks"]] == [True, True]
    client.close()


@pytest.mark.parametrize("width", [1366, 390])
def test_nothing_moves_while_a_word_is_changed(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 768}, reduced_motion="reduce")
    parts = (".frame", ".prompt", ".changes", ".past", ".multiples")
    places = lambda: [page.locator(part).first.evaluate("one => [one.offsetLeft, one.offsetTop]") for part in parts]  # noqa: E731
    before = places()
    opened(page, "circle")
    assert places() == before and page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Paint its place").click()
    assert places() == before
    page.keyboard.press("Escape")
    page.get_by_label("Replace with").fill("star")
    page.keyboard.press("Enter")
    wait_for_prompt(page, STAR)
    away(page)
    assert places() == before
    page.get_by_role("button", name="Place words").click()
    assert places() == before and page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_finger_paints_on_a_phone(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    chip(page, "circle").tap()
    panel = page.locator(".word-panel").bounding_box()
    words = page.locator(".main .chip").last.bounding_box()
    assert panel["x"] >= 0 and panel["x"] + panel["width"] <= 390 and panel["y"] >= words["y"]
    page.get_by_role("button", name="Paint its place").tap()
    assert page.locator(".frame").first.evaluate("one => getComputedStyle(one).touchAction") == "none"
    frame = page.locator(".frame").first.bounding_box()
    assert frame["y"] > -1 and frame["y"] + frame["height"] <= 844  # in view
