"""Does a picture show what its caption describes? A check by exact rules, without a learned model.

`World.see` finds the objects of a picture. Each object of the caption is matched with one of them and compared to it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.scenes.captions import CaptionWord
from pipelines.scenes.scene import Object, Scene, place_holds, related, relation_holds
from pipelines.scenes.sight import Sight
from pipelines.scenes.worlds import WORLDS

GENEVAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single_object": (("one",), ("count", "shape")),
    "two_objects": (("two", "relation"), ("shape",)),
    "counting": (("count",), ("count", "shape")),
    "colours": (("one",), ("shape", "colour")),
    "position": (("relation", "between", "several", "place"), ("shape", "relation")),
    "colour_attribution": (("two", "relation"), ("shape", "colour")),
}
"""GenEval's tag -> the kinds of prompt it is measured on, and the facts that must all be correct.

As in GenEval (arXiv 2310.11513), a colour or a position counts only if the object's shape is correct too. GenEval does
not ask for sizes and the ground, so they count only in all-correct, which is measured on every kind, including "three".
"""


@dataclass(frozen=True)
class Check:
    """One fact that a caption states or implies, and whether the picture shows it."""

    fact: str  # count, shape, colour, size, relation or ground
    text: str
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """Every check of a picture against the scene its caption describes.

    `atoms` has a check for each fact that the caption states in words, as GenEval 2 counts them (arXiv 2512.16853):
    things, colours, sizes, numbers above one, relations and places, the ground. Unlike `checks` they leave out what a
    caption only implies, such as a medium size or that nothing else is in the picture.
    """

    kind: str
    checks: tuple[Check, ...]
    atoms: tuple[Check, ...] = ()

    @property
    def all_correct(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def tags(self) -> dict[str, bool]:
        """The tags of `GENEVAL` that apply to this kind of prompt, and whether the picture is correct by each.

        Emoji have no tags of colours, because their captions name none.
        """
        checked = {check.fact for check in self.checks}
        return {
            tag: all(check.ok for check in self.checks if check.fact in facts)
            for tag, (kinds, facts) in GENEVAL.items()
            if self.kind in kinds and checked.issuperset(facts)
        }


def judge(scene: Scene, picture: np.ndarray) -> Verdict:
    """Check a picture (h, w, 3) uint8 against the scene that its caption describes.

    Each expected object is compared with one object found in the picture. A medium size and a white ground are checked
    even if the caption omits them.
    """
    return compare(scene, WORLDS[scene.data].see(picture))


def compare(scene: Scene, sight: Sight) -> Verdict:
    """Check what was seen in a picture, as `judge` does."""
    matched = [None if i is None else sight.objects[i] for i in _match(scene.objects, sight.objects)]
    checks = _checks(scene, sight, matched)
    return Verdict(scene.kind, checks, tuple(_atom(word, scene, sight, matched) for word in scene.words))


Matched = list[Object | None]
"""For each object of a scene the one found in the picture that it is compared with, if any."""


def _checks(scene: Scene, sight: Sight, matched: Matched) -> tuple[Check, ...]:
    results: dict[tuple[str, str], bool] = {}

    def check(fact: str, text: str, ok: bool) -> None:
        # "Three green triangles" are green only if all of them are.
        results[fact, text] = results.get((fact, text), True) and ok

    check("count", f"count: {len(scene.objects)}", len(sight.objects) == len(scene.objects))
    for expected, found in zip(scene.objects, matched, strict=True):
        check("shape", expected.shape, found is not None and found.shape == expected.shape)
        if expected.colour:
            colour_ok = found is not None and found.colour == expected.colour
            check("colour", f"{expected.shape}: {expected.colour}", colour_ok)
        check("size", f"{_name_of(expected)}: {expected.size}", found is not None and found.size == expected.size)
    if scene.relation:
        subject, relation, *others = scene.relation
        names = [_name_of(scene.objects[i]) for i in others]
        text = f"{_name_of(scene.objects[subject])} {relation} {' and '.join(names)}"
        check("relation", text, _relation_holds(scene, matched))
    for i, place in scene.places:
        o = matched[i]
        check("relation", f"{_name_of(scene.objects[i])}: {place}", o is not None and place_holds(place, o))
    check("ground", f"ground: {scene.ground}", sight.ground == scene.ground)
    return tuple(Check(fact, text, ok) for (fact, text), ok in results.items())


def _relation_holds(scene: Scene, matched: Matched) -> bool:
    assert scene.relation
    for objects in related(scene):
        found = [o for i in objects if (o := matched[i]) is not None]
        # No margin here: a person accepts any "left of" that is more left than above or below.
        if len(found) < len(objects) or not relation_holds(scene.relation[1], found[0], found[1:]):
            return False
    return True


def _atom(word: CaptionWord, scene: Scene, sight: Sight, matched: Matched) -> Check:
    """Whether the picture shows what a word of the caption states.

    A colour, size or relation counts only if its things are right too; a number is that of all such things in the
    picture.
    """
    text = scene.caption[word.start : word.end]
    if word.kind == "ground":
        return Check("ground", text, sight.ground == scene.ground)
    pairs = [(scene.objects[i], matched[i]) for i in word.objects]
    ok = all(found is not None and found.shape == expected.shape for expected, found in pairs)
    if word.kind == "count":
        thing = scene.objects[word.objects[0]]
        alike = sum((o.shape, o.colour) == (thing.shape, thing.colour) for o in sight.objects)
        ok = alike == len(word.objects)
    elif word.kind in ("colour", "size"):
        ok = ok and all(getattr(found, word.kind) == getattr(expected, word.kind) for expected, found in pairs)
    elif word.kind == "relation":
        places = [place for i, place in scene.places if i in word.objects]
        found = matched[word.objects[0]]
        holds = _relation_holds(scene, matched) if not places else found is not None and place_holds(places[0], found)
        ok = ok and holds
    return Check(word.kind, text, ok)


def _name_of(o: Object) -> str:
    return f"{o.colour} {o.shape}".strip()


def find(scene: Scene, picture: np.ndarray) -> list[tuple[Object, np.ndarray] | None]:
    """Each object of a scene as a picture shows it, with its mask: its coverage (h, w) in [0, 1].

    None for an object that the picture does not show in its shape and colour.
    """
    sight = WORLDS[scene.data].see(picture)
    shown: list[tuple[Object, np.ndarray] | None] = []
    for expected, i in zip(scene.objects, _match(scene.objects, sight.objects), strict=True):
        found = None if i is None else sight.objects[i]
        if found is not None and (found.shape, found.colour) == (expected.shape, expected.colour):
            shown.append((found, sight.masks[i]))
        else:
            shown.append(None)
    return shown


def locate(scene: Scene, picture: np.ndarray) -> list[np.ndarray | None]:
    """The masks that `find` returns: of shapes what is drawn, of emoji their exact outline where they were found."""
    return [None if found is None else found[1] for found in find(scene, picture)]


def _match(expected: tuple[Object, ...], found: tuple[Object, ...]) -> list[int | None]:
    """The index of the found object that each expected object is compared with; None if there are too few."""
    # The weights make shape count before colour, and colour before size, even summed over three objects.
    agreement = [
        [16 * (a.shape == b.shape) + 4 * (a.colour == b.colour) + (a.size == b.size) for b in found] for a in expected
    ]
    matched: list[int | None] = [None] * len(expected)
    scores = np.array(agreement).reshape(len(expected), len(found))
    for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        matched[row] = int(column)
    return matched
