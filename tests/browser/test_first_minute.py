"""The page in a real browser as a stranger meets it: what it is, what to type, what stays where it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from of_page import FIRST, Open, away, chip, draw, drop, look_closer, pixels, slowly, wait_for_prompt

from pipelines import TextToImagePipeline

if TYPE_CHECKING:
    from playwright.sync_api import Page

EMOJI = "a duck left of a big frog"


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str]) -> str:
    return serve(TextToImagePipeline.from_pretrained("shapes"))


def typed(page: "Page") -> str:
    return page.get_by_role("textbox", name="Prompt", exact=True).input_value()


def test_a_sentence_says_what_the_model_draws_and_the_words_can_be_searched_and_taken(open_page: Open) -> None:
    page = open_page()
    assert "This model draws 7 kinds of shapes (circles, squares" in page.locator(".vocabulary .sentence").inner_text()
    page.get_by_role("button", name="What can I type?").click()
    words = page.locator(".vocabulary .groups button:visible")
    assert words.count() > 30
    page.get_by_label("Search the words").fill("purp")
    assert words.all_inner_texts() == ["purple"]
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a")
    words.first.click()
    page.wait_for_function("document.querySelector('textarea').value === 'a purple'")


def test_examples_belong_to_the_model_and_change_with_it(open_page: Open) -> None:
    page = open_page()
    examples = page.get_by_role("group", name="Examples")
    assert examples.get_by_role("button").first.inner_text() == FIRST
    page.get_by_label("Model").click()
    page.get_by_role("option", name="emoji").click()
    wait_for_prompt(page, EMOJI)  # the first example was there, and became one of this model
    assert "66 kinds of things" in page.locator(".vocabulary .sentence").inner_text()
    assert FIRST not in examples.inner_text()
    page.get_by_role("button", name="two rockets on a black background").click()
    wait_for_prompt(page, "two rockets on a black background")


def test_a_surprise_is_a_prompt_that_the_model_knows(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Surprise me").click()
    page.wait_for_function("first => document.querySelector('textarea').value !== first", arg=FIRST)
    wait_for_prompt(page, typed(page))
    assert page.locator(".reading u").count() == 0


def test_an_unknown_word_is_named_once_with_what_to_take_for_it(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a crimson circle and a cat")
    page.get_by_role("button", name="Take “red”").click()
    wait_for_prompt(page, "a red circle and a cat")
    page.wait_for_function("document.querySelectorAll('.reading u').length === 1")
    assert chip(page, "cat").get_attribute("title") == "The model does not know this word"
    page.get_by_role("button", name="Try the model everyday").click()  # emoji does not know circles
    page.wait_for_function("document.querySelector('.note').textContent.startsWith('Model everyday')")
    assert page.get_by_label("Model").input_value() == "everyday"


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (1920, 1080), (390, 844)])
def test_picture_and_words_are_above_the_fold_and_nothing_collides(open_page: Open, width: int, height: int) -> None:
    page = open_page(viewport={"width": width, "height": height})
    frame = page.locator(".frame").first.bounding_box()
    assert frame["y"] + frame["height"] <= height
    if width > 400:
        words = page.locator(".main .chip:not(.special)").last.bounding_box()
        assert words["y"] + words["height"] <= height
        assert not page.locator("select.layer").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    title, model = page.locator(".head h1").bounding_box(), page.get_by_label("Model").bounding_box()
    assert model["y"] < title["y"] + title["height"] and model["x"] >= title["x"] + title["width"]  # one line
    size = page.locator(".head h1").evaluate("title => parseFloat(getComputedStyle(title).fontSize)")
    assert title["height"] < 1.9 * size
    if width == 1920:
        assert frame["width"] > 600  # the picture grows with the screen


def test_nothing_jumps_while_a_picture_is_made(open_page: Open) -> None:
    page = open_page()
    parts = (".frame", ".past", ".history", ".multiples", ".prompt", ".caption")
    box = lambda part: page.locator(part).first.bounding_box()  # noqa: E731
    places = lambda: [[round(side) for side in box(part).values()] for part in parts]  # noqa: E731
    before = places()
    with slowly(0.03):
        draw(page, "a blue circle left of a red square")
        page.wait_for_selector(".progress:visible")
        page.wait_for_function("/^Step/.test(document.querySelector('.at').textContent)")
        assert places() == before
    wait_for_prompt(page, "a blue circle left of a red square")
    assert places() == before
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a crimson square")
    page.wait_for_selector(".reading u")
    assert places() == before


def test_progress_has_a_bar_and_steps_and_stop_is_there_only_meanwhile(open_page: Open) -> None:
    page = open_page()
    stop = page.get_by_role("button", name="Stop")
    assert stop.count() == 0 or not stop.first.is_visible()
    with slowly(0.2):
        draw(page, "a green heart")
        page.wait_for_function("/^Step [0-9]+ of 20/.test(document.querySelector('.at').textContent)")
        assert stop.first.is_visible() and page.locator(".forming").first.is_visible()
        assert 0 < page.locator("progress").first.evaluate("bar => bar.value") <= 1
    wait_for_prompt(page, "a green heart")
    assert not stop.first.is_visible() and not page.locator(".forming").first.is_visible()


def test_pins_are_outlines_that_leave_the_picture_as_it_is(open_page: Open) -> None:
    page = open_page()
    for word in ("circle", "square"):
        chip(page, word).click()
    away(page)
    opaque = page.evaluate("""(canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
      return count / (canvas.width * canvas.height);
    })(document.querySelector(".heat"))""")
    assert 0.005 < opaque < 0.06


def test_who_owns_what_has_a_legend_in_the_colours_of_the_words(open_page: Open) -> None:
    page = open_page()
    look_closer(page)
    page.get_by_label("Dominant word at each place").check()
    legend = page.get_by_role("list", name="Colour of each word").get_by_role("listitem")
    assert legend.all_inner_texts() == FIRST.split()
    hue = "e => e.style.getPropertyValue('--hue')"
    assert legend.nth(2).evaluate(hue) == chip(page, "circle").evaluate(hue)


def test_a_word_in_all_layers_and_heads_opens_one_large(open_page: Open) -> None:
    page = open_page()
    look_closer(page)
    page.locator(".heads summary").first.click()
    tiles = page.locator(".heads-table .tile")
    page.wait_for_selector(".heads-table .tile")
    layers = page.locator(".layer").first.locator("option").count() - 1
    assert tiles.count() == 4 * layers
    chip(page, "circle").click()
    away(page)
    mean = pixels(page)
    tiles.nth(5).click()
    page.wait_for_function("before => document.querySelector('.heat').toDataURL() !== before", arg=mean)
    assert page.locator("select.head").first.input_value() == "1"
    chosen = page.locator(".network [aria-pressed=true]")
    assert chosen.get_attribute("title").startswith(page.locator("select.layer").first.input_value())


def test_several_pictures_are_a_grid_to_choose_from(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Number of pictures").fill("3")
    page.get_by_label("number input for Steps").fill("4")
    draw(page, "a red star")
    choices = page.get_by_role("group", name="Pictures of this prompt").get_by_role("button")
    page.wait_for_function("document.querySelectorAll('.choices button').length === 3")
    assert all("right" in text for text in choices.all_inner_texts())
    picture = page.locator(".picture").first.get_attribute("src")
    choices.nth(2).click()
    assert page.locator(".picture").first.get_attribute("src") != picture
    assert choices.nth(2).get_attribute("aria-pressed") == "true"
    assert "seed=2" in page.url


def test_the_past_survives_a_reload_and_back_goes_back(open_page: Open) -> None:
    page = open_page()
    first = page.locator(".picture").first.get_attribute("src")
    draw(page, "a green star")
    wait_for_prompt(page, "a green star")
    assert "prompt=a+green+star" in page.url
    page.go_back()
    wait_for_prompt(page, FIRST)
    assert page.locator(".picture").first.get_attribute("src") == first
    page.reload()
    wait_for_prompt(page, FIRST)
    past = page.get_by_role("group", name="Pictures of this browser").get_by_role("button")
    assert past.count() == 2
    page.get_by_role("button", name="a green star, seed 0").click()  # its maps are gone: it is made again
    wait_for_prompt(page, "a green star")
    page.get_by_role("button", name="Delete").click()
    assert past.count() == 1


def test_a_saved_picture_that_is_dropped_brings_its_settings_back(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Seed").fill("7")
    draw(page, "a pink cross 粉色")
    wait_for_prompt(page, "a pink cross 粉色")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Picture", exact=True).click()
    content = Path(saved.value.path()).read_bytes()
    page.get_by_role("textbox", name="Seed").fill("1")
    draw(page, FIRST)
    wait_for_prompt(page, FIRST)
    drop(page, content, "saved.png")
    wait_for_prompt(page, "a pink cross 粉色")
    assert page.get_by_role("textbox", name="Seed").input_value() == "7"
    drop(page, json.dumps({}).encode(), "<b>other</b>.png")
    page.wait_for_selector(".note.error")
    assert page.locator(".note").first.inner_text().startswith("<b>other</b>.png holds no settings")


def test_the_tabs_share_the_prompt_and_the_picture(open_page: Open) -> None:
    page = open_page()
    for button, tab in (
        ("Translate this", "Translate"),
        ("Follow this", "Inspect"),
        ("Attribute this", "Your picture"),
    ):
        page.get_by_role("tab", name="Generate").click()
        page.get_by_role("button", name=button).click()
        page.wait_for_selector(f"[role=tab][aria-selected=true]:has-text('{tab}')")
    yours = "Your picture: " + FIRST
    page.wait_for_function("alt => [...document.images].some((one) => one.alt === alt)", arg=yours)
    page.get_by_role("tab", name="Translate").click()
    assert page.get_by_label("Text", exact=True).input_value() == FIRST


def test_control_and_enter_draw_from_anywhere(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a blue heart")
    page.locator(".frame").first.focus()
    page.keyboard.press("Control+Enter")
    wait_for_prompt(page, "a blue heart")


def test_your_picture_has_a_sample(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("tab", name="Your picture").click()
    page.get_by_role("button", name="Take a sample picture").click()
    page.wait_for_function("[...document.images].some((one) => one.alt.startsWith('Your picture: '))")


def test_a_phone_says_tap(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.locator(".caption").first.inner_text().startswith("Tap a word")


def test_every_control_of_the_viewer_whose_name_is_a_term_explains_it(open_page: Open) -> None:
    page = open_page()
    look_closer(page)
    labels = page.locator(".controls label:visible")
    assert labels.count() >= 5
    assert all(labels.nth(i).get_attribute("title") for i in range(labels.count()))
    assert page.locator(".tile").first.get_attribute("title").startswith("The largest share of the picture’s attention")


def test_a_tour_of_six_steps_is_offered_once_a_browser_and_can_be_left(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Show me around").click()
    box = page.get_by_role("dialog", name="Show me around")
    for step in range(1, 7):
        assert box.inner_text().startswith(f"{step}/6 ")
        assert page.locator(".on-tour").count() == 1
        if step < 6:
            page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Done").click()
    assert not box.is_visible() and page.locator(".on-tour").count() == 0
    page.reload()
    page.wait_for_selector(".attention-viewer .chip")
    assert not page.get_by_role("button", name="Show me around").is_visible()
    page.evaluate("localStorage.clear()")
    page.reload()
    page.get_by_role("button", name="Show me around").click()
    page.keyboard.press("Escape")
    assert not box.is_visible()
