"""The Inspect tab in a real browser: it computes the same numbers as Python, without requests."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline
from pipelines.tracing.follow import follow_picture, follow_text
from ui.inspect_tab import record_inputs
from ui.translate_tab import translator
from unet_xattn import Transformer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

FIRST = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def both(tiny_pipe: TextToImagePipeline, tokenizer: PreTrainedTokenizerFast) -> TextToImagePipeline:
    """An untrained pipeline with both readers of the memory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=2).eval()
    parts = copy.deepcopy({name: tiny_pipe.components[name] for name in ("tokenizer", "unet", "scheduler")})
    parts["tokenizer"].model_max_length = 40
    return TextToImagePipeline(text_encoder=network, **parts)


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], both: TextToImagePipeline) -> str:
    return serve(both)


@pytest.fixture
def open_tab(open_page: Callable[..., "Page"]) -> Callable[..., "Page"]:
    """A function of browser settings -> the tab with its first query."""

    def open_tab(**settings: Any) -> "Page":
        page = open_page(**settings)
        page.get_by_role("tab", name="Inspect").click()
        wait_for_tokens(page, len(FIRST.split()) + 2)
        return page

    return open_tab


def wait_for_tokens(page: "Page", count: int) -> None:
    """Wait until the diagram shows a memory of `count` tokens."""
    page.wait_for_function("n => document.querySelector('.query-diagram .tokens')?.children.length === n", arg=count)


