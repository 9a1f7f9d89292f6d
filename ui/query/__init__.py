"""One query followed through one head: its q, each token's k, product, scaling, softmax, weight, v, and the output.

`payload` sends what one layer's projections gave for every place and head; the browser does the rest of attention
itself, so pointing at another place, head or component asks nobody.
"""

import base64
import io
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.drawing import colour_map
from pipelines.tracing.follow import Drawing, PictureReading, Reading, TextReading
from ui.component import component

COLOURS = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colour_map(np.linspace(0, 1, 64))]
"""The colour map of every heat map we draw, evenly spaced, from nothing to most."""


def query_diagram(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The component.

    Its value is a payload, or {"error": a line that says why there is no new one}, and the last one stays. It triggers
    `opened` when it comes onto the page with nothing to show.
    """
    return component(__name__, value, colours=COLOURS, **options)


def picture_payload(drawing: Drawing, reading: PictureReading) -> dict[str, Any]:
    """What the diagram shows of a layer of the UNet at one step, as JSON can carry it.

    Returns:
        `payload` of the reading, and
        grid: (rows, columns) of the layer; position n is row n // columns, column n % columns.
        picture, seen: the finished picture, and the noisy one the UNet saw at this step, PNGs as data URLs.
        step, steps, noise: the step, from 1, of so many, and its noise level.
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
    """What the diagram shows of a layer of the decoder: `payload`, and `written`, the tokens of the translation.

    Position n asks where to look when `written[n]` is written.
    """
    return payload(reading, reading.text) | {"written": list(reading.written), "translation": reading.translation}


def payload(reading: Reading, text: str) -> dict[str, Any]:
    """What the diagram shows of any reading, as JSON can carry it.

    Returns:
        text: what was typed. layer: the layer's name. tokens: of the memory.
        shape: [H heads, N queries, T tokens, E width of a head, M width of the memory].
        mask: which tokens may be read.
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
