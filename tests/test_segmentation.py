"""Maps against sets with masks, by the published protocols."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_sets import boxes, write_coco, write_imagenet, write_own, write_voc
from PIL import Image
from test_masked import VOC
from tiny_pipelines import pipeline
from torch import Tensor

from pipelines import TextToImagePipeline, attribute
from pipelines.evaluation.maps import METHODS, Method
from pipelines.evaluation.segmentation import (
    CONCEPT_METHODS,
    Maps,
    Regions,
    _concepts,
    _maps,
    _resampled,
    _several,
    evaluate_masks,
    read_masked_picture,
    segmentation_table,
)
from pipelines.sources.masked import read_masked
from pipelines.sources.masked_files import MaskedFile, named
from ui.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of arguments -> (exit code, standard output, standard error) of the command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


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
    heat[:8, :16], heat[8:16, :16] = 0.9, 0.3  # half of the thing, and less strongly as much of the rest
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
    assert report["words"]["planted"]["iou"][0] == pytest.approx(128 / 256)
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


def test_where_masks_of_several_classes_overlap_it_is_void() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3] = True, True
    maps = Maps(masks.float(), torch.empty(0, 4, 4))
    both, either, known = _several(maps, Regions([], masks, torch.ones(4, 4, dtype=torch.bool)), np.array([1, 2]))
    assert known == 12 and both.tolist() == either.tolist() == [4, 4, 4]


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
    assert (
        mean == pytest.approx((1 + 0.75) / 2)
        and low == pytest.approx(0.75, abs=0.02)
        and high == pytest.approx(1, abs=0.02)
    )
    assert report["one object"]["planted"]["iou"][0] == pytest.approx((512 / 768 + 1280 / 1536) / 2)
    several = report["several objects"]["planted"]["iou"][0]  # circle, square and background
    assert several == pytest.approx((1 + 0.5 + 1280 / 1536) / 3)


def test_intervals_hold_the_figure_where_classes_are_rare() -> None:
    rng = np.random.default_rng(0)
    whole = (rng.random((40, 60)) < 0.03) * rng.integers(1, 100, (40, 60))
    part = np.floor(whole * rng.random((40, 60)))
    mean, low, high = _resampled(part, whole)
    seen = whole.any(axis=0)
    assert mean == pytest.approx((part.sum(axis=0)[seen] / whole.sum(axis=0)[seen]).mean())
    assert low + 0.005 < mean < high - 0.005


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
