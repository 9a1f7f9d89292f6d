"""Shapes: h×w pixels."""

import hashlib
import io
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

import pipelines.data.decode
import pipelines.training.parts
from pipelines import TextToImagePipeline
from pipelines.data.batches import Collator, batches
from pipelines.data.pictures import PictureExamples, held_out_split, is_validation_picture
from pipelines.data.stream import Example
from pipelines.pictures import shapes_near
from pipelines.runs.signals import StoppedError
from pipelines.sources.findings import DataError
from pipelines.sources.rows import Row
from pipelines.tokenizer import train_tokenizer
from pipelines.training.objective import TextToImageModel
from pipelines.training.parts import size_multiple
from pipelines.training.train import TrainConfig, train
from pipelines.training.validate import validate
from unet_xattn import CrossAttentionUNet, Transformer

SQUARE = [(32, 32)]
SHAPES = [(32, 32), (24, 40), (40, 24)]
SIZES = [(60, 60), (100, 60), (60, 100)]
"""Widths and heights that fall into these shapes."""


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def give(data: bytes) -> bytes:
    return data


def make_row(number: int, size: tuple[int, int] = (32, 32), **fields: object) -> Row:
    """The row of a grey picture, whose grey is its number."""
    data = png(Image.new("RGB", size, (number,) * 3))
    digest = hashlib.sha256(data).hexdigest()
    row = Row(f"{number}.png", "", f"number {number}", partial(give, data), "", {}, 1.0, digest, *size)
    return replace(row, **fields)  # type: ignore[arg-type]


def number_of(example: Example) -> int:
    """The number of an example's picture."""
    assert (example.picture == example.picture[0, 0, 0]).all()
    return int(example.picture[0, 0, 0])


ROWS = [make_row(number) for number in range(60)]


# The order of pictures.


