"""A row: one captioned picture with its translation, masks and weight."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.sources.files import Reader
from pipelines.sources.findings import ERROR, Finding
from pipelines.sources.tables import CAPTIONS, NOT_TEXT, is_utf8

MOST_CHARACTERS = 10_000
"""Limit on the length of a caption."""

_BOX = re.compile(r"\d+( \d*\.\d+){4,}")
"""A line of a file of labels for finding objects: a class, then a box or the corners of a polygon."""


@dataclass(frozen=True, slots=True)
class Row:
    """One captioned picture of a source. Its files are not read before they are needed.

    `read` and the values of `masks` return the bytes of a picture file, can be pickled, and raise only OSError.
    """

    name: str  # the picture's path in its source, "cats/1.png"
    where: str  # the place of its caption, "metadata.jsonl:3", "cats/1.txt"
    caption: str
    read: Callable[[], bytes]
    translation: str = ""  # the caption in another language, if given
    masks: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # phrase of the caption -> its mask's file
    weight: float = 1.0  # how often the row appears, relative to others
    digest: str = ""  # sha256 of the picture's file; like the sides, known once `check` has read the file
    width: int = 0  # in pixels, after the rotation that EXIF asks for
    height: int = 0


class Source(NamedTuple):
    """The rows of a source before any picture is read, and the findings so far."""

    rows: list[Row]
    findings: list[Finding]


def make_row(name: str, where: str, values: Mapping[str, Any], read: Reader) -> tuple[Row | None, list[Finding]]:
    """A row of these values, without masks, and no findings; or None and what is wrong with the values."""
    given = [values[column] for column in CAPTIONS if column in values]
    told = [text for text in given if text not in (None, "")]
    caption = (told or given or [None])[0]
    wrong = list(_wrong_text(caption, "caption"))
    if any(text != caption for text in told):
        wrong.append(("several captions", f"the columns {' and '.join(CAPTIONS)} differ: keep one of them"))
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
        wrong.append(("bad weight", f"expected a number above 0, up to a million, got {str(weight)[:40]!r}"))
    if wrong:
        return None, [Finding(ERROR, kind, name, where, what) for kind, what in wrong]
    return Row(name, where, str(caption).strip(), read, str(translation).strip(), {}, number), []


def _wrong_text(text: Any, what: str) -> Iterator[tuple[str, str]]:
    if text is None:
        yield f"no {what}", f"the row has no {what}"
    elif not isinstance(text, str):
        yield f"no {what}", f"expected text, got {str(text)[:40]!r}, a {type(text).__name__}"
    elif not text.strip():
        yield f"no {what}", f"the {what} is empty"
    elif not is_utf8(text):
        yield "not UTF-8", f"the {what} is not UTF-8 text: {text[:40]!r}"
    elif "\0" in text:
        yield "not UTF-8", f"the {what} is not UTF-8 text: {NOT_TEXT}"
    elif _BOX.fullmatch(text.strip()):
        yield f"no {what}", f"numbers as of a labelled box, {text[:40]!r}"
    elif len(text) > MOST_CHARACTERS:
        yield f"long {what}", f"{len(text):,} characters, the limit is {MOST_CHARACTERS:,}"
