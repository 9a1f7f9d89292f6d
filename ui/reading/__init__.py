"""A prompt as it is being typed: the words a model has never read stand out while there is time to choose others."""

from typing import Any

import gradio as gr
from transformers import PreTrainedTokenizerFast

from ui.checks import check_prompt
from ui.component import component
from unet_xattn.words import split_words, unknown_words


def reading(value: dict[str, Any] | None = None) -> gr.HTML:
    """The component. Its value is what `read` gives."""
    return component(__name__, value)


def read(prompt: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What there is to say of a prompt.

    Returns:
        pieces: the prompt cut into (text, whether the model has never read it), or nothing where it knows every word.
        error: why it cannot be drawn, if so.
    """
    try:
        check_prompt(prompt)
    except ValueError as error:
        return {"pieces": [], "error": str(error)}
    count, limit = len(tokenizer(prompt, verbose=False)["input_ids"]), tokenizer.model_max_length
    if count > limit:
        return {"pieces": [], "error": f"{count} tokens, this model reads {limit}: shorten the prompt"}
    unknown = set(unknown_words(prompt, tokenizer))
    if not unknown:
        return {"pieces": [], "error": ""}
    pieces, end = [], 0
    for word in split_words(prompt, tokenizer):
        pieces += [(prompt[end : word.start], False), (word.text, word.text in unknown)]
        end = word.end
    return {"pieces": [piece for piece in [*pieces, (prompt[end:], False)] if piece[0]], "error": ""}
