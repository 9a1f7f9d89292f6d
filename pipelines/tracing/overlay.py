"""Heat maps as pictures: one over its picture, or all words of a prompt on one sheet.

Shapes: h×w pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.drawing import colour_map, label, readable
from unet_xattn import AttentionTrace
from unet_xattn.trace_maps import Selection
from unet_xattn.words import CONCEPTS, Word

if TYPE_CHECKING:
    from pipelines.text_to_text import Translation


SHARE: Selection = {}
"""The reading of maps by default: shares of the attention."""


def overlay(picture: Image.Image, heat: np.ndarray, opacity: float = 0.75) -> Image.Image:
    """A heat map (h, w) in [0, 1], blended over a picture of the same size."""
    heated = Image.fromarray(colour_map(heat))
    return Image.blend(picture.convert("RGB"), heated.resize(picture.size), opacity)


def drawn(attention: AttentionTrace, image: int = 0) -> Image.Image:
    """The picture that belongs to a trace.

    Raises:
        ValueError: the recording stopped before the picture was finished.
    """
    if attention.pictures is None:
        raise ValueError("this trace holds no picture, because its recording was not finished: record it again")
    return Image.fromarray(attention.pictures[image].numpy())


def word_overlay(
    attention: AttentionTrace, word: Word, image: int = 0, side: int = 512, reading: Selection = SHARE
) -> Image.Image:
    """One word's heat map over its picture, `side` pixels long, with a colour bar from 0 to the word's peak."""
    picture, heat = drawn(attention, image), attention.heatmap(word, image=image, **reading).numpy()
    peak = max(float(heat.max()), 1e-12)
    large = overlay(picture, heat / peak).resize(_fit(picture.size, side), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (large.width, large.height + 28), "white")
    sheet.paste(large, (0, 0))
    _colour_bar(sheet, 0, f"{peak:.1%} of the attention")
    return sheet


def word_sheet(
    attention: AttentionTrace,
    image: int = 0,
    tile: int = 192,
    step: int | None = None,
    title: str = "picture",
    reading: Selection = SHARE,
) -> Image.Image:
    """The picture, then a labelled heat map over it for each word of its prompt, each scaled to its own peak.

    The label gives the peak: the word's largest share of the attention at any position. The maps of a single `step`
    are scaled to the word's peak over all steps, so that sheets of different steps can be compared. The trace must have
    kept the steps. Maps of the concepts follow, and, unless the reading is another one than shares, those of what was
    read besides words: start and end, padding, the picture's own positions.
    """
    picture = drawn(attention, image)
    beside = [] if reading else attention.columns_of(image)
    words: list[Word | str] = [*attention.words_of(image), *_concepts(attention, image), *beside]
    heats = [_heat(attention, word, image, reading, step).numpy() for word in words]
    peaks = [heat.max() for heat in heats] if step is None else _peaks(attention, words, image, reading)
    tiles = [(title, picture)]
    tiles += [
        (f"{word}  {100 * heat.max():.2g}%", overlay(picture, heat / max(float(peak), 1e-12)))
        for word, heat, peak in zip(words, heats, peaks, strict=True)
    ]
    return _sheet(tiles, min(6, len(tiles)), tile)


def concept_sheet(attention: AttentionTrace, image: int = 0, tile: int = 192) -> Image.Image:
    """The picture, then its part that belongs to each concept, of the masks without overlap, labelled with its area."""
    picture, labels = drawn(attention, image), attention.masks(image=image, branch=CONCEPTS)
    tiles = [("picture", picture)]
    for number, area in enumerate(concept_areas(attention, image).items()):
        mask = (labels == number).numpy().astype(np.float32)
        tiles.append(("  ".join(area), overlay(picture, mask)))
    return _sheet(tiles, min(6, len(tiles)), tile)


def concept_areas(attention: AttentionTrace, image: int = 0) -> dict[str, str]:
    """Concept -> its share of the picture's area in words, by the masks without overlap."""
    labels = attention.masks(image=image, branch=CONCEPTS)
    areas = [float((labels == number).float().mean()) for number in range(len(attention.concepts))]
    return {name: f"{area:.1%}" if area else "none" for name, area in zip(attention.concepts, areas, strict=True)}


def _concepts(attention: AttentionTrace, image: int) -> list[Word]:
    return attention.words_of(image, CONCEPTS) if attention.concepts else []


