"""The alignment of a translation: which token was written from which, answered in the browser without the server.

`payload` says everything the page needs; `alignment` is the component that shows it.

Shapes: L decoder layers, H heads, S source tokens, T target tokens.
"""

import base64
from collections.abc import Collection
from typing import Any

import gradio as gr
import torch

from pipelines.text_to_text import Translation, readable
from ui.component import component
from ui.viewer import COLOURS

ONE = 2**16 - 1
"""What a share of all the attention is sent as. Finer than a byte, so that small shares can be read as numbers."""


def alignment(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """The component.

    Its value is a `payload`, which may hold a "note" too, a line about the translation; or {"error": a line that says
    why there is no new one}, and the last one stays.
    """
    return component(__name__, value, colours=COLOURS, **options)


def payload(
    written: Translation, reference: Translation | None = None, special: Collection[str] = ()
) -> dict[str, Any]:
    """What the component shows of a translation the model wrote, and of one it was given to read, as JSON can carry it.

    Args:
        special: tokens that stand for no word, shown more quietly.

    Returns:
        source: the source's tokens as (text, whether it is special).
        written, reference: of each translation (the reference may be None)
            tokens: its tokens, like the source's.
            probabilities: what the model gave each token, having read those before it.
            likeliest: (text, probability) of the token the model would have written there.
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
