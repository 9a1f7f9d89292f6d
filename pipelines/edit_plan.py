"""What edits mean for a picture that was drawn: a prompt, biases on its words, and where the picture stays as it was.

Where the words of a prompt act at high noise decides the layout. So an edited picture is drawn from the same noise
while each word that has a place in the first picture, its mask, is held there by a bias on its scores. A word that
replaces another is held in the other's place, a painted one in its region. A thing that becomes another one has another
outline: it is let go earlier, and held in the box of its place, if the old outline leaves it no room. Things that no
edit is about also follow the first picture's path (blended latents, arXiv 2206.02779). A thing that is painted
elsewhere, and does not change, follows that path in its new place, as far down as it is held there.

Shapes: h×w pixels of the picture.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from pipelines.edits import LAYOUT, Edit, edited_prompt
from unet_xattn import AttentionTrace
from unet_xattn.bias import NEVER, Bias
from unet_xattn.excite import Excited
from unet_xattn.grounding import region_mask
from unet_xattn.words import Word, as_read, find_phrase, phrase_spans, shown, split_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRENGTH = 8.0
"""Bias on the scores of a word that is held in a region: + inside, − outside."""

RENEWED = (0.5, 1.0)
"""`LAYOUT` for the words of a thing in the place of another one: below, it finds an outline of its own."""

LARGEST, DOMINANT = 0.35, 0.25
"""A word has a place if its mask covers at most this share of the picture, and its share of the attention there is at
least so large beside the largest of a word. Articles and relations have weak maps."""

SAME_THING = 0.3
"""Words whose places overlap by this IoU or more are about one thing. Of a thing that stays, an edit may touch less."""

MARGIN = 2
"""So many pixels around a thing that stays as it was stay, too: its smooth edge."""


SPARSE = 0.65
"""A thing that fills less of its box, such as a star, has an outline that leaves other things no room."""


@dataclass(frozen=True)
class Layout:
    """The words of a prompt and of the one that edits make of it, and their places in the picture of the former.

    after: the words of the edited prompt. before: each word of the first prompt, with those that it is or becomes.
    places: word of the edited prompt -> (h, w) bool. gone: the places of words that are replaced or left out.
    replaced: words that replace others. renewed: the words of things whose last word, their name, is replaced; those
    have other outlines.
    """

    prompts: tuple[str, str]
    after: list[Word]
    before: dict[Word, list[Word]]
    places: dict[Word, Tensor]
    gone: list[Tensor]
    replaced: set[Word]
    renewed: set[Word]

    @property
    def new(self) -> list[Word]:
        """The words that neither are nor replace one of the first prompt."""
        known = {word for words in self.before.values() for word in words}
        return [word for word in self.after if word not in known]

    def find(self, phrase: str) -> list[Word]:
        """The words of the edited prompt that a phrase of it, or else of the first prompt, is about.

        Raises:
            ValueError: neither has it, or nothing is left of it.
        """
        first, edited = self.prompts
        if phrase_spans(phrase, edited):
            tokens = find_phrase(phrase, edited, self.after)
            return [word for word in self.after if word.tokens[0] in tokens]
        tokens = find_phrase(phrase, first, list(self.before))
        left = [new for word, words in self.before.items() if word.tokens[0] in tokens for new in words]
        if not left:
            raise ValueError(f"nothing of {shown(phrase)!r} is left in the edited prompt, {shown(edited)!r}")
        return left

    def about_same(self, places: Sequence[Tensor]) -> list[Word]:
        """The words that are about a thing at one of these places, as "red" is where "circle" is."""
        return [word for word, own in self.places.items() if any(_iou(own, place) >= SAME_THING for place in places)]


def lay_out(
    prompt: str,
    edited: str,
    tokenizer: "PreTrainedTokenizerBase",
    first: AttentionTrace | None = None,
    image: int = 0,
) -> Layout:
    """The `Layout` of two prompts; without a trace, no word has a place."""
    old, new = ([word for word in split_words(text, tokenizer) if word.tokens] for text in (prompt, edited))
    known = {} if first is None else _places(old, first, image)
    things = [[i for i in known if _iou(known[i], place) >= SAME_THING] for place in known.values()]
    become = align([as_read(word.text) for word in old], [as_read(word.text) for word in new], things)
    layout = Layout((prompt, edited), new, {}, {}, [], set(), set())

    def is_replaced(i: int) -> bool:
        return bool(become[i]) and [as_read(new[j].text) for j in become[i]] != [as_read(old[i].text)]

    for i, word in enumerate(old):
        layout.before[word] = [new[j] for j in become[i]]
        if is_replaced(i):
            layout.replaced.update(layout.before[word])

    for (i, place), thing in zip(known.items(), things, strict=True):
        is_left_out = sum(not become[other] for other in thing) > len(thing) / 2  # also the "red" of a square left out
        if is_left_out or is_replaced(i):
            layout.gone.append(place)
        if is_replaced(max(thing)):
            layout.renewed.update(layout.before[old[i]])
        for word in () if is_left_out else layout.before[old[i]]:
            layout.places[word] = layout.places[word] | place if word in layout.places else place
    return layout


def _places(words: Sequence[Word], first: AttentionTrace, image: int) -> dict[int, Tensor]:
    """The masks of the words that have a place, by number."""
    if not words:
        return {}
    counts = [len(word.tokens) for word in words]
    heats = first.heatmaps([t for word in words for t in word.tokens], image=image, reduce=first.best_reduce())
    maps = torch.stack([own.sum(dim=0).clamp(0, 1) for own in heats.split(counts)])
    maps = first.refined(maps, image)  # all at once: each call looks at the picture anew
    places, strengths = {}, {}
    for i, own in enumerate(maps):
        mask = own >= own.max() / 2
        shares = (maps * mask).sum(dim=(1, 2))  # of each word there
        if mask.float().mean() <= LARGEST and shares[i] >= DOMINANT * shares.max():
            places[i], strengths[i] = mask, float(own[mask].mean())
    # Some articles fill the ground around a thing.
    around = {i for i in places for j in places if strengths[i] < strengths[j] / 2 and _surrounds(places[i], places[j])}
    return {i: place for i, place in places.items() if i not in around}


def _surrounds(place: Tensor, other: Tensor) -> bool:
    """Whether a place lies around another one: the box of it has nearly all of that, and itself has not."""
    rows, columns = (place.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    inside = other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].sum()
    return bool(inside > 0.9 * other.sum()) and _iou(place, other) < 0.5


def align(old: Sequence[str], new: Sequence[str], things: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each old word is or becomes: the numbers of new words, by difflib.

    Words of things are aligned first, then the others between them: of "a cactus and a melon" and "a cactus, a melon
    and a robot" else "and a" would be the first common part, and the melon become a robot. Of two alignments that
    differ in which of two equal words is left out, or is new, the one is taken that keeps the words of a thing
    together: of "a red cross and a blue cross", "a red cross" leaves out "and a blue cross", not "cross and a blue".

    things: for each, the numbers of its old words.
    """
    become: list[list[int]] = [[] for _ in old]
    changes = list(_changes(old, new, {old[i] for thing in things for i in thing}))
    for change, i, i_end, j, j_end in changes:
        for n in range(i, i_end):
            become[n] = [j + n - i] if change == "equal" else list(range(j, j_end))

    def split(i: int, i_end: int) -> int:
        """How many things lose a part of their words, or are cut in two, if these are left out, or others put there."""
        if i == i_end:
            return sum(bool(min(thing) < i <= max(thing)) for thing in things)
        return sum(0 < sum(i <= n < i_end for n in thing) < len(thing) for thing in things)

    for change, i, i_end, j, j_end in changes:
        if change in ("delete", "insert"):
            options = [(split(i, i_end), become)]
            for way in (-1, 1):
                slides = _slides(become, (old, new), (i, i_end), (j, j_end), way)
                options += [(split(*gap), moved) for gap, moved in slides]
            become = min(options, key=lambda option: option[0])[1]
    return become


