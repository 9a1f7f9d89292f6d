"""The Translate tab in a real browser."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from of_page import slowly
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline, TranslationPipeline
from ui.translate_tab import EXAMPLES
from unet_xattn import Transformer
from unet_xattn.transformer import DecoderLayer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TEXT = "three small green triangles"
REFERENCE = "三个绿色的圆形"
HOSTILE = "<img src=x onerror=alert(1)> ${alert(1)} {{7*7}} `+alert(1)+`"
SOURCE, WRITTEN, READ = "Source tokens", "Tokens the model wrote", "Tokens of your translation"

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def pipe(tiny_pipe: TextToImagePipeline) -> TextToImagePipeline:
    """The bundled translation model with the tiny pipeline's untrained UNet."""
    text = TranslationPipeline.from_pretrained("shapes")
    unet = type(tiny_pipe.unet).from_config(tiny_pipe.unet.config, memory_width=text.text_encoder.config.width)
    return TextToImagePipeline(text.tokenizer, text.text_encoder, unet, tiny_pipe.scheduler)


@pytest.fixture(scope="module")
def address(serve: Callable[[TextToImagePipeline], str], pipe: TextToImagePipeline) -> str:
    return serve(pipe)


@pytest.fixture(scope="module")
def hostile_address(serve: Callable[[TextToImagePipeline], str], tiny_pipe: TextToImagePipeline) -> str:
    """The address of a page whose model reads and writes one hostile token only."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[START]", "[END]", HOSTILE])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    ends = [("[START]", 2), ("[END]", 3)]
    core.post_processor = TemplateProcessing(single="[START] $A [END]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[START]", "eos_token": "[END]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=4, **names)
    text_encoder = Transformer(len(words), width=32, heads=2, encoder_layers=1, decoder_layers=1)
    with torch.no_grad():
        text_encoder.decoder_norm.weight.zero_()
        text_encoder.decoder_norm.bias.copy_(9 * text_encoder.embedding.weight[words[HOSTILE]])
    return serve(TextToImagePipeline(tokenizer, text_encoder, tiny_pipe.unet, tiny_pipe.scheduler))


@pytest.fixture
def open_tab(open_page: Open) -> Open:
    """A function of browser settings -> the page at the Translate tab, with its first translation."""

    def open_tab(**settings: object) -> "Page":
        page = open_page(**settings)
        page.get_by_role("tab", name="Translate").click()
        page.wait_for_selector(".alignment .chip")
        return page

    return open_tab


def translate(page: "Page", text: str, reference: str = "") -> None:
    page.get_by_role("textbox", name="Text", exact=True).fill(text)
    page.get_by_role("textbox", name="Your translation").fill(reference)
    page.get_by_role("button", name="Translate").click()


def finished(page: "Page", source: str) -> None:
    """Wait until the alignment shows a complete translation of `source`."""
    page.wait_for_function(
        """source => {
          const tokens = (line) => [...document.querySelectorAll(`.alignment ${line} .text`)].map((e) => e.textContent);
          return tokens(".source").slice(1, -1).join(" ") === source && tokens(".written .line").at(-1) === "[END]";
        }""",
        arg=source,
    )


def chip(page: "Page", line: str, word: str) -> "Locator":
    return page.get_by_role("group", name=line).get_by_role("button", name=word).first


def tokens(page: "Page", line: str) -> list[str]:
    return page.get_by_role("group", name=line).locator(".text").all_text_contents()


def shares(page: "Page", line: str) -> list[float]:
    """The numbers at the tokens of a line, in percent."""
    texts = page.get_by_role("group", name=line).locator(".share").all_text_contents()
    return [float(text.rstrip("%").strip()) for text in texts if text]


def caption(page: "Page") -> str:
    return page.locator(".alignment .caption").inner_text()


def pixels(page: "Page") -> str:
    return page.evaluate("document.querySelector('.alignment .written canvas').toDataURL()")


def test_pointing_answers_from_both_sides_without_asking_the_server(open_tab: Open, requests: list[str]) -> None:
    page = open_tab()
    translate(page, TEXT)
    finished(page, TEXT)
    page.wait_for_load_state("networkidle")
    count = len(requests)
    assert shares(page, SOURCE) == shares(page, WRITTEN) == []
    chip(page, WRITTEN, "绿").hover()
    read = shares(page, SOURCE)
    assert len(read) == len(TEXT.split()) + 2 and sum(read) == pytest.approx(100, abs=3)
    assert "For “绿” the model attends to “green”" in caption(page)
    assert "It gives “绿” a probability of" in caption(page)
    assert shares(page, WRITTEN) == []
    chip(page, SOURCE, "green").hover()
    readers = shares(page, WRITTEN)
    assert len(readers) == len(tokens(page, WRITTEN)) and shares(page, SOURCE) == []
    assert "“green” gets most attention from “绿”" in caption(page)
    # Both directions show the same number.
    assert readers[tokens(page, WRITTEN).index("绿")] == read[tokens(page, SOURCE).index("green")]
    page.mouse.move(0, 0)
    assert shares(page, SOURCE) == shares(page, WRITTEN) == []
    assert len(requests) == count


def test_pointing_at_a_cell_lights_its_two_tokens_with_its_number(open_tab: Open) -> None:
    page = open_tab()
    box = page.locator(".alignment .written .field").bounding_box()
    assert box is not None
    rows, columns = len(tokens(page, WRITTEN)), len(tokens(page, SOURCE))
    page.mouse.move(box["x"] + 2.5 * box["width"] / columns, box["y"] + 3.5 * box["height"] / rows)
    (share,) = shares(page, SOURCE)
    assert shares(page, WRITTEN) == [share]
    sentence = f"For “{tokens(page, WRITTEN)[3]}” the model attends to “{tokens(page, SOURCE)[2]}” with {share:g}"
    assert sentence in caption(page).replace("\u202f", " ")
    assert page.locator(".alignment .written .field").bounding_box() == box  # nothing moves under the pointer


def test_single_layers_and_heads_can_be_shown(open_tab: Open, requests: list[str]) -> None:
    page = open_tab()
    page.wait_for_load_state("networkidle")
    count, shown = len(requests), {pixels(page)}
    for name, choices in (("Layer", 2), ("Head", 4)):
        select = page.get_by_role("combobox", name=name)
        assert select.locator("option").count() == 1 + choices
        for choice in range(choices):
            select.select_option(index=1 + choice)
            shown.add(pixels(page))
    assert len(shown) == 1 + 2 + 4
    page.locator(".alignment .written .field").hover(position={"x": 5, "y": 5})
    assert "(layer 2, head 4)" in caption(page)
    assert len(requests) == count


def test_a_reference_translation_is_shown_beside_the_models(open_tab: Open) -> None:
    page = open_tab()
    assert not page.locator(".reading.reference").is_visible()
    translate(page, TEXT, REFERENCE)
    finished(page, TEXT)
    assert "".join(tokens(page, READ)) == f"▁{REFERENCE}[END]"
    circle = chip(page, READ, "圆")
    circle.hover()
    assert "surprising" in (circle.get_attribute("class") or "")
    assert "; “三” is likelier, " in caption(page)
    assert "likelier: 三 " in page.locator(".reading.reference .likelier").inner_text()
    chip(page, SOURCE, "green").hover()
    assert len(shares(page, READ)) == len(tokens(page, READ)) and shares(page, WRITTEN)
    translate(page, TEXT)
    page.wait_for_selector(".reading.reference", state="hidden")


def test_the_translation_appears_token_by_token(open_tab: Open) -> None:
    page = open_tab()
    page.evaluate("""() => {
      window.seen = [];
      const line = document.querySelector(".alignment .written .line");
      new MutationObserver(() => window.seen.push(line.children.length)).observe(line, { childList: true });
    }""")
    with slowly(of=DecoderLayer):
        translate(page, TEXT)
        finished(page, TEXT)
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen) and len(set(seen)) > 3


def test_everything_can_be_done_with_the_keyboard(open_tab: Open) -> None:
    page = open_tab()
    text = page.get_by_role("textbox", name="Text", exact=True)
    text.fill(TEXT)
    text.press("Enter")
    finished(page, TEXT)
    page.locator(".alignment .written .field").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert len(shares(page, SOURCE)) == len(shares(page, WRITTEN)) == 1
    page.keyboard.press("Escape")
    assert shares(page, SOURCE) == []
    page.get_by_role("combobox", name="Head").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert chip(page, SOURCE, "[START]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert f"“{tokens(page, SOURCE)[2]}” gets most attention from" in caption(page)


def test_an_error_is_one_line_and_the_translation_stays(open_tab: Open) -> None:
    page = open_tab()
    before = tokens(page, WRITTEN)
    translate(page, "red " * 100)
    page.wait_for_selector(".alignment .note.error")
    assert "tokens, this model reads 64: shorten it" in page.locator(".alignment .note").inner_text()
    assert tokens(page, WRITTEN) == before
    assert page.get_by_label("Translation", exact=True).input_value()


def test_hostile_text_is_shown_as_it_is_and_runs_nothing(open_tab: Open, hostile_address: str) -> None:
    page = open_tab()
    page.goto(hostile_address)
    page.get_by_role("tab", name="Translate").click()
    translate(page, HOSTILE, HOSTILE)
    page.wait_for_selector(".reading.reference")
    for line in (SOURCE, WRITTEN, READ):
        assert HOSTILE in tokens(page, line)
        chip(page, line, HOSTILE).hover()
        assert HOSTILE in caption(page)
    assert HOSTILE in page.get_by_label("Translation", exact=True).input_value()
    assert page.locator(".alignment img").count() == 0
    page.wait_for_timeout(200)  # for a script that it might have started


def test_a_model_without_a_decoder_shows_an_error(
    open_tab: Open, serve: Callable[[TextToImagePipeline], str], tiny_pipe: TextToImagePipeline
) -> None:
    page = open_tab()
    page.goto(serve(tiny_pipe))
    page.get_by_role("tab", name="Translate").click()
    assert "no decoder, so it cannot translate" in page.locator(".alignment .note.error").inner_text()
    assert not page.get_by_role("combobox", name="Layer").is_visible()


def test_an_example_translates_itself_without_the_reference_of_another_text(open_tab: Open) -> None:
    page = open_tab()
    translate(page, TEXT, REFERENCE)
    finished(page, TEXT)
    page.get_by_role("tabpanel").get_by_text(EXAMPLES[1]).click()
    page.wait_for_function("document.querySelector('.alignment .source').textContent.includes('三')")
    assert page.get_by_role("textbox", name="Your translation").input_value() == ""
    assert not page.locator(".reading.reference").is_visible()


def test_a_phone_shows_it_all_and_answers_to_taps(open_tab: Open) -> None:
    page = open_tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    translate(page, TEXT, REFERENCE)
    finished(page, TEXT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    green = chip(page, SOURCE, "green")
    green.tap()
    assert shares(page, WRITTEN) and shares(page, READ)
    inside = "e => e.getBoundingClientRect().bottom <= innerHeight"
    assert page.locator(".alignment .caption").evaluate(inside)  # the caption is always visible
    green.tap()
    assert shares(page, WRITTEN) == []
    page.locator(".reading.reference .field").tap(position={"x": 30, "y": 30})
    assert len(shares(page, READ)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(open_tab: Open, contrasts: Callable, scheme: str) -> None:
    page = open_tab(color_scheme=scheme, reduced_motion="reduce")
    translate(page, TEXT, REFERENCE)
    finished(page, TEXT)
    chip(page, WRITTEN, "绿").click()
    chip(page, SOURCE, "green").hover()
    found = contrasts(page)
    assert len(found) > 60
    assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []
