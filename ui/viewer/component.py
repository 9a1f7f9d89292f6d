"""The attention viewer as a Gradio component."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ui.component import component
from ui.viewer import COLOURS


def attention_viewer(server_functions: Sequence[Callable] = (), **options: Any) -> gr.HTML:
    """The component.

    What is sent to it is one of: {"pictures": [`payload`, ...], "note": a line}, with "live": True for pictures that
    are not worth keeping; {"frame": a data URL, "note": a line} while a picture is being drawn; or {"error": a line
    that says why there is no new picture}, and the last one stays. Its event "select" brings the settings of a picture
    of this visit that was chosen again.

    Args:
        server_functions: what finer maps and files are asked of, where there is somebody to ask: `view`, `frames` and
            `save` (`ui.kept`). Without them the viewer shows what its payloads hold.
    """
    return component("ui.viewer", colours=COLOURS, server_functions=list(server_functions), **options)
