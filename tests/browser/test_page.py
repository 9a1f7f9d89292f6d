"""The page in a real browser: words and picture of the Generate tab, steps, saving."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from of_page import FIRST, Open, away, chip, draw, lit, look_closer, pixels, wait_for_prompt
from PIL import Image

from pipelines import TextToImagePipeline
from unet_xattn import AttentionTrace

if TYPE_CHECKING:
    pass


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], tiny_pipe: TextToImagePipeline) -> str:
    """The address of a page whose model has a calibration."""
    count = sum(1 for _ in tiny_pipe.unet.attention_layers)
    weights = {layer: [0.75 / count, 0.25 / count] for layer in tiny_pipe.unet.attention_layers}
    return serve(TextToImagePipeline(**tiny_pipe.components, calibration=weights))


# Words


def test_pointing_at_words_shows_their_maps_without_asking_the_server(open_page: Open, requests: list[str]) -> None:
    page = open_page()
    page.wait_for_load_state("networkidle")
    # The last request of a picture fetches the data for "Play" in the background.
    with page.expect_response(lambda answer: '"frames"' in (answer.request.post_data or "")):
        draw(page, "a green star above a red heart")
    wait_for_prompt(page, "a green star above a red heart")
    asked = len(requests)
    assert pixels(page) == ""
    maps = []
    for word in ("green", "star", "heart"):
        chip(page, word).hover()
        maps.append(pixels(page))
        assert f"“{word}” has at most " in page.locator(".caption").inner_text()
    assert len({"", *maps}) == 4
    away(page)
    assert pixels(page) == ""
    assert requests[asked:] == []


def test_a_pinned_word_stays_through_the_next_picture_of_the_prompt(open_page: Open) -> None:
    page = open_page()
    circle = chip(page, "circle")
    circle.click()
    away(page)
    assert circle.get_attribute("aria-pressed") == "true"
    before = pixels(page)
    assert before
    page.get_by_role("button", name="New seed").click()
    page.wait_for_function("!/seed 0,|^$/.test(document.querySelector('.note').textContent)")
    assert circle.get_attribute("aria-pressed") == "true"
    assert pixels(page) not in ("", before)
    circle.click()
    away(page)
    assert pixels(page) == ""


def test_several_pins_show_at_once_each_in_a_hue_of_its_own(open_page: Open) -> None:
    page = open_page()
    chip(page, "circle").click()
    away(page)
    alone = pixels(page)
    chip(page, "square").click()
    away(page)
    both = pixels(page)
    assert len({"", alone, both}) == 3
    hues = [chip(page, word).evaluate("e => e.style.getPropertyValue('--hue')") for word in ("circle", "square")]
    assert len(set(hues)) == 2
    assert page.locator(".caption").inner_text().startswith("Pinned: circle, square. Each outline")
    chip(page, "circle").click()
    away(page)
    assert pixels(page) not in ("", alone, both)


def test_a_word_opens_into_its_tokens_which_add_up_to_it(open_page: Open) -> None:
    page = open_page()
    draw(page, "a reddish circle")
    wait_for_prompt(page, "a reddish circle")
    opener = page.get_by_role("button", name="Tokens of reddish")
    parts = page.locator(".chip.part")
    assert parts.count() > 1 and not parts.first.is_visible()
    opener.click()
    assert opener.get_attribute("aria-expanded") == "true" and parts.first.is_visible()
    page.locator(".frame").hover(position={"x": 100, "y": 200})
    share = lambda text: float(text.rstrip("%").strip())  # noqa: E731
    word = share(chip(page, "reddish").locator(".share").inner_text())
    tokens = [share(text) for text in parts.locator(".share").all_inner_texts()]
    assert sum(tokens) == pytest.approx(word, abs=0.5 * (len(tokens) + 1))  # each is rounded


def test_tokens_that_are_no_words_are_shown_in_a_quieter_style(open_page: Open) -> None:
    page = open_page()
    special = page.locator(".chip.special")
    assert special.all_inner_texts() == ["[START]", "[END]"]
    special.first.hover()
    assert pixels(page)


# The picture


def test_pointing_at_the_picture_lights_the_words_with_their_shares(open_page: Open) -> None:
    page = open_page()
    assert lit(page) == []
    page.locator(".frame").hover(position={"x": 100, "y": 300})
    shares = [float(text.rstrip("%").strip()) for text in lit(page)]
    assert len(shares) == len(FIRST.split()) + 2
    assert sum(shares) == pytest.approx(100, abs=3)
    assert "other tokens" in page.locator(".caption").inner_text()
    away(page)
    assert lit(page) == []


@pytest.mark.parametrize("kind", ["box", "outline"])
def test_a_dragged_region_gives_the_shares_of_words_at(open_page: Open, tmp_path: Path, kind: str) -> None:
    page = open_page()
    look_closer(page)
    page.get_by_label("Dragging marks").select_option(kind)
    frame = page.locator(".frame").bounding_box()
    corners = [(0.1, 0.1), (0.6, 0.1), (0.6, 0.85), (0.1, 0.85)] if kind == "outline" else [(0.1, 0.1), (0.6, 0.85)]
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
    away(page)
    shares = [float(text.rstrip("%").strip()) / 100 for text in lit(page)]
    with page.expect_download() as saved:
        page.get_by_role("button", name="Trace").click()
    attention = AttentionTrace.load(saved.value.path())
    height, width = attention.size
    box = tuple(round(part * side) for part, side in zip((0.1, 0.1, 0.6, 0.85), (width, height) * 2, strict=True))
    expected = {word.start: share for word, share in attention.words_at(box)}
    for word, share in zip(attention.words, shares, strict=False):
        assert share == pytest.approx(expected[word.start], abs=0.02)
    page.locator(".frame").press("Escape")
    assert lit(page) == []


# Steps, layers, heads


def test_each_step_layer_and_head_has_maps_of_its_own(open_page: Open) -> None:
    page = open_page()
    look_closer(page)
    chip(page, "circle").click()
    away(page)
    seen = [pixels(page)]

    def changed(act: Callable[[], Any]) -> None:
        act()
        page.wait_for_function(
            "before => document.querySelector('.heat').toDataURL() !== before", arg=seen[-1], timeout=20_000
        )
        seen.append(pixels(page))

    picture = page.locator(".picture").get_attribute("src")
    changed(lambda: page.get_by_label("Step", exact=True).fill("3"))
    assert page.locator(".step-name").inner_text() == "3 of 20"
    assert page.locator(".picture").get_attribute("src") != picture
    changed(lambda: page.locator("select.layer").first.select_option(index=2))
    changed(lambda: page.locator("select.head").first.select_option("1"))
    changed(lambda: page.get_by_label("Step", exact=True).fill("0"))
    page.locator("select.layer").first.select_option("")
    page.locator("select.head").first.select_option("")
    page.wait_for_function("text => document.querySelector('.heat').toDataURL() === text", arg=seen[0])
    changed(lambda: page.get_by_label("Average").select_option("calibrated"))
    changed(lambda: page.get_by_label("Colour scale").select_option("all"))
    assert len(set(seen)) == len(seen)


def test_playing_runs_through_the_steps_and_stops(open_page: Open) -> None:
    page = open_page()
    page.wait_for_load_state("networkidle")
    look_closer(page)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("parseInt(document.querySelector('.step-name').textContent) >= 3")
    page.get_by_role("button", name="Pause").click()
    at = page.locator(".step-name").inner_text()
    page.wait_for_timeout(700)
    assert page.locator(".step-name").inner_text() == at


def test_the_dominant_word_is_the_one_with_most_attention_at_a_place(open_page: Open) -> None:
    page = open_page()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Trace").click()
    attention = AttentionTrace.load(saved.value.path())
    look_closer(page)
    page.get_by_label("Dominant word at each place").check()
    shown = page.evaluate("""(canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return [canvas.height, canvas.width, [...data]];
    })(document.querySelector(".heat"))""")
    rows, columns, rgba = shown
    colours = np.array(rgba).reshape(rows, columns, 4)
    hues = [page.locator(".chip").nth(i).evaluate("e => e.style.getPropertyValue('--hue')") for i in range(8)]
    cells = [attention.words_at((x * 4, y * 4, x * 4 + 4, y * 4 + 4)) for y in range(rows) for x in range(columns)]
    starts = [word.start for word in attention.words]
    agree = 0
    for (best, share), colour in zip((cell[0] for cell in cells), colours.reshape(-1, 4), strict=True):
        dominant = [*bytes.fromhex(hues[starts.index(best.start)][1:]), 255]
        nobody = 1 - sum(s for _, s in cells[0])
        agree += colour.tolist() == dominant or (colour[3] == 0 and share <= max(nobody, 0.5))
    assert agree > 0.9 * len(cells)


def test_every_word_has_a_small_map_to_press(open_page: Open) -> None:
    page = open_page()
    tiles = page.locator(".tile")
    assert [text.split()[0] for text in tiles.all_inner_texts()] == FIRST.split()
    tiles.nth(2).click()
    away(page)
    assert chip(page, "circle").get_attribute("aria-pressed") == "true"


# Saving


def test_a_picture_is_saved_with_its_settings(open_page: Open) -> None:
    page = open_page()
    for name, ending in (
        ("Picture", ".png"),
        ("4× size", ".png"),
        ("Maps", ".png"),
        ("Animation", ".gif"),
        ("Page", ".html"),
    ):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name, exact=True).click()
        assert saved.value.suggested_filename.startswith("a-red-circle") and saved.value.suggested_filename.endswith(
            ending
        )
        content = Path(saved.value.path()).read_bytes()
        if name == "Picture":
            with Image.open(io.BytesIO(content)) as picture:
                assert json.loads(picture.text["settings"])["prompt"] == FIRST


def test_a_saved_page_works_without_a_server(open_page: Open, browser: Any, tmp_path: Path) -> None:
    page = open_page()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Page", exact=True).click()
    saved.value.save_as(tmp_path / "page.html")
    alone = browser.new_page()
    wrong: list[str] = []
    alone.on("pageerror", lambda error: wrong.append(str(error)))
    alone.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    alone.goto((tmp_path / "page.html").as_uri())
    chip(alone, "circle").click()
    away(alone)
    before = pixels(alone)
    look_closer(alone)
    alone.locator("select.layer").select_option(index=1)
    alone.get_by_label("Step").fill("2")
    assert pixels(alone) not in ("", before)
    assert wrong == []
    alone.close()


def test_a_link_draws_the_same_picture_again(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Seed").fill("123")
    page.get_by_label("number input for Steps").fill("7")
    draw(page, "a pink heart & a <b>square</b>")
    wait_for_prompt(page, "a pink heart & a <b>square</b>")
    picture = page.locator(".picture").get_attribute("src")
    page.get_by_role("button", name="Link").click()
    assert "seed=123" in page.url
    page.reload()
    wait_for_prompt(page, "a pink heart & a <b>square</b>")
    assert page.locator(".picture").get_attribute("src") == picture
    assert page.get_by_role("textbox", name="Seed").input_value() == "123"


def test_pictures_of_the_visit_come_back_and_compare(open_page: Open) -> None:
    page = open_page()
    first = page.locator(".picture").get_attribute("src")
    draw(page, "a green star")
    wait_for_prompt(page, "a green star")
    thumbnails = page.get_by_role("group", name="Pictures of this browser").get_by_role("button")
    assert thumbnails.count() == 2
    page.get_by_label("Compare with another").check()
    thumbnails.nth(1).click()
    assert page.locator(".other").get_attribute("src") == first
    clip = page.locator(".other").evaluate("e => getComputedStyle(e).clipPath")
    page.get_by_role("slider", name="Compare").press("ArrowLeft")
    assert page.locator(".other").evaluate("e => getComputedStyle(e).clipPath") != clip
    page.get_by_label("Compare with another").uncheck()
    thumbnails.nth(1).click()
    wait_for_prompt(page, FIRST)
    assert page.locator(".picture").get_attribute("src") == first
    page.wait_for_function("text => document.querySelector('textarea').value === text", arg=FIRST)
