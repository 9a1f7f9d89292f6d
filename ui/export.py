"""Everything a trace shows, as files that open anywhere: pictures, an animation, a table and a page."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL.PngImagePlugin import PngInfo

from pipelines.tracing.overlay import drawn, step_frames, step_sheet, word_overlay, word_sheet
from ui.viewer import document
from unet_xattn import AttentionTrace
from unet_xattn.words import Word


def export(attention: AttentionTrace, folder: Path, image: int = 0, overwrite: bool = False) -> list[Path]:
    """Write what one recorded picture shows into a folder, and return the files.

    `words.png`, all words on a sheet; `word-NN-TEXT.png`, each alone; `measures.csv`, see `measures`; `page.html`, the
    viewer in one file that needs nothing else; and, where steps were kept apart, `steps.png` and `steps.webp`, which
    plays them.

    Raises:
        ValueError: there is no such image, or the folder holds something and `overwrite` is False.
    """
    words = attention.words_of(image)
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another --out, or --overwrite")
    drawings = {"words.png": word_sheet(attention, image)}
    for i, word in enumerate(words, 1):
        spelt = re.sub(r"\W+", "-", word.text)[:40]
        drawings[f"word-{i:02}-{spelt}.png"] = word_overlay(attention, word, image)
    if attention.steps:
        drawings["steps.png"] = step_sheet(attention, image)
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        drawing.save(folder / name)
    written = [folder / name for name in drawings]
    if attention.steps:
        first, *others = step_frames(attention, image)
        first.save(folder / "steps.webp", save_all=True, append_images=others, duration=250, loop=0, lossless=True)
        written.append(folder / "steps.webp")
    rows = measures(attention, image)
    with open(folder / "measures.csv", "w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets expect it
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    (folder / "page.html").write_text(document(attention, image), encoding="utf-8")
    return [*written, folder / "measures.csv", folder / "page.html"]


def stem(prompt: str, seed: int) -> str:
    """A file's name for a picture: what it shows, in any script, so that no two prompts share it, and its seed."""
    spelt = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:60]
    return f"{spelt or 'picture'}-seed{seed}"


DOWNLOADS = {
    "png": (".png", "image/png"),
    "maps": ("-words.png", "image/png"),
    "gif": (".gif", "image/gif"),
    "trace": (".safetensors", "application/octet-stream"),
    "page": (".html", "text/html"),
}
"""What one picture can be taken home as: what its file's name ends in, and its type."""


def download(
    attention: AttentionTrace, image: int, kind: str, settings: Mapping[str, Any], frames: Sequence[str] = ()
) -> bytes:
    """One of `DOWNLOADS`: the picture with what made it in its metadata, all words' maps, the same for each step, the
    trace, or the viewer in a file of its own with the pictures of its steps, `frames`.

    Raises:
        ValueError: there is no such kind, or no steps were kept to animate.
    """
    file = io.BytesIO()
    if kind == "png":
        made = PngInfo()
        for name, value in settings.items():
            made.add_itxt(name, str(value))
        made.add_itxt("settings", json.dumps(dict(settings), ensure_ascii=False))
        drawn(attention, image).save(file, "PNG", pnginfo=made)
    elif kind == "maps":
        word_sheet(attention, image).save(file, "PNG")
    elif kind == "gif":
        if not attention.steps:
            raise ValueError("there is nothing to animate: the steps were not kept apart")
        first, *others = step_frames(attention, image)
        first.save(file, "GIF", save_all=True, append_images=others, duration=250, loop=0)
    elif kind == "trace":
        with TemporaryDirectory() as folder:
            attention.save(Path(folder) / "trace")
            return (Path(folder) / "trace").read_bytes()
    elif kind == "page":
        return document(attention, image, frames).encode()
    else:
        raise ValueError(f"a picture can be had as {', '.join(DOWNLOADS)}, not {kind[:40]!r}")
    return file.getvalue()


def measures(attention: AttentionTrace, image: int = 0) -> list[dict[str, str | int | float]]:
    """Each word in numbers (`unet_xattn.grounding.Measures`), over all layers and in each, a row each.

    What is no word follows, token by token: the tokens that begin and end the prompt, padding and punctuation. With
    them, the masses of a layer add up to one. Centres are in pixels.
    """
    words, tokens = attention.words_of(image), attention.tokens_of(image)
    told = {token for word in words for token in word.tokens}
    asked: list[tuple[str, str, Word | int]] = [(word.text, "word", word) for word in words]
    asked += [(text, "token", i) for i, text in enumerate(tokens) if i not in told]
    rows: list[dict[str, str | int | float]] = []
    for text, kind, what in asked:
        for layer in (None, *attention.layers):
            heat = attention.measure(what, image=image, layer=layer)
            peak = float(attention.heatmap(what, image=image, layer=layer).max())
            row: dict[str, str | int | float] = {"text": _cell(text), "kind": kind, "layer": layer or "all"}
            numbers = {"mass": heat.mass, "peak": peak, "entropy": heat.entropy, "area": heat.area}
            numbers |= {"centre x": heat.centre[0], "centre y": heat.centre[1]}
            rows.append(row | {name: round(value, 6) for name, value in numbers.items()})
    return rows


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text
