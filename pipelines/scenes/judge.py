"""Does a picture show what its caption describes? Checked by exact rules, with no learned model.

`World.see` finds the objects of a picture; each object of the caption is matched with one of them and compared.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.scenes.scene import Object, Scene, relation_between
from pipelines.scenes.worlds import WORLDS

GENEVAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single_object": (("one",), ("count", "shape")),
    "two_objects": (("two", "relation"), ("shape",)),
    "counting": (("count",), ("count", "shape")),
    "colours": (("one",), ("shape", "colour")),
    "position": (("relation",), ("shape", "relation")),
    "colour_attribution": (("two", "relation"), ("shape", "colour")),
}
"""GenEval's tag -> the kinds of prompt it is measured on and the facts that must all be right there.

As in GenEval (arXiv 2310.11513), a colour or a place counts only on a thing that is there, and sizes and the ground,
which it does not ask for, count in all-correct alone. All-correct is measured on every kind, "three" too.
"""


@dataclass(frozen=True)
class Check:
    """One thing a caption says, or leaves to be assumed, and whether the picture shows it."""

    fact: str  # count, shape, colour, size, relation or ground
    text: str
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """Every check of a picture against the scene its caption describes."""

    kind: str
    checks: tuple[Check, ...]

    @property
    def all_correct(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def tags(self) -> dict[str, bool]:
        """The tags of `GENEVAL` that this kind of prompt is measured on, and whether the picture is right by each.

        None of colours where things have their own.
        """
        said = {check.fact for check in self.checks}
        return {
            tag: all(check.ok for check in self.checks if check.fact in facts)
            for tag, (kinds, facts) in GENEVAL.items()
            if self.kind in kinds and said.issuperset(facts)
        }


def judge(described: Scene, picture: np.ndarray) -> Verdict:
    """Check a picture (h, w, 3) uint8 against the scene its caption describes.

    Each described object is held against one seen object. What the caption leaves unsaid is checked like the rest: a
    described scene has its sizes and its ground even where they go without saying.
    """
    sight = WORLDS[described.data].see(picture)
    matched = [None if i is None else sight.objects[i] for i in _match(described.objects, sight.objects)]
    found: dict[tuple[str, str], bool] = {}

    def check(fact: str, text: str, ok: bool) -> None:
        # Three green triangles are green only if all of them are.
        found[fact, text] = found.get((fact, text), True) and ok

    check("count", f"count: {len(described.objects)}", len(sight.objects) == len(described.objects))
    for said, seen in zip(described.objects, matched, strict=True):
        check("shape", said.shape, seen is not None and seen.shape == said.shape)
        if said.colour:
            check("colour", f"{said.shape}: {said.colour}", seen is not None and seen.colour == said.colour)
        check("size", f"{_name_of(said)}: {said.size}", seen is not None and seen.size == said.size)
    if described.relation:
        subject, relation, other = described.relation
        a, b = matched[subject], matched[other]
        # A person accepts any "left of" that is more left than above or below: no margin here.
        holds = a is not None and b is not None and relation_between(a, b, margin=1.0) == relation
        names = [_name_of(described.objects[i]) for i in (subject, other)]
        check("relation", f"{names[0]} {relation} {names[1]}", holds)
    check("ground", f"ground: {described.ground}", sight.ground == described.ground)
    return Verdict(described.kind, tuple(Check(fact, text, ok) for (fact, text), ok in found.items()))


def _name_of(o: Object) -> str:
    return f"{o.colour} {o.shape}".strip()


def locate(described: Scene, picture: np.ndarray) -> list[np.ndarray | None]:
    """Where each described object is, coverage (h, w) in [0, 1], or None where no such thing is in such a colour."""
    sight = WORLDS[described.data].see(picture)
    found: list[np.ndarray | None] = []
    for said, i in zip(described.objects, _match(described.objects, sight.objects), strict=True):
        there = i is not None and (sight.objects[i].shape, sight.objects[i].colour) == (said.shape, said.colour)
        found.append(sight.masks[i] if there else None)
    return found


def _match(described: tuple[Object, ...], seen: tuple[Object, ...]) -> list[int | None]:
    """For each described object which seen one is held against it, or None where they do not suffice."""
    # What a thing is goes before its colour, and that before its size, whatever the other two objects gain.
    agreement = [
        [16 * (a.shape == b.shape) + 4 * (a.colour == b.colour) + (a.size == b.size) for b in seen] for a in described
    ]
    matched: list[int | None] = [None] * len(described)
    table = np.array(agreement).reshape(len(described), len(seen))
    for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        matched[row] = int(column)
    return matched
