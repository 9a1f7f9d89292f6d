"""Properties of the judge in atoms: what counts as one, when it is right, and how they are counted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.evaluation.agreement import agreement_table, evaluate, fixed_scenes
from pipelines.evaluation.atoms import MOST, count_atoms
from pipelines.scenes import everyday, shapes
from pipelines.scenes.captions import CaptionWord
from pipelines.scenes.judge import Check, Verdict, judge
from pipelines.scenes.scene import Object, Scene
from pipelines.scenes.worlds import WORLDS, render

CAT, MOON = Object("cat", "", "small", 0.25, 0.3, 0.11), Object("moon", "", "medium", 0.7, 0.7, 0.15)


def described(text: str, *objects: Object, **spans: tuple[str, str, tuple[int, ...]]) -> Scene:
    """A scene of everyday things with this caption, whose words are (text, kind, objects)."""
    words = [CaptionWord(text.index(t), text.index(t) + len(t), kind, shown) for t, kind, shown in spans.values()]
    return Scene("two", objects, "white", caption=text, words=tuple(words), data="everyday")


def facts(verdict: Verdict) -> list[tuple[str, bool]]:
    return [(atom.fact, atom.ok) for atom in verdict.atoms]


def test_an_atom_is_what_a_caption_states_and_no_more() -> None:
    shown = described(
        "two small cats and a moon",
        CAT,
        replace(CAT, x=0.75),
        MOON,
        count=("two", "count", (0, 1)),
        size=("small", "size", (0, 1)),
        cats=("cats", "shape", (0, 1)),
        moon=("moon", "shape", (2,)),
    )
    picture = render(shown, 128)[0]
    assert facts(judge(shown, picture)) == [("count", True), ("size", True), ("shape", True), ("shape", True)]
    # The moon's size and the ground are implied, not stated, and so is that nothing else is to be seen.
    other = replace(
        shown, objects=(CAT, replace(CAT, x=0.75), replace(MOON, size="small", radius=0.11)), ground="turquoise"
    )
    verdict = judge(shown, render(other, 128)[0])
    assert all(ok for _, ok in facts(verdict)) and not verdict.all_correct
    more = replace(shown, objects=(*shown.objects, Object("apple", "", "small", 0.25, 0.75, 0.11)))
    verdict = judge(shown, render(more, 128)[0])
    assert all(ok for _, ok in facts(verdict)) and not verdict.all_correct


def test_a_number_is_that_of_the_thing_in_the_picture() -> None:
    shown = described(
        "two cats", CAT, replace(CAT, x=0.75), count=("two", "count", (0, 1)), cats=("cats", "shape", (0, 1))
    )
    three = replace(shown, objects=(*shown.objects, replace(CAT, y=0.75)))
    assert facts(judge(shown, render(three, 128)[0])) == [("count", False), ("shape", True)]
    one = replace(shown, objects=shown.objects[:1])
    assert facts(judge(shown, render(one, 128)[0])) == [("count", False), ("shape", False)]


def test_what_is_said_of_a_thing_counts_only_with_the_thing() -> None:
    red, blue = Object("circle", "red", "medium", 0.3, 0.5, 0.13), Object("square", "blue", "medium", 0.7, 0.5, 0.13)
    text = "a red circle left of a blue square"
    words = [("red", "colour", (0,)), ("circle", "shape", (0,)), ("left of", "relation", (0, 1))]
    words += [("blue", "colour", (1,)), ("square", "shape", (1,))]
    spans = tuple(CaptionWord(text.index(t), text.index(t) + len(t), kind, shown) for t, kind, shown in words)
    shown = Scene("relation", (red, blue), "white", (0, "left of", 1), text, spans)
    right = [atom.ok for atom in judge(shown, render(shown)[0]).atoms]
    assert right == [True] * 5
    star = replace(shown, objects=(replace(red, shape="star"), blue))
    assert [atom.ok for atom in judge(shown, render(star)[0]).atoms] == [False, False, False, True, True]
    mirrored = replace(shown, objects=(replace(red, x=0.7), replace(blue, x=0.3)))
    assert [atom.ok for atom in judge(shown, render(mirrored)[0]).atoms] == [True, True, False, True, True]


def test_places_and_other_relations_are_atoms() -> None:
    for kind in ("place", "between"):
        for index in range(3):
            shown = everyday.scene(5, index, kind)
            verdict = judge(shown, render(shown, 64)[0])
            assert all(atom.ok for atom in verdict.atoms) and "relation" in {atom.fact for atom in verdict.atoms}
    placed = everyday.scene(5, 0, "place")
    centred = replace(placed, objects=tuple(replace(o, x=1 - o.x, y=1 - o.y) for o in placed.objects))
    assert placed.places[0][1] != "middle"
    assert not all(ok for fact, ok in facts(judge(placed, render(centred, 64)[0])) if fact == "relation")


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_the_atoms_of_exact_renders_are_right_and_of_others_mostly_wrong(world: str) -> None:
    scenes = fixed_scenes(2, False, "zh", world)
    pictures = [render(s)[0] for s in scenes]
    verdicts = [judge(s, p) for s, p in zip(scenes, pictures, strict=True)]
    assert all(atom.ok for v in verdicts for atom in v.atoms)
    assert [len(v.atoms) for v in verdicts] == [len(s.words) for s in scenes]
    others = count_atoms([judge(s, p) for s, p in zip(scenes, np.roll(pictures, 1, axis=0), strict=True)])
    assert others["all"]["share"] < 0.2 and others["atoms"]["share"] < 0.7


def test_atoms_are_counted_by_their_number_and_by_fact() -> None:
    def verdict(*right: bool) -> Verdict:
        return Verdict("one", (), tuple(Check("shape" if i else "size", "", ok) for i, ok in enumerate(right)))

    counted = count_atoms([verdict(True), verdict(True, False), verdict(True, True), verdict(*[False] * 11)])
    assert (counted["atoms"]["k"], counted["atoms"]["n"]) == (4, 16)
    assert (counted["all"]["k"], counted["all"]["n"]) == (2, 4)
    assert list(counted["by_number"]) == ["1", "2", str(MOST)]
    assert counted["by_number"]["2"]["all"]["share"] == 0.5 and counted["by_number"]["2"]["atoms"]["share"] == 0.75
    assert counted["by_fact"]["size"]["n"] == 4 and counted["by_fact"]["shape"]["n"] == 12
    assert all(0 <= entry["low"] <= entry["share"] <= entry["high"] <= 1 for entry in counted["by_fact"].values())


def test_everyday_things_are_evaluated_with_their_kinds_and_atoms() -> None:
    known = {s.caption: s for held_out in (False, True) for s in fixed_scenes(2, held_out, data="everyday")}

    def painter(prompt, **settings):
        return SimpleNamespace(images=np.stack([render(known[text])[0] for text in prompt]) / 255)

    report = evaluate(painter, 2, seeds=(0,), data="everyday")
    for split in ("seen", "held_out"):
        assert set(report[split]["model"]["kinds"]) == set(WORLDS["everyday"].kinds)
        assert report[split]["model"]["atoms"]["all"]["share"] == 1
        assert report[split]["floor"]["atoms"]["all"]["share"] < 0.2
    table = agreement_table(report)
    assert "2 atoms" in table and "8 or more atoms" in table and "between" in table
    assert max(map(len, table.splitlines())) <= 100


def test_scenes_of_shapes_have_one_to_many_atoms() -> None:
    numbers = {len(shapes.scene(3, i).words) for i in range(200)}
    assert min(numbers) == 2 and max(numbers) >= MOST
