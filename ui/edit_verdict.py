"""What the page says of an edited picture: is it as asked for, and did the other things stay as they were?

The page's own rules read what the picture shows; staying is measured as `pipelines.evaluation.editing` measures it.
"""

import re
from collections.abc import Sequence

import numpy as np

from pipelines.edits import Edit
from pipelines.evaluation.editing import find_one, how_it_stayed
from pipelines.scenes.emoji_font import FontError
from pipelines.scenes.scene import Object
from pipelines.scenes.sight import Sight
from pipelines.scenes.worlds import WORLDS, World
from ui.verdict import Statement, any_of, names_of, read, verdict

IN_BOX = 0.75
"""The share of a painted thing that has to be inside its box. People draw boxes larger than things."""


def edit_verdict(
    prompts: tuple[str, str], pictures: tuple[np.ndarray, np.ndarray], edits: Sequence[Edit], data: str | None
) -> list[Statement] | None:
    """Whether an edited picture is as asked for, and the rest unchanged; None where no rules can tell.

    Args:
        prompts, pictures: before and after; pictures (h, w, 3) uint8.
        data: the world of the prompts.
    """
    (first, _), (target, _) = (read(prompt, data) for prompt in prompts)
    statements = verdict(prompts[1], pictures[1], data)
    if first is None or target is None or not statements:
        return None
    world = WORLDS[target.data]
    try:
        old, new = (world.see(picture) for picture in pictures)
    except FontError:  # pragma: no cover - then `verdict` has none either
        return None
    painted = [edit for edit in edits if edit.kind == "paint"]
    # A thing that is painted somewhere is asked for there, whatever the prompt says of its place.
    where = ("verdict.relation", "verdict.place") if painted else ()
    found = [statement.ok for statement in statements if statement.says[0] not in where]
    found += [_in_box(edit, [o for o in target.objects if is_about(edit.word, o, world)], new) for edit in painted]
    checks = []
    if any(edit.kind != "reweight" for edit in edits):  # no rule tells whether a word is louder
        checks.append(Statement(("verdict.asked", {}), _all(found)))
    touched = [edit.word for edit in edits if edit.kind in ("paint", "reweight", "pin")]
    same = set(first.objects) & set(target.objects)
    staying = [o for o in same if not any(is_about(word, o, world) for word in touched)]
    if staying:
        checks.append(Statement(("verdict.elsewhere", {}), _all([_stayed(o, old, new) for o in staying])))
    return checks or None


def is_about(phrase: str, o: Object, world: World) -> bool:
    """Whether a phrase of a prompt names this thing: its noun, its colour, or both."""
    text = phrase.lower()
    nouns = {name.text for name in names_of(world)[o.shape]} | {name.plural for name in names_of(world)[o.shape]}
    nouns |= set(world.lexicon.nouns[o.shape].chinese)
    named = _has(text, nouns)
    others = {name.text for shape, names in names_of(world).items() if shape != o.shape for name in names}
    coloured = bool(o.colour) and _has(text, {o.colour, world.lexicon.colours[o.colour]})
    if named:
        return coloured or not _has(text, {*world.lexicon.colours, *world.lexicon.colours.values()})
    return coloured and not _has(text, others)


def _has(text: str, words: set[str]) -> bool:
    """Whether a text has one of these words, Chinese ones also as a part."""
    latin, chinese = ({word for word in words if word.isascii() is plain} for plain in (True, False))
    is_there = bool(latin) and re.search(rf"\b(?:{any_of(latin)})\b", text) is not None
    return is_there or any(word in text or text in word for word in chinese)


def _in_box(edit: Edit, things: Sequence[Object], sight: Sight) -> bool | None:
    if len(things) != 1 or (found := find_one(sight, things[0])) is None:
        return None
    x0, y0, x1, y1 = edit.value
    mask = sight.masks[found]
    return bool(mask[y0:y1, x0:x1].sum() >= IN_BOX * mask.sum())


def _stayed(thing: Object, old: Sight, new: Sight) -> bool | None:
    """Whether a thing is as it was; None if it was not to be seen before."""
    before, after = find_one(old, thing), find_one(new, thing)
    if before is None:
        return None
    return after is not None and how_it_stayed(old, before, new, after)[1]


def _all(found: Sequence[bool | None]) -> bool | None:
    return False if False in found else None if None in found else True
