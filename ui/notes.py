"""What a person should know of the texts and pictures that a model read."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ui.texts import Message
from unet_xattn import AttentionTrace
from unet_xattn.words import WORD, split_words, unknown_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ui.request import Request

CUT_OFF = 0.03
"""The share of a picture that may be cut off without a note: less than a cell of most layers' grids."""


def text_note(text: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The words of a text that the model does not know, or that it has none at all; "" if it knows every word."""
    return _note([word.text for word in split_words(text, tokenizer)], unknown_words(text, tokenizer))


def warnings(request: "Request", tokenizer: "PreTrainedTokenizerFast") -> list[Message]:
    """What a person may not expect of a picture with these settings."""
    words = [word.text for word in split_words(request.prompt, tokenizer)]
    unknown = list(dict.fromkeys(unknown_words(request.prompt, tokenizer)))
    found: list[Message] = []
    if not words:
        found.append(("warning.no words", {}))
    elif len(unknown) == len(set(words)):
        found.append(("warning.all unknown", {"words": ", ".join(unknown)}))
    elif unknown:
        found.append(("warning.unknown", {"words": ", ".join(unknown)}))
    if request.guidance_scale == 0:
        found.append(("warning.no guidance", {}))
    if request.guidance_scale == 1 and request.negative_prompt.strip():
        found.append(("warning.negative", {}))
    return found


def trace_notes(attention: AttentionTrace, image: int = 0) -> list[str]:
    """The note on the prompt of a recorded picture, and how much of an attributed picture was cut off."""
    settings, (height, width) = attention.recording.settings, attention.size
    words = [word.text for word in attention.words_of(image)]
    words += [found.group() for name in attention.concepts for found in WORD.finditer(name)]
    unknown = set(settings.get("unknown_words", ()))
    notes = [_note(words, [word for word in words if word in unknown])]
    if cut := attention.cut_off(image):
        names = ", ".join(f'"{word}"' for word in cut)
        notes.append(f"words cut off, because the text is longer than its encoder reads: {names}")
    if (share := settings.get("cut_off", 0.0)) > CUT_OFF:
        notes.append(f"{share:.0%} of the picture is cut off: the model reads its middle at {width}×{height} pixels")
    return [note for note in notes if note]


def sentences(notes: Iterable[str]) -> str:
    """Notes as they stand on the page."""
    return " ".join(f"{note[0].upper()}{note[1:]}." for note in notes if note)


def _note(words: Sequence[str], unknown: Sequence[str]) -> str:
    if not words:
        return "the text has no words"
    names = ", ".join(f'"{word}"' for word in dict.fromkeys(unknown))
    return f"words unknown to the model: {names}" if names else ""
