"""Edited pictures of the bundled model, judged by the world's own judge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextToImagePipeline, excite, paint, pin, refine, replace, reweight, trace, withhold, within
from pipelines.edit_plan import Moved
from pipelines.edited import EditedPictures, copied, picture_of_change, put_elsewhere
from pipelines.edits import Edit
from pipelines.evaluation.edit_tasks import make_task, scenes_to_edit
from pipelines.evaluation.editing import judge_edit
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import WORLDS, parse
from ui.cli import main
from unet_xattn.bias import NEVER, Bias, bias_hook
from unet_xattn.words import split_words

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def shapes() -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: TextToImagePipeline, *edits: Edit, prompt: str = PROMPT, **how: Any) -> EditedPictures:
    return pipe(prompt, edits=edits, generator=torch.Generator().manual_seed(7), output_type="np", **how)  # type: ignore[return-value]


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    return (pictures[0] * 255).round().astype(np.uint8)


def test_the_first_picture_is_the_one_without_edits(shapes: TextToImagePipeline) -> None:
    plain = shapes(PROMPT, generator=torch.Generator().manual_seed(7), output_type="np").images
    edited = draw(shapes, replace("circle", "star"))
    np.testing.assert_allclose(edited.before, plain, atol=1e-5)  # recorded attention is computed explicitly
    assert edited.prompts == ["a red star left of a blue square"] and edited.trace.prompts == [PROMPT]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([replace("circle", "star")], "a red star left of a blue square"),
        ([replace("red", "green")], "a green circle left of a blue square"),
        ([refine("a blue square")], "a blue square"),
        ([refine("a red circle, a blue square and a green star"), paint("green star", (24, 2, 42, 20))], None),
    ],
)
def test_the_edited_picture_shows_what_was_asked_and_the_rest_stays(
    shapes: TextToImagePipeline, edits: list[Edit], expected: str | None
) -> None:
    edited = draw(shapes, *edits)
    before, after = as_bytes(edited.before), as_bytes(edited.images)  # type: ignore[arg-type]
    target = parse(expected or edited.prompts[0])
    assert target is not None and judge(target, after).all_correct
    sights = [WORLDS["shapes"].see(picture) for picture in (before, after)]
    square, kept = (next(m for o, m in zip(s.objects, s.masks, strict=True) if o.shape == "square") for s in sights)
    assert np.minimum(square, kept).sum() / np.maximum(square, kept).sum() > 0.95


def test_a_moved_thing_is_the_first_picture_s_one_in_its_new_place() -> None:
    """Without its pixels, the toucan and the mushroom of this scene do not change places."""
    pipe = TextToImagePipeline.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    (scene,) = scenes_to_edit("swap", [9], "emoji")
    noise = torch.Generator().manual_seed(9)
    before = pipe(scene.caption, generator=copied(noise), output_type="np").images[0]
    before = (before * 255).round().astype(np.uint8)
    task = make_task("swap", scene, WORLDS["emoji"].see(before), 9)
    assert task is not None
    edited = pipe(scene.caption, edits=list(task.edits), generator=noise, output_type="np")
    assert judge_edit(task, before, as_bytes(edited.images))["both"]


@pytest.mark.parametrize("side", [16, 8])
def test_a_thing_is_cut_out_and_put_into_its_region(side: int) -> None:
    place, region = torch.zeros(2, 32, 32, dtype=torch.bool)
    place[8:16, 4:8], region[16:24, 20:28] = True, True
    touched = torch.zeros(1, 32, 32)
    touched[:, 6:18, 2:10] = 1  # with its margin
    picture = torch.nn.functional.adaptive_max_pool2d(touched, side).expand(3, -1, -1)
    at, there = put_elsewhere(picture, Moved(place, region))
    cell = 32 / side
    found = there.nonzero() * cell
    assert (at[:, there] > 0.99).all() and there.any()
    assert (found > torch.tensor([14, 18]) - cell).all() and (found < torch.tensor([26, 30])).all()
    height, width = (found.amax(dim=0) - found.amin(dim=0) + cell).tolist()
    assert height >= 1.5 * (width - cell)  # upright, as it was


def test_an_excited_thing_that_was_missing_is_drawn_and_the_others_stay(shapes: TextToImagePipeline) -> None:
    prompt = "a large orange cross, a small orange triangle and a small purple square, on a gray ground"
    with torch.inference_mode():  # in which the page draws
        edited = shapes(
            prompt,
            edits=[excite("orange triangle")],
            num_inference_steps=8,
            generator=torch.Generator().manual_seed(13),
            output_type="np",
        )
    before, after = (WORLDS["shapes"].see(as_bytes(p)) for p in (edited.before, edited.images))  # type: ignore[arg-type]
    assert {o.shape for o in before.objects} == {"cross", "square"}
    assert {o.shape for o in after.objects} == {"cross", "square", "triangle"}
    assert all(parameter.grad is None for parameter in shapes.unet.parameters())


@pytest.fixture(scope="module")
def rendered() -> tuple[str, Image.Image]:
    """What a picture shows that no model drew, and the picture."""
    scene = WORLDS["shapes"].scene(99, 4, "relation")
    return scene.caption, Image.fromarray(WORLDS["shapes"].render(scene, 64)[0])


def test_a_picture_that_exists_is_edited_and_the_rest_of_it_stays(
    shapes: TextToImagePipeline, rendered: tuple[str, Image.Image]
) -> None:
    caption, picture = rendered
    assert caption == "a yellow square is above a small blue circle against a turquoise background."
    edited = draw(shapes, replace("yellow", "red"), prompt=caption, image=picture)
    before, after = as_bytes(edited.before), as_bytes(edited.images)  # type: ignore[arg-type]
    assert np.abs(before.astype(int) - np.asarray(picture)).max() <= 1 and edited.inexact == [
        pytest.approx(0, abs=1e-3)
    ]
    target = parse(edited.prompts[0])
    assert target is not None and judge(target, after).all_correct
    circle = edited.trace.mask("circle").numpy()
    assert np.abs(before.astype(int) - after)[circle].max() <= 1


def test_pictures_that_exist_are_edited_together_as_alone(
    shapes: TextToImagePipeline, rendered: tuple[str, Image.Image]
) -> None:
    caption, picture = rendered
    how: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 7)]
    both = shapes([caption] * 2, image=[flipped, picture], edits=[replace("yellow", "red")], generator=seeds, **how)
    alone = draw(shapes, replace("yellow", "red"), prompt=caption, image=picture, num_inference_steps=3)
    assert np.abs(both.images[1] - alone.images[0]).max() <= 1.5 / 255


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "a picture is given, but no edits of it: give edits, such as replace"),
        ({"regions": {"circle": (0, 0, 9, 9)}}, "a picture is given, but no edits of it"),
        ({"image": "a.png", "edits": [replace("red", "blue")]}, "image is an open picture of Pillow, or a list"),
        ({"image": Image.new("RGB", (70, 64))}, "this model draws sizes that are multiples of 16 pixels, got 70×64"),
        ({"height": 32}, "the picture to edit has 64×64 pixels, asked for are 64×32: resize it"),
        ({"image": [Image.new("RGB", (64, 64))] * 2}, "2 pictures to edit for 1 prompts: give one for each"),
    ],
)
def test_a_picture_that_cannot_be_edited_is_refused_in_one_line(
    shapes: TextToImagePipeline, how: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes.unet, "forward", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=f"^{message}"):
        shapes(PROMPT, **{"image": Image.new("RGB", (64, 64)), **how})


def test_regions_draw_things_where_they_are_asked(shapes: TextToImagePipeline) -> None:
    boxes = {"red circle": (2, 2, 22, 22), "blue square": (40, 4, 60, 24), "green star": (20, 36, 44, 60)}
    prompt = "a red circle, a blue square and a green star"
    out = shapes(prompt, regions=boxes, generator=torch.Generator().manual_seed(0), output_type="np")
    assert not isinstance(out, EditedPictures)  # nothing else is drawn
    seen = WORLDS["shapes"].see(as_bytes(out.images))  # type: ignore[arg-type]
    for o in seen.objects:
        x0, y0, x1, y1 = boxes[f"{o.colour} {o.shape}"]
        assert x0 < o.x * 64 < x1 and y0 < o.y * 64 < y1
    assert len(seen.objects) == 3


def test_an_edited_layout_keeps_its_regions_but_for_what_is_painted_anew(shapes: TextToImagePipeline) -> None:
    boxes = {"red circle": (2, 2, 22, 22), "blue square": (40, 4, 60, 24)}
    there = (20, 36, 44, 60)
    how: dict[str, Any] = {"regions": boxes, "output_type": "np"}
    edits = [replace("square", "star"), paint("circle", there)]
    alone, edited = (
        shapes("a red circle and a blue square", generator=torch.Generator().manual_seed(0), **how | more)
        for more in ({}, {"edits": edits})
    )
    assert np.array_equal(as_bytes(edited.before), as_bytes(alone.images))  # type: ignore[arg-type]
    found = {o.shape: o for o in WORLDS["shapes"].see(as_bytes(edited.images)).objects}  # type: ignore[arg-type]
    for shape, (x0, y0, x1, y1) in {"star": boxes["blue square"], "circle": there}.items():
        assert x0 < found[shape].x * 64 < x1 and y0 < found[shape].y * 64 < y1


def test_a_withheld_word_is_read_nowhere_and_the_trace_says_so(shapes: TextToImagePipeline) -> None:
    with trace(shapes) as attention:
        draw(shapes, withhold("red"), num_inference_steps=2)
    assert attention.heatmap("red").max() == 0 and attention.heatmap("circle").max() > 0


def test_louder_is_a_larger_share(shapes: TextToImagePipeline) -> None:
    masses = []
    for weight in (0.25, 1.0, 4.0):
        with trace(shapes) as attention:
            draw(shapes, reweight("red", weight), num_inference_steps=2)
        masses.append(float(attention.heatmap("red").sum()))
    assert masses[0] < masses[1] < masses[2]


def test_a_change_that_withholds_is_the_same_as_ignoring(shapes: TextToImagePipeline) -> None:
    (position,) = next(word.tokens for word in split_words(PROMPT, shapes.tokenizer) if word.text == "red")
    how: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    ignored = shapes(PROMPT, generator=torch.Generator().manual_seed(7), ignore=[[position]], **how).images
    changed = shapes(
        PROMPT,
        generator=torch.Generator().manual_seed(7),
        change=lambda step, sigma, rows: bias_hook(rows, [[Bias((position,), NEVER)]], sigma),
        **how,
    ).images
    np.testing.assert_allclose(ignored, changed, atol=1e-4)


def test_self_attention_can_be_changed(shapes: TextToImagePipeline) -> None:
    how: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    seen = []
    pictures = [
        shapes(PROMPT, generator=torch.Generator().manual_seed(7), change_self=change, **how).images
        for change in (
            None,
            lambda step, sigma, rows: lambda layer, w, grid: seen.append(layer),
            lambda step, sigma, rows: lambda layer, w, grid: torch.ones_like(w) / w.shape[-1],
        )
    ]
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-5)
    assert seen and np.abs(pictures[2] - pictures[0]).max() > 0.01


def test_prompts_have_edits_of_their_own_and_pictures_are_those_of_alone(shapes: TextToImagePipeline) -> None:
    both = shapes(
        [PROMPT, "a green heart"],
        edits=[[replace("circle", "star")], [replace("green", "red")]],
        generator=[torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)],
        output_type="np",
    )
    alone = draw(shapes, replace("circle", "star"))
    assert both.prompts == ["a red star left of a blue square", "a red heart"]
    assert np.abs(both.images[0] - alone.images[0]).max() <= 1.5 / 255


def test_the_callback_and_the_trace_belong_to_the_edited_picture(shapes: TextToImagePipeline) -> None:
    steps: list[int] = []
    with trace(shapes) as attention:
        draw(
            shapes,
            replace("circle", "star"),
            num_inference_steps=3,
            callback_on_step_end=lambda pipe, step, t, tensors: steps.append(step),
        )
    assert steps == [0, 1, 2] and attention.prompts == ["a red star left of a blue square"]


def test_without_a_generator_both_pictures_have_the_same_noise(shapes: TextToImagePipeline) -> None:
    edited = shapes(PROMPT, edits=[reweight("red", 1.0)], num_inference_steps=2, output_type="np")
    np.testing.assert_allclose(edited.before, edited.images, atol=1e-4)
    edited = shapes(
        PROMPT, edits=[reweight("red", 1.0)], latents=torch.zeros(1, 3, 64, 64), num_inference_steps=1, output_type="np"
    )
    np.testing.assert_allclose(edited.before, edited.images, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"edits": [replace("cat", "dog")]}, "'cat' is not in the prompt; its words are: a, red, circle"),
        ({"edits": [reweight("cat", 2)]}, "'cat' is not in the prompt; its words are: a, red, circle"),
        ({"edits": [refine("a square"), paint("red", (0, 0, 9, 9))]}, "nothing of 'red' is left in the edited prompt"),
        ({"edits": [replace("circle", "zebra")]}, "'zebra' is unknown to this model"),
        ({"edits": [paint("red", (0, 0, 99, 9))]}, "region .* is not a box .* inside the picture, 64×64"),
        ({"edits": ["red"]}, "an edit is made by replace, reweight, paint and the like, not 'red'"),
        ({"edits": [[reweight("red", 2)], []]}, "2 lists of edits for 1 prompts"),
        ({"edits": [pin("red", layers=["nope"])]}, "no layer is called nope: down.1.0"),
        ({"edits": [pin("red", heads=[9])]}, "there is no head 9: layers have heads 0 to 3"),
        ({"regions": {}}, "regions are a dict of phrases and their regions"),
        ({"regions": {"cat": (0, 0, 9, 9)}}, "'cat' is not in the prompt"),
        ({"regions": {"red": (0, 0, 9, 9)}, "change": lambda *_: None}, "edits change the attention already"),
    ],
)
def test_what_cannot_be_edited_is_one_line_before_anything_is_drawn(
    shapes: TextToImagePipeline, how: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes.unet, "forward", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=f"^{message}"):
        shapes(PROMPT, num_inference_steps=1, **how)


def test_a_word_without_a_place_needs_a_region(shapes: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match=r"^'left of' has no place of its own in the first picture: give it a region"):
        draw(shapes, pin("left of"))


def test_within_a_word_the_rest_of_the_picture_is_the_first_one(shapes: TextToImagePipeline) -> None:
    edited = draw(shapes, replace("red", "green"), within("circle"))
    changed = np.abs(np.asarray(edited.before) - np.asarray(edited.images))[0].max(axis=2) > 2 / 255
    place = edited.trace.mask("circle").numpy()
    assert changed[place].mean() > 0.9 and changed.sum() < 2 * place.sum()


def test_the_command_writes_both_pictures_their_words_and_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["unet-xattn", "edit", "a red circle", "--replace", "circle=star", "--steps", "4", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*line, "--out", str(out)])
    with pytest.raises(SystemExit, match="0"):
        main()
    files = [Path(name) for name in capsys.readouterr().out.split()]
    assert [file.name.removeprefix("a-red-circle-seed0") for file in files] == [
        ".png",
        "-words.png",
        "-edited.png",
        "-edited-words.png",
        "-change.png",
    ]
    pictures = [Image.open(file) for file in (files[0], files[2], files[4])]
    assert np.array_equal(pictures[2], picture_of_change(pictures[0], pictures[1]))


def test_the_command_edits_a_picture_file_of_any_size_and_says_how_exactly_it_is_kept(
    tmp_path: Path,
    rendered: tuple[str, Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caption, picture = rendered
    picture.resize((150, 128)).save(tmp_path / "mine.png")
    line = ["unet-xattn", "edit", caption, "--image", str(tmp_path / "mine.png"), "--replace", "yellow=red"]
    monkeypatch.setattr("sys.argv", [*line, "--steps", "4", "--device", "cpu", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr()
    before, after = (np.asarray(Image.open(printed.out.split()[i]), int) for i in (0, 2))
    assert before.shape == after.shape == (64, 80, 3) and (before != after).any()
    assert "note: before any edit, the picture is kept to within 0.0" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: nothing to edit: give --replace"),
        (["--replace", "circle"], "error: --replace 'circle' has no '=': write it like circle=star"),
        (["--paint", "circle=1,2,3"], "error: a box is four whole numbers X0,Y0,X1,Y1 in pixels, not '1,2,3'"),
        (["--withhold", "red", "--image", "no.png"], "error: [Errno 2] No such file or directory"),
        (["--withhold", "red", "--image", "pyproject.toml"], "error: pyproject.toml cannot be used"),
        (["--reweight", "red=loud"], "error: a weight is a number such as 2 or 0.5, not 'loud'"),
    ],
)
def test_the_command_refuses_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["unet-xattn", "edit", "a red circle", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.strip().startswith(message) and not (tmp_path / "out").exists()
