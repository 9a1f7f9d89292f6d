"""Edits of test scenes whose right result is known: what to ask for, and what the judge has to see afterwards.

Boxes are (x0, y0, x1, y1) in pixels, as a person would draw them over the first picture.

Shapes: h×w pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.edits import Edit, paint, refine
from pipelines.edits import replace as replaced
from pipelines.evaluation.agreement import TEST_SEED
from pipelines.scenes.emoji import EMOJI_SIZES
from pipelines.scenes.everyday import TOGETHER
from pipelines.scenes.judge import judge
from pipelines.scenes.scene import REVERSED, Object, Scene, relation_holds
from pipelines.scenes.shapes import SHAPE_SIZES, SHAPES
from pipelines.scenes.sight import Sight
from pipelines.scenes.typed import article
from pipelines.scenes.worlds import WORLDS

Box = tuple[int, int, int, int]

SCENES = {
    "recolour": ("two", "relation", "three"),
    "reshape": ("two", "relation", "three"),
    "resize": ("two", "relation", "three"),
    "remove": ("two", "relation", "three"),
    "add": ("one", "two"),
    "move": ("two", "three"),
    "swap": ("two", "three"),
    "turn": ("relation",),
}
"""Kind of edit -> the kinds of scene that it is asked of."""

SEVERAL = {"remove": ("three",), "add": ("two",)}
"""Likewise for everyday things: there a thing alone is called medium that is called big beside others."""

SIDE = 64
"""Pixels of a side of the pictures."""

RADII = {"shapes": SHAPE_SIZES} | {
    data: {size: side / 2 for size, side in sides.items()}
    for data, sides in (("emoji", EMOJI_SIZES), ("everyday", TOGETHER))
}
"""World -> name of a size -> half the side of such a thing, beside others."""

STAYING = ("recolour", "reshape", "resize")
"""Kinds after which the edited thing is to be where it was."""


@dataclass(frozen=True)
class Task:
    """An edit of a picture of `scene`.

    target: the scene that the edited picture has to show; its caption is the edited prompt.
    named: the objects of `scene`, by number, that the edit is about, and `becomes`, what they are in `target`.
    boxes: object of `target` -> where it is to be.
    """

    kind: str
    scene: Scene
    edits: tuple[Edit, ...]
    target: Scene
    named: tuple[int, ...]
    becomes: tuple[int, ...]
    boxes: dict[int, Box]

    @property
    def prompt(self) -> str:
        """The edited prompt."""
        return self.target.caption


def scenes_to_edit(kind: str, numbers: Sequence[int], data: str, seed: int = TEST_SEED) -> list[Scene]:
    """The test scenes with these numbers for a kind of edit; those with odd ones show a held-out pair."""
    kinds = SEVERAL.get(kind, SCENES[kind]) if data == "everyday" else SCENES[kind]
    first = 10_000 * (1 + list(SCENES).index(kind))
    scenes = [WORLDS[data].scene(seed, first + i, kinds[i // 2 % len(kinds)], i % 2 == 1) for i in numbers]
    return [plain(scene) for scene in scenes]


def make_task(kind: str, scene: Scene, sight: Sight, index: int, seed: int = TEST_SEED) -> Task | None:
    """An edit of a picture of `scene` in which `sight` was seen; None where the scene gives no cause or room for it."""
    rng = np.random.default_rng((seed, index))
    seen = [sight.objects.index(next(o for o in sight.objects if _alike(o, wanted))) for wanted in scene.objects]
    boxes = [box_of(sight.masks[i]) for i in seen]
    subject = int(rng.integers(len(scene.objects)))
    if kind in STAYING:
        return _changed(rng, kind, scene, boxes, subject)
    if kind == "remove":
        rest = [o for i, o in enumerate(scene.objects) if i != subject]
        target = _other(scene, rest)
        return Task(kind, scene, (refine(target.caption),), target, (subject,), (), {})
    if kind == "add":
        return _added(rng, scene, boxes)
    if kind == "move":
        box = _free_box(rng, boxes[subject], boxes)
        if box is None:
            return None
        edit = paint(_named(scene.objects[subject]), box)
        return Task(kind, scene, (edit,), scene, (subject,), (subject,), {subject: box})
    places = {0: _moved(boxes[0], boxes[1]), 1: _moved(boxes[1], boxes[0])}
    if not all(_fits(box, [*boxes[2:], places[1 - i]]) for i, box in places.items()):
        return None
    target = scene
    if kind == "turn":
        assert scene.relation is not None
        a, relation, b, *_ = scene.relation
        turned = [
            replace(o, x=places[i][0] + places[i][2], y=places[i][1] + places[i][3])
            for i, o in enumerate(scene.objects)
        ]
        reverse = REVERSED.get(relation)  # none of "beside"
        if reverse is None or not relation_holds(reverse, turned[a], [turned[b]], margin=1.25):
            return None
        target = _other(scene, scene.objects, (a, reverse, b))
    edits = tuple(paint(_named(target.objects[i]), box) for i, box in places.items())
    return Task(
        kind, scene, edits if target is scene else (refine(target.caption), *edits), target, (0, 1), (0, 1), places
    )


def _changed(rng: np.random.Generator, kind: str, scene: Scene, boxes: Sequence[Box], subject: int) -> Task | None:
    """The subject in another colour, shape or size, where it is."""
    o, lexicon = scene.objects[subject], WORLDS[scene.data].lexicon
    name = {"recolour": "colour", "reshape": "shape", "resize": "size"}[kind]
    alike = [noun for noun in lexicon.nouns if _is_coloured(scene.data, noun) == bool(o.colour)]
    options = {"colour": list(lexicon.colours) if o.colour else [], "shape": alike, "size": ["small", "big"]}[name]
    used = {o.size} if name == "size" else {getattr(other, name) for other in scene.objects}
    others = [box for i, box in enumerate(boxes) if i != subject]
    for value in rng.permutation([option for option in options if option not in used])[:20].tolist():
        new = replace(o, **{name: value})
        if not _can_be_seen(scene, [new]):
            continue
        objects = tuple(new if i == subject else other for i, other in enumerate(scene.objects))
        target = plain(replace(scene, objects=objects))
        edits, places = [replaced(_named(o), _named(new))], {}
        if name == "size":
            places = {subject: _scaled(boxes[subject], RADII[scene.data][value] / RADII[scene.data][o.size])}
            if not _fits(places[subject], others):
                return None
            edits.append(paint(_named(new), places[subject]))
        return Task(kind, scene, tuple(edits), target, (subject,), (subject,), places)
    return None


def _added(rng: np.random.Generator, scene: Scene, boxes: Sequence[Box]) -> Task | None:
    """One thing more, in a free place."""
    lexicon, used = WORLDS[scene.data].lexicon, {o.shape for o in scene.objects}
    colours = [colour for colour in lexicon.colours if colour not in {o.colour for o in scene.objects}]
    for shape in rng.permutation([shape for shape in lexicon.nouns if shape not in used])[:20].tolist():
        new = Object(shape, str(rng.choice(colours)) if _is_coloured(scene.data, shape) else "", "medium")
        if not _can_be_seen(scene, [*scene.objects, new]):
            continue
        reach = round(64 * RADII[scene.data]["medium"])
        box = _free_box(rng, (0, 0, 2 * reach, 2 * reach), boxes)
        if box is None:
            return None
        target = _other(scene, [*scene.objects, new])
        number = len(scene.objects)
        edits = (refine(target.caption), paint(_named(new), box))
        return Task("add", scene, edits, target, (), (number,), {number: box})
    return None


def _is_coloured(data: str, noun: str) -> bool:
    """Whether things of this name come in colours, as shapes do, and emoji do not."""
    return noun in SHAPES and bool(WORLDS[data].lexicon.colours)


def _alike(a: Object, b: Object) -> bool:
    return (a.shape, a.colour) == (b.shape, b.colour)


def _can_be_seen(scene: Scene, objects: Sequence[Object]) -> bool:
    """Whether each of these objects stands out on the scene's ground, to the judge."""
    world = WORLDS[scene.data]
    for o in objects:
        alone = Scene(
            "one", (replace(o, x=0.5, y=0.5, radius=RADII[scene.data][o.size]),), scene.ground, data=scene.data
        )
        checks = judge(alone, world.render(alone, SIDE)[0]).checks
        if not all(check.ok for check in checks if check.fact != "size"):  # alone, sizes have other names
            return False
    return True


