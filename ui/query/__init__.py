"""One query through one head: its q, each token's k, the products, scaling, softmax, weights, v, and the output.

`payload` sends the outputs of one layer's projections for all positions and heads. The browser computes the rest of
attention, so another position, head or component needs no request.
"""

import base64
import io
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.drawing import colour_map
from pipelines.tracing.follow import PictureReading, Reading, TextReading, Trajectory
from ui.component import component
from ui.texts import texts_of

COLOUR_STEPS = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colour_map(np.linspace(0, 1, 64))]
"""The colour map of all heat maps in evenly spaced steps; the browser takes the nearest."""


def query_diagram(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The component.

    Its value is a payload, or {"error": a line}, and the last query stays. It triggers the event `opened` if it comes
    onto the page without a value.
    """
    return component(__name__, value, colours=COLOUR_STEPS, texts=texts_of("query.", "note."), **options)


def picture_payload(drawing: Trajectory, reading: PictureReading) -> dict[str, Any]:
    """The JSON data of a layer of the UNet at one step for the diagram.

    Returns:
        `payload` of the reading, and
        grid: (rows, columns) of the layer; position n is row n // columns, column n % columns.
        picture, seen: the finished picture and the noisy input of the UNet at this step, PNGs as data URLs.
        step: the step, counted from 1. steps: the number of steps. noise: the noise level of the step.
    """
    return payload(reading, drawing.prompt) | {
        "grid": list(reading.grid),
        "picture": _png(drawing.picture),
        "seen": _png(drawing.seen(reading.step)),
        "step": reading.step + 1,
        "steps": len(drawing.states),
        "noise": reading.noise,
    }


def text_payload(reading: TextReading) -> dict[str, Any]:
    """The JSON data of a layer of the text decoder for the diagram.

    Returns:
        `payload` of the reading, and
        written: the tokens of the translation; the query of position n belongs to the prediction of `written[n]`.
        translation: the text of the translation.
    """
    return payload(reading, reading.text) | {"written": list(reading.written), "translation": reading.translation}


def payload(reading: Reading, text: str) -> dict[str, Any]:
    """The JSON data that both readers have in common.

    Returns:
        text: the prompt or source text. layer: the name of the layer. tokens: the tokens of the memory.
        shape: [H heads, N queries, T tokens, E width of a head, M width of the memory].
        mask (T,): True for tokens that may be attended.
        q (H, N, E), k and v (H, T, E), memory (T, M): base64 of little-endian float32.
    """
    heads, positions, width = reading.q.shape
    return {
        "text": text,
        "layer": reading.layer,
        "tokens": list(reading.tokens),
        "shape": [heads, positions, *reading.memory.shape[:1], width, *reading.memory.shape[1:]],
        "mask": reading.mask.tolist(),
    } | {name: _numbers(getattr(reading, name)) for name in ("q", "k", "v", "memory")}


def _numbers(tensor: Tensor) -> str:
    return base64.b64encode(tensor.contiguous().numpy().astype("<f4").tobytes()).decode()


def _png(pixels: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
