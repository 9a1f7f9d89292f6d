"""Edits of a picture, and phrases placed in regions, as one line of text: as a link, a PNG and the API carry them.

"replace circle=star; reweight red=2; withhold a; remove square; paint star=8,8,40,40; keep" draws a picture with these
edits; "red circle=4,4,28,28; duck=30,30,60,60" places two phrases. Boxes are left, top, right and bottom in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.checks import check_text
from pipelines.edits import Edit, edited_prompt, paint, pin, refine, replace, reweight, withhold, within
from ui.left_out import without
from unet_xattn.words import as_read, phrase_spans, shown

Box = tuple[int, ...]

MOST = 40
"""The most edits of one picture, and the most placed phrases."""


@dataclass(frozen=True)
class Changes:
    """What an edited picture is made of.

    listed: every part of the text: its "kind", "word" and "value". edits: what they are to the pipeline. kept: those up
    to the last "keep", which make the picture that the `new` ones change.
    """

    listed: list[dict[str, Any]]
    edits: list[Edit]
    kept: list[Edit]
    new: list[Edit]


def read_changes(text: str, prompt: str, data: str | None) -> Changes:
    """The edits in a text, see above; `data` is the world of the prompt.

    Raises:
        ValueError: a part of it is no edit.
    """
    listed: list[dict[str, Any]] = []
    edits: list[Edit] = []
    kept: list[Edit] = []
    for part in _parts(text, "edits"):
        kind, _, rest = part.partition(" ")
        if part == "keep":
            kept = list(edits)
            listed.append({"kind": "keep", "word": "", "value": None})
            continue
        if kind not in KINDS:
            known = ", ".join([*KINDS, "keep"])
            raise ValueError(f"an edit begins with one of {known}, not {shown(part)!r}")
        word, value = _pair(rest, kind) if kind in VALUES else (rest.strip(), None)
        if kind == "remove":
            edits.append(refine(without(edited_prompt(prompt, edits), word, data)))
        else:
            edits.append(KINDS[kind](word) if value is None else KINDS[kind](word, value))
        listed.append({"kind": kind, "word": word, "value": value})
    return Changes(listed, _latest(edits), _latest(kept), edits[len(kept) :])


def read_regions(text: str) -> dict[str, Box]:
    """Phrases and their boxes.

    Raises:
        ValueError: a part is no phrase with a box, or a phrase is placed twice.
    """
    found: dict[str, Box] = {}
    for part in _parts(text, "placed words"):
        word, _, box = (side.strip() for side in part.rpartition("="))
        if not word:
            raise ValueError(
                f"placed words are written like duck=8,8,40,40, not {shown(part)!r}: name the thing and its box"
            )
        if word in found:
            raise ValueError(f"{shown(word, 80)!r} is placed twice: tell the two apart, for example by colour")
        found[word] = read_box(box)
    return found


def placed_prompt(prompt: str, placed: dict[str, Box]) -> str:
    """The prompt with everything that is placed: itself if it has these phrases, else the phrases alone."""
    phrases = list(placed)
    if all(phrase_spans(phrase, prompt) for phrase in phrases):
        return prompt
    return ", ".join(phrases[:-1]) + " and " * (len(phrases) > 1) + phrases[-1]


def still_placed(prompt: str, regions: str) -> str:
    """Those of the placed phrases, as `read_regions` reads them, that a prompt has."""
    return ";".join(part for part in regions.split(";") if phrase_spans(part.rpartition("=")[0], prompt))


def read_weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a weight is a number such as 2 or 0.5, not {shown(text)!r}") from None


def read_box(text: str) -> Box:
    try:
        box = tuple(int(part) for part in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise ValueError(f"a box is four whole numbers X0,Y0,X1,Y1 in pixels, not {shown(text)!r}")
    return box


KINDS: dict[str, Callable[..., Edit]] = {
    "replace": replace,
    "reweight": reweight,
    "withhold": withhold,
    "remove": refine,
    "refine": refine,
    "paint": paint,
    "pin": pin,
    "within": within,
}
VALUES: dict[str, tuple[Callable[[str], Any], str]] = {
    "replace": (str.strip, "circle=star"),
    "reweight": (read_weight, "red=2"),
    "paint": (read_box, "circle=8,8,40,40"),
}
"""Kinds of edits with a value: how to read it, and an example."""


def _parts(text: str, name: str) -> list[str]:
    check_text(text, name)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if len(parts) > MOST:
        raise ValueError(f"at most {MOST} {name} are drawn, got {len(parts)}")
    return parts


def _pair(text: str, kind: str) -> tuple[str, Any]:
    read, example = VALUES[kind]
    word, is_there, value = text.partition("=")
    if not is_there:
        raise ValueError(f"'{kind} {shown(text)}' has no '=': write it like {kind} {example}")
    return word.strip(), read(value)


def _latest(edits: list[Edit]) -> list[Edit]:
    """Of several weights of a word, and of several places, the last one counts."""
    last = {(edit.kind, as_read(edit.word)): i for i, edit in enumerate(edits)}
    return [
        edit
        for i, edit in enumerate(edits)
        if edit.kind not in ("reweight", "paint") or last[edit.kind, as_read(edit.word)] == i
    ]
