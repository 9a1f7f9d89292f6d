"""The attention viewer: a picture, its words, and which drew what, answered in the browser without asking the server.

`payload` says everything the page needs about one picture; `attention_viewer` is the component that shows it.
"""

import base64
import html
import io
import json
import math
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch.nn import functional as F

from pipelines.overlay import colour_map, drawn
from ui.component import component, sources
from unet_xattn import AttentionTrace
from unet_xattn.words import Word

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Of a page of its own: it may run what is in it and fetch nothing."""

COLOURS = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colour_map(np.linspace(0, 1, 17))]
"""The colour map of every heat map we draw, as the browser reads it: evenly spaced, from nothing to most."""


def attention_viewer(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The component.

    Its value is a `payload`, which may hold a "note" too, a line about the picture; or {"error": a line that says why
    there is no new picture}, and the last one stays.
    """
    return component(__name__, value, colours=COLOURS, **options)


def document(attention: AttentionTrace, image: int = 0) -> str:
    """The viewer and one recorded picture as a page of its own: one file, no server, nothing fetched."""
    template, style, script = sources(__name__)
    props = {"value": payload(attention, image), "colours": COLOURS}
    # What a person typed travels as data: in JSON no "<" is left that could end the script element.
    data = json.dumps(props, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(attention.prompts[image])}</title>
<style>
body {{ margin: 1.5rem; font-family: system-ui, sans-serif; background: #fff; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16161a; }} }}
{style}</style>
</head>
<body>
{template}
<script type="application/json" id="props">{data}</script>
<script>
document.body.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
(function (element, props, watch) {{
{script}
}})(document.querySelector(".attention-viewer"), JSON.parse(document.getElementById("props").textContent), () => {{}});
</script>
</body>
</html>
"""


def payload(attention: AttentionTrace, image: int = 0) -> dict[str, Any]:
    """What the viewer shows of one recorded picture, as JSON can carry it.

    Returns:
        prompt: the text as it was typed.
        pieces: the prompt cut into (text, word), word -1 for what lies between words; joined they are the prompt.
        picture: a PNG as a data URL.
        grid: (rows, columns) of the finest layer.
        peaks: each word's largest share of the attention at any place of the grid.
        maps: base64 of uint8 (words, rows, columns), each word's share in 255ths of its peak.
    """
    words = attention.words_of(image)
    grid = max((attention.maps(layer, image=image).shape[-2:] for layer in attention.layers), key=math.prod)
    maps = torch.zeros(len(words), *grid)
    for i, word in enumerate(words):
        # The mean over a cell, so that the page and `words_at` of that cell's box give the same number.
        maps[i] = F.interpolate(attention.heatmap(word, image=image)[None, None], grid, mode="area")[0, 0]
    peaks = maps.amax(dim=(1, 2)).clamp_min(1e-12)
    levels = (maps / peaks[:, None, None] * 255).round().to(torch.uint8)
    file = io.BytesIO()
    drawn(attention, image).save(file, "PNG")
    return {
        "prompt": attention.prompts[image],
        "pieces": _pieces(attention.prompts[image], words),
        "picture": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        "grid": list(grid),
        "peaks": peaks.tolist(),
        "maps": base64.b64encode(levels.numpy().tobytes()).decode(),
    }


def _pieces(prompt: str, words: list[Word]) -> list[tuple[str, int]]:
    pieces, end = [], 0
    for i, word in enumerate(words):
        pieces += [(prompt[end : word.start], -1), (prompt[word.start : word.end], i)]
        end = word.end
    pieces.append((prompt[end:], -1))
    return [piece for piece in pieces if piece[0]]
