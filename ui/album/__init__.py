"""A page of pictures, each with its caption beneath it as the text it is, in full.

gr.Gallery lays captions over the pictures, and keeps equal pictures of two readers in one file.
"""

import base64
import io
from collections.abc import Iterable
from typing import Any

import gradio as gr
from PIL import Image

from ui.component import component


def album(title: str, side: int, **options: Any) -> gr.HTML:
    """The component: pictures in as many columns as have room, each `side` CSS pixels wide or a little more.

    Its value is a `page`, or nothing yet.
    """
    return component(__name__, None, title=title, side=side, **options)


def page(pictures: Iterable[tuple[Image.Image, str]], note: str = "") -> dict[str, Any]:
    """Pictures with their captions, and a line about them all, as JSON can carry it: a value for `album`."""
    return {"pictures": [[_url(picture), caption] for picture, caption in pictures], "note": note}


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
