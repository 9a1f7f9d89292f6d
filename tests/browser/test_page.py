"""The page in a real browser: Playwright drives Chromium."""

import copy
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from pipelines import TextToImagePipeline
from ui.app import launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog, Locator, Page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FIRST = "a red circle left of a blue square"
PATIENCE = 120_000  # milliseconds; nothing takes that long, but a busy machine may


@pytest.fixture(scope="module")
def address(tiny_pipe: TextToImagePipeline) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    page = launch(TextToImagePipeline(**copy.deepcopy(tiny_pipe.components)), port=port, block=False)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("the browser tests need Playwright: pip install 'unet-xattn[test]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("the browser tests need Chromium, which is not here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    """Every address the test's pages have asked for."""
    return []


@pytest.fixture
def open_page(browser: "Browser", address: str, requests: list[str]) -> Iterator[Callable[..., "Page"]]:
    """A function of browser settings -> the page with its first picture; whatever it did wrong fails the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def dismiss(dialog: "Dialog") -> None:
        wrong.append(f"it ran {dialog.message!r}")
        dialog.dismiss()

    def open_page(**settings: Any) -> "Page":
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: wrong.append(f"its script failed: {error}"))
        page.on("dialog", dismiss)
        page.goto(address)
        wait_for_prompt(page, FIRST)
        return page

    yield open_page
    for context in contexts:
        context.close()
    places = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert places == {"127.0.0.1"}
    assert wrong == []


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


CONTRASTS = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const value = rgba(colour)[i] / 255;
    return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0);
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    if (element.matches(".share")) return ground(element.closest(".prompt")); // it stands under its chip
    return rgba(colour)[3] === 255 || !element.parentElement ? colour : ground(element.parentElement);
  };
  const texts = [...document.querySelectorAll(".attention-viewer *, label *, button")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((element) => {
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(luminance);
    return [element.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(open_page: Callable[..., "Page"], scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    chip(page, "circle").click()
    page.locator(".frame").hover(position={"x": 100, "y": 300})
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [(text, round(contrast, 2)) for text, contrast in contrasts if contrast < 4.5] == []