def step_sheet(
    attention: AttentionTrace, image: int = 0, tile: int = 96, columns: int = 10, reading: Selection = SHARE
) -> Image.Image:
    """A row of heat maps for each word, at evenly spaced steps of those that the trace kept.

    Each word is scaled to its own peak over all steps.

    Raises:
        ValueError: the trace did not keep the steps, or its prompt has no words.
    """
    picture, words = drawn(attention, image), attention.words_of(image)
    if not words:
        raise ValueError(f"the prompt {attention.prompts[image][:40]!r} has no words: there are no maps to draw")
    peaks = _peaks(attention, words, image, reading)
    places = np.linspace(0, len(attention.steps) - 1, min(columns, len(attention.steps))).round().astype(int)
    steps = [attention.steps[i] for i in places]
    tiles = []
    for word, peak in zip(words, peaks, strict=True):
        for step in steps:
            heat = _heat(attention, word, image, reading, step).numpy() / max(float(peak), 1e-12)
            tiles.append((f"{word.text}, step {step + 1}", overlay(picture, heat)))
    return _sheet(tiles, len(steps), tile)


def step_frames(
    attention: AttentionTrace, image: int = 0, tile: int = 128, reading: Selection = SHARE
) -> list[Image.Image]:
    """A `word_sheet` for each step that the trace kept, as the frames of an animation."""
    count = len(attention.steps)
    return [
        word_sheet(attention, image, tile, step, f"step {i} of {count}", reading)
        for i, step in enumerate(attention.steps, 1)
    ]


def _heat(
    attention: AttentionTrace, word: Word | str, image: int, reading: Selection, step: int | None = None
) -> Tensor:
    asked: Selection = {**reading, "step": step}
    return attention.heatmap(word, image=image, **asked)


def _peaks(attention: AttentionTrace, words: Sequence[Word | str], image: int, reading: Selection) -> list[float]:
    """Each word's largest share of the attention at any position and any single step.

    Raises:
        ValueError: the trace did not keep the steps.
    """
    if not attention.steps:
        raise ValueError("steps were averaged during recording: trace with keep='step' to keep them")
    return [
        max(float(_heat(attention, word, image, reading, step).max()) for step in attention.steps) for word in words
    ]


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _sheet(tiles: list[tuple[str, Image.Image]], columns: int, tile: int) -> Image.Image:
    """Labelled pictures of one size in rows, above a colour bar."""
    width, height = _fit(tiles[0][1].size, tile)
    strip, gap, bar = 24, 8, 30
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap + bar), "white")
    for i, (text, picture) in enumerate(tiles):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + strip + gap)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        _write(sheet, (x + 2, y + height), text)
    _colour_bar(sheet, gap, "each word's peak share of the attention")
    return sheet


def _write(sheet: Image.Image, place: tuple[int, int], text: str) -> None:
    """A label of 24 pixels' height with its upper left corner at `place`."""
    line = label(text, 15)
    sheet.paste(line, place, line)


def _colour_bar(sheet: Image.Image, margin: int, largest: str) -> None:
    """A colour bar along the bottom of a sheet, from 0 to the label of the largest value."""
    y, width = sheet.height - 24, max(16, min(160, sheet.width // 4))
    bar = Image.fromarray(np.broadcast_to(colour_map(np.linspace(0, 1, width)), (14, width, 3)).copy())
    sheet.paste(bar, (margin + 16, y + 3))
    _write(sheet, (margin + 2, y - 3), "0")
    _write(sheet, (margin + width + 22, y - 3), largest)


def alignment_sheet(translation: "Translation", cell: int = 26) -> Image.Image:
    """The attention of each target token (rows) to each source token (columns), as a picture.

    The mean over layers and heads; every row sums to one, and dark cells have no attention.

    Raises:
        ValueError: no font has the letters of a token.
    """
    weights = translation.attention.mean(dim=(0, 1)).numpy()  # (T, S)
    written, read = (
        [label(readable(token), 16) for token in tokens] for tokens in (translation.tokens, translation.source_tokens)
    )
    left, top = (12 + max(line.width for line in lines) for lines in (written, read))
    rows, columns = weights.shape
    sheet = Image.new("RGB", (left + columns * cell + 8, top + rows * cell + 8), "white")
    heat = Image.fromarray(colour_map(weights)).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    sheet.paste(heat, (left, top))
    for i, line in enumerate(written):
        sheet.paste(line, (left - 6 - line.width, top + i * cell + (cell - line.height) // 2), line)
    for i, line in enumerate(read):
        upright = line.rotate(90, expand=True)
        place = left + i * cell + (cell - upright.width) // 2, top - 6 - upright.height
        sheet.paste(upright, place, upright)
    return sheet
