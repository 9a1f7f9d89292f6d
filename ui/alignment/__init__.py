"""The alignment of a translation: which source tokens the model attended to for each token it wrote.

`payload` makes the data; `alignment` is the component that shows it and answers in the browser, without the server.

Shapes: L decoder layers, H heads, S source tokens, T target tokens.
"""

import base64
from collections.abc import Collection
from typing import Any

import gradio as gr
import torch

from pipelines.drawing import readable
from pipelines.text_to_text import Translation
from ui.component import component
from ui.texts import texts_of
from ui.viewer import COLOUR_STOPS

ONE = 2**16 - 1
"""The integer that stands for a weight of 1. Two bytes per weight keep small weights readable as numbers."""


def alignment(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The component.

    Its value is a `payload`, with optional "notes", messages about the translation; or {"error": a line}, and the last
    translation stays.
    """
    return component(__name__, value, colours=COLOUR_STOPS, texts=texts_of("alignment.", "note."), **options)


def payload(
    written: Translation, reference: Translation | None = None, special: Collection[str] = ()
) -> dict[str, Any]:
    """The JSON data of the model's translation and of a reference translation for the component.

    Args:
        special: tokens that are not part of a word; they are shown in a quieter style.

    Returns:
        source: the tokens of the source as (text, whether it is special).
        written, reference: for each of the two translations (the reference may be None)
            tokens: its tokens as (text, whether it is special).
            probabilities: the model's probability of each token, given the tokens before it.
            likeliest: (text, probability) of the token with the highest probability at each position.
            layers, heads: L and H.
            weights: base64 of little-endian uint16 (L, H, T, S), the attention in 65,535ths.
    """

    def tokens(spelled: list[str]) -> list[tuple[str, bool]]:
        return [(readable(token), token in special) for token in spelled]

    def reading(translation: Translation) -> dict[str, Any]:
        levels = (translation.attention * ONE).round().to(torch.int32).numpy().astype("<u2")
        likeliest = [readable(token) for token in translation.likeliest]
        return {
            "tokens": tokens(translation.tokens),
            "probabilities": translation.probabilities.tolist(),
            "likeliest": list(zip(likeliest, translation.likeliest_probabilities.tolist(), strict=True)),
            "layers": len(translation.attention),
            "heads": translation.attention.shape[1],
            "weights": base64.b64encode(levels.tobytes()).decode(),
        }

    return {
        "source": tokens(written.source_tokens),
        "written": reading(written),
        "reference": None if reference is None else reading(reference),
    }
