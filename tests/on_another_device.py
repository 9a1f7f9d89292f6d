"""Every path that computes, on the pretended device of `elsewhere.py`.

pytest does not collect this file by its name: `test_elsewhere.py` runs it in a process of its own.
"""

import sys
from copy import deepcopy
from pathlib import Path

import elsewhere
import pytest
import torch
from masked_sets import own_folder
from PIL import Image
from test_frozen import folders  # noqa: F401
from torch import Tensor

from pipelines import TextToImagePipeline, TranslationPipeline, attribute, trace, verify
from pipelines.bench.speed import bench_sample
from pipelines.evaluation.agreement import evaluate, fixed_scenes
from pipelines.evaluation.calibration import calibrate_on
from pipelines.evaluation.faithfulness import evaluate_faithfulness
from pipelines.evaluation.grounding import draw_and_locate, read
from pipelines.evaluation.segmentation import evaluate_masks
from pipelines.runs.processes import find_device
from pipelines.sources.masked import read_masked
from pipelines.tracing.calibrations import fingerprint
from pipelines.tracing.follow import draw_states, follow_picture, follow_text
from ui.cli import main


@pytest.fixture
def pipes(tiny_bilingual_pipe: TextToImagePipeline) -> tuple[TextToImagePipeline, TextToImagePipeline]:
    """The same pipeline on the CPU and elsewhere."""
    return tiny_bilingual_pipe, deepcopy(tiny_bilingual_pipe).to(elsewhere.NAME)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of arguments that runs the command and returns its standard output; it must succeed."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert not stopped.value.code, err
        return out

    return run


def draw(pipe: TextToImagePipeline, **settings: object) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=3, generator=generator, output_type="pt", **settings).images  # type: ignore[call-arg, arg-type, return-value]


def test_the_device_refuses_to_mix_with_the_cpu() -> None:
    away = torch.ones(2, device=elsewhere.NAME)
    assert find_device() == elsewhere.DEVICE and away.device == elsewhere.DEVICE
    assert (away + torch.tensor(1.0)).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        away + torch.ones(2)
    with pytest.raises(TypeError, match=r"Tensor.cpu\(\) first"):
        away.numpy()


def test_pictures_and_maps_are_those_of_the_cpu(pipes) -> None:
    found = []
    for pipe in pipes:
        with trace(pipe, keep="full") as attention:
            pictures = draw(pipe, guidance_scale=2.0, negative_prompt="a blue square")
        found.append((pictures.cpu(), attention.heatmap("circle")))
        assert pictures.device.type == pipe.device.type and attention.heatmap("circle").device.type == "cpu"
    (picture, heat), (picture_away, heat_away) = found
    assert torch.allclose(picture, picture_away, atol=1e-5)
    assert torch.allclose(heat, heat_away, atol=1e-5)


def test_a_picture_is_attributed_and_attention_is_verified(pipes) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    here, away = (attribute(pipe, picture, "a red circle").heatmap("red") for pipe in pipes)
    assert torch.allclose(here, away, atol=1e-5)
    verify(pipes[1], steps=2)


def test_translations_and_readings_are_those_of_the_cpu(pipes) -> None:
    here, away = (TranslationPipeline(pipe.tokenizer, pipe.text_encoder) for pipe in pipes)
    assert here("a red circle")[0].text == away("a red circle")[0].text
    texts = [follow_text(pipe, "a red circle", "decoder.0") for pipe in (here, away)]
    pictures = []
    for pipe in pipes:
        trajectory = draw_states(pipe, "a red circle", seed=0, steps=2)
        pictures.append(follow_picture(pipe, trajectory, 1, pipe.unet.attention_layers[0]))
    for reading, reading_away in (texts, pictures):
        assert torch.allclose(reading.q, reading_away.q, atol=1e-5)
        assert torch.allclose(reading.k, reading_away.k, atol=1e-5)


SMALL = ("--batch-size", "4", "--size", "16", "--every", "2")


def test_a_run_is_trained_resumed_distilled_and_used(run, tiny_bilingual_pipe, tmp_path: Path) -> None:
    first, student, out = (tmp_path / name for name in ("first", "student", "out"))
    tiny_bilingual_pipe.save_pretrained(tmp_path / "tiny")
    run("train", "--from", tmp_path / "tiny", "--data", "shapes", "--out", first, "--steps", "2", *SMALL)
    assert "from step 2 on" in run("train", "--out", first, "--steps", "3", "--resume")
    run("train", "--distill", first, "--out", student, "--steps", "2", *SMALL)
    drawn = run("generate", "a red circle", "--model", student, "--out", out, "--keep", "full").split()
    run("export", drawn[-1], "--out", tmp_path / "exported")
    run("attribute", drawn[0], "a red circle", "--model", first, "--out", tmp_path / "read")
    run("translate", "a red circle", "--model", first, "--attention", tmp_path / "alignment.png")
    run("calibrate", first, "--scenes", "10")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    run("generate", "--prompts", prompts, "--model", first, "--out", tmp_path / "many")


def test_a_new_model_is_trained_behind_frozen_encoders(run, folders, make_folder, tmp_path: Path) -> None:  # noqa: F811
    data = make_folder("data", ["a red wall", "a blue wall", "a green wall", "a grey wall"])
    encoders = ("--text-encoder", folders["clip"], "--vae", folders["kl"])
    settings = ("--steps", "2", "--batch-size", "4", "--size", "32", "--every", "2")
    run("train", "--data", data, "--out", tmp_path / "run", *encoders, *settings)
    run("generate", "a red wall", "--model", tmp_path / "run", "--out", tmp_path, "--steps", "2")


def test_translations_are_trained(run, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"number {i}\tnr. {i}\n" for i in range(30)))
    run("train-text", "--pairs", pairs, "--out", tmp_path / "text", "--steps", "2", "--batch-size", "4")


def test_pictures_and_maps_are_judged(pipes, tmp_path: Path) -> None:
    _, pipe = pipes
    scene = fixed_scenes(1, held_out=False)[0]
    read(pipe, scene)
    draw_and_locate(pipe, scene, seed=0)
    evaluate(pipe, 2, num_inference_steps=1, guidance_scale=1.0)
    evaluate_faithfulness(pipe, 1)
    files = read_masked(own_folder(tmp_path / "set", 2))
    evaluate_masks(pipe, files)
    calibrate_on(pipe, files)
    fingerprint(pipe.unet)


def test_speed_is_measured_on_the_device(pipes) -> None:
    report = bench_sample(pipes[1], elsewhere.DEVICE, repeats=1)
    assert elsewhere.NAME.upper() in report["machine"]
