"""Copies are found and merely similar pictures are not, with stand-ins for models that copy and that cannot copy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

import pipelines.evaluation.memorise
from pipelines import TextToImagePipeline
from pipelines.data.pictures import PictureExamples
from pipelines.data.scenes import SceneExamples
from pipelines.evaluation.memorise import leave_memorised, memorised, memorised_sheet, memorised_text, nearest
from pipelines.scenes.shapes import render, scene
from pipelines.sources.check import check
from pipelines.sources.findings import DataError

SIDE, COUNT = 32, 240


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> PictureExamples:
    """A folder of 240 scenes: 228 to train on, 12 held out."""
    import datasets

    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(COUNT):
        described = scene(5, i)
        Image.fromarray(render(described, SIDE)[0]).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": described.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        return PictureExamples(check(folder, progress=False).rows, [(SIDE, SIDE)], 0)


class Source:
    """Called like a pipeline; its pictures (h, w, 3) uint8 are those that `choose` returns for the seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, choose: Callable[[int], np.ndarray]):
        self.tokenizer, self.choose = tokenizer, choose
        self.prompts: list[str] = []

    def __call__(self, prompt: list[str], generator: Sequence[torch.Generator], output_type: str) -> SimpleNamespace:
        self.prompts += prompt
        return SimpleNamespace(images=np.stack([self.choose(g.initial_seed()) for g in generator]) / 255)


def training(examples: PictureExamples) -> list[np.ndarray]:
    return [examples.trained_on(i).picture for i in range(len(examples.trained))]


def shares(pipe: Source, examples: PictureExamples) -> list[float]:
    report, _ = memorised(pipe, examples)
    return [report[name]["share"] for name in ("training_captions", "validation_captions")]


def test_copies_are_found(examples: PictureExamples, tokenizer: PreTrainedTokenizerFast) -> None:
    shown = training(examples)
    pipe = Source(tokenizer, lambda i: shown[14 * i])
    report, pictures = memorised(pipe, examples)
    for name in ("training_captions", "validation_captions"):
        assert report[name]["share"] == 1 and report[name]["low"] > 0.7
        assert report[name]["distance"] < 1e-6
        assert all(np.array_equal(sample, near) for sample, near in pictures[name])
    assert report["training_captions"]["n"] == 16 and report["validation_captions"]["n"] == 12
    assert pipe.prompts[:16] == [examples.trained_on(i).caption for i in range(16)]
    assert pipe.prompts[16:] == [e.caption for e in examples.validation(99)]


def test_noisy_copies_are_found(examples: PictureExamples, tokenizer: PreTrainedTokenizerFast) -> None:
    shown, rng = training(examples), np.random.default_rng(0)

    def noisy(i: int) -> np.ndarray:
        return np.clip(shown[i] + rng.normal(0, 8, shown[i].shape), 0, 255).astype(np.uint8)

    assert min(shares(Source(tokenizer, noisy), examples)) == 1


def test_pictures_that_are_no_copies_are_rarely_flagged(
    examples: PictureExamples, tokenizer: PreTrainedTokenizerFast
) -> None:
    held_out = [e.picture for e in examples.validation(99)]
    assert max(shares(Source(tokenizer, lambda i: held_out[i % 12]), examples)) <= 0.15
    others = [render(scene(6, i), SIDE)[0] for i in range(16)]  # the same distribution, other pictures
    assert max(shares(Source(tokenizer, others.__getitem__), examples)) <= 0.2


def test_a_flat_picture_is_near_to_everything_but_no_copy() -> None:
    rng = np.random.default_rng(3)
    textures = rng.integers(0, 256, (300, 8, 8, 3), np.uint8)
    flat = np.full((1, 8, 8, 3), 127, np.uint8)
    found = nearest(np.concatenate([textures[200:], textures[:1], flat]), textures.__getitem__, 200)
    held_out, copy, grey = slice(0, 100), 100, 101
    assert found.distance[grey] < found.distance[held_out].min()  # so by distance alone it would look like a copy
    assert found.relative[grey] > found.relative[held_out].quantile(0.05) > found.relative[copy]


