"""The attention viewer as a Gradio component."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ui.component import component
from ui.viewer import COLOUR_STOPS


def attention_viewer(server_functions: Sequence[Callable] = (), **options: Any) -> gr.HTML:
    """The component.

    Its value is one of
        {"pictures": [`payload`, ...], "note": a line}, with "live": True for pictures of the live mode, which do not go
            into the list of this visit;
        {"frame": a data URL, "note": a line} while a picture is being generated;
        {"error": a line}, and the last picture stays.
    Its event "select" carries the settings of a picture of this visit that a person chose again.

    Args:
        server_functions: `view`, `frames` and `save` of `ui.kept`, which give finer maps and files. Without them the
            viewer shows only the maps in its payloads.
    """
    return component("ui.viewer", colours=COLOUR_STOPS, server_functions=list(server_functions), **options)
