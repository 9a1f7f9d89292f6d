"""The attention viewer: a picture and its words; the browser answers which word drew what, without the server.

`payload` makes the data of one picture; `ui.viewer.component` shows it on the page; `document` makes one HTML file.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.drawing import colour_map
from pipelines.tracing.masks import mask_entries
from pipelines.tracing.overlay import drawn
from ui.template import sources
from ui.texts import texts_of
from ui.viewer.columns import columns_of, mean_grid
from unet_xattn import AttentionTrace
from unet_xattn.words import Word

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The content security policy of `document`: the file may run its own script and fetch nothing."""

SAID = ("viewer.", "verdict.", "warning.", "note.")
"""The prefixes of the texts that the viewer shows."""

COLOUR_STOPS = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colour_map(np.linspace(0, 1, 17))]
"""The colour map of all heat maps as evenly spaced stops, between which the browser interpolates."""

PIXELS = 256
"""The longest side of a picture that is shown pixel by pixel. Larger ones are shown as WEBP with loss, because a PNG of
1024×1024 pixels has two million bytes; saved files have every pixel."""

QUALITIES, SHOWN_BYTES = (90, 75, 50, 25, 5), 150_000
"""The qualities of WEBP, of which the first is taken whose file has at most so many bytes, or else the last."""


