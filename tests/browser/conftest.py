"""The page in a real browser: Playwright drives Chromium."""

import copy
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gradio as gr
import pytest

from pipelines import TextToImagePipeline
from ui.app import launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
TIMEOUT = 120_000  # milliseconds, for a busy machine

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
    if (element.matches(".share")) return ground(element.closest(".chip").parentElement); // it lies below its chip
    return rgba(colour)[3] === 255 || !element.parentElement ? colour : ground(element.parentElement);
  };
  const names = [".attention-viewer", ".alignment", ".query-diagram", ".album", ".vocabulary", ".reading", "label"];
  const ours = names.map((name) => name + " *");
  const texts = [...document.querySelectorAll(ours.join(", ") + ", button")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((element) => {
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(luminance);
    return [element.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[TextToImagePipeline], str]]:
    """A function of a pipeline -> the address of its page. It serves a copy, because the page moves it to a GPU."""
    pages: list[gr.Blocks] = []

    def serve(pipe: TextToImagePipeline) -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        served = TextToImagePipeline(**copy.deepcopy(pipe.components), **pipe.settings)
        pages.append(launch(served, port=port, block=False))
        return pages[-1].local_url

    yield serve
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], tiny_pipe: TextToImagePipeline) -> str:
    """The address that `open_page` opens; a module with another page overrides this fixture."""
    return serve(tiny_pipe)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("the browser tests need Playwright: pip install 'unet-xattn[test]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("the browser tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    """Every address that the pages of the test have requested."""
    return []


def is_error(entry: "ConsoleMessage") -> bool:
    """Whether the page logged an error of its own.

    On a busy machine Gradio's client gives up a stream that is late, and says so; what the page shows afterwards is
    tested anyway. Where answers of that stream still wait, the client applies each to the one before, which it has
    forgotten: its "Unexpected client exception". Errors of our components never have these words.
    """
    gave_up = any(words in entry.text for words in ("AbortError", "errored out", "Unexpected client exception"))
    return entry.type == "error" and not gave_up


@pytest.fixture
def open_page(browser: "Browser", address: str, requests: list[str]) -> Iterator[Callable[..., "Page"]]:
    """A function of browser settings -> the page with its first picture; errors on the page fail the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def dismiss(dialog: "Dialog") -> None:
        wrong.append(f"it ran {dialog.message!r}")
        dialog.dismiss()

    def open_page(**settings: Any) -> "Page":
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: wrong.append(f"its script failed: {error}"))
        # Gradio catches and logs the errors of a component that gets a new value.
        page.on("console", lambda entry: is_error(entry) and wrong.append(f"it logged {entry.text!r}"))
        page.on("dialog", dismiss)
        page.goto(address)
        page.wait_for_selector(".attention-viewer .chip")
        return page

    yield open_page
    found = list(wrong)  # before closing, because requests that are cut off by closing are no errors
    for context in contexts:
        context.close()
    places = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert places == {"127.0.0.1"}
    assert found == []


@pytest.fixture
def contrasts() -> Callable[["Page"], list[tuple[str, float]]]:
    """A function of a page -> the texts of our components, labels and buttons with their contrasts (WCAG 2)."""
    return lambda page: [(text, round(contrast, 2)) for text, contrast in page.evaluate(CONTRASTS)]
