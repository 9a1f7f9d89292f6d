"""The Translate tab: type a sentence, watch its translation grow, and see which source tokens each token attends to."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from pipelines import TextToImagePipeline, TranslationPipeline
from pipelines.checks import check_text
from pipelines.text_to_text import Translation
from ui.alignment import alignment, payload
from ui.endpoint import offer
from ui.labels import I18N
from ui.models import MODEL, Models
from ui.notes import text_messages
from ui.texts import lines

EXAMPLES = [
    "a red circle left of a blue square",
    "三个绿色小三角形在灰色背景上",
    "a large purple star above a small orange heart",
    "一个黄色的正方形在一个绿色的圆形的右边",
]

MAX_BEAMS = 8
"""The largest beam size. More beams find nothing better, and each costs as much as the first."""


def translate(pipe: TranslationPipeline, text: str, reference: str = "", beams: float = 1) -> Iterator[dict[str, Any]]:
    """The alignment's values for a translation, with its "text". With one beam there is a value after every token.

    Args:
        reference: another translation of the text, which the model reads for comparison; "" is none.

    Raises:
        ValueError: an argument is out of its range; the message is one line.
    """
    if beams not in range(1, MAX_BEAMS + 1):
        raise ValueError(f"the number of beams must be a whole number from 1 to {MAX_BEAMS}, got {beams!r}")
    check_text(text)
    read = _read(pipe, text, reference)
    special = {*pipe.tokenizer.all_special_tokens, "▁"}  # "▁" marks the beginning of a word
    notes = text_messages(text, pipe.tokenizer)
    told = {"notes": notes, "note": lines(notes)}
    for translation in pipe.stream(text) if beams == 1 else pipe(text, beams=int(beams)):
        yield payload(translation, read, special) | {"text": translation.text} | told


def _read(pipe: TranslationPipeline, text: str, reference: str) -> Translation | None:
    try:
        check_text(reference)
    except ValueError as error:
        raise ValueError(f"your translation: {error}") from None
    return pipe.read(text, reference) if reference.strip() else None


def translator(pipe: TextToImagePipeline) -> TranslationPipeline:
    """The translation pipeline of a model.

    Raises:
        ValueError: the model has no text decoder.
    """
    return TranslationPipeline(pipe.tokenizer, pipe.text_encoder)


class TranslateTab(NamedTuple):
    """What the page needs of the tab: the text and its translation, the button "Use as prompt", whose event the caller
    adds, and a function that translates the text after an event."""

    text: gr.Textbox
    translation: gr.Textbox
    use: gr.Button
    translate_after: Callable[[Dependency], Dependency]


def translate_tab(models: Models, model: gr.components.Component) -> TranslateTab:
    """Build the tab in the current Gradio context; the value of `model` is the name of the model that translates."""

    def answers(name: str, text: str, reference: str, beams: float) -> Iterator[dict[str, Any]]:
        try:
            yield from translate(translator(models.get(name)), text, reference, beams)
        except ValueError as error:
            yield {"error": str(error)}

    def write(name: str, text: str, reference: str, beams: float) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shown in answers(name, text, reference, beams):
            yield shown.get("text", gr.skip()), shown

    def blank() -> str:
        return ""

    def translate_text(text: str, reference: str = "", num_beams: int = 1, model: str = "") -> dict[str, Any]:
        """Translate a text between English and Chinese, and say which of its tokens each token was translated from.

        Args:
            text: what to translate, in words that the model knows.
            reference: another translation of the text, which the model reads for comparison; "" is none.
            num_beams: translations that are followed at the same time, 1 to 8.
            model: one of /models, by default the page's first.

        Returns:
            translation: "text", the tokens of both sides, and the attention of each target token to each source token
                by layer and head; for the reference the same, and how likely each token is to the model.
        """
        *_, whole = translate(translator(models.get(model or models.first)), text, reference, num_beams)
        return whole

    *_, first = answers(models.first, EXAMPLES[0], "", 1)  # so that the tab opens with a translation
    with gr.Row(equal_height=True):
        text = gr.Textbox(
            EXAMPLES[0],
            label=I18N("translate.text"),
            show_label=False,
            container=False,
            max_lines=4,
            scale=4,
            min_width=240,
        )
        button = gr.Button(I18N("translate.go"), variant="primary", scale=1, min_width=120)
    with gr.Row(equal_height=True):
        translation = gr.Textbox(
            first.get("text", ""),
            label=I18N("translate.translation"),
            show_label=False,
            container=False,
            placeholder=I18N("translate.placeholder"),
            interactive=False,
            max_lines=4,
            scale=4,
            min_width=240,
        )
        use = gr.Button(I18N("translate.use"), scale=1, min_width=120)
    with gr.Row():
        with gr.Column(scale=3):
            view = alignment(first)
        with gr.Column(scale=1):
            reference = gr.Textbox("", label=I18N("translate.yours"), max_lines=4)
            beams = gr.Slider(1, MAX_BEAMS, 1, step=1, precision=0, label=I18N("translate.beams"))
            examples = gr.Examples(EXAMPLES, text)

    # A text typed during a translation is translated after it. Progress is shown on the text, because on the alignment
    # it would fade the alignment.
    writing: dict[str, Any] = {
        "inputs": [model, text, reference, beams],
        "outputs": [translation, view],
        **MODEL,
        "trigger_mode": "always_last",
        "show_progress": "minimal",
        "show_progress_on": text,
        "api_visibility": "private",
    }
    gr.on([button.click, text.submit, reference.submit, beams.change, model.change], write, **writing)
    # The reference belonged to another text, so an example clears it.
    examples.load_input_event.then(blank, outputs=reference, api_visibility="private").then(write, **writing)
    offer(translate_text, "translate", **MODEL)

    def translate_after(event: Dependency) -> Dependency:
        return event.then(write, **writing)

    return TranslateTab(text, translation, use, translate_after)
