"""The attention viewer as a Gradio component."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ui.component import component
from ui.texts import texts_of
from ui.viewer import COLOUR_STOPS, SAID


def attention_viewer(server_functions: Sequence[Callable] = (), **options: Any) -> gr.HTML:
    """The component.

    Its value is one of
        {"pictures": [`payload`, ...], "notes": what was done, "warnings": what a person should know} (see
            `ui.texts.Message`), with "live": True for pictures of the live mode, which are not kept in the browser;
        {"drawing": {"ticket", "prompt", "step", "steps", "frame": a data URL or None}} while a picture is being made:
            nothing of the last picture is shown;
        {"error": a line}, and the last picture stays.
    Its event "select" carries the settings of an earlier picture that a person chose and that is shown again, "redraw"
    those of one whose maps the browser no longer has.

    Args:
        server_functions: `view`, `frames`, `masks`, `save` and `stop` of `ui.kept`: finer maps, masks, files, and the
            end of a generation. Without them the viewer shows only the maps in its payloads.
        options: "past": True for a viewer that keeps its pictures in the browser and their address in its bar; "reach",
            the events to other tabs that it offers, by default all: "follow", "translate", "attribute"; "edits", False
            for pictures whose words cannot be changed.
    """
    functions, texts = list(server_functions), texts_of(*SAID)
    return component("ui.viewer", colours=COLOUR_STOPS, texts=texts, server_functions=functions, **options)
