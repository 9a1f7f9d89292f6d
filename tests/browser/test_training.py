"""The Train tab in a real browser."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pipelines import TextToImagePipeline

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = ["<img src=x onerror=alert(1)>", "${alert(1)} {{7*7}}", "`+alert(1)+` <b>bold</b>", "**bold** [a](b)"]


@pytest.fixture(scope="module")
def address(
    serve: Callable[[TextToImagePipeline], str],
    tiny_pipe: TextToImagePipeline,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A page started in a folder that holds data with captions of all sorts."""
    import datasets

    start = tmp_path_factory.mktemp("page")
    (start / "data" / "hostile").mkdir(parents=True)
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(HOSTILE)]
    for row in rows:
        Image.new("RGB", (32, 32)).save(start / "data" / "hostile" / row["file_name"])
    (start / "data" / "hostile" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(start / "cache"))
        datasets.disable_progress_bars()
        yield serve(tiny_pipe)


@pytest.fixture
def open_tab(open_page: Callable[..., "Page"]) -> Callable[..., "Page"]:
    """A function of browser settings -> the page with the Train tab open."""

    def open_tab(**settings: Any) -> "Page":
        page = open_page(**settings)
        page.get_by_role("tab", name="Train").click()
        page.get_by_role("heading", name="Examples").wait_for()
        return page

    return open_tab


def wait_for_state(page: "Page", state: str) -> None:
    page.wait_for_function(
        "state => [...document.querySelectorAll('.message')].some((line) => line.textContent.includes(state))",
        arg=state,
    )


def test_four_steps_are_trained_and_the_run_is_found_again(open_tab: Callable[..., "Page"], address: str) -> None:
    page = open_tab()
    page.get_by_role("button", name="More settings").click()
    for label, number in {"Steps": "4", "Steps between validations": "2", "Batch size": "2"}.items():
        page.get_by_label(label, exact=True).fill(number)
    page.get_by_label("Picture size").click()
    page.get_by_role("option", name="32").click()
    page.get_by_label("Run name").fill("four")
    page.get_by_role("button", name="Start training").click()
    wait_for_state(page, "four is starting")
    assert page.get_by_role("button", name="Stop").is_enabled()
    assert page.get_by_text(" on two cores of a CPU.").is_visible()
    page.reload()  # closing the page does not stop the run
    page.get_by_role("tab", name="Train").click()
    wait_for_state(page, "four is ")
    wait_for_state(page, "four is finished after 4 steps, on shapes")
    page.get_by_role("heading", name="Samples, after step 4").wait_for()
    assert page.locator("section:has(h2:text('Samples')) img").count() == 16
    assert page.locator("section:has(h2:text('Where the words')) img").count() == 1
    assert page.locator(".vega-embed svg").count() == 4
    assert page.get_by_role("button", name="Open in Generate").is_enabled()
    assert page.get_by_role("button", name="Stop").is_disabled()
    assert page.get_by_role("button", name="Resume").is_disabled()
    first = page.locator("section:has(h2:text('Samples')) figcaption").first.inner_text()
    page.get_by_role("tab", name="Generate").click()
    steps = page.get_by_label("number input for Steps")
    steps.fill("5")  # of the model before
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Open in Generate").click()
    page.wait_for_function("[...document.querySelectorAll('input')].some((input) => input.value === 'runs/four')")
    drawn = "The picture drawn for: " + first
    page.wait_for_function("alt => document.querySelector('.picture').alt === alt", arg=drawn)
    assert page.locator(".frame:visible").count() == 1
    assert steps.input_value() == "20"  # the settings of this run's model
    page.reload()
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("heading", name="Samples, after step 4").wait_for()  # the latest
    assert page.get_by_label("number input for Saved samples").input_value() == "2"


def test_captions_are_shown_as_they_are_and_run_nothing(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    page.get_by_label("Training data").click()
    page.get_by_role("option", name="data/hostile").click()
    captions = page.locator("section:has(h2:text('Examples')) figcaption")
    captions.filter(has_text="bold").first.wait_for()
    page.wait_for_timeout(200)  # for a script that they might have started
    assert captions.all_text_contents() == HOSTILE
    assert captions.locator("*").count() == 0


def test_an_upload_is_shown_or_refused(open_tab: Callable[..., "Page"], tmp_path: Path) -> None:
    page = open_tab()
    for name, rows in {"good.zip": '{"file_name": "0.png", "text": "a black night"}', "bad.zip": ""}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
            archive.write(tmp_path / "0.png", "0.png")
            archive.writestr("metadata.jsonl", rows)
    upload = page.locator("input[type=file]")
    upload.set_input_files(tmp_path / "good.zip")
    page.locator("figcaption", has_text="a black night").wait_for()
    assert page.get_by_label("Training data").input_value() == "data/good"
    upload.set_input_files(tmp_path / "bad.zip")
    page.locator(".message.problem", has_text="upload").wait_for()
    error = page.locator(".message.problem", has_text="upload").inner_text()
    assert error.startswith("The upload has no picture that can be used") and "no captions" in error
    assert page.get_by_label("Training data").input_value() == "data/good"


def test_wrong_settings_are_refused_in_a_line(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    page.get_by_label("Run name").fill(HOSTILE[0])
    page.get_by_role("button", name="Start training").click()
    page.locator(".message.problem", has_text="letters, digits, - and _, got '<img src=x").wait_for()
    page.wait_for_timeout(200)


def test_a_phone_shows_it_all(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
