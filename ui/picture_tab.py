"""Bring a picture and say what it shows: where each word of the caption lies in it."""

from typing import Any

import gradio as gr
from PIL import Image

from pipelines import attribute as attribute_words
from ui.checks import check_prompt
from ui.kept import Drawing, Kept
from ui.models import MODEL, Models
from ui.viewer import payload
from ui.viewer.component import attention_viewer

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is tried on a file that is brought: Pillow knows more, and some of those run other programs."""

MOST_PIXELS = 40_000_000
"""Of a picture that is brought: a large camera's. A bomb of a small file unpacks to more."""


def look(models: Models, kept: Kept, file: str | None, caption: str, name: str) -> dict[str, Any]:
    """What the viewer is sent of a caption's words in a picture (`pipelines.attribute`).

    Args:
        file: where the picture was put that somebody brought.

    Raises:
        ValueError: no picture, too large a one, or a caption that cannot be read.
    """
    if file is None:
        raise ValueError("there is no picture: drop one into the frame")
    check_prompt(caption)
    pipe = models.get(name or models.first)
    try:
        with Image.open(file, formats=FORMATS) as picture:  # its head; the size is known before anything is unpacked
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"the picture has {picture.width}×{picture.height} pixels, at most {MOST_PIXELS:,} do")
            picture.load()
            attention = attribute_words(pipe, picture, caption, keep="full")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"the file is no whole picture of a kind that is read: {', '.join(FORMATS)}") from None
    key = kept.add(Drawing(attention, [[]], [{"prompt": caption}]))
    note = "Read at three noise levels, which the steps stand for."
    return {"pictures": [payload(attention) | {"key": key, "settings": None}], "note": note}


def picture_tab(models: Models, kept: Kept, model: gr.Dropdown) -> None:
    """Lay the tab out where the caller is, and wire it."""

    def show(picture: str | None, caption: str, name: str) -> dict[str, Any]:
        try:
            return look(models, kept, picture, caption, name)
        except ValueError as error:
            return {"error": str(error)}

    def attribute(picture: str | None, caption: str, name: str = "") -> dict[str, Any]:
        """Where the words of a caption lie in a picture: as /generate answers, without settings."""
        try:
            return look(models, kept, picture, caption, name)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Row():
        with gr.Column(scale=1):
            picture = gr.Image(
                type="filepath", image_mode=None, label="Picture", sources=["upload", "clipboard"], height=260
            )
            caption = gr.Textbox(label="Caption: what it shows", max_lines=4)
            button = gr.Button("Where is each word?", variant="primary")
        with gr.Column(scale=2):
            viewer = attention_viewer(kept.functions())
    answer = gr.JSON(visible=False)
    reading: dict[str, Any] = {"inputs": [picture, caption, model], **MODEL}
    gr.on(
        [button.click, caption.submit],
        show,
        outputs=viewer,
        show_progress_on=caption,
        api_visibility="private",
        **reading,
    )
    gr.Button(visible=False).click(attribute, outputs=answer, api_name="attribute", **reading)
