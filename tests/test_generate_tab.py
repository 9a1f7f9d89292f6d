"""The Generate tab: requests, previews, pictures, links, and the list of models."""

import base64
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.samplers import OWN, SAMPLERS
from pipelines.text_to_image import bundled_models
from ui import models as models_of_the_page
from ui.drawing import Preview, draw_live, forming, linked, live_request, new_seed, viewer_updates
from ui.kept import Drawing, Kept
from ui.models import Models
from ui.notes import warnings
from ui.request import Request

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def models(tiny_pipe: TextToImagePipeline) -> Models:
    return Models(tiny_pipe)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a" * 100_000}, "100,000 characters"),
        ({"negative_prompt": "a" * 100_000}, "100,000 characters"),
        ({"prompt": "circle " * 200}, "tokens"),
        ({"seed": "-1"}, "seed"),
        ({"seed": str(2**64)}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"num_images_per_prompt": 9}, "num_images_per_prompt"),
        ({"guidance_scale": -1.0}, "guidance"),
        ({"guidance_scale": float("nan")}, "guidance"),
        ({"guidance_low": 0.5, "guidance_high": 0.5}, "guidance_interval"),
        ({"sampler": "ancestral"}, "sampler"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(tiny_pipe: TextToImagePipeline, wrong: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        list(forming(tiny_pipe, Request(**({"prompt": PROMPT, "num_inference_steps": 2} | wrong))))
    assert "\n" not in str(error.value)


def test_previews_end_with_the_picture_of_the_pipeline(tiny_pipe: TextToImagePipeline) -> None:
    *frames, drawing = forming(
        tiny_pipe, Request(PROMPT, "3", num_inference_steps=4, guidance_scale=3.0, num_images_per_prompt=2)
    )
    assert frames and all(isinstance(frame, Preview) for frame in frames)
    assert isinstance(drawing, Drawing) and [len(steps) for steps in drawing.frames] == [4, 4]
    assert drawing.attention.steps == [0, 1, 2, 3]
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = tiny_pipe([PROMPT] * 2, num_inference_steps=4, generator=generators, output_type="np").images
    assert drawing.attention.pictures.numpy() == pytest.approx(expected * 255, abs=1)
    last = Image.open(io.BytesIO(base64.b64decode(drawing.frames[0][-1].partition(",")[2])))
    apart = np.asarray(last.convert("RGB")).astype(int) - drawing.attention.pictures[0].numpy()
    assert abs(apart).max() <= 1  # the last preview is the picture


@pytest.mark.parametrize("sampler", [OWN, *SAMPLERS])
def test_with_every_sampler_a_seed_gives_one_picture(tiny_pipe: TextToImagePipeline, sampler: str) -> None:
    before = tiny_pipe.scheduler
    pictures = [
        list(forming(tiny_pipe, Request(PROMPT, seed, num_inference_steps=3, sampler=sampler)))[-1].attention.pictures
        for seed in ("1", "1", str(2**64 - 1))
    ]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    assert tiny_pipe.scheduler is before


def test_closing_the_generator_stops_the_work_within_a_step(tiny_pipe: TextToImagePipeline) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1
        time.sleep(0.02)

    handle = tiny_pipe.unet.register_forward_hook(count)
    try:
        updates = forming(tiny_pipe, Request(PROMPT, num_inference_steps=100))
        next(updates)
        updates.close()
        before = passes
        time.sleep(0.5)
        assert passes <= before + 1 < 20
    finally:
        handle.remove()


def test_the_viewer_gets_previews_and_then_pictures_with_their_settings(models: Models) -> None:
    kept = Kept()
    *frames, last = viewer_updates(models, kept, Request(PROMPT, "5", num_inference_steps=3, num_images_per_prompt=2))
    assert all(set(shown) == {"drawing"} for shown in frames)
    steps = [shown["drawing"]["step"] for shown in frames]
    assert steps and steps == sorted(steps) and steps[-1] <= 3
    assert [shown["settings"]["seed"] for shown in last["pictures"]] == ["5", "6"]
    assert kept.get({"key": last["pictures"][1]["key"], "image": 1})[0].settings[1]["seed"] == "6"
    (again,) = list(viewer_updates(models, kept, Request(**last["pictures"][1]["settings"])))[-1]["pictures"]
    apart = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["picture"].partition(",")[2]))), int)
        for shown in (last["pictures"][1], again)
    ]
    assert abs(apart[0] - apart[1]).max() <= 1


def test_unknown_words_are_named_once(models: Models) -> None:
    note = list(viewer_updates(models, Kept(), Request("a red elephant and an elephant", num_inference_steps=2)))[-1][
        "note"
    ]
    assert note.endswith("Words that the model does not know, and that mean nothing to it: elephant.")
    assert list(viewer_updates(models, Kept(), Request(PROMPT, num_inference_steps=2)))[-1]["warnings"] == []


def test_a_live_picture_is_the_same_picture_without_its_steps(models: Models) -> None:
    request = Request(PROMPT, "5", num_inference_steps=3, guidance_scale=1.0)
    live = draw_live(models, request)
    full = list(viewer_updates(models, Kept(), request))[-1]
    assert live["live"] and "key" not in live["pictures"][0]
    assert live["pictures"][0]["steps"] == 0
    assert live["pictures"][0]["picture"] == full["pictures"][0]["picture"]


