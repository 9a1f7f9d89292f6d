"""A row: one captioned picture, and what may be said of it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.sources.files import Reader
from pipelines.sources.findings import ERROR, Finding
from pipelines.sources.tables import CAPTIONS, is_utf8

MOST_CHARACTERS = 10_000
"""Of a caption. Longer ones are no captions."""


@dataclass(frozen=True, slots=True)
class Row:
    """One captioned picture as somebody keeps it. Its files are read when asked for, not before.

    `read` and the values of `masks` give a picture file's bytes, and can be pickled. Raises nothing but OSError.
    """

    name: str  # the picture's path in its source, "cats/1.png"
    where: str  # where its caption stands, "metadata.jsonl:3", "cats/1.txt"
    caption: str
    read: Callable[[], bytes]
    translation: str = ""  # the same in another language, if somebody has said it
    masks: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # a phrase of the caption -> where it is
    weight: float = 1.0  # how often it comes, relative to others
    digest: str = ""  # sha256 of the picture's file; this and what follows once it has been looked at
    width: int = 0  # in pixels, as it is shown: turned as its EXIF says
    height: int = 0


class Source(NamedTuple):
    """The rows of a source that can be said without looking at pictures, and what was found on the way."""

    rows: list[Row]
    findings: list[Finding]


def make_row(name: str, where: str, values: Mapping[str, Any], read: Reader) -> tuple[Row | None, list[Finding]]:
    """A row of these values, without masks; None where they cannot be one's, and what is wrong with them."""
    caption = next((values[column] for column in CAPTIONS if column in values), None)
    wrong = list(_wrong_text(caption, "caption"))
    translation, weight = values.get("translation"), values.get("weight")
    if translation is None:
        translation = ""
    if translation != "":
        wrong += _wrong_text(translation, "translation")
    try:
        number = 1.0 if weight is None or weight == "" else float(weight)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 1e6:
        wrong.append(("bad weight", f"a weight must be a number above 0, up to a million, got {str(weight)[:40]!r}"))
    if wrong:
        return None, [Finding(ERROR, kind, name, where, what) for kind, what in wrong]
    return Row(name, where, str(caption).strip(), read, str(translation).strip(), {}, number), []


def _wrong_text(text: Any, what: str) -> Iterator[tuple[str, str]]:
    if text is None:
        yield f"no {what}", "there is none"
    elif not isinstance(text, str):
        yield f"no {what}", f"text is meant, got {str(text)[:40]!r}, a {type(text).__name__}"
    elif not text.strip():
        yield f"no {what}", "it is empty"
    elif not is_utf8(text):
        yield "not UTF-8", f"the {what} is not UTF-8 text: {text[:40]!r}"
    elif len(text) > MOST_CHARACTERS:
        yield f"long {what}", f"{len(text):,} characters, the limit is {MOST_CHARACTERS:,}"