@pytest.mark.parametrize("count", [5, 40])
def test_each_epoch_shows_every_picture_once_in_an_order_of_its_own(count: int) -> None:
    examples = PictureExamples(ROWS[:count], SQUARE, seed=0)
    held_out = {number_of(example) for example in examples.validation(99)} if count >= 20 else set()
    length = count - len(held_out)
    epochs = [[number_of(examples.example(e * length + i)) for i in range(length)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(set(range(count)) - held_out)
    assert epochs[0] != epochs[1] != epochs[2]
    again = PictureExamples(ROWS[:count], SQUARE, seed=0)
    assert [number_of(again.example(length + i)) for i in range(length)] == epochs[1]
    other = PictureExamples(ROWS[:count], SQUARE, seed=1)
    assert [number_of(other.example(i)) for i in range(length)] != epochs[0]


def test_a_caption_stays_with_its_picture() -> None:
    examples = PictureExamples(ROWS, SQUARE, seed=0)
    for example in [*map(examples.example, range(70)), *examples.validation(9)]:
        assert example.caption == f"number {number_of(example)}"


def test_without_buckets_the_batch_size_decides_only_how_the_stream_is_cut() -> None:
    one, other = (PictureExamples(ROWS, SQUARE, seed=0, batch_size=size, flip=True) for size in (1, 7))
    for place in range(150):
        assert number_of(one.example(place)) == number_of(other.example(place))


def test_a_picture_of_twice_the_weight_appears_twice_as_often() -> None:
    weights = {0: 2.0, 1: 0.5, 2: 3.0, 3: 0.0}
    rows = [replace(row, weight=weights.get(i, 1.0)) for i, row in enumerate(ROWS[:10])]
    examples = PictureExamples(rows, SQUARE, seed=0)
    found = Counter(number_of(examples.example(place)) for place in range(int(40 * sum(r.weight for r in rows))))
    for number, row in enumerate(rows):
        assert found[number] == pytest.approx(40 * row.weight, abs=2)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_wrong_weight_is_refused_with_the_name_of_its_picture(weight: float) -> None:
    with pytest.raises(DataError, match=r"unlike those of 3\.png"):
        PictureExamples([*ROWS[:3], replace(ROWS[3], weight=weight)], SQUARE, seed=0)


def test_nothing_to_train_on_is_refused() -> None:
    for rows in ([], [replace(ROWS[0], weight=0.0)]):
        with pytest.raises(DataError, match="no pictures to train on"):
            PictureExamples(rows, SQUARE, seed=0)


# Held-out pictures.


def test_about_one_picture_in_twenty_is_held_out_and_never_trained_on() -> None:
    assert sum(is_validation_picture(hashlib.sha256(b"%d" % i).hexdigest()) for i in range(20_000)) == pytest.approx(
        1000, abs=100
    )
    examples = PictureExamples(ROWS, SQUARE, seed=0)
    held_out = {number_of(example) for example in examples.validation(128)}
    assert 0 < len(held_out) < 10
    assert held_out.isdisjoint(number_of(examples.example(place)) for place in range(60))
    assert len(examples.validation(1)) == 1
    assert not any(f"number {i}" in examples.captions() for i in held_out)


def test_more_pictures_never_move_others_and_copies_stay_together() -> None:
    _, few = held_out_split(ROWS[:30])
    rows = [*ROWS[:30], *(replace(row, name="copy", caption="another") for row in ROWS[:30]), *ROWS[30:]]
    trained, many = held_out_split(rows)
    assert few and {i for i in many if i < 30} == set(few)
    assert {rows[i].digest for i in many}.isdisjoint(rows[i].digest for i in trained)


def test_a_handful_of_pictures_is_validated_on_itself() -> None:
    examples = PictureExamples(ROWS[:1], SQUARE, seed=0)
    assert number_of(examples.example(0)) == number_of(examples.example(1)) == number_of(examples.validation(4)[0])
    unkept = [row for row in ROWS if not is_validation_picture(row.digest)][:25]
    assert len(PictureExamples(unkept, SQUARE, seed=0).validation(99)) == 25
    assert len(PictureExamples([ROWS[0]] * 25, SQUARE, seed=0).validation(99)) == 25


# Shapes.


def bucketed(
    counts: Sequence[int] = (30, 17, 3), batch_size: int = 4, seed: int = 0, **options: bool
) -> PictureExamples:
    """Numbered pictures, `counts` of each of `SIZES`; none is held out."""
    sizes = [size for size, count in zip(SIZES, counts, strict=True) for _ in range(count)]
    rows = [replace(make_row(i, size), digest=f"f{i:063x}") for i, size in enumerate(sizes)]
    return PictureExamples(rows, SHAPES, seed, batch_size)


def test_each_batch_has_one_shape_and_each_picture_the_shape_nearest_to_its_own() -> None:
    examples, seen = bucketed(), set()
    for batch in range(100):
        found = [examples.example(4 * batch + i) for i in range(4)]
        shapes = {example.picture.shape[:2] for example in found}
        assert len(shapes) == 1
        seen |= shapes
        for example in found:
            number = number_of(example)
            assert example.picture.shape[:2] == SHAPES[0 if number < 30 else 1 if number < 47 else 2]
    assert seen == set(SHAPES)


def test_with_buckets_every_picture_appears_equally_often() -> None:
    examples = bucketed()
    found = Counter(number_of(examples.example(place)) for place in range(50 * 40))
    assert len(found) == 50
    assert all(times == pytest.approx(40, abs=3) for times in found.values())


def test_with_buckets_a_stream_is_a_function_of_seed_and_place() -> None:
    expected = [number_of(bucketed().example(place)) for place in range(12)]
    examples = bucketed()
    for place in (11, 0, 7, 6, 4):
        assert number_of(examples.example(place)) == expected[place]
    assert [number_of(bucketed(seed=1).example(place)) for place in range(40)] != expected


def test_without_buckets_every_picture_is_square() -> None:
    examples = PictureExamples([make_row(i, SIZES[i % 3]) for i in range(9)], SQUARE, seed=0)
    assert {examples.example(place).picture.shape for place in range(9)} == {(32, 32, 3)}


# Captions and masks.


def test_a_second_language_is_caption_and_translation_in_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [replace(row, translation=f"第{i}号") for i, row in enumerate(ROWS[:8])]
    examples = PictureExamples([*rows, ROWS[8]], SQUARE, seed=0)
    assert examples.translates and not PictureExamples(ROWS, SQUARE, seed=0).translates
    texts: dict[int, list[tuple[str, str]]] = {}
    for example in map(examples.example, range(9 * 6)):
        texts.setdefault(number_of(example), []).append((example.caption, example.translation))
    assert texts.pop(8) == [("number 8", "")] * 6
    for number, shown in texts.items():
        pair = (f"number {number}", f"第{number}号")
        assert shown in ([pair, pair[::-1]] * 3, [pair[::-1], pair] * 3)
    assert {shown[0][0].startswith("number") for shown in texts.values()} == {True, False}
    assert {"第3号", "number 3", "number 8"} <= set(examples.captions())


def pointing_row(size: tuple[int, int], number: int = 0, **masks: Image.Image) -> Row:
    """A black picture with a white box in it, the "thing" of its caption, and the box as its mask."""
    width, height = size
    box = Image.new("L", size)
    box.paste(255, (width // 8 + number, height // 4, width // 3, height // 2))
    data = png(box.convert("RGB"))
    drawn = {phrase: partial(give, png(mask)) for phrase, mask in ({"thing": box} | masks).items()}
    digest = hashlib.sha256(data).hexdigest()
    return Row("box.png", "", "a small Thing, a thing", partial(give, data), "一个东西", drawn, 1.0, digest, *size)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_cropped_padded_and_mirrored_like_their_pictures(size: tuple[int, int], fit: str, flip: bool) -> None:
    examples = PictureExamples([replace(pointing_row(size), translation="")], SQUARE, seed=0, fit=fit, flip=flip)
    turned = set()
    inside = ~(border(size, fit) | border(size, fit)[:, ::-1])
    for place in range(12):
        example = examples.example(place)
        assert [example.caption[start:end] for start, end, _ in example.regions] == ["Thing", "thing"]
        for _, _, mask in example.regions:
            assert mask.dtype == np.float32 and mask.max() == 1
            assert ((mask > 0.5) != (example.picture[..., 0] > 127))[inside].mean() < 0.02
        turned.add(example.picture[:, :16].mean() > example.picture[:, 16:].mean())
    assert len(turned) == 1 + flip


def border(size: tuple[int, int], fit: str) -> np.ndarray:
    black = PictureExamples([make_row(0, size)], SQUARE, seed=0, fit=fit).example(0)
    return black.picture[..., 0] > 127


def test_where_phrases_overlap_the_longer_one_wins(tokenizer: PreTrainedTokenizerFast) -> None:
    everywhere = Image.new("L", (32, 32), 255)
    row = replace(pointing_row((32, 32), **{"small thing": everywhere}), translation="")
    example = PictureExamples([row], SQUARE, seed=0).example(0)
    assert [example.caption[s:e] for s, e, _ in example.regions] == ["Thing", "thing", "small Thing"]
    batch = Collator(tokenizer, 0, caption_dropout=0.0, cell=4)([(0, example)])
    covered = batch.masks[0].flatten(1).mean(dim=1)
    assert sorted(covered[covered > 0].tolist())[-2] == 1  # "small" and the first "thing", both everywhere


def test_masks_reach_the_tokens_of_pictures_that_are_not_square() -> None:
    rows = [replace(pointing_row(size, i), translation="") for i, size in enumerate([SIZES[1]] * 4)]
    examples = PictureExamples(rows, SHAPES, seed=0, batch_size=2)
    tokenizer = train_tokenizer(examples.captions())
    (batch,) = batches(examples, Collator(tokenizer, 0, 0.0, cell=4), 2, 0, 2, workers=0)
    assert batch.pictures.shape == (2, 3, 24, 40) and batch.noise.shape == (2, 3, 24, 40)
    assert batch.masks.shape[2:] == (6, 10)
    shown = torch.nn.functional.avg_pool2d((batch.pictures.mean(dim=1, keepdim=True) + 1) / 2, 4)
    for mask, picture in zip(batch.masks, shown[:, 0], strict=True):
        (pointed,) = {tuple(m.flatten().tolist()) for m in mask if m.any()}
        torch.testing.assert_close(torch.tensor(pointed).view(6, 10), picture, atol=0.1, rtol=0)


def test_captions_that_name_sides_cause_a_warning_only_where_pictures_are_mirrored() -> None:
    rows = [replace(ROWS[i], caption=text) for i, text in enumerate(["a cat Left of a dog", "a leftover", "左边的猫"])]
    notes = PictureExamples(rows, SQUARE, seed=0, flip=True).notes
    assert any("2 captions say left or right" in note for note in notes)
    assert not any("left or right" in note for note in PictureExamples(rows, SQUARE, seed=0).notes)
    assert not any("left or right" in note for note in PictureExamples(rows[1:2], SQUARE, seed=0, flip=True).notes)


def test_masks_that_match_no_word_of_a_caption_are_named() -> None:
    examples = PictureExamples([pointing_row((32, 32), **{"elephant": Image.new("L", (32, 32))})], SQUARE, seed=0)
    assert any("'elephant' of box.png" in note for note in examples.notes)
    assert not any("mask" in note for note in PictureExamples([pointing_row((32, 32))], SQUARE, seed=0).notes)


# Files.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The arguments of every decoding."""
    done: list[tuple] = []

    def counted(function: Callable) -> Callable:
        def fit(*arguments: object) -> np.ndarray:
            done.append(arguments)
            return function(*arguments)

        return fit

    for name in ("fit_picture", "fit_mask"):
        monkeypatch.setattr(pipelines.data.decode, name, counted(getattr(pipelines.data.decode, name)))
    return done


def test_a_file_is_decoded_once_however_long_the_run(opened: list[tuple]) -> None:
    examples = PictureExamples([*(pointing_row((64, 64), i) for i in range(3)), ROWS[0], ROWS[0]], SQUARE, seed=0)
    for place in range(40):
        examples.example(place)
    assert len(opened) == 3 * 2 + 1


def test_pictures_too_large_for_memory_are_cached_on_disk_and_never_decoded_again(
    opened: list[tuple], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNET_XATTN_CACHE", str(tmp_path))
    rows = [*ROWS, pointing_row((64, 64)), make_row(99, SIZES[1])]
    expected = PictureExamples(rows, SHAPES, seed=0, batch_size=4)
    assert "in memory" in expected.notes[0] and not any(tmp_path.iterdir())
    opened.clear()
    monkeypatch.setattr(pipelines.data.decode, "IN_MEMORY", 0)
    for more in range(3):
        examples = PictureExamples(rows[: 60 + more], SHAPES, seed=0, batch_size=4)
        assert str(tmp_path) in examples.notes[0]
        for place in range(70):
            examples.example(place)
    assert len(opened) == 62 + 1
    for place in range(70):
        found, wanted = (each.example(place) for each in (pickle.loads(pickle.dumps(examples)), expected))
        assert np.array_equal(found.picture, wanted.picture) and found.caption == wanted.caption
        for (_, _, mask), (_, _, other) in zip(found.regions, wanted.regions, strict=True):
            assert np.array_equal(mask, other)
    PictureExamples(ROWS, SQUARE, seed=0, fit="pad").example(0)
    assert len(opened) == 63 + 60  # another fit gives other pixels


def test_a_cache_that_cannot_be_written_is_refused_in_a_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNET_XATTN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(pipelines.data.decode, "IN_MEMORY", 0)
    with pytest.raises(DataError, match="set UNET_XATTN_CACHE to a folder with enough room") as caught:
        PictureExamples(ROWS, SQUARE, seed=0).example(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", ["picture", "mask", "mask's shape"])
def test_a_file_that_cannot_be_used_is_named(bad: str) -> None:
    row = pointing_row((40, 40))
    if bad == "picture":
        row = replace(row, read=partial(give, row.read()[:60]))
    else:
        mask = png(Image.new("L", (20, 40))) if bad == "mask's shape" else b"no picture"
        row = replace(row, masks={"thing": partial(give, mask)})
    with pytest.raises(DataError, match=r"^box\.png" + (": " if bad == "picture" else ", mask of 'thing': ")):
        PictureExamples([row], SQUARE, seed=0).example(0)


# Training and validation.


def test_validation_takes_pictures_of_all_shapes(
    tokenizer: PreTrainedTokenizerFast, make_unet: Callable[..., CrossAttentionUNet]
) -> None:
    examples = bucketed(counts=(5, 4, 3))
    mixed = [*examples.validation(12), PictureExamples([pointing_row(SIZES[2])], SHAPES, seed=0).validation(1)[0]]
    model = TextToImageModel(Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1), make_unet())
    collator = Collator(tokenizer, 0, 0.0, cell=4)
    report = validate(model, collator, mixed, torch.device("cpu"))
    assert 0 <= report["pointing"] <= 1 and 0 < report["loss 0.5"] < 10
    squares = [example for example in mixed if example.picture.shape == (32, 32, 3)]
    assert len(squares) == 5
    alone = [validate(model, collator, [e], torch.device("cpu"))["loss 0.5"] for e in squares]
    assert len(set(alone)) == 5


def test_a_run_with_every_option_ends_the_same_whether_or_not_it_is_stopped_and_resumed(
    tiny_pipe: TextToImagePipeline,
    monkeypatch: pytest.MonkeyPatch,
    stop_in_step: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    rows = [replace(pointing_row(SIZES[i % 3], i), weight=1 + i / 4) for i in range(6)]
    monkeypatch.setattr(pipelines.training.parts, "check", lambda *_, **__: SimpleNamespace(rows=rows))
    whole = TrainConfig(
        data=str(tmp_path),
        out=str(tmp_path / "whole"),
        begin_from=str(tmp_path / "model"),
        steps=6,
        batch_size=2,
        size=32,
        every=6,
        buckets=True,
        fit="pad",
        flip=True,
    )
    assert shapes_near(32, size_multiple(whole.begin_from)) == SHAPES
    halved = replace(whole, out=str(tmp_path / "halved"))
    train(whole)
    assert "6 pictures, decoded in memory" in capsys.readouterr().err
    stop_in_step(3)
    with pytest.raises(StoppedError):
        train(halved)
    train(halved, resume=True)
    assert (tmp_path / "halved/validation.jsonl").read_text() == (tmp_path / "whole/validation.jsonl").read_text()