def test_a_distilled_model_keeps_its_own_settings_in_live_mode(tiny_pipe: TextToImagePipeline, models: Models) -> None:
    distilled = TextToImagePipeline(**tiny_pipe.components, num_inference_steps=4, guidance_scale=1.0)
    own = live_request(Models(distilled), PROMPT, "5", "")
    assert (own.num_inference_steps, own.guidance_scale, own.sampler) == (4, 1.0, OWN)
    other = live_request(models, PROMPT, "5", "")
    assert (other.num_inference_steps, other.guidance_scale, other.sampler) == (6, 1.0, OWN)


def test_the_student_of_a_bundled_model_draws_in_live_mode() -> None:
    request = live_request(Models("shapes"), PROMPT, "5", "")
    assert (request.model, request.num_inference_steps, request.guidance_scale) == ("shapes-fast", 4, 1.0)
    assert live_request(Models("emoji"), PROMPT, "5", "shapes") == request
    assert live_request(Models("shapes-fast"), PROMPT, "5", "").num_inference_steps == 4


def test_stopping_leaves_the_steps_so_far(models: Models, tiny_pipe: TextToImagePipeline) -> None:
    kept = Kept()
    stop = {function.__name__: function for function in kept.functions()}["stop"]
    handle = tiny_pipe.unet.register_forward_hook(lambda *_: time.sleep(0.02))
    try:
        updates = viewer_updates(models, kept, Request(PROMPT, "5", num_inference_steps=100, guidance_scale=1.0))
        for shown in updates:
            if shown.get("drawing", {}).get("step", 0) >= 3:
                assert stop({"ticket": shown["drawing"]["ticket"]}) == {}
            last = shown
    finally:
        handle.remove()
    (picture,) = last["pictures"]
    made = picture["steps"]
    assert 3 <= made < 100 and picture["settings"]["stopped"] == made
    assert last["note"].startswith(f"Stopped at step {made} of 100:")
    drawing, _ = kept.get({"key": picture["key"], "image": 0})
    frame = Image.open(io.BytesIO(base64.b64decode(drawing.frames[0][-1].partition(",")[2]))).convert("RGB")
    assert (np.asarray(frame) == drawing.attention.pictures[0].numpy()).all()  # the picture that was last seen
    assert len(drawing.frames[0]) == made == len(drawing.attention.steps)
    for asked in ({"ticket": "guess"}, {"ticket": 5}, None):
        assert list(stop(asked)) == ["error"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompt": "!?"}, "warning.no words"),
        ({"prompt": "😀🔥"}, "warning.all unknown"),
        ({"prompt": "a red zebra"}, "warning.unknown"),
        ({"guidance_scale": 0}, "warning.no guidance"),
        ({"guidance_scale": 1, "negative_prompt": "blue"}, "warning.negative"),
    ],
)
def test_settings_without_effect_are_said(tiny_pipe: TextToImagePipeline, settings: dict, expected: str) -> None:
    request = Request(**{"prompt": PROMPT, "guidance_scale": 3.0} | settings)
    assert [key for key, _ in warnings(request, tiny_pipe.tokenizer)] == [expected]
    assert warnings(Request(PROMPT, guidance_scale=3.0), tiny_pipe.tokenizer) == []


def test_a_prompt_that_is_not_a_scene_has_no_verdict(models: Models) -> None:
    (shown,) = list(viewer_updates(models, Kept(), Request("a dream of red", num_inference_steps=1)))[-1]["pictures"]
    assert shown["verdict"] is None


# Links


def test_a_link_holds_the_complete_request(models: Models) -> None:
    request = Request("红色 & <b>", "7", 9, 2.5, 0.1, 0.6, "blue", "Heun", 1, models.first)
    assert linked({name: str(value) for name, value in request.settings(0).items()}, models) == request


def test_what_a_link_leaves_out_is_the_models_own(models: Models) -> None:
    found = linked({"__class__": "x", "seed": "12"}, models)
    assert (found.num_inference_steps, found.guidance_scale, found.seed, found.model) == (20, 3.0, "12", models.first)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"num_inference_steps": "many"}, "num_inference_steps='many', which is not a number"),
        ({"guidance_scale": ""}, "guidance_scale='', which is not a number"),
        ({"steps": "5"}, "'steps', which is now 'num_inference_steps'"),
        ({"model": "nope"}, "model 'nope' not found"),
    ],
)
def test_a_link_that_cannot_be_followed_is_an_error(models: Models, query: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        linked(query, models)


def test_a_new_seed_is_valid() -> None:
    Request(PROMPT, new_seed()).check()


# Models


def test_the_models_are_the_first_the_bundled_ones_and_the_runs(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_of_the_page, "RUNS", tmp_path / "runs")
    models = Models(tiny_pipe)
    assert models.names() == ["this pipeline", *bundled_models()]
    tiny_pipe.save_pretrained(tmp_path / "runs" / "mine")
    run = str(tmp_path / "runs" / "mine")
    assert models.names() == ["this pipeline", *bundled_models(), run]
    first = models.get(run)
    assert models.get(run) is first
    assert models.get("this pipeline") is tiny_pipe
    time.sleep(0.01)
    tiny_pipe.save_pretrained(tmp_path / "runs" / "mine")
    assert models.get(run) is not first
    for name in (str(tmp_path), "../runs/mine", "someone/else"):
        with pytest.raises(ValueError, match=r"^model .* not found"):
            models.get(name)
