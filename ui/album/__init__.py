"""Pictures with their full captions below them as plain text.

gr.Gallery lays captions over the pictures, and stores equal pictures of two users in one file.
"""

import base64
import io
from collections.abc import Iterable
from typing import Any

import gradio as gr
from PIL import Image

from ui.component import component
from ui.texts import texts_of


def album(title: str, side: int, **options: Any) -> gr.HTML:
    """The component: pictures in as many columns as fit, each at least `side` CSS pixels wide, below a title.

    Its value is a `page`, or None.
    """
    return component(__name__, None, title=title, side=side, texts=texts_of("album."), **options)


def page(pictures: Iterable[tuple[Image.Image, str]], step: int | None = None) -> dict[str, Any]:
    """The JSON value of an `album`: pictures with their captions, and the step that the title names."""
    return {"pictures": [[_url(picture), caption] for picture, caption in pictures], "step": step}


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
