"""The page in a real browser: the Generate and Your picture tabs."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from pipelines import TextToImagePipeline
from unet_xattn import AttentionTrace, CrossAttentionUNet

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Open = Callable[..., "Page"]
FIRST = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], tiny_pipe: TextToImagePipeline) -> str:
    """The address of a page whose model has a calibration."""
    count = sum(1 for _ in tiny_pipe.unet.attention_layers)
    weights = {layer: [0.75 / count, 0.25 / count] for layer in tiny_pipe.unet.attention_layers}
    return serve(TextToImagePipeline(**tiny_pipe.components, calibration=weights))


def wait_for_prompt(page: "Page", prompt: str) -> None:
    """Wait until the viewer shows the finished picture of this prompt."""
    alt = "The picture drawn for: " + prompt
    page.wait_for_function("alt => document.querySelector('.picture')?.alt === alt", arg=alt)


def draw(page: "Page", prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def chip(page: "Page", word: str) -> "Locator":
    return page.get_by_role("group", name="Words of the prompt").get_by_role("button", name=word).first


def pixels(page: "Page") -> str:
    """The content of the map's canvas; "" while it is hidden."""
    return page.evaluate("(canvas => canvas.hidden ? '' : canvas.toDataURL())(document.querySelector('.heat'))")


def lit(page: "Page") -> list[str]:
    return [text for text in page.locator(".chip .share").all_text_contents() if text]


def away(page: "Page") -> None:
    page.mouse.move(0, 0)


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
        assert f"“{word}” is strongest at the " in page.locator(".caption").inner_text()
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
    page.wait_for_function("!/^Seed 0,|^Drawing/.test(document.querySelector('.note').textContent)")
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
    assert page.locator(".caption").inner_text() == "Pinned: circle, square."
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
    changed(lambda: page.get_by_label("Layer").select_option(index=2))
    changed(lambda: page.get_by_label("Head").select_option("1"))
    changed(lambda: page.get_by_label("Step", exact=True).fill("0"))
    page.get_by_label("Layer").select_option("")
    page.get_by_label("Head").select_option("")
    page.wait_for_function("text => document.querySelector('.heat').toDataURL() === text", arg=seen[0])
    changed(lambda: page.get_by_label("Average").select_option("calibrated"))
    changed(lambda: page.get_by_label("Colour scale").select_option("all"))
    assert len(set(seen)) == len(seen)


def test_playing_runs_through_the_steps_and_stops(open_page: Open) -> None:
    page = open_page()
    page.wait_for_load_state("networkidle")
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
    for name, ending in (("Picture", ".png"), ("Maps", ".png"), ("Animation", ".gif"), ("Page", ".html")):
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
    alone.get_by_label("Layer").select_option(index=1)
    alone.get_by_label("Step").fill("2")
    assert pixels(alone) not in ("", before)
    assert wrong == []
    alone.close()


def test_a_link_draws_the_same_picture_again(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Seed").fill("123")
    page.get_by_label("Steps").first.fill("7")
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
    thumbnails = page.get_by_role("group", name="Pictures of this visit").get_by_role("button")
    assert thumbnails.count() == 2
    page.get_by_label("Compare with the picture I choose").check()
    thumbnails.nth(1).click()
    assert page.locator(".other").get_attribute("src") == first
    clip = page.locator(".other").evaluate("e => getComputedStyle(e).clipPath")
    page.get_by_label("Compare", exact=True).fill("10")
    assert page.locator(".other").evaluate("e => getComputedStyle(e).clipPath") != clip
    page.get_by_label("Compare with the picture I choose").uncheck()
    thumbnails.nth(1).click()
    wait_for_prompt(page, FIRST)
    assert page.locator(".picture").get_attribute("src") == first
    page.wait_for_function("text => document.querySelector('textarea').value === text", arg=FIRST)


# Generating


def test_previews_come_before_the_picture_and_stop_ends_them(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Steps").first.fill("100")
    page.evaluate("""() => {
      window.frames = 0;
      new MutationObserver(() => window.frames++)
        .observe(document.querySelector(".picture"), { attributes: true, attributeFilter: ["src"] });
    }""")
    draw(page, "a green star above a red heart")
    page.wait_for_function("window.frames > 0")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1500)
    frames = page.evaluate("window.frames")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.frames") == frames
    assert page.locator(".picture").get_attribute("alt").endswith(FIRST)
    page.get_by_label("Steps").first.fill("2")
    draw(page, "a green star above a red heart")
    wait_for_prompt(page, "a green star above a red heart")


def test_a_closed_browser_cancels_its_job(open_page: Open) -> None:
    page = open_page()
    passes = 0

    def count(module: torch.nn.Module, *_: object) -> None:
        nonlocal passes
        if isinstance(module, CrossAttentionUNet):
            passes += 1
            time.sleep(0.05)

    with register_module_forward_hook(count):
        page.get_by_label("Steps").first.fill("100")
        draw(page, "a green star")
        page.wait_for_function("document.querySelector('.note').textContent.startsWith('Drawing')")
        page.close()
        time.sleep(2)
        before = passes
        time.sleep(1)
        assert passes == before < 90


def test_live_mode_draws_while_one_types_and_ends_with_the_last_prompt(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Live").check()
    box = page.get_by_role("textbox", name="Prompt")
    box.fill("")
    box.press_sequentially("a purple cross", delay=30)
    wait_for_prompt(page, "a purple cross")
    assert page.locator(".history button").count() <= 1  # live pictures are not added


def test_unknown_words_are_marked_while_one_types(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt").fill("a red <b>zebra</b>")
    page.wait_for_selector(".reading u")
    assert page.locator(".reading u").all_inner_texts() == ["b", "zebra", "b"]
    page.get_by_role("textbox", name="Prompt").fill("a red circle")
    page.wait_for_function("document.querySelector('.reading').textContent === ''")


def test_the_judge_checks_each_statement_of_the_prompt(open_page: Open) -> None:
    page = open_page()
    items = page.get_by_role("list", name="Checks of the picture against the prompt").get_by_role("listitem")
    texts = items.all_inner_texts()
    assert any(text.endswith("red circle left of blue square") for text in texts)
    assert all(text[0] in "✓✗" for text in texts)


def test_everything_can_be_done_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Prompt").fill("a red star")
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
    page.get_by_role("textbox", name="Prompt").fill("something else")
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
    assert "the seed is a whole number" in page.locator(".note").first.inner_text()
    assert page.locator(".note img").count() == 0
    assert page.locator(".picture").first.is_visible()
    wait_for_prompt(page, FIRST)


def test_an_example_draws_itself(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("a large purple star above a small orange heart").click()
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
