"""The page in a real browser: outlines of words, and their masks to copy and to save."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from of_page import Open, away, chip, pixels
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

NOTE = "A mask holds the edges of the picture as well as the attention."


@pytest.fixture
def page(open_page: Open) -> "Page":
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    chip(page, "circle").click()
    away(page)
    return page


def outline(page: "Page") -> None:
    page.get_by_role("checkbox", name="Outline").check()
    away(page)
    page.wait_for_function("note => document.querySelector('.caption').textContent.includes(note)", arg=NOTE)


def saved(page: "Page", button: str) -> Path:
    with page.expect_download() as download:
        page.get_by_role("group", name="Masks of words").get_by_role("button", name=button, exact=True).click()
    return download.value.path()


def test_one_switch_shows_the_outline_of_a_word_and_says_what_a_mask_holds(page: "Page") -> None:
    heat = pixels(page)
    outline(page)
    assert pixels(page) not in ("", heat) and page.locator(".scale").evaluate("e => e.style.visibility") == "hidden"
    one = pixels(page)
    chip(page, "square").click()
    away(page)
    page.wait_for_function("one => document.querySelector('.heat').toDataURL() !== one", arg=one)
    assert page.locator(".caption").first.inner_text() == f"Outlines of the masks of circle, square. {NOTE}"
    page.get_by_role("checkbox", name="Outline").uncheck()
    chip(page, "square").click()
    away(page)
    page.wait_for_function("heat => document.querySelector('.heat').toDataURL() === heat", arg=heat)


def test_a_mask_is_copied_as_run_lengths_and_saved_as_a_picture(page: "Page") -> None:
    masks = page.get_by_role("group", name="Masks of words")
    assert masks.inner_text().startswith("Mask of “circle”")
    masks.get_by_role("button", name="Copy").click()
    page.get_by_text("The mask of “circle” is copied as COCO run lengths.").wait_for()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    with Image.open(saved(page, "Save")) as file:
        mask = np.asarray(file) == 255
    flat = np.repeat(np.arange(len(copied["counts"])) % 2, copied["counts"])
    assert copied["size"] == list(mask.shape) and (flat.reshape(mask.shape, order="F") == mask).all()
    with Image.open(saved(page, "All words")) as file:
        assert set(np.unique(np.asarray(file))) <= set(range(9))
    chip(page, "circle").click()  # it is not pinned any more
    assert masks.inner_text().startswith("Mask of a word (click one)")
    assert masks.get_by_role("button", name="Copy").is_disabled()


def test_a_saved_page_has_outlines_without_a_server(page: "Page", tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Page", exact=True).click()
    download.value.save_as(tmp_path / "page.html")
    alone = page.context.new_page()
    alone.goto((tmp_path / "page.html").as_uri())
    alone.locator(".chip", has_text="circle").first.click()
    outline(alone)
    assert pixels(alone) and not alone.locator(".masking").is_visible() and not alone.locator(".changes").is_visible()
