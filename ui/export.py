"""A trace as files that open anywhere: pictures, an animation, a table and a page."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.tracing.masks import label_map, mask_picture, write_masks
from pipelines.tracing.overlay import concept_sheet, drawn, step_frames, step_sheet, word_overlay, word_sheet
from ui.viewer import document
from unet_xattn import AttentionTrace
from unet_xattn.trace_maps import Selection
from unet_xattn.words import CONCEPTS, Word, is_index, shown

READINGS: dict[str, Selection] = {
    "share": {},
    "text": {"of": "text"},
    "contrast": {"of": "words"},
    "calibrated": {"reduce": "calibrated"},
    "output": {"reduce": "output"},
}
"""Ways to read the maps of words, and what to ask for each; see the README of pipelines/tracing."""


def export(
    attention: AttentionTrace,
    folder: Path,
    image: int = 0,
    overwrite: bool = False,
    masks: bool = False,
    reading: str = "share",
) -> list[Path]:
    """Write the attention of one recorded picture into a folder, and return the files.

    The files are `words.png`, all words on a sheet; `word-NN-TEXT.png`, one word each; `measures.csv`, see `measures`;
    and `page.html`, the viewer in one file that needs nothing else. If the steps were recorded separately, there are
    also `steps.png`, unless the prompt has no words, and the animation `steps.webp`. If concepts were read, there is
    `concepts.png`, the part of the picture that belongs to each. With `masks`, those of the words follow, see
    `write_masks`.

    Args:
        reading: one of `READINGS`, for the pictures of words and steps. The table and the page have shares.

    Raises:
        ValueError: the image or the reading does not exist, the reading was not recorded, or the folder is not empty
            and `overwrite` is False.
    """
    if reading not in READINGS:
        raise ValueError(f"the reading is one of {', '.join(READINGS)}, not {shown(reading)!r}")
    words, which = attention.words_of(image), READINGS[reading]
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another --out, or --overwrite")
    drawings = {"words.png": word_sheet(attention, image, reading=which)}
    for i, word in enumerate(words, 1):
        name = re.sub(r"\W+", "-", word.text)[:40]
        drawings[f"word-{i:02}-{name}.png"] = word_overlay(attention, word, image, reading=which)
    if attention.concepts:
        drawings["concepts.png"] = concept_sheet(attention, image)
    if attention.steps and words:
        drawings["steps.png"] = step_sheet(attention, image, reading=which)
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        drawing.save(folder / name)
    written = [folder / name for name in drawings]
    if attention.steps:
        first, *others = step_frames(attention, image, reading=which)
        first.save(folder / "steps.webp", save_all=True, append_images=others, duration=250, loop=0, lossless=True)
        written.append(folder / "steps.webp")
    rows = measures(attention, image)
    with open(folder / "measures.csv", "w", encoding="utf-8-sig", newline="") as file:  # spreadsheets expect the mark
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    (folder / "page.html").write_text(document(attention, image), encoding="utf-8")
    written += [folder / "measures.csv", folder / "page.html"]
    return written + (write_masks(attention, folder, image) if masks else [])


def stem(prompt: str, seed: int) -> str:
    """The name of a picture's file without its ending: the prompt, in any script, and the seed."""
    name = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:60]
    return f"{name or 'picture'}-seed{seed}"


DOWNLOADS = {
    "png": (".png", "image/png"),
    "large": ("-4x.png", "image/png"),
    "smooth": ("-4x-smooth.png", "image/png"),
    "maps": ("-words.png", "image/png"),
    "mask": ("-mask.png", "image/png"),
    "labels": ("-labels.png", "image/png"),
    "gif": (".gif", "image/gif"),
    "trace": (".safetensors", "application/octet-stream"),
    "page": (".html", "text/html"),
}
"""The kinds of file of one picture: the end of the file's name, and its media type."""

LARGER = 4
"""How many times as long the sides of a large picture are."""

ENLARGED = {"large": Image.Resampling.NEAREST, "smooth": Image.Resampling.LANCZOS}
"""The kinds of large pictures: every pixel as a square, or smooth ones between them."""


