"""A line below the prompt that marks words unknown to the model while a person types."""

from typing import Any

import gradio as gr
from transformers import PreTrainedTokenizerFast

from pipelines.checks import check_text, check_tokens
from ui.component import component
from unet_xattn.words import split_words, unknown_words


def reading(value: dict[str, Any] | None = None) -> gr.HTML:
    """The component. Its value is the result of `read`."""
    return component(__name__, value)


def read(prompt: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Check a prompt against a tokenizer.

    Returns:
        pieces: the prompt cut into (text, whether it is an unknown word); empty if the model knows every word.
        error: why the prompt cannot be used, or "".
    """
    try:
        check_text(prompt, "prompt")
        check_tokens(tokenizer(prompt, verbose=False)["input_ids"], tokenizer)
    except ValueError as error:
        return {"pieces": [], "error": str(error)}
    unknown = set(unknown_words(prompt, tokenizer))
    if not unknown:
        return {"pieces": [], "error": ""}
    pieces, end = [], 0
    for word in split_words(prompt, tokenizer):
        pieces += [(prompt[end : word.start], False), (word.text, word.text in unknown)]
        end = word.end
    return {"pieces": [piece for piece in [*pieces, (prompt[end:], False)] if piece[0]], "error": ""}
