"""Heat maps as pictures: one over its picture, or all words of a prompt on one sheet.

Shapes: h×w pixels.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.drawing import colour_map, label_font, readable
from unet_xattn import AttentionTrace
from unet_xattn.words import Word

if TYPE_CHECKING:
    from pipelines.text_to_text import Translation


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


def word_overlay(attention: AttentionTrace, word: Word, image: int = 0, side: int = 512) -> Image.Image:
    """One word's heat map over its picture, `side` pixels long, with a colour bar from 0 to the word's peak."""
    picture, heat = drawn(attention, image), attention.heatmap(word, image=image).numpy()
    peak = max(float(heat.max()), 1e-12)
    large = overlay(picture, heat / peak).resize(_fit(picture.size, side), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (large.width, large.height + 28), "white")
    sheet.paste(large, (0, 0))
    _colour_bar(sheet, 0, f"{peak:.1%} of the attention", label_font([word.text], 15))
    return sheet


def word_sheet(
    attention: AttentionTrace, image: int = 0, tile: int = 192, step: int | None = None, title: str = "picture"
) -> Image.Image:
    """The picture, then a labelled heat map over it for each word of its prompt, each scaled to its own peak.

    The label gives the peak: the word's largest share of the attention at any position. The maps of a single `step`
    are scaled to the word's peak over all steps, so that sheets of different steps can be compared. The trace must have
    kept the steps.
    """
    picture, words = drawn(attention, image), attention.words_of(image)
    heats = [attention.heatmap(word, image=image, step=step).numpy() for word in words]
    peaks = [heat.max() for heat in heats] if step is None else _peaks(attention, image)
    tiles = [(title, picture)]
    tiles += [
        (f"{word.text}  {heat.max():.0%}", overlay(picture, heat / max(float(peak), 1e-12)))
        for word, heat, peak in zip(words, heats, peaks, strict=True)
    ]
    return _sheet(tiles, min(6, len(tiles)), tile)


def step_sheet(attention: AttentionTrace, image: int = 0, tile: int = 96, columns: int = 10) -> Image.Image:
    """A row of heat maps for each word, at evenly spaced steps of those that the trace kept.

    Each word is scaled to its own peak over all steps.
    """
    picture, words = drawn(attention, image), attention.words_of(image)
    peaks = _peaks(attention, image)
    places = np.linspace(0, len(attention.steps) - 1, min(columns, len(attention.steps))).round().astype(int)
    steps = [attention.steps[i] for i in places]
    tiles = []
    for word, peak in zip(words, peaks, strict=True):
        for step in steps:
            heat = attention.heatmap(word, image=image, step=step).numpy() / max(float(peak), 1e-12)
            tiles.append((f"{word.text}, step {step + 1}", overlay(picture, heat)))
    return _sheet(tiles, len(steps), tile)


def step_frames(attention: AttentionTrace, image: int = 0, tile: int = 128) -> list[Image.Image]:
    """A `word_sheet` for each step that the trace kept, as the frames of an animation."""
    count = len(attention.steps)
    return [
        word_sheet(attention, image, tile, step, f"step {i} of {count}") for i, step in enumerate(attention.steps, 1)
    ]


def _peaks(attention: AttentionTrace, image: int) -> list[float]:
    """Each word's largest share of the attention at any position and any single step.

    Raises:
        ValueError: the trace did not keep the steps.
    """
    if not attention.steps:
        raise ValueError("steps were averaged during recording: trace with keep='step' to keep them")
    return [
        max(float(attention.heatmap(word, image=image, step=step).max()) for step in attention.steps)
        for word in attention.words_of(image)
    ]


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _sheet(tiles: list[tuple[str, Image.Image]], columns: int, tile: int) -> Image.Image:
    """Labelled pictures of one size in rows, above a colour bar."""
    width, height = _fit(tiles[0][1].size, tile)
    label, gap, bar = 24, 8, 30
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label + gap) + gap + bar), "white")
    draw, font = ImageDraw.Draw(sheet), label_font([text for text, _ in tiles], 15)
    for i, (text, picture) in enumerate(tiles):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + label + gap)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + height + 3), text, fill=(20, 20, 20), font=font)
    _colour_bar(sheet, gap, "each word's peak share of the attention", font)
    return sheet


def _colour_bar(
    sheet: Image.Image, margin: int, largest: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    """A colour bar along the bottom of a sheet, from 0 to the label of the largest value."""
    draw, y = ImageDraw.Draw(sheet), sheet.height - 24
    width = max(16, min(160, sheet.width // 4))
    bar = Image.fromarray(np.broadcast_to(colour_map(np.linspace(0, 1, width)), (14, width, 3)).copy())
    draw.text((margin + 2, y), "0", fill=(20, 20, 20), font=font)
    sheet.paste(bar, (margin + 16, y + 3))
    draw.text((margin + width + 22, y), largest, fill=(20, 20, 20), font=font)


def alignment_sheet(translation: "Translation", cell: int = 26) -> Image.Image:
    """The attention of each target token (rows) to each source token (columns), as a picture.

    The mean over layers and heads; every row sums to one, and dark cells have no attention.
    """
    weights = translation.attention.mean(dim=(0, 1)).numpy()  # (T, S)
    font = label_font([*translation.tokens, *translation.source_tokens], 16)
    labels = [[readable(token) for token in tokens] for tokens in (translation.tokens, translation.source_tokens)]
    left = 12 + max(round(font.getlength(text)) for text in labels[0])
    top = 12 + max(round(font.getlength(text)) for text in labels[1])
    rows, columns = weights.shape
    sheet = Image.new("RGB", (left + columns * cell + 8, top + rows * cell + 8), "white")
    heat = Image.fromarray(colour_map(weights)).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    sheet.paste(heat, (left, top))
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(labels[0]):
        draw.text((left - 6, top + (i + 0.5) * cell), text, fill=(20, 20, 20), font=font, anchor="rm")
    for i, text in enumerate(labels[1]):
        upright = Image.new("RGB", (top, cell), "white")
        ImageDraw.Draw(upright).text((6, cell / 2), text, fill=(20, 20, 20), font=font, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (left + i * cell, 0))
    return sheet
