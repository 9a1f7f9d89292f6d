"""The page of any pipeline: through its own functions, with a tiny pipeline of each family; and what it refuses."""

import json
from pathlib import Path
from threading import Event

import pytest
from families_of_pipelines import EXPECTED, expected
from small_pictures import small
from typer.testing import CliRunner

from ui.any_drawing import forming, settings_of, viewer_updates
from ui.any_model import OneModel, abilities_of
from ui.any_page import any_page
from ui.cli import app
from ui.drawing import linked
from ui.kept import KEPT_BYTES, Drawing, Kept
from ui.request import Request
from ui.viewer import view, view_names

pytestmark = pytest.mark.families

PROMPT = 'a red "circle" left of a blue square'
FAMILIES = [name for name in EXPECTED if not name.startswith("flux_")]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_and_is_shown(name: str) -> None:
    model = OneModel(small(name))
    settings = linked({"prompt": PROMPT, "seed": "3"}, model)
    *before, answer = viewer_updates(model, Kept(), settings)
    (shown,) = answer["pictures"]
    assert [one["drawing"]["step"] for one in before] == ([0, 1, 2] if model.abilities.callback else [0])
    assert shown["prompt"] == PROMPT and list(shown["layers"]) == list(expected(name).layers)
    assert shown["steps"] == 2 and shown["heads"] > 1 and not shown["calibrated"] and shown["verdict"] is None
    assert all(shown["words"]) or name == "glm_image"  # which reads quoted words alone
    again = linked({key: str(value) for key, value in shown["settings"].items()}, model)
    assert settings_of(model, again) == shown["settings"]
    assert len(json.dumps(shown)) < 500_000


def test_a_model_has_the_settings_that_its_call_takes() -> None:
    able = {
        name: abilities_of(small(name)) for name in ("sd", "flux", "qwenimage", "hunyuanimage", "longcat", "deepfloyd")
    }
    assert {name: one.guidance for name, one in able.items() if one.guidance != "guidance_scale"} == {
        "qwenimage": "true_cfg_scale",
        "hunyuanimage": None,
    }
    assert [name for name, one in able.items() if not one.negative] == ["flux"]
    assert [name for name, one in able.items() if not one.stops] == ["longcat", "deepfloyd"]
    assert [name for name, one in able.items() if one.attributes] == ["sd", "flux", "longcat"]


def test_a_guidance_scale_and_a_negative_prompt_reach_the_pipeline() -> None:
    for name, more in (("sd", {"guidance_scale": 1.5}), ("sd", {"negative_prompt": "a dog"}), ("qwenimage", {})):
        model = OneModel(small(name))
        plain = Request(PROMPT, "0", 2, model.abilities.own["guidance_scale"], model=model.first)
        other = Request(**vars(plain) | (more or {"guidance_scale": 9.0}))
        pictures = [[*viewer_updates(model, Kept(), one)][-1]["pictures"][0]["picture"] for one in (plain, other)]
        assert pictures[0] != pictures[1], (name, more)


def test_what_is_kept_apart_fits_into_the_memory_of_the_page() -> None:
    model = OneModel(small("sd"))
    assert model.keep_for(PROMPT, "", 50) == "full"
    one = model.recording.bytes(heads=True, steps=False)
    assert model.keep_for(PROMPT, "", KEPT_BYTES // one + 1) == "step"
    assert model.keep_for(PROMPT, "", 10**9) == "mean"
    longer = f"{PROMPT} and a dog"
    assert model.keep_for(longer, "", KEPT_BYTES // one) == "step" == model.keep_for("a", longer, KEPT_BYTES // one)


def test_stopping_keeps_the_steps_so_far_and_steps_have_maps() -> None:
    model, stopped = OneModel(small("sd")), Event()
    for update in forming(model, Request(PROMPT, "0", 50, 3.0, model=model.first), stopped):
        if isinstance(update, Drawing):
            break
        if update.step == 2:
            stopped.set()
    assert isinstance(update, Drawing)
    steps = update.settings[0]["stopped"]
    assert 2 < steps < 50 and len(update.attention.steps) == steps
    assert {len(view(update.attention, 0, name)["peaks"]) for name in view_names(update.attention)} == {1 + steps}


def test_an_error_of_the_pipeline_is_one_line() -> None:
    model = OneModel(small("sana_sprint"))
    (shown,) = [*viewer_updates(model, Kept(), Request(PROMPT, "0", 3, 3.0))][-1]["pictures"]
    assert shown["steps"] == 3  # although its own call has a default that goes with two
    vars(model.pipe)["scheduler"] = None  # of this copy alone
    with pytest.raises(ValueError, match=r"^'NoneType' object has no attribute") as error:
        [*viewer_updates(model, Kept(), Request(PROMPT, "0", 3, 3.0))]
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="this page shows this pipeline"):
        [*viewer_updates(model, Kept(), Request(PROMPT, "0", 2, 3.0, model="shapes"))]


@pytest.mark.parametrize(
    ("name", "reason"), [("kandinsky22", "takes no prompt"), ("hidream", "HiDreamImageTransformer2DModel is not known")]
)
def test_what_cannot_be_recorded_is_refused_before_the_page_opens(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^the page cannot show this pipeline, a .*{reason}"):
        any_page(OneModel(small(name)))


def test_the_command_refuses_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for index, reason in ((None, "holds no model"), ('{"_class_name": "NoPipeline"}', "cannot be loaded")):
        if index:
            (broken / "model_index.json").write_text(index)
        result = CliRunner().invoke(app, ["ui", "--model", str(broken), "--port", "7999"])
        assert isinstance(result.exception, ValueError) and reason in str(result.exception)
        assert "The page is at" not in result.output