def test_the_nearest_picture_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 256, (90, 8, 8, 3), np.uint8)
    sought = rng.integers(0, 256, (7, 8, 8, 3), np.uint8)
    asked: list[int] = []

    def one(place: int) -> np.ndarray:
        asked.append(place)
        return shown[place]

    full = nearest(sought, one, 90)
    assert asked == list(range(90))  # each is read once
    difference = (sought[:, None].astype(float) - shown) / 255  # (Q, C, h, w, 3)
    distance = np.sqrt((difference**2).mean(axis=(2, 3, 4)))
    assert full.place.tolist() == distance.argmin(axis=1).tolist()
    np.testing.assert_allclose(full.distance, distance.min(axis=1), atol=1e-6)
    closest = np.sort(distance, axis=1)[:, : pipelines.evaluation.memorise.NEIGHBOURS]
    np.testing.assert_allclose(full.relative, closest[:, 0] / closest.mean(axis=1), atol=1e-6)
    monkeypatch.setattr(pipelines.evaluation.memorise, "CHUNK", 8 * 8 * 3 * 4)  # four at a time
    chunked = nearest(sought, one, 90)
    assert torch.equal(chunked.place, full.place)
    torch.testing.assert_close(chunked.relative, full.relative)


def test_only_one_chunk_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.evaluation.memorise, "CHUNK", 8 * 8 * 3 * 10)
    sizes = []
    numbers = pipelines.evaluation.memorise._values
    monkeypatch.setattr(
        pipelines.evaluation.memorise, "_values", lambda pictures: (sizes.append(len(pictures)), numbers(pictures))[1]
    )
    nearest(np.zeros((3, 8, 8, 3), np.uint8), lambda place: np.full((8, 8, 3), place % 256, np.uint8), 1000)
    assert sizes == [3] + [10] * 100


def test_large_pictures_are_compared_at_a_smaller_side() -> None:
    rng = np.random.default_rng(2)
    shown = rng.integers(0, 256, (5, 128, 128, 3), np.uint8)
    moved = np.roll(shown, 1, axis=2)  # by a pixel
    assert nearest(moved, shown.__getitem__, 5).place.tolist() == [0, 1, 2, 3, 4]


def test_the_sheet_and_the_text_agree_with_the_figures(
    examples: PictureExamples, tokenizer: PreTrainedTokenizerFast
) -> None:
    shown = training(examples)
    report, pictures = memorised(Source(tokenizer, shown.__getitem__), examples, count=3)
    assert json.loads(json.dumps(report)) == report
    sheet = np.asarray(memorised_sheet(report, pictures, tile=SIDE, columns=3))
    sample, near = pictures["training_captions"][1]
    both = np.concatenate([sample, near], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, both.shape)[:, :, 0]
    assert (windows == both).all(axis=(2, 3, 4)).any()  # side by side
    text = memorised_text(report)
    assert "3 of 3 samples drawn from captions of training pictures: 100 % " in text
    assert "Of 12 held-out pictures" in text


def test_endless_scenes_and_data_without_held_out_pictures_are_refused(
    tiny_pipe: TextToImagePipeline, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    few = PictureExamples(check(make_folder("few", ["a", "b"]), progress=False).rows, [(SIDE, SIDE)], 0)
    with pytest.raises(DataError, match="only 2 pictures: none is held out"):
        memorised(tiny_pipe, few)
    with pytest.raises(DataError, match="scenes without end"):
        memorised(tiny_pipe, SceneExamples(SIDE, 0))
    assert leave_memorised(tiny_pipe, few, tmp_path / "samples") is None
    assert not (tmp_path / "samples").exists()


def test_captions_beyond_the_models_context_are_left_out(
    tiny_pipe: TextToImagePipeline, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    captions = ["a red circle " * (40 if i % 2 else 1) for i in range(30)]
    rows = check(make_folder("long", captions), progress=False).rows
    rows[0] = replace(rows[0], digest="0" * 64)  # which is held out
    examples = PictureExamples(rows, [(SIDE, SIDE)], 0)
    assert not set(examples.held_out) & set(examples.trained)
    short = [i for i in examples.trained if len(rows[i].caption) < 20]
    report = leave_memorised(tiny_pipe, examples, tmp_path / "samples")
    assert report is not None and report["training_captions"]["n"] == len(short) < len(examples.trained)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["memorised.json", "memorised.png"]
    assert leave_memorised(tiny_pipe, examples, tmp_path / "samples") is None  # it exists