def _other(scene: Scene, objects: Sequence[Object], relation: tuple[int, str, int] | None = None) -> Scene:
    """A scene of other objects on the same ground."""
    kind = "relation" if relation else {1: "one", 2: "two"}.get(len(objects), "three")
    return plain(replace(scene, kind=kind, objects=tuple(objects), relation=relation))


def plain(scene: Scene) -> Scene:
    """A scene with a plain caption, so that an edited caption differs from it in what the edit says only."""
    things = [_named(o) for o in scene.objects]
    if scene.relation is None:
        text = ", ".join(things[:-1]) + (" and " if things[1:] else "") + things[-1]
    else:
        subject, relation, other, *_ = scene.relation
        text = f"{things[subject]} {relation} {things[other]}"
    # Everyday things have other default grounds.
    named = scene.ground != "white" or scene.data == "everyday"
    ground = f" on a {scene.ground} background" if named else ""
    return replace(scene, caption=text + ground, words=())


def _named(o: Object) -> str:
    words = " ".join(word for word in ("" if o.size == "medium" else o.size, o.colour, o.shape) if word)
    return f"{article(words)} {words}"


# Boxes.


def box_of(mask: np.ndarray) -> Box:
    rows, columns = (np.flatnonzero((mask >= 0.5).any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return both / (sum(areas) - both)


def _scaled(box: Box, scale: float) -> Box:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    width, height = scale * (box[2] - box[0]) / 2, scale * (box[3] - box[1]) / 2
    return round(x - width), round(y - height), round(x + width), round(y + height)


def _moved(box: Box, to: Box) -> Box:
    """A box whose centre is that of another one."""
    dx, dy = (to[0] + to[2] - box[0] - box[2]) // 2, (to[1] + to[3] - box[1] - box[3]) // 2
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _fits(box: Box, others: Sequence[Box]) -> bool:
    """Whether a box is inside the picture and has room to others."""
    inside = min(box) >= 1 and max(box) < SIDE
    room = (box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2)
    return inside and all(box_iou(room, other) == 0 for other in others)


def _free_box(rng: np.random.Generator, like: Box, others: Sequence[Box]) -> Box | None:
    """A box of this size at a random free place; None where there is none."""
    width, height = like[2] - like[0], like[3] - like[1]
    for _ in range(200):
        x, y = (int(rng.integers(1, max(2, SIDE - side))) for side in (width, height))
        box = (x, y, x + width, y + height)
        if _fits(box, others):
            return box
    return None
