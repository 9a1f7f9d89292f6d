"""What a person should know of the texts and pictures that a model read."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ui.texts import Message, text
from unet_xattn import AttentionTrace
from unet_xattn.words import WORD, split_words, unknown_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ui.request import Request

CUT_OFF = 0.03
"""The share of a picture that may be cut off without a note: less than a cell of most layers' grids."""


def text_messages(line: str, tokenizer: "PreTrainedTokenizerFast") -> list[Message]:
    """The words of a text that the model does not know, or that it has none at all."""
    return _messages([word.text for word in split_words(line, tokenizer)], unknown_words(line, tokenizer))


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


def trace_messages(attention: AttentionTrace, image: int = 0) -> list[Message]:
    """What the prompt of a recorded picture lacks for its model, and how much of an attributed picture was cut off
    or padded."""
    settings, (height, width) = attention.recording.settings, attention.size
    words = [word.text for word in attention.words_of(image)]
    words += [found.group() for name in attention.concepts for found in WORD.finditer(name)]
    unknown = set(settings.get("unknown_words", ()))
    found = _messages(words, [word for word in words if word in unknown])
    if cut := attention.cut_off(image):
        found.append(("note.cut words", {"words": _listed(map(str, cut))}))
    if (share := settings.get("cut_off", 0.0)) > CUT_OFF:
        found.append(("note.cropped", {"share": f"{share:.0%}", "width": width, "height": height}))
    if (share := settings.get("padded", 0.0)) > CUT_OFF:
        found.append(("note.padded", {"share": f"{share:.0%}"}))
    return found


def notes(messages: Iterable[Message]) -> list[str]:
    """Messages as the command line prints them."""
    lines = [text(key, **values) for key, values in messages]
    return [f"{line[0].lower()}{line[1:]}".removesuffix(".") for line in lines]


def _messages(words: Sequence[str], unknown: Sequence[str]) -> list[Message]:
    if not words:
        return [("note.no words", {})]
    return [("note.unknown", {"words": _listed(dict.fromkeys(unknown))})] if unknown else []


def _listed(words: Iterable[str]) -> dict[str, str]:
    quoted = list(words)
    return {"en": ", ".join(f'"{word}"' for word in quoted), "zh": "、".join(f"“{word}”" for word in quoted)}
