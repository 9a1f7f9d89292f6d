"""Maps against sets with masks: the published protocols, and calibrations learnt from such sets."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_sets import Picture, write_coco, write_imagenet, write_own, write_voc
from PIL import Image
from test_masked import VOC
from tiny_pipelines import pipeline
from torch import Tensor

from pipelines import TextToImagePipeline, attribute, trace
from pipelines.any_pipeline import open_pipeline
from pipelines.evaluation.calibration import Example, apart, calibrate_on, fit_calibration
from pipelines.evaluation.maps import METHODS, Method
from pipelines.evaluation.segmentation import (
    CONCEPT_METHODS,
    Maps,
    Regions,
    _concepts,
    _maps,
    _several,
    evaluate_masks,
    read_masked_picture,
    segmentation_table,
)
from pipelines.scenes.shapes import scene
from pipelines.scenes.worlds import render
from pipelines.sources.masked import read_masked
from pipelines.sources.masked_files import MaskedFile, named
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


def pictures_of_scenes(count: int, kind: str = "two") -> dict[str, tuple[Picture, str]]:
    """Renders of scenes with the masks of their nouns, and their captions."""
    found = {}
    for index in range(count):
        described = scene(5, index, kind=kind)
        picture, masks = render(described, 64)
        words = [w for w in described.words if w.kind == "shape"]
        regions = {described.caption[w.start : w.end]: masks[list(w.objects)].max(axis=0) >= 0.5 for w in words}
        if len(regions) == len(words):
            found[f"{index:02}"] = (picture, regions, np.zeros(picture.shape[:2], bool)), described.caption
    return found


def own_folder(folder: Path, count: int = 6, kind: str = "two") -> Path:
    scenes = pictures_of_scenes(count, kind)
    folder.mkdir()
    pictures, captions = ({name: one[i] for name, one in scenes.items()} for i in (0, 1))
    return write_own(folder, pictures, captions)  # type: ignore[arg-type]


def boxes(seed: int, names: list[str], size: tuple[int, int] = (48, 64)) -> Picture:
    rng = np.random.default_rng(seed)
    masks = {}
    for i, name in enumerate(names):
        masks[name] = np.zeros(size, bool)
        masks[name][8:40, 4 + 30 * i : 28 + 30 * i] = True
    pixels = (100 + 40 * np.sum([(i + 1) * mask for i, mask in enumerate(masks.values())], axis=0)).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=2) + rng.integers(0, 9, (*size, 3)).astype(np.uint8)
    unknown = np.zeros(size, bool)
    unknown[:4] = True
    return pixels, masks, unknown


def planted(monkeypatch: pytest.MonkeyPatch, maps: dict[str, Tensor]) -> None:
    """One method, whose map of each word is given."""
    monkeypatch.setitem(METHODS, "planted", Method(lambda reading, word: maps[word.text].clone()))


# The figures


def file_of(names: list[str], masks: np.ndarray, void: np.ndarray | None = None) -> MaskedFile:
    image = Image.fromarray((torch.rand(*masks.shape[1:], 3).numpy() * 255).astype(np.uint8))
    unknown = np.zeros(masks.shape[1:], bool) if void is None else void
    masked = named(image, names, masks, unknown)
    return MaskedFile("x", lambda: masked)


def test_one_object_is_where_the_map_is_above_its_mean(
    tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:8] = True  # a quarter
    heat = torch.zeros(32, 32)
    heat[:8, :16], heat[8:16, :16] = 0.9, 0.5  # half of the thing, and as much of the rest
    planted(monkeypatch, {"circle": heat})
    report = evaluate_masks(tiny_pipe, [file_of(["circle"], mask[None])])
    figures = report["one object"]["planted"]
    assert figures["n"] == 1 and figures["accuracy"] == pytest.approx([0.75] * 3)
    assert figures["iou"] == pytest.approx([(128 / 384 + 640 / 896) / 2] * 3)
    # The complement of the map ranks the background: 640 of its pixels first, with 128 of the thing, then 128 others.
    scores = np.concatenate([1 - heat.numpy().ravel() / 0.9, heat.numpy().ravel() / 0.9])
    true = np.concatenate([~mask.ravel(), mask.ravel()])
    expected = (
        sum(true[scores >= level].mean() * (true & (scores == level)).sum() for level in np.unique(scores)) / true.sum()
    )
    assert figures["ap"] == pytest.approx([expected] * 3)
    assert report["words"]["planted"]["iou"][0] == pytest.approx(128 / 384)
    assert report["several objects"]["planted"]["accuracy"] == pytest.approx([0.75] * 3)


def test_void_pixels_do_not_count(tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, void = np.zeros((2, 32, 32), bool)
    mask[:8], void[8:16] = True, True
    heat = torch.zeros(32, 32)
    heat[:16] = 1
    planted(monkeypatch, {"circle": heat})
    report = evaluate_masks(tiny_pipe, [file_of(["circle"], mask[None], void)])
    assert report["one object"]["planted"]["accuracy"] == report["one object"]["planted"]["iou"] == [1, 1, 1]
    assert report["several objects"]["planted"]["iou"] == [1, 1, 1] == report["one object"]["planted"]["ap"]
    assert report["words"]["planted"]["iou"][0] == 1


def test_of_several_objects_a_pixel_belongs_to_the_largest_map_or_to_the_background(
    tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :, :8], masks[1, :, 24:] = True, True
    weak, strong = torch.zeros(32, 32), torch.full((32, 32), 0.3)
    weak[:, :8], strong[:, 16:] = 0.1, 0.9  # a weak map is not lost beside a strong one
    planted(monkeypatch, {"circle": weak, "square": strong})
    report = evaluate_masks(tiny_pipe, [file_of(["circle", "square"], masks)])
    assert "one object" not in report
    figures = report["several objects"]["planted"]
    assert figures["accuracy"][0] == pytest.approx(0.75)
    assert figures["iou"][0] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


def test_a_pixel_belongs_to_the_largest_of_all_concepts() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[1, 3] = True, True
    things = torch.tensor([0.5, 0.3, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.1, 0.6])
    maps = Maps(torch.stack(things)[:, :, None].expand(2, 4, 4), torch.full((1, 4, 4), 0.25))
    both, either, known = _several(maps, Regions([], masks, torch.ones(4, 4, dtype=torch.bool)), np.array([2, 5]))
    assert known == 16
    assert both.tolist() == [4, 0, 4, 0, 0, 4]  # the second row is taken for the first thing
    assert either.tolist() == [8, 0, 8, 0, 0, 4]


def test_concepts_are_the_things_and_a_background(tmp_path: Path) -> None:
    write_coco(tmp_path, {"a": boxes(0, ["potted plant", "tree"])})
    masked = read_masked(tmp_path)[0].load()
    concepts = _concepts(pipeline("sd"), masked)
    assert concepts == ["potted plant", "tree", "background", "floor", "grass", "sky"]
    maps = _maps(*read_masked_picture(pipeline("sd"), masked, concepts))["concepts, output"]
    given = {"draws": 2, "output": True, "concepts": concepts}
    attention = attribute(pipeline("sd"), masked.picture, masked.caption, **given)
    torch.testing.assert_close(maps.things[0], attention.heatmap("potted plant", branch="concepts", reduce="output"))
    assert maps.things.shape[0] == 2 and maps.background.shape[0] == 4
    torch.testing.assert_close(maps.background[3], attention.heatmap("sky", branch="concepts", reduce="output"))


def test_pictures_count_by_their_pixels_and_classes_by_all_pictures(
    tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = np.zeros((2, 1, 32, 32), bool)
    first[0, :8], second[0, :16] = True, True
    heat = torch.zeros(32, 32)
    heat[:8] = 1
    planted(monkeypatch, {"circle": heat, "square": heat})
    report = evaluate_masks(tiny_pipe, [file_of(["circle"], first), file_of(["square"], second)])
    mean, low, high = report["one object"]["planted"]["accuracy"]
    assert mean == pytest.approx((1 + 0.75) / 2) and low == pytest.approx(0.75) and high == pytest.approx(1)
    assert report["one object"]["planted"]["iou"][0] == pytest.approx((512 / 768 + 1280 / 1536) / 2)
    several = report["several objects"]["planted"]["iou"][0]  # circle, square and background
    assert several == pytest.approx((1 + 0.5 + 1280 / 1536) / 3)


# Reading pictures with pipelines


def test_masks_are_cropped_as_their_picture_is(tiny_pipe: TextToImagePipeline) -> None:
    mask = np.zeros((1, 16, 160), bool)
    mask[0, :, 60:100] = True
    masked = file_of(["circle"], mask).load()
    reading, regions = read_masked_picture(tiny_pipe, masked)
    assert reading.attention.size == (32, 128) == tuple(regions.masks.shape[1:])
    assert regions.masks[0, :, 25:103].all() and not regions.masks[0, :, :23].any() and regions.known.all()
    assert [word.text for word in regions.words] == ["circle"]


@pytest.mark.parametrize("layout", ["voc", "coco", "imagenet", "own"])
def test_the_command_measures_a_set_of_each_layout(layout: str, run, tiny_pipe: Any, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    pictures = {"n01_a": boxes(0, ["cat"]), "n01_b": boxes(1, ["cat", "dog"])}
    folder = tmp_path / "set"
    folder.mkdir()
    {
        "voc": lambda: write_voc(folder, pictures, VOC),
        "coco": lambda: write_coco(folder, pictures),
        "imagenet": lambda: write_imagenet(folder, pictures, {"n01": "cat", "n02": "dog"}),
        "own": lambda: write_own(folder, pictures, {"n01_a": "a cat", "n01_b": "a cat and a dog"}),
    }[layout]()
    code, out, err = run(
        "evaluate", tmp_path / "model", "--grounding", "--masks", folder, "--json", tmp_path / "report.json"
    )
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["pictures"] == 2 and report["settings"]["classes"] == 2
    possible = {name for name, method in METHODS.items() if method.needs != "calibration"} | {*CONCEPT_METHODS}
    assert set(report["one object"]) == set(report["several objects"]) == set(report["words"]) == possible
    assert [report[key]["mean"]["n"] for key in ("one object", "several objects", "words")] == [1, 2, 3]
    assert all(len(line) <= 120 for line in out.splitlines()) and "pixel accuracy" in out


def test_any_pipeline_is_measured(tmp_path: Path) -> None:
    write_coco(tmp_path, {"a": boxes(0, ["potted plant"]), "b": boxes(1, ["cat", "tv monitor"])})
    report = evaluate_masks(pipeline("sd"), read_masked(tmp_path))
    possible = {name for name, method in METHODS.items() if not method.needs} | {*CONCEPT_METHODS}
    assert set(report["words"]) == possible and report["words"]["mean"]["n"] == 3
    assert 0 <= report["several objects"]["mean"]["accuracy"][0] <= 1
    assert segmentation_table(report).count("DAAM's rule") == 3


def test_only_the_named_things_are_kept_apart(tmp_path: Path) -> None:
    write_coco(tmp_path, {"a": boxes(0, ["potted plant"])})
    (file,) = read_masked(tmp_path)
    reading, regions = read_masked_picture(pipeline("sd"), file.load())
    assert len(reading.attention.tokens_of(0)) < 25  # of 77
    whole = attribute(pipeline("sd"), file.load().picture, "a photo of a potted plant", draws=2)
    found = reading.attention.heatmap(regions.words[0])
    torch.testing.assert_close(found, whole.heatmap("potted plant"), atol=1e-5, rtol=1e-4)


def test_a_name_that_was_cut_off_is_one_line_with_the_picture(tmp_path: Path) -> None:
    names = [f"remarkable animal {i}" for i in range(60)]
    mask = np.ones((60, 32, 32), bool)
    many = MaskedFile("zoo.jpg", file_of(names, mask).load)
    with pytest.raises(ValueError, match=r"^zoo\.jpg: .*cut off"):
        evaluate_masks(pipeline("sd"), [many])


def test_a_set_without_things_is_refused(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match="none of the pictures has a thing in it"):
        evaluate_masks(tiny_pipe, [file_of([], np.zeros((0, 32, 32), bool))])


def test_masks_are_for_grounding(run, tmp_path: Path) -> None:
    code, _, err = run("evaluate", "shapes", "--masks", tmp_path)
    assert code != 0 and err.strip() == "error: --masks is for --grounding: give both"


# Calibrations


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
