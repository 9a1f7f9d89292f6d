"""Edits of a picture by its words, as small values that compose; `edit_plan` says what they mean.

edited = pipe("a red circle left of a blue square", edits=[replace("circle", "star")], generator=generator)
edited.before, edited.images
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipelines.checks import check_number, check_prompt, check_text
from unet_xattn.attention import is_named
from unet_xattn.grounding import Region
from unet_xattn.words import WORD, as_read, is_index, items, phrase_spans, shown, unknown_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUT = (0.3, 1.0)
"""Noise levels at which words are held in regions. Below, places hardly change any more."""

EXCITED = (0.5, 1.0)
"""Noise levels at which latents are moved for a neglected word: those where things find their places."""

LOUDEST = 100.0


@dataclass(frozen=True)
class Edit:
    """An edit. The functions below make one.

    word: the word or phrase that it is about. value: what else it needs: a text, a weight, a region.
    layers, heads, noise: where it acts, as in `bias.Bias`.
    """

    kind: str
    word: str
    value: Any = None
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    noise: tuple[float, float] = (0.0, 1.0)


def replace(word: str, other: str) -> Edit:
    """Another word or phrase in the place of one."""
    check_text(other, "replacement")
    if not other.strip():
        raise ValueError(f"nothing replaces {shown(word)!r}: withhold it, or refine to a prompt without it")
    return Edit("replace", _word(word), other)


def refine(prompt: str) -> Edit:
    """Another prompt. Words that both have keep their places; new ones take the places of those that they replace."""
    check_prompt(prompt)
    return Edit("refine", "", prompt)


def reweight(word: str, weight: float, **where: Any) -> Edit:
    """A word that is louder or softer: its weights times this number, before they are scaled to a sum of 1 again."""
    check_number(weight, f"weight of {shown(word)!r}", 0, LOUDEST)
    return Edit("reweight", _word(word), float(weight), **_where(where))


def withhold(word: str, **where: Any) -> Edit:
    """A word that no position may attend to."""
    return reweight(word, 0, **where)


def paint(word: str, region: Region, **where: Any) -> Edit:
    """A word or phrase drawn in a region: a box (x0, y0, x1, y1), a point, or a mask (h, w).

    A thing of the first picture that no edit changes is moved there: it stays the same thing, as large as a box around
    the region allows. With layers=, heads= or noise= the edit is about the attention alone.
    """
    return Edit("paint", _word(word), region, **_where({"noise": LAYOUT} | where))


def pin(word: str, region: Region | None = None, **where: Any) -> Edit:
    """A word or phrase that is held in a region, by default where it was, and may change in every other way."""
    return Edit("pin", _word(word), region, **_where({"noise": LAYOUT} | where))


def within(word: str) -> Edit:
    """Only the place of a word changes, with its painted region: everything else follows the first picture's path."""
    return Edit("within", _word(word))


def excite(word: str, **where: Any) -> Edit:
    """A word or phrase that the first picture neglects: the latents are moved until a place reads it."""
    return Edit("excite", _word(word), **_where({"noise": EXCITED} | where))


def _word(word: Any) -> str:
    if not isinstance(word, str) or not word.strip():
        raise ValueError(f"an edit is about a word or a phrase of the prompt, not {shown(word)!r}")
    return word


def _where(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := given.keys() - {"layers", "heads", "noise"}:
        raise ValueError(f"an edit can be limited by layers=, heads= and noise=, not by {', '.join(sorted(unknown))}")
    where = {name: tuple(items(value)) for name, value in given.items() if value is not None}
    noise = where.setdefault("noise", (0.0, 1.0))
    if len(noise) != 2:
        raise ValueError(f"noise= is two levels, (low, high), not {shown(noise)}")
    for level in noise:
        check_number(level, "noise level of an edit", 0, 1)
    if not all(isinstance(name, str) for name in where.get("layers", ())):
        raise ValueError(f"layers= are names, not {shown(where['layers'])}")
    if not all(is_index(head, 2**14) for head in where.get("heads", ())):
        raise ValueError(f"heads= are numbers from 0, not {shown(where['heads'])}")
    return where


def find_first(phrase: str, prompt: str) -> tuple[int, int]:
    """The characters of a phrase where a prompt has it first, from start to end; raises ValueError if it has not."""
    if spans := phrase_spans(phrase, prompt):
        return spans[0]
    words = ", ".join(match.group() for match in WORD.finditer(prompt))
    raise ValueError(f"{shown(phrase, 80)!r} is not in the prompt; its words are: {words[:400]}")


def edited_prompt(prompt: str, edits: Sequence[Edit]) -> str:
    """The prompt that edits make of a prompt.

    Raises:
        ValueError: a replaced word is not in it.
    """
    for edit in edits:
        if edit.kind == "refine":
            prompt = edit.value
        elif edit.kind == "replace":
            start, end = find_first(edit.word, prompt)
            prompt = " ".join((prompt[:start] + edit.value + prompt[end:]).split())
    return prompt


def read_edits(edits: Any, count: int, layers: Mapping[str, int]) -> list[list[Edit]]:
    """The edits of each of `count` prompts: the same for all, or a list for each.

    layers: the names of the pipeline's attention layers, with their heads.

    Raises:
        ValueError: they are something else, or name layers or heads that are not there.
    """
    given = list(edits) if isinstance(edits, list | tuple) else [edits]
    each = [list(own) for own in given] if given and all(isinstance(own, list | tuple) for own in given) else None
    lists = [given] * count if each is None else each
    for edit in (edit for own in lists for edit in own):
        if not isinstance(edit, Edit):
            raise ValueError(f"an edit is made by replace, reweight, paint and the like, not {shown(edit)!r}")
        for pattern in edit.layers or ():
            if not any(is_named(layer, [pattern]) for layer in layers):
                raise ValueError(f"no layer is called {shown(pattern)}: {', '.join(layers)}")
        if edit.heads and max(edit.heads) >= max(layers.values()):
            raise ValueError(f"there is no head {max(edit.heads)}: layers have heads 0 to {max(layers.values()) - 1}")
    if len(lists) != count:
        raise ValueError(f"{len(lists)} lists of edits for {count} prompts: give one for each, or one for all")
    return lists


def paint_all(regions: Any) -> list[Edit]:
    """The edits that paint phrases in regions, None for no regions.

    Raises:
        ValueError: they are no dict of phrases and regions.
    """
    if regions is None:
        return []
    if not isinstance(regions, Mapping) or not regions:
        raise ValueError(f"regions are a dict of phrases and their regions, not {shown(regions)!r}")
    return [paint(word, region) for word, region in regions.items()]


def check_known(prompt: str, edits: Sequence[Edit], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ValueError if edits bring a word that was in no training caption, naming the nearest that was."""
    for edit in edits:
        if edit.kind not in ("replace", "refine"):
            continue
        for word in unknown_words(edit.value, tokenizer):
            if not phrase_spans(word, prompt):
                known = tokenizer.init_kwargs.get("known_words") or ()
                near = get_close_matches(as_read(word), list(known), 3, 0.5)
                said = f"; near it are: {', '.join(near)}" if near else ""
                raise ValueError(f"{shown(word)!r} is unknown to this model{said}")
