"""A line of text in the language of the page."""

from collections.abc import Sequence

import gradio as gr

from ui.component import component
from ui.texts import Message, texts_of


def message(prefix: str, value: Sequence[Message] | None = None, **options: object) -> gr.HTML:
    """The component. Its value is messages whose keys begin with the prefix, written one after another; or None.

    A value called "line" is an error of Python. Messages of "problem." are written in the colour of errors, and take no
    room while there are none.
    """
    return component(__name__, value, texts=texts_of(prefix), alarm=prefix == "problem.", **options)
