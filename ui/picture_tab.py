"""The Your picture tab: upload a picture with a caption, and see where each word of the caption lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.data_classes import ImageData
from gradio.events import Dependency
from PIL import Image

from pipelines import attribute as attribute_words
from pipelines.checks import check_text
from pipelines.picture_files import PictureError
from pipelines.pixels import read_picture
from pipelines.scenes.shapes import render, scene
from ui.any_model import OneModel
from ui.kept import Drawing, Kept
from ui.labels import I18N
from ui.models import Models
from ui.notes import trace_messages
from ui.texts import Message, lines
from ui.viewer import payload
from ui.viewer.component import attention_viewer

SAMPLE = 11
"""The seed of the sample picture."""

MOST_PIXELS = 40_000_000
"""The limit for an upload: as many as a large camera has. A decompression bomb has more."""


def look(
    models: Models | OneModel, kept: Kept, file: str | None, caption: str, name: str, whole: bool = False
) -> dict[str, Any]:
    """The viewer's value for a caption's words in an uploaded picture (see `pipelines.attribute`).

    Args:
        file: the path of the upload, or None.
        name: the model; "" is the page's first.
        whole: whether to pad a picture that does not fit the shape at which it is read, instead of cropping it.

    Raises:
        ValueError: the picture is missing, damaged or too large, or the caption cannot be used.
    """
    if file is None:
        raise ValueError("no picture: drop one into the frame, or paste it")
    check_text(caption, "caption")
    pipe = models.get(name or models.first)
    try:
        picture = read_picture(Path(file).read_bytes(), most_pixels=MOST_PIXELS)
    except (PictureError, OSError) as error:
        raise ValueError(f"the picture cannot be used, or its file is damaged: {error}") from None
    attention = attribute_words(pipe, picture, caption, keep="full", fit="pad" if whole else "crop")
    key = kept.add(Drawing(attention, [[]], [{"prompt": caption}]))
    notes: list[Message] = [("viewer.attributed", {})]
    warnings = trace_messages(attention)
    shown = payload(attention) | {"key": key, "settings": None}
    return {"pictures": [shown], "notes": notes, "warnings": warnings, "note": lines([*notes, *warnings])}


def path_of(upload: ImageData | None) -> str | None:
    """The path of an upload. Gradio's own function opens the file too, and clients do not see why it fails."""
    return None if upload is None else upload.path


class PictureTab(NamedTuple):
    """What the page needs of the tab: picture and caption, and a function that reads them after an event."""

    picture: gr.Image
    caption: gr.Textbox
    read_after: Callable[[Dependency], Dependency]


def picture_tab(models: Models | OneModel, kept: Kept, model: gr.components.Component) -> PictureTab:
    """Build the tab in the current Gradio context."""

    def show(picture: str | None, caption: str, name: str, whole: bool) -> dict[str, Any]:
        try:
            return look(models, kept, picture, caption, name, whole)
        except ValueError as error:
            return {"error": str(error)}

    def attribute(picture: str | None, caption: str, model: str = "", whole: bool = False) -> dict[str, Any]:
        """Find where the words of a caption lie in a picture: the answer of /generate, without settings and verdict."""
        try:
            return look(models, kept, picture, caption, model, whole)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def take_sample() -> tuple[Image.Image, str]:
        """A rendered scene with its caption."""
        shown = scene(SAMPLE, 0, "relation")
        return Image.fromarray(render(shown, 256)[0]), shown.caption

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(
                type="filepath",
                image_mode=None,
                label=I18N("picture.picture"),
                sources=["upload", "clipboard"],
                height=260,
            )
            picture.preprocess = path_of
            caption = gr.Textbox(label=I18N("picture.caption"), placeholder=I18N("picture.placeholder"), max_lines=4)
            whole = gr.Checkbox(label=I18N("picture.whole"), info=I18N("picture.whole.info"))
            button = gr.Button(I18N("picture.go"), variant="primary")
            sample = gr.Button(I18N("picture.sample"), size="sm")
        with gr.Column(scale=3, min_width=300):
            viewer = attention_viewer(kept.functions())
    answer = gr.JSON(visible=False, label="answer")
    reading: dict[str, Any] = {
        "inputs": [picture, caption, model, whole],
        "outputs": viewer,
        "show_progress_on": caption,
        "api_visibility": "private",
        **models.events,
    }
    gr.on([button.click, caption.submit, whole.input], show, **reading)
    sample.click(take_sample, outputs=[picture, caption], api_visibility="private").then(show, **reading)
    named = gr.Textbox("", visible=False)  # clients name any model, or none
    padded = gr.Checkbox(False, label="whole", visible=False)
    asked = {"inputs": [picture, caption, named, padded], "outputs": answer, **models.events}
    gr.Button(visible=False).click(attribute, api_name="attribute", **asked)

    def read_after(event: Dependency) -> Dependency:
        return event.then(show, **reading)

    return PictureTab(picture, caption, read_after)


def taken_over(kept: Kept) -> Callable[[gr.EventData], tuple[Any, str, gr.Tabs]]:
    """A function for the event "attribute" of a viewer: its picture and its prompt for this tab, which is opened."""

    def take_over(event: gr.EventData) -> tuple[Any, str, gr.Tabs]:
        try:
            picture = kept.picture(event._data)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return picture, str(event._data["prompt"]), gr.Tabs(selected="picture")

    return take_over