def download(
    attention: AttentionTrace,
    image: int,
    kind: str,
    settings: Mapping[str, Any],
    frames: Sequence[str] = (),
    word: Any = None,
) -> bytes:
    """The content of one file of a picture.

    Args:
        kind: "png", the picture with its settings as metadata; "large" and "smooth", the same `LARGER` times as large
            (`ENLARGED`); "maps", the heat maps of all words; "mask", that of one word; "labels", the masks of all
            words as one label map; "gif", the heat maps for each step; "trace"; or "page", the viewer in one file.
        settings: the settings that the picture was made with.
        frames: the pictures of the steps as data URLs, for "page".
        word: the number of the word for "mask", from 0.

    Raises:
        ValueError: the kind or the word does not exist, or the steps were not recorded separately, which "gif" needs.
    """
    file = io.BytesIO()
    if kind in ("png", *ENLARGED):
        metadata = PngInfo()
        for name, value in settings.items():
            metadata.add_itxt(name, str(value))
        metadata.add_itxt("settings", json.dumps(dict(settings), ensure_ascii=False))
        picture = drawn(attention, image)
        if kind in ENLARGED:
            picture = picture.resize((LARGER * picture.width, LARGER * picture.height), ENLARGED[kind])
        picture.save(file, "PNG", pnginfo=metadata)
    elif kind == "maps":
        word_sheet(attention, image).save(file, "PNG")
    elif kind == "mask":
        words = attention.words_of(image)
        if not is_index(word, len(words)):
            raise ValueError(f"there is no word {shown(word)} in the prompt, which has {len(words)}")
        mask_picture(attention, words[word], image).save(file, "PNG")
    elif kind == "labels":
        label_map(attention, image).save(file, "PNG")
    elif kind == "gif":
        if not attention.steps:
            raise ValueError("nothing to animate: the steps were not recorded separately")
        first, *others = step_frames(attention, image)
        first.save(file, "GIF", save_all=True, append_images=others, duration=250, loop=0)
    elif kind == "trace":
        with TemporaryDirectory() as folder:
            attention.save(Path(folder) / "trace")
            return (Path(folder) / "trace").read_bytes()
    elif kind == "page":
        return document(attention, image, frames, settings).encode()
    else:
        raise ValueError(f"the kind of file must be one of {', '.join(DOWNLOADS)}, got {kind[:40]!r}")
    return file.getvalue()


def measures(attention: AttentionTrace, image: int = 0) -> list[dict[str, str | int | float]]:
    """The measures of each word (`unet_xattn.grounding.Measures`), one row for all layers and one for each layer.

    Rows of the other tokens follow: start and end of the prompt, padding and punctuation. With them, the masses of a
    layer add up to one. Concepts, which are another reading, come last. Centres are in pixels.
    """
    words, tokens = attention.words_of(image), attention.tokens_of(image)
    in_words = {token for word in words for token in word.tokens}
    listed: list[tuple[str, str, Word | int]] = [(word.text, "word", word) for word in words]
    listed += [(text, "token", i) for i, text in enumerate(tokens) if i not in in_words]
    concepts = attention.words_of(image, CONCEPTS) if attention.concepts else []
    listed += [(word.text, "concept", word) for word in concepts]
    rows: list[dict[str, str | int | float]] = []
    for text, kind, item in listed:
        for layer in (None, *attention.layers):
            heat = attention.measure(item, image=image, layer=layer)
            peak = float(attention.heatmap(item, image=image, layer=layer).max())
            row: dict[str, str | int | float] = {"text": _cell(text), "kind": kind, "layer": layer or "all"}
            numbers = {"mass": heat.mass, "peak": peak, "entropy": heat.entropy, "area": heat.area}
            numbers |= {"centre x": heat.centre[0], "centre y": heat.centre[1]}
            rows.append(row | {name: round(value, 6) for name, value in numbers.items()})
    return rows


def _cell(text: str) -> str:
    """A text that spreadsheets do not read as a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text
