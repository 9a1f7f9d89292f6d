"""The attention viewer: pictures, their words, and which drew what, answered in the browser without asking the server.

`payload` says what the page needs about one picture; `attention_viewer` is the component that shows it; `document` is
the same as one file.
"""

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.drawing import colour_map
from pipelines.tracing.overlay import drawn
from ui.template import sources
from unet_xattn import AttentionTrace
from unet_xattn.words import Word

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Of a page of its own: it may run what is in it and fetch nothing."""

COLOURS = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colour_map(np.linspace(0, 1, 17))]
"""The colour map of every heat map we draw, as the browser reads it: evenly spaced, from nothing to most."""


def document(attention: AttentionTrace, image: int = 0, frames: Sequence[str] = ()) -> str:
    """The viewer and one recorded picture as a page of its own: one file, no server, nothing fetched.

    It holds whatever was kept apart, except single heads at single steps. `frames` are the pictures of the steps.
    """
    template, style, script = sources(__name__)
    picture = payload(attention, image) | {"frames": list(frames) or None}
    for name in view_names(attention):
        picture["views"][name] = view(attention, image, name, steps=not name.split("|")[2])
    props = {"value": {"pictures": [picture]}, "colours": COLOURS}
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
(function (element, props, watch, server, trigger) {{
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
        words: of each word, its tokens.
        tokens: all tokens as the tokenizer spells them, without padding.
        picture: a PNG as a data URL.
        layers: name -> (rows, columns) of each layer's grid; heads: how many were kept apart, or 1; steps: likewise,
            or 0; calibrated: whether there is such an average.
        views: name -> `view`, the plain mean and, where there is one, the calibrated one.
    """
    words = attention.words_of(image)
    calibrated = "head" in attention.keep and attention.recording.calibration is not None
    return {
        "prompt": attention.prompts[image],
        "pieces": _pieces(attention.prompts[image], words),
        "words": [list(word.tokens) for word in words],
        "tokens": [attention.tokens_of(image)[i] for i in _real(attention, image)],
        "picture": data_url(drawn(attention, image)),
        "image": image,
        "layers": {layer: attention.recording.grids[layer] for layer in attention.layers},
        "heads": attention.recording.heads if "head" in attention.keep else 1,
        "steps": len(attention.steps),
        "calibrated": calibrated,
        "views": {
            name: view(attention, image, name, steps=False) for name in ["mean||", *["calibrated||"] * calibrated]
        },
    }


def view_names(attention: AttentionTrace) -> list[str]:
    """Every view there is of a trace: "average|layer|head", the last two empty where all are meant."""
    heads = [str(head) for head in range(attention.recording.heads)] if "head" in attention.keep else []
    names = [f"mean|{layer}|{head}" for layer in ("", *attention.layers) for head in ("", *heads)]
    return [*names, "calibrated||"] if heads and attention.recording.calibration is not None else names


def view(attention: AttentionTrace, image: int, name: str, steps: bool = True) -> dict[str, Any]:
    """The maps of every token of one picture under one choice of layers and heads.

    Args:
        name: one of `view_names`.
        steps: each single step as well, where they were kept apart.

    Returns:
        grid: (rows, columns), the layer's own, or the finest.
        peaks: for the mean over all steps, then for each step: each token's largest share of the attention anywhere.
        maps: base64 of uint8 (frames, tokens, rows, columns), each in 255ths of its peak.

    Raises:
        ValueError: there is no such view.
    """
    if name not in view_names(attention):
        raise ValueError(f"there is no view {name[:80]!r} of this picture")
    average, layer, head = name.split("|")
    grids = attention.recording.grids
    grid = grids[layer] if layer else max(grids.values(), key=math.prod)
    tokens = _real(attention, image)
    frames: list[Tensor] = []
    for step in (None, *(attention.steps if steps else ())):
        if layer:
            its_head = int(head) if head else None
            frames.append(attention.maps(layer, step=step, head=its_head, image=image)[tokens])
        else:
            which = {"step": step, "head": int(head) if head else None, "reduce": average}
            maps = attention.heatmaps(tokens, image=image, **which)
            # The mean over a cell, so that the page and `words_at` of that cell's box give the same number.
            frames.append(F.interpolate(maps[None], grid, mode="area")[0])
    values = torch.stack(frames)  # (frames, tokens, rows, columns)
    peaks = values.amax(dim=(2, 3)).clamp_min(1e-12)
    levels = (values / peaks[..., None, None] * 255).round().to(torch.uint8)
    return {
        "grid": list(grid),
        "peaks": [[float(f"{peak:.5g}") for peak in frame] for frame in peaks.tolist()],
        "maps": base64.b64encode(levels.numpy().tobytes()).decode(),
    }


def data_url(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def _real(attention: AttentionTrace, image: int) -> list[int]:
    """The tokens of a prompt without those that pad it to the length of a longer one."""
    return list(range(len(attention.recording.texts["prompt"][image].tokens)))


def _pieces(prompt: str, words: list[Word]) -> list[tuple[str, int]]:
    pieces, end = [], 0
    for i, word in enumerate(words):
        pieces += [(prompt[end : word.start], -1), (prompt[word.start : word.end], i)]
        end = word.end
    pieces.append((prompt[end:], -1))
    return [piece for piece in pieces if piece[0]]