def follow(page: "Page", prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Inspect", exact=True).click()


def row(page: "Page", token: str) -> "Locator":
    return page.locator(".tokens .row").filter(has=page.get_by_role("button", name=token, exact=True)).first


def column(page: "Page", name: str) -> list[float]:
    """A column of the table as numbers; weights from 0 to 1."""
    texts = page.locator(f".tokens .{name} .number").all_text_contents()
    values = [text.replace("−", "-").replace("\u202f", "").replace("<", "") for text in texts]
    return [float(text.rstrip("%")) / (100 if text.endswith("%") else 1) for text in values]


def click_place(page: "Page", row: int, column: int, cells: int) -> None:
    box = page.locator(".shot").bounding_box()
    side = box["width"] / cells
    page.locator(".shot").click(position={"x": (column + 0.5) * side, "y": (row + 0.5) * side})


def test_the_numbers_in_the_browser_are_pythons_and_cost_no_request(
    open_tab: Callable[..., "Page"], both: TextToImagePipeline, requests: list[str]
) -> None:
    page = open_tab()
    reading = follow_picture(
        both, record_inputs(both, FIRST, "0"), both.config.num_inference_steps // 2 - 1, both.unet.attention_layers[-1]
    )
    rows, columns = reading.grid
    page.wait_for_load_state("networkidle")
    before = len(requests)
    for place, head in (((0, 0), 0), ((5, 2), 1), ((rows - 1, columns - 1), 1)):
        page.get_by_role("button", name=f"Head {head + 1}").click()
        click_place(page, *place, cells=columns)
        query = reading.query(place[0] * columns + place[1], head)
        assert column(page, "product") == pytest.approx(query.products.tolist(), abs=0.006)
        assert column(page, "scaled") == pytest.approx(query.scaled.tolist(), abs=0.006)
        assert column(page, "weight") == pytest.approx(query.weights.tolist(), abs=0.006)
        where = page.locator(".where").inner_text()
        assert f"Query: row {place[0] + 1}, column {place[1] + 1} of {rows}×{columns}." in where
        out = page.get_by_role("slider", name="Component of out")
        out.focus()
        for expected in query.out[:3].tolist():
            shown = out.get_attribute("aria-valuetext").split(": ")[1].replace("−", "-")
            assert float(shown) == pytest.approx(expected, abs=0.0006)
            page.keyboard.press("ArrowRight")
    assert len(requests) == before


def test_the_terms_of_a_component_are_shown_and_sum_to_the_product(
    open_tab: Callable[..., "Page"], both: TextToImagePipeline
) -> None:
    page = open_tab()
    row(page, "red").get_by_role("button").click()
    strip = page.get_by_role("slider", name="Component of q")
    strip.hover(position={"x": 3, "y": 5})
    texts = [text.split(" ")[1].replace("−", "-") for text in page.locator(".product .term").all_text_contents()]
    assert len(texts) == len(FIRST.split()) + 2
    line = page.locator(".terms span").all_text_contents()
    terms = [float(text.replace("−", "-").replace("+", "").replace(" ", "")) for text in line[1:-1]]
    assert sum(terms) == pytest.approx(float(line[-1][2:].replace("−", "-")), abs=0.1)
    assert page.locator(".terms .at").inner_text().replace("− ", "−").replace("−", "-").strip("+ ") == texts[2]
    page.mouse.move(0, 0)
    assert not any(page.locator(".product .term").all_text_contents())


def test_pointing_at_a_token_lights_its_row_and_where_it_is_read(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    assert page.locator(".warmth").is_hidden()
    row(page, "blue").get_by_role("button").hover()
    assert "lit" in row(page, "blue").get_attribute("class")
    assert page.locator(".warmth").is_visible()
    assert "where this head attends to “blue”" in page.locator(".where").inner_text()
    assert page.locator(".worked-token").inner_text() == "“blue” in numbers"


def test_a_masked_token_gets_nothing_and_the_others_all_of_it(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    before = column(page, "weight")
    row(page, "red").get_by_role("button").click()
    page.get_by_role("button", name="Mask “red”").click()
    assert row(page, "red").locator(".scaled .number").inner_text() == "−∞"
    after = column(page, "weight")
    assert after[2] == 0 and sum(after) == pytest.approx(1, abs=0.02)
    assert [b for i, b in enumerate(after) if i != 2] >= [a for i, a in enumerate(before) if i != 2]
    assert "What if “red” were masked?" in page.locator(".query-diagram .message").inner_text()
    page.get_by_role("button", name="Unmask “red”").click()
    assert column(page, "weight") == before
    assert page.locator(".query-diagram .message").inner_text() == ""


def test_another_step_and_layer_show_other_numbers_at_the_same_place(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    click_place(page, 6, 6, cells=8)
    first = column(page, "product")
    page.get_by_role("spinbutton", name="Step").fill("3")
    page.wait_for_function("document.querySelector('.glimpse-text').textContent.includes('step 3 of 20')")
    assert column(page, "product") != first
    page.get_by_role("combobox", name="Layer").click()
    page.get_by_role("option", name="mid · 4×4").click()
    page.wait_for_function("document.querySelector('.where').textContent.includes('of 4×4')")
    assert "row 4, column 4" in page.locator(".where").inner_text()


def test_the_translation_reads_the_same_memory(open_tab: Callable[..., "Page"], both: TextToImagePipeline) -> None:
    page = open_tab()
    page.get_by_role("radio", name="Text decoder").check()
    page.wait_for_selector(".written button")
    reading = follow_text(translator(both), FIRST, "decoder.1")
    page.locator(".written button").nth(2).click()
    query = reading.query(2, 0)
    page.get_by_role("button", name="Head 1").click()
    assert column(page, "product") == pytest.approx(query.products.tolist(), abs=0.006)
    assert column(page, "weight") == pytest.approx(query.weights.tolist(), abs=0.006)
    assert page.locator(".shot").is_hidden() and page.locator(".noisy").is_hidden()
    assert not page.get_by_role("textbox", name="Seed").is_visible()


def test_everything_can_be_done_with_the_keyboard(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    shot = page.get_by_role("application")
    click_place(page, 3, 3, cells=8)
    shot.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert "row 3, column 3 " in page.locator(".where").inner_text()
    page.get_by_role("slider", name="Component of q").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("slider", name="Component of q").get_attribute("aria-valuenow") == "2"
    assert all(page.locator(".product .term").all_text_contents())
    row(page, "circle").get_by_role("button").focus()
    page.keyboard.press("Space")
    assert row(page, "circle").get_by_role("button").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("prompt", ["<img src=x onerror=alert(1)>", "${alert(1)}", "{{7*7}} <b>a</b>"])
def test_a_hostile_prompt_is_shown_as_it_was_typed_and_runs_nothing(
    open_tab: Callable[..., "Page"], both: TextToImagePipeline, prompt: str
) -> None:
    page = open_tab()
    follow(page, prompt)
    tokens = both.tokenizer.convert_ids_to_tokens(both.tokenizer(prompt)["input_ids"])
    wait_for_tokens(page, len(tokens))
    shown = "".join(page.locator(".tokens .row button").all_text_contents()[1:-1]).replace("␣", "")
    assert shown == prompt.replace(" ", "")
    assert page.locator(".drawing").get_attribute("alt") == "The picture drawn for: " + prompt
    assert page.locator(".tokens img, .tokens b").count() == 0
    page.locator(".tokens .row").first.hover()
    page.wait_for_timeout(200)  # for a script that it might have started


def test_an_error_is_one_line_and_the_last_query_stays(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab()
    page.get_by_role("textbox", name="Seed").fill("<img src=x onerror=alert(1)>")
    follow(page, FIRST)
    page.wait_for_selector(".query-diagram .message.error")
    assert "The seed is a whole number" in page.locator(".query-diagram .message").inner_text()
    page.locator(".tokens .row").first.hover()
    assert "The seed is a whole number" in page.locator(".query-diagram .message").inner_text()
    assert page.locator(".drawing").is_visible()


def test_a_phone_shows_it_all_and_answers_to_taps(open_tab: Callable[..., "Page"]) -> None:
    page = open_tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".shot").tap(position={"x": 5, "y": 5})
    assert "row 1, column 1 " in page.locator(".where").inner_text()
    row(page, "square").get_by_role("button").tap()
    assert page.locator(".worked-token").inner_text() == "“square” in numbers"
    strips = [page.locator(name).bounding_box() for name in (".asks .strip", ".tokens .keys .strip >> nth=0")]
    assert strips[0]["x"] == strips[1]["x"] and strips[0]["width"] == strips[1]["width"]  # q stands above each k


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(
    open_tab: Callable[..., "Page"], contrasts: Callable[["Page"], list[tuple[str, float]]], scheme: str
) -> None:
    page = open_tab(color_scheme=scheme, reduced_motion="reduce")
    row(page, "circle").get_by_role("button").click()
    page.locator(".tokens .keys .strip").nth(2).hover()
    found = contrasts(page)
    assert len(found) > 80
    assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []
