"""The page of pipelines of diffusers in a real browser: what they can do works, what they cannot do is absent."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import pytest
from diffusers import UNet2DConditionModel
from large_trace import large_trace
from of_page import FIRST, Open, chip, draw, lit, look_closer, pixels, slowly, wait_for_prompt
from small_pictures import small

from ui.app import launch
from ui.viewer import document

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.families

ABSENT = ("Train", "Translate", "Inspect", "Live: draw while I type", "Sampler", "More settings", "Number of pictures")


@pytest.fixture(scope="module")
def serve_any() -> Iterator[Callable[["str | DiffusionPipeline"], str]]:
    """A function of a pipeline or a folder -> the address of its page."""
    pages: list[gr.Blocks] = []

    def serve(model: "str | DiffusionPipeline") -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        pages.append(launch(model, port=port, block=False, device="cpu"))
        return pages[-1].local_url

    yield serve
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def sd_address(serve_any: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a folder with a Stable Diffusion of 64×64 pixels."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    small("sd").save_pretrained(folder)
    return serve_any(str(folder))


@pytest.fixture
def opened(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """A function of an address -> its page; errors of its scripts fail the test."""
    wrong: list[str] = []
    contexts = []

    def opened(address: str, **settings: object) -> "Page":
        contexts.append(browser.new_context(**settings))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".attention-viewer")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def labels(page: "Page") -> str:
    return page.locator("body").inner_text()


def steps_of(page: "Page", number: int) -> None:
    page.get_by_role("spinbutton", name="Steps").fill(str(number))
    page.get_by_role("spinbutton", name="Steps").press("Tab")


def test_a_folder_of_stable_diffusion(opened: Open, sd_address: str) -> None:
    page = opened(sd_address)
    page.wait_for_function("() => document.querySelector('.note')?.textContent.startsWith('No picture yet')")
    shown = labels(page)
    assert "StableDiffusionPipeline" in shown and "tiny-sd" in shown and "Guidance scale" in shown
    assert [name for name in ABSENT if name in shown] == []
    assert page.get_by_role("tab").all_inner_texts() == ["Generate", "Your picture"]
    steps_of(page, 3)
    draw(page, FIRST)
    wait_for_prompt(page, FIRST)
    assert re.match(r"Model tiny-sd, seed 0, 3 steps, guidance scale 7.5: made in", page.locator(".note").inner_text())
    chip(page, "circle").hover()
    assert pixels(page) and "has at most" in page.locator(".caption").inner_text()
    page.locator(".frame").hover()
    assert len(lit(page)) > 8  # the words, start and end
    look_closer(page)
    assert page.locator("select.layer option").count() == 8 and page.locator(".step").get_attribute("max") == "3"
    page.locator("select.layer").select_option(index=2)
    page.wait_for_function("() => document.querySelector('.network [aria-pressed=true]')")
    assert page.locator(".judging").is_hidden() and page.locator(".changes").is_hidden()
    chip(page, "circle").click()
    assert page.locator(".word-panel").is_hidden()
    for event in ("Follow this", "Translate this"):
        assert page.get_by_role("button", name=event).is_hidden()
    with page.expect_download() as file:
        page.get_by_role("button", name="Page", exact=True).click()
    assert "guidance scale" not in file.value.suggested_filename
    page.get_by_role("button", name="Attribute this").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.note')].some((note) => /three noise levels/.test(note.textContent))"
    )


def test_its_link_draws_the_picture_again(opened: Open, sd_address: str) -> None:
    page = opened(sd_address + "?prompt=a+star&seed=5&num_inference_steps=2&guidance_scale=3&negative_prompt=dog")
    wait_for_prompt(page, "a star")
    assert "seed 5, 2 steps, guidance scale 3:" in page.locator(".note").inner_text()
    assert page.get_by_label("Negative prompt").input_value() == "dog"
    assert "negative_prompt=dog" in page.url and "sampler" not in page.url


def test_stop_keeps_the_steps_so_far(opened: Open, sd_address: str) -> None:
    page = opened(sd_address)
    steps_of(page, 100)
    with slowly(of=UNet2DConditionModel):
        draw(page, FIRST)
        page.get_by_role("button", name="Stop").click()
        wait_for_prompt(page, FIRST)
    found = re.match(r"Stopped at step (\d+) of 100", page.locator(".note").inner_text())
    assert found and page.locator(".step").get_attribute("max") == found[1]
    assert page.locator(".link").is_hidden()


def test_a_model_without_guidance_negative_prompts_progress_and_reading(opened: Open, serve_any: Callable) -> None:
    page = opened(serve_any(small("hunyuanimage")), locale="zh-CN")
    assert page.get_by_role("tab").all_inner_texts() == ["生成"]
    shown = labels(page)
    assert "引导强度" not in shown and "反向提示词" in shown
    page.get_by_role("button", name="生成").click()
    page.wait_for_selector(".attention-viewer .chip")
    assert "步：用时" in page.locator(".note").inner_text() and page.locator(".going-on").is_hidden()


def test_a_distilled_model_takes_no_negative_prompt(opened: Open, serve_any: Callable) -> None:
    page = opened(serve_any(small("flux")))
    assert "Guidance scale" in labels(page) and "Negative prompt" not in labels(page)
    steps_of(page, 2)
    draw(page, FIRST)
    wait_for_prompt(page, FIRST)
    steps_of(page, 2)
    page.get_by_role("textbox", name="Prompt", exact=True).fill("   ")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("() => /prompt is empty/.test(document.querySelector('.note.error')?.textContent)")


def test_a_large_recording_is_pointed_at_within_a_frame(browser: "Browser", tmp_path: Path) -> None:
    """75 words on grids of 64×64, 30 layers, a picture of 1024×1024: the time of the script at each move."""
    file = tmp_path / "page.html"
    file.write_text(document(large_trace(75, 1)), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector(".chip")
    took = """(layer) => {
      const choose = document.querySelector("select.layer");
      choose.value = layer;
      choose.dispatchEvent(new Event("change"));
      const [times, frame] = [[], document.querySelector(".frame")];
      const box = frame.getBoundingClientRect();
      const time = (act) => { const start = performance.now(); act(); times.push(performance.now() - start); };
      const at = (x, y) => ({ clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true });
      for (let i = 0; i < 40; i++) time(() => frame.dispatchEvent(new PointerEvent("pointermove", at(i / 40, 0.4))));
      const chips = [...document.querySelectorAll(".chip")];
      for (const chip of chips) time(() => chip.dispatchEvent(new PointerEvent("pointerenter")));
      times.sort((a, b) => a - b);
      return times[times.length >> 2];
    }"""
    for layer in ("", "blocks.1.attn"):
        assert page.evaluate(took, layer) < 16, layer  # the lower quartile, because other work only adds to it
    page.close()
