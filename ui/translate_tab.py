"""Type a sentence, watch its translation being written, and see what was read for every token of it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from pipelines import TranslationPipeline
from pipelines.text_to_text import Translation
from ui.alignment import alignment, payload
from ui.checks import check_prompt
from ui.models import MODEL, Models
from unet_xattn.words import unknown_words

EXAMPLES = [
    "a red circle left of a blue square",
    "三个绿色小三角形在灰色背景上",
    "a large purple star above a small orange heart",
    "一个黄色的正方形在一个绿色的圆形的右边",
]

MAX_BEAMS = 8
"""Sentences followed at a time. More find nothing better, and each costs the server as much as the first."""


def translate(pipe: TranslationPipeline, text: str, reference: str = "", beams: float = 1) -> Iterator[dict[str, Any]]:
    """Translate a text: what the alignment shows, and the "text"; one beam gives them out after every token it writes.

    Args:
        reference: another translation of it, to be read beside it; none where it is blank.

    Raises:
        ValueError: something typed is out of its range; the message says what, in one line.
    """
    if beams not in range(1, MAX_BEAMS + 1):
        raise ValueError(f"beams are a whole number from 1 to {MAX_BEAMS}, not {beams!r}")
    check_prompt(text)
    read = _read(pipe, text, reference)
    special = {*pipe.tokenizer.all_special_tokens, "▁"}  # a word's beginning that is no part of the word
    note = _note(pipe, text)
    for translation in pipe.stream(text) if beams == 1 else pipe(text, beams=int(beams)):
        yield payload(translation, read, special) | {"text": translation.text, "note": note}


def _read(pipe: TranslationPipeline, text: str, reference: str) -> Translation | None:
    try:
        check_prompt(reference)
    except ValueError as error:
        raise ValueError(f"your translation: {error}") from None
    return pipe.read(text, reference) if reference.strip() else None


def _note(pipe: TranslationPipeline, text: str) -> str:
    unknown = ", ".join(f'"{word}"' for word in dict.fromkeys(unknown_words(text, pipe.tokenizer)))
    return f"The model has never read: {unknown}." if unknown else ""


def translator(models: Models, name: str) -> TranslationPipeline:
    """The text side of a model.

    Raises:
        ValueError: no such model, or it has no decoder.
    """
    pipe = models.get(name)
    return TranslationPipeline(pipe.tokenizer, pipe.text_encoder)


def translate_tab(models: Models, model: gr.components.Component) -> tuple[gr.Textbox, gr.Button]:
    """Lay the tab out where the caller is, and wire it; `model` holds the name of the model that translates.

    Returns:
        the box with the translation, and the button that asks for a picture of it, which the caller wires.
    """

    def answers(name: str, text: str, reference: str, beams: float) -> Iterator[dict[str, Any]]:
        try:
            yield from translate(translator(models, name), text, reference, beams)
        except ValueError as error:
            yield {"error": str(error)}

    def write(name: str, text: str, reference: str, beams: float) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shown in answers(name, text, reference, beams):
            yield shown.get("text", gr.skip()), shown

    def blank() -> str:
        return ""

    def translate_text(text: str, reference: str = "", beams: int = 1, model: str = models.first) -> Any:
        """Translate a text: the translation, and what was read for every token of it (see `ui.alignment.payload`).

        A reference is another translation, read beside it: how likely each of its tokens is to the model, and where the
        model looks to read it.
        """
        try:
            *_, whole = translate(translator(models, model), text, reference, beams)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return whole

    *_, first = answers(models.first, EXAMPLES[0], "", 1)  # there at once when the tab is opened
    with gr.Row(equal_height=True):
        text = gr.Textbox(
            EXAMPLES[0], label="Text", show_label=False, container=False, max_lines=4, scale=4, min_width=240
        )
        button = gr.Button("Translate", variant="primary", scale=1, min_width=120)
    with gr.Row(equal_height=True):
        translation = gr.Textbox(
            first.get("text", ""),
            label="Translation",
            show_label=False,
            container=False,
            placeholder="The translation",
            interactive=False,
            max_lines=4,
            scale=4,
            min_width=240,
        )
        use = gr.Button("Use as prompt", scale=1, min_width=120)
    with gr.Row():
        with gr.Column(scale=3):
            view = alignment(first)
        with gr.Column(scale=1):
            reference = gr.Textbox(label="Your translation, to be read beside it", max_lines=4)
            beams = gr.Slider(1, MAX_BEAMS, 1, step=1, precision=0, label="Beams")
            examples = gr.Examples(EXAMPLES, text)

    # What is typed while a translation is being written is answered after it. Progress is shown on the text: on the
    # alignment it would fade it.
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
    # What was typed as a translation of another text is none of an example's.
    examples.load_input_event.then(blank, outputs=reference, api_visibility="private").then(write, **writing)
    gr.api(translate_text, api_name="translate", **MODEL)
    return translation, use
