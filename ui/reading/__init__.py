"""A line below the prompt that marks words unknown to the model while a person types, with the nearest it knows."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from transformers import PreTrainedTokenizerFast

from pipelines.checks import check_text, check_tokens
from ui.component import component
from ui.texts import texts_of
from ui.vocabulary import nearest
from unet_xattn.words import as_read, split_words, unknown_words


def reading(value: dict[str, Any] | None = None) -> gr.HTML:
    """The component. Its value is the result of `read`.

    Its event "select" carries {"prompt": text} when a person takes a word in place of another, or {"model": name}.
    """
    return component(__name__, value, texts=texts_of("reading."))


def read(
    prompt: str,
    tokenizer: PreTrainedTokenizerFast,
    others: Mapping[str, PreTrainedTokenizerFast] | None = None,
) -> dict[str, Any]:
    """Check a prompt against a tokenizer.

    Args:
        others: the tokenizers of other models, by their names.

    Returns:
        prompt: the text. error: why it cannot be used, or "".
        unknown: for each word that the model does not know, once: its text; "instead", the word to take for it; "start"
            and "end", its characters; and "model", the name of another model that knows it and,
            of those, most of the prompt. The last two may be None.
    """
    try:
        check_text(prompt, "prompt")
        check_tokens(tokenizer(prompt, verbose=False)["input_ids"], tokenizer)
    except ValueError as error:
        return {"prompt": "", "unknown": [], "error": str(error)}
    missing, found = set(unknown_words(prompt, tokenizer)), {}
    # One model for all words where there is one: a prompt is drawn by one model.
    fewest = dict(sorted((others or {}).items(), key=lambda item: len(unknown_words(prompt, item[1]))))
    for word in split_words(prompt, tokenizer):
        if word.text not in missing or as_read(word.text) in found:
            continue
        knows = (name for name, other in fewest.items() if not unknown_words(word.text, other))
        instead, model = nearest(word.text, tokenizer), next(knows, None)
        about = {"text": word.text, "start": word.start, "end": word.end, "instead": instead, "model": model}
        found[as_read(word.text)] = about
    return {"prompt": prompt, "unknown": list(found.values()), "error": ""}
