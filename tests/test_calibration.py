"""Calibrations learnt from scenes and from sets with masks, and where they are kept."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_sets import boxes, own_folder, write_coco, write_voc
from test_masked import VOC
from tiny_pipelines import pipeline
from torch import Tensor

from pipelines import TextToImagePipeline, attribute, trace
from pipelines.any_pipeline import open_pipeline
from pipelines.evaluation.calibration import Example, apart, calibrate_on, fit_calibration
from pipelines.evaluation.segmentation import evaluate_masks, segmentation_table
from pipelines.sources.masked import read_masked
from pipelines.tracing.calibrations import FILE, fingerprint, save_calibration, saved_calibration
from pipelines.tracing.watch import denoiser_of
from ui.cli import main


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UNET_XATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of arguments -> (exit code, standard output, standard error) of the command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_the_weights_are_those_of_the_head_that_holds_the_masks(tiny_pipe: TextToImagePipeline) -> None:
    """Pixels whose mask is not known do not matter."""
    with trace(tiny_pipe, keep="head") as attention:
        tiny_pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    layer, head = attention.layers[1], 1
    heat = attention.heatmap("circle", layer=layer, head=head)
    mask = (heat >= heat.max() / 2).float()
    word = attention.words[2]
    unknown = torch.rand(mask.shape) < 0.3
    misleading = torch.where(unknown, -1.0, mask)
    for given in (mask, misleading):
        found = fit_calibration([Example(attention, word, given)] * 2, steps=200)
        weights = [weight for heads in found.values() for weight in heads]
        assert sum(weights) == pytest.approx(1, abs=1e-4) and found[layer][head] == max(weights) > 0.25


def test_many_heads_are_compared_on_smaller_maps(tiny_pipe: TextToImagePipeline, monkeypatch: Any) -> None:
    with trace(tiny_pipe, keep="head") as attention:
        tiny_pipe("a red circle", num_inference_steps=2)
    example = Example(attention, attention.words[2], torch.ones(attention.size))
    sizes = []

    def note(maps: Tensor, masks: Tensor, steps: int) -> Tensor:
        sizes.append(maps.shape)
        return torch.ones(maps.shape[1])

    monkeypatch.setattr("pipelines.evaluation.calibration._fit_weights", note)
    fit_calibration([example])
    monkeypatch.setattr("pipelines.evaluation.calibration.LARGEST", 4 * 10 * 10 * sizes[0][1] * 50)
    fit_calibration([example], words=50)
    assert [shape[2] for shape in sizes] == [64 * 64, 10 * 10]


def test_learning_and_measuring_use_different_pictures(tmp_path: Path) -> None:
    one_split = own_folder(tmp_path / "own", 8)
    learn, measure = apart(one_split, 100)
    names = [{file.name for file in files} for files in (learn, measure)]
    assert not names[0] & names[1] and names[0] | names[1] == {file.name for file in read_masked(one_split)}
    for split, name in (("train", "a"), ("val", "b")):
        write_voc(tmp_path / "voc", {name: boxes(0, ["cat"])}, VOC, split)
    learn, measure = apart(tmp_path / "voc", 100)
    assert [file.name for file in learn] == ["a"] and [file.name for file in measure] == ["b"]
    write_voc(tmp_path / "single", {"a": boxes(0, ["cat"])}, VOC)
    with pytest.raises(ValueError, match="has one picture with masks"):
        apart(tmp_path / "single", 100)


def test_a_model_of_ours_keeps_it_in_its_index(run, tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    folder = own_folder(tmp_path / "own")
    code, out, err = run("calibrate", tmp_path / "model", "--masks", folder)
    assert code == 0, err
    learn, measure = apart(folder, 100)
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model")
    assert pipe.config.calibration == calibrate_on(tiny_pipe, learn)
    pipe.set_progress_bar_config(disable=True)
    assert segmentation_table(evaluate_masks(pipe, measure)) in out
    assert f"learnt from {len(learn)} pictures; on others:" in out and "| calibrated, refined" in out
    code, _, err = run("calibrate", "shapes", "--masks", folder)
    assert code != 0 and "shapes keeps its calibration in its folder: give a copy of it" in err


def saved_sd(folder: Path) -> Path:
    pipeline("sd").save_pretrained(folder)
    return folder


def test_any_pipeline_keeps_it_beside_its_model(run, tmp_path: Path) -> None:
    model, folder = saved_sd(tmp_path / "model"), tmp_path / "coco"
    write_coco(folder, {name: boxes(i, ["cat", "dog"]) for i, name in enumerate("abcd")})
    code, out, err = run("calibrate", model, "--masks", folder)
    assert code == 0, err
    assert f"written to {model / FILE}" in out and "| calibrated, refined" in out
    kept = json.loads((model / FILE).read_text())
    weights = kept["calibration"]
    assert sum(weight for heads in weights.values() for weight in heads) == pytest.approx(1, abs=1e-3)
    pipe = open_pipeline(model, torch.device("cpu"))
    learn, _ = apart(folder, 100)
    with trace(pipe, keep="head") as attention:
        pipe("a cat", num_inference_steps=1, height=64, width=64)
    assert attention.recording.calibration == weights == calibrate_on(pipe, learn)
    assert attention.heatmap("cat", reduce="calibrated").shape == (64, 64)
    assert attribute(pipe, learn[0].load().picture, "a cat", draws=1).recording.calibration == weights
    with trace(pipe, keep="head", layers=["down_blocks.*"]) as some:
        pipe("a cat", num_inference_steps=1, height=64, width=64)
    assert some.recording.calibration is None
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1)  # trained further, it is another model
    assert saved_calibration(pipe, denoiser_of(pipe)) is None
    code, _, err = run("calibrate", model)
    assert code != 0 and "a StableDiffusionPipeline has no scenes of its own to learn from: give --masks" in err


def test_it_is_found_by_the_weights_where_the_model_has_no_folder(cache: Path) -> None:
    pipe = pipeline("sd")
    denoiser = denoiser_of(pipe)
    assert saved_calibration(pipe, denoiser) is None
    calibration = {"mid_block.attentions.0.transformer_blocks.0.attn2": [0.25, 0.75]}
    file = save_calibration(pipe, denoiser, calibration)
    assert file == cache / "calibrations" / f"{fingerprint(denoiser)}.json"
    assert saved_calibration(pipe, denoiser) == calibration
    with trace(pipe, keep="head") as attention:
        pipe("a cat", num_inference_steps=1, height=64, width=64)
    assert attention.recording.calibration == calibration
    bias = next(denoiser.parameters())
    before = bias.detach().clone()
    with torch.no_grad():
        bias += 1  # trained further
    try:
        assert saved_calibration(pipe, denoiser) is None
    finally:
        bias.data = before
    assert saved_calibration(pipe, denoiser) == calibration


def test_a_fingerprint_is_that_of_the_weights_in_any_precision() -> None:
    linear = torch.nn.Linear(5, 7)
    first = fingerprint(linear)
    assert re.fullmatch(r"[0-9a-f]{32}", first) and fingerprint(linear.to(torch.bfloat16)) == first
    assert fingerprint(torch.nn.Linear(5, 7)) != first != fingerprint(torch.nn.Linear(7, 5))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"weights": "x"}',
        '{"weights": "x", "calibration": {"a": [2.0]}}',
        '{"weights": 1, "calibration": {}}',
    ],
)
def test_a_damaged_file_is_one_line(content: str, tmp_path: Path) -> None:
    pipe = pipeline("sd")
    copied = type(pipe)(**pipe.components, requires_safety_checker=False)
    copied.register_to_config(_name_or_path=str(tmp_path))
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"calibration\.json (cannot be read as a calibration|is no calibration)"):
        saved_calibration(copied, denoiser_of(copied))