def _changes(old: Sequence[str], new: Sequence[str], names: set[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """The opcodes of difflib, for common parts that have a word of `names`, and then for those between them."""
    outer = SequenceMatcher(lambda word: word not in names, old, new, autojunk=False)
    for change, i, i_end, j, j_end in outer.get_opcodes():
        if change != "replace":
            yield change, i, i_end, j, j_end
            continue
        for inner, a, b, c, d in SequenceMatcher(None, old[i:i_end], new[j:j_end], autojunk=False).get_opcodes():
            yield inner, i + a, i + b, j + c, j + d


def _slides(
    become: Sequence[list[int]],
    texts: tuple[Sequence[str], Sequence[str]],
    out: tuple[int, int],
    put: tuple[int, int],
    way: int,
) -> Iterator[tuple[tuple[int, int], list[list[int]]]]:
    """The alignments in which old words left out, or new ones put in, are moved one by one, by -1 or 1.

    `out` and `put` are where they begin and end; one of both is empty. Yields `out` and what old words become.
    """
    (old, new), (i, i_end), (j, j_end), moved = texts, out, put, list(become)
    while True:
        enters, leaves = (i - 1, i_end - 1) if way < 0 else (i_end, i)
        before, after = (j - 1, j_end - 1) if way < 0 else (j_end, j)
        if not 0 <= enters < len(old) or len(moved[enters]) != 1 or old[enters] != new[moved[enters][0]]:
            return
        if i < i_end and old[enters] == old[leaves]:
            moved[leaves], moved[enters] = moved[enters], []
        elif j < j_end and moved[enters] == [before] and new[before] == new[after]:
            moved[enters] = [after]
        else:
            return
        i, i_end, j, j_end = i + way, i_end + way, j + way, j_end + way
        yield (i, i_end), list(moved)


@dataclass(frozen=True)
class Moved:
    """A thing of the first picture that is drawn in another region: both (h, w) bool."""

    place: Tensor
    region: Tensor


@dataclass(frozen=True)
class Plan:
    """How an edited picture is drawn.

    prompt: its own. biases: on its tokens. kept: (h, w) bool, where it follows the path of the first picture. moved:
    things that it takes from there to another place.
    """

    prompt: str
    biases: list[Bias]
    excited: list[Excited]
    kept: Tensor
    moved: list[Moved]


def plan(
    edits: Sequence[Edit],
    prompt: str,
    size: tuple[int, int],
    tokenizer: "PreTrainedTokenizerBase",
    first: AttentionTrace | None = None,
    image: int = 0,
) -> Plan:
    """What edits of a prompt mean for its picture.

    Args:
        first: the trace of the first picture, and `image` its number in that; without one, only words with a region
            of their own have places, and nothing is held.

    Raises:
        ValueError: a word is not in the prompt, a region not in the picture, or a pinned word has no place.
    """
    after = edited_prompt(prompt, edits)
    layout = lay_out(prompt, after, tokenizer, first, image)
    biases: list[Bias] = []
    excited: list[Excited] = []
    changed, opened, named, moved = list(layout.gone), list(layout.gone), set(), list[Moved]()
    for edit in edits:
        if edit.kind in ("replace", "refine"):
            continue
        about = layout.find(edit.word)
        if edit.kind == "excite":
            excited.append(Excited(_tokens(about), edit.layers, edit.heads, edit.noise))
            named.update(about)
            continue
        if edit.kind == "reweight":
            weight = math.log(edit.value) if edit.value else NEVER
            biases.append(Bias(_tokens(about), weight, 0.0, None, edit.layers, edit.heads, edit.noise))
            continue
        own = [layout.places[word] for word in about if word in layout.places]
        if edit.value is None and not own:
            if first is None:
                continue  # its place is known later
            raise ValueError(f"{edit.word!r} has no place of its own in the first picture: give it a region")
        region = _union(own, size) if edit.value is None else region_mask(edit.value, size) >= 0.5
        opened += [region, *own]
        if edit.kind != "within":
            about = [*about, *(word for word in layout.about_same(own) if word not in about)]
            biases.append(Bias(_tokens(about), STRENGTH, -STRENGTH, region, edit.layers, edit.heads, edit.noise))
            changed += [region, *own]
            named.update(about)
            is_same = not any(word in layout.replaced or word in layout.new for word in about)
            if _paints_all(edit) and own and is_same and _is_one(own[-1], region):
                moved.append(Moved(own[-1], region))  # of its words, the last one names it
    if first is None or all(edit.kind == "reweight" for edit in edits):  # what a word does alone
        return Plan(after, biases, excited, torch.zeros(size, dtype=torch.bool), [])
    held = {word: place for word, place in layout.places.items() if word not in named}
    touched = _union(changed, size)
    staying = _union([own for own in held.values() if (own & touched).sum() < SAME_THING * own.sum()], size) & ~touched
    for word, place in held.items():
        is_new = word in layout.renewed
        region, noise = (_with_room(place), RENEWED) if is_new else (place, LAYOUT)
        biases.append(Bias(word.tokens, STRENGTH, -STRENGTH, region, noise=noise))
    for word in layout.new if staying.any() else ():
        if word not in named:
            biases.append(Bias(word.tokens, -STRENGTH, 0.0, staying, noise=LAYOUT))
    if any(edit.kind == "within" for edit in edits):
        return Plan(after, biases, excited, ~grown(_union(opened, size)), moved)
    return Plan(after, biases, excited, staying | grown(staying) & ~grown(touched), moved)


def _tokens(words: Sequence[Word]) -> tuple[int, ...]:
    return tuple(sorted({token for word in words for token in word.tokens}))


def _union(places: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    return torch.stack([torch.zeros(size, dtype=torch.bool), *places]).any(dim=0)


def _with_room(place: Tensor) -> Tensor:
    """A place (h, w) with room for another outline: the boxes of its connected parts that fill little of theirs."""
    roomy, (parts, _) = place.clone(), ndimage.label(place.numpy())
    for rows, columns in ndimage.find_objects(parts):
        if place[rows, columns].float().mean() < SPARSE:
            roomy[rows, columns] = True
    return roomy


def _paints_all(edit: Edit) -> bool:
    """Whether a thing is painted, and not what some layers, heads or other noise levels do with its words."""
    return edit.kind == "paint" and (edit.layers, edit.heads, edit.noise) == (None, None, LAYOUT)


def _is_one(*places: Tensor) -> bool:
    """Whether each place is one piece, and more than a point: not that of "circles"."""
    return all(ndimage.label(place.numpy())[1] == 1 and place.sum() > 1 for place in places)


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def grown(place: Tensor) -> Tensor:
    """A place (h, w) with a margin around it."""
    return F.max_pool2d(place[None].float(), 2 * MARGIN + 1, 1, MARGIN)[0] > 0