def document(
    attention: AttentionTrace,
    image: int = 0,
    frames: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The viewer with one recorded picture as a single HTML file that needs no server and fetches nothing.

    It holds every layer, head and step that was recorded separately, but not single heads at single steps, and the mask
    of every word. `frames` are
    the pictures of the steps, `settings` those that the picture was made with.
    """
    template, style, script = sources(__name__)
    picture = payload(attention, image) | {"frames": list(frames) or None, "masks": mask_entries(attention, image)}
    for name in view_names(attention):
        picture["views"][name] = view(attention, image, name, steps=not name.split("|")[2])
    props: dict[str, Any] = {"value": {"pictures": [picture]}, "colours": COLOUR_STOPS, "texts": texts_of(*SAID)}
    props["heading"] = _heading(attention.prompts[image], settings or {})
    # Text that a person typed travels as JSON without "<", so that it cannot end the script element.
    data = json.dumps(props, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html>
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


def _heading(prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the head of a saved page says: the prompt, and a message on where the picture is from."""
    today = date.today().isoformat()
    if "num_inference_steps" not in settings:
        return {"prompt": prompt, "about": ["viewer.about.yours", {"date": today}]}
    made = {
        "model": settings["model"],
        "seed": settings["seed"],
        "steps": settings["num_inference_steps"],
        "date": today,
    }
    if "guidance_scale" not in settings:
        return {"prompt": prompt, "about": ["viewer.about.plain", made]}
    return {"prompt": prompt, "about": ["viewer.about", made | {"guidance": f"{settings['guidance_scale']:g}"}]}


def payload(attention: AttentionTrace, image: int = 0) -> dict[str, Any]:
    """The JSON data of one recorded picture for the viewer.

    Returns:
        prompt: the text as it was typed.
        pieces: the prompt cut into (text, index of the word), index -1 between words; joined they are the prompt.
        words: the tokens of each word, as indices into `tokens`.
        unknown: the words that the model does not know.
        tokens: the names of what has a map, see `columns_of`: all tokens without padding, as the tokenizer spells them.
        picture: a data URL. pixels: whether it is a PNG, shown pixel by pixel, see `PIXELS`. size: its height and
            width. image: its index in the batch.
        layers: name -> (rows, columns) of each layer's grid.
        heads: the number of heads recorded separately, or 1. steps: the number of steps recorded separately, or 0.
        calibrated: whether the trace has a calibrated average.
        views: name -> `view`: the plain mean and, if there is one, the calibrated average.
    """
    words, columns = attention.words_of(image), columns_of(attention, image)
    calibrated = "head" in attention.keep and attention.recording.calibration is not None
    picture = drawn(attention, image)
    pixels = max(picture.size) <= PIXELS
    return {
        "prompt": attention.prompts[image],
        "pieces": _pieces(attention.prompts[image], words),
        "words": columns.words,
        "unknown": list(attention.recording.settings.get("unknown_words", ())),
        "tokens": columns.names,
        "picture": data_url(picture) if pixels else _small(picture),
        "pixels": pixels,
        "size": list(attention.size),
        "image": image,
        "layers": {layer: attention.recording.grids[layer] for layer in attention.layers},
        "heads": _heads(attention) if "head" in attention.keep else 1,
        "steps": len(attention.steps),
        "calibrated": calibrated,
        "views": {
            name: view(attention, image, name, steps=False) for name in ["mean||", *["calibrated||"] * calibrated]
        },
    }


def view_names(attention: AttentionTrace) -> list[str]:
    """The names of all views of a trace: "average|layer|head"; an empty layer or head means all."""
    heads = list(map(str, range(_heads(attention)))) if "head" in attention.keep else []
    names = [f"mean|{layer}|{head}" for layer in ("", *attention.layers) for head in ("", *heads)]
    return [*names, "calibrated||"] if heads and attention.recording.calibration is not None else names


def _heads(attention: AttentionTrace) -> int:
    """The number of heads that all layers have."""
    return min(attention.recording.heads.values())


def view(attention: AttentionTrace, image: int, name: str, steps: bool = True) -> dict[str, Any]:
    """The maps of every token of one picture for one choice of layers and heads.

    Args:
        name: one of `view_names`.
        steps: whether to add a frame for each step, if the steps were recorded separately.

    Returns:
        grid: (rows, columns) of the layer, or `mean_grid` for all.
        peaks (frames, tokens): the largest value of each token's map. Frame 0 is the mean over all steps.
        tops (frames, words): the largest value of each word's heat map, as saved sheets and tables have it.
        maps: base64 of uint8 (frames, tokens, rows, columns), each map in 255ths of its peak.

    Raises:
        ValueError: `name` is not one of `view_names`.
    """
    if name not in view_names(attention):
        raise ValueError(f"this picture has no view {name[:80]!r}")
    average, layer, head = name.split("|")
    columns = columns_of(attention, image)
    grid = attention.recording.grids[layer] if layer else mean_grid(attention, columns)
    words = [word.tokens for word in attention.words_of(image)]
    frames: list[Tensor] = []
    tops: list[list[float]] = []
    for step in (None, *(attention.steps if steps else ())):
        which: dict[str, Any] = {"step": step, "head": int(head) if head else None, "image": image}
        mean = which | {"layer": layer or None, "reduce": average}
        tops.append([float(f"{top:.5g}") for top in attention.largest(words, **mean)])
        if layer:
            frames.append(columns.summed(attention.maps(layer, **which)))
        else:
            # The mean over each cell, so that the page shows the same number as `words_at` of the cell's box.
            frames.append(attention.cells(columns.groups, grid, **mean))
    values = torch.stack(frames)  # (frames, tokens, rows, columns)
    peaks = values.amax(dim=(2, 3)).clamp_min(1e-12)
    levels = (values / peaks[..., None, None] * 255).round().to(torch.uint8)
    return {
        "grid": list(grid),
        "tops": tops,
        "peaks": [[float(f"{peak:.5g}") for peak in frame] for frame in peaks.tolist()],
        "maps": base64.b64encode(levels.numpy().tobytes()).decode(),
    }


def all_heads(attention: AttentionTrace, image: int, tokens: Any) -> list[dict[str, Any]]:
    """The map of some tokens together in every head of every layer.

    Returns:
        for each layer its name, its grid, and for each head the largest value ("peak") and the map: base64 of uint8
        (rows, columns) in 255ths of the peak.

    Raises:
        ValueError: the heads were not recorded separately, or there are no such tokens.
    """
    columns = columns_of(attention, image)
    if "head" not in attention.keep:
        raise ValueError("the heads of this picture were not recorded separately")
    known = range(len(columns.groups))
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int and token in known for token in tokens):
        raise ValueError(f"tokens must be numbers from 0 to {len(known) - 1}, got {str(tokens)[:40]!r}")
    shown = []
    for layer in attention.layers:
        maps = []
        for head in range(attention.recording.heads[layer]):
            share = columns.summed(attention.maps(layer, head=head, image=image))[tokens].sum(0)
            peak = float(share.max().clamp_min(1e-12))
            levels = (share / peak * 255).round().to(torch.uint8)
            maps.append({"peak": float(f"{peak:.5g}"), "map": base64.b64encode(levels.numpy().tobytes()).decode()})
        shown.append({"name": layer, "grid": list(attention.recording.grids[layer]), "maps": maps})
    return shown


def _small(picture: Image.Image) -> str:
    """A large picture as a data URL, see `PIXELS`."""
    for quality in QUALITIES:
        url = data_url(picture, "WEBP", quality=quality)
        if 3 * len(url) <= 4 * SHOWN_BYTES:
            break
    return url


def data_url(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def _pieces(prompt: str, words: list[Word]) -> list[tuple[str, int]]:
    pieces, end = [], 0
    for i, word in enumerate(words):
        pieces += [(prompt[end : word.start], -1), (prompt[word.start : word.end], i)]
        end = word.end
    pieces.append((prompt[end:], -1))
    return [piece for piece in pieces if piece[0]]
