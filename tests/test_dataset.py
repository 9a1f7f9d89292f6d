"""Shapes: B batch, T tokens, h×w pixels."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pipelines import scenes
from pipelines.captions import LANGUAGES
from pipelines.dataset import Batch, Collator, Example, FolderExamples, SceneExamples, batches, seed_of
from pipelines.pictures import load_picture, to_tensor
from pipelines.tokenizer import train_tokenizer
from unet_xattn import flow
from unet_xattn.words import split_words, tokens_of

MakeFolder = Callable[..., Path]
GRID = 8


def collator(tokenizer: PreTrainedTokenizerFast, seed: int = 0, dropout: float = 0.3) -> Collator:
    return Collator(tokenizer, seed, caption_dropout=dropout, grid=GRID)


def rows(batch: Batch) -> list[tuple]:
    """Each example of a batch, free of the padding that its neighbours bring."""
    return [
        (
            batch.pictures[i],
            batch.noise[i],
            batch.times[i],
            batch.ids[i][batch.token_mask[i]],
            batch.masks[i][batch.token_mask[i]],
        )
        for i in range(len(batch.ids))
    ]


# The stream of examples.


def test_an_example_is_a_function_of_seed_and_place() -> None:
    one, other = SceneExamples(32, seed=3), SceneExamples(32, seed=3)
    later = other.example(9)
    for place in (9, 0, 4):
        found, expected = one.example(place), later if place == 9 else other.example(place)
        assert np.array_equal(found.picture, expected.picture) and found.caption == expected.caption
    assert one.example(0).caption != one.example(1).caption
    assert one.example(0).caption != SceneExamples(32, seed=4).example(0).caption


def test_validation_is_the_same_for_every_run_and_nothing_it_trains_on() -> None:
    first = [example.caption for example in SceneExamples(32, seed=0).validation(8)]
    assert first == [example.caption for example in SceneExamples(32, seed=5).validation(8)]
    trained = {example.picture.tobytes() for example in map(SceneExamples(32, seed=0).example, range(200))}
    assert not any(example.picture.tobytes() in trained for example in SceneExamples(32, seed=0).validation(50))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_stands_at_a_place_does_not_depend_on_the_batch_size(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    def stream(batch_size: int, start: int = 0, workers: int = 0) -> list[tuple]:
        examples = SceneExamples(32, seed)
        loader = batches(examples, collator(tokenizer, seed), batch_size, start, 16, workers)
        return [row for batch in loader for row in rows(batch)]

    expected = stream(8)
    assert len(expected) == 16
    torch.testing.assert_close(stream(4), expected, rtol=0, atol=0)
    torch.testing.assert_close(stream(4, start=8), expected[8:], rtol=0, atol=0)  # so a run can go on from anywhere
    if seed == 0:
        torch.testing.assert_close(stream(8, workers=1), expected, rtol=0, atol=0)


def test_places_differ_in_noise_and_time_and_so_do_seeds(tokenizer: PreTrainedTokenizerFast) -> None:
    example = SceneExamples(32, 0).example(0)
    first, second = rows(collator(tokenizer)([(0, example), (1, example)]))
    (other,) = rows(collator(tokenizer, seed=1)([(0, example)]))
    for place in (second, other):
        assert not torch.equal(place[1], first[1]) and place[2] != first[2]
        assert torch.equal(place[0], first[0])


def test_noise_is_normal_and_times_lie_between_picture_and_noise(tokenizer: PreTrainedTokenizerFast) -> None:
    example = SceneExamples(32, 0).example(0)
    batch = collator(tokenizer)([(place, example) for place in range(256)])
    assert batch.noise.mean().abs() < 0.01 and (batch.noise.std() - 1).abs() < 0.01
    assert ((batch.times > 0) & (batch.times < 1)).all()
    shifted = flow.TIME_SHIFT / (1 + flow.TIME_SHIFT)  # what becomes of 1/2
    assert batch.times.median().item() == pytest.approx(shifted, abs=0.05)


def test_pictures_lie_between_minus_one_and_one(tokenizer: PreTrainedTokenizerFast) -> None:
    grey = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 255)])
    assert to_tensor(grey)[:, 0, 0, 0].tolist() == [-1, 1]
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[1, 2] = (10, 20, 30)
    torch.testing.assert_close(to_tensor(picture[None])[0, :, 1, 2], torch.tensor([10.0, 20.0, 30.0]) / 127.5 - 1)


def test_seeds_of_neighbouring_places_have_nothing_in_common() -> None:
    seeds = [seed_of(seed, place) for seed in range(30) for place in range(30)]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(1, 2) != seed_of(2, 1)
    torch.Generator().manual_seed(max(seeds))  # torch takes them all


# Captions.


@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_the_given_share_of_captions_is_dropped(tokenizer: PreTrainedTokenizerFast, dropout: float) -> None:
    example = SceneExamples(32, 0).example(0)
    batch = collator(tokenizer, dropout=dropout)([(place, example) for place in range(400)])
    dropped = batch.token_mask.sum(dim=1) == 2  # a start and an end: there is still something to attend to
    assert dropped.float().mean().item() == pytest.approx(dropout, abs=0.06)
    assert (batch.masks[dropped] == 0).all()
    assert (batch.masks[~dropped].flatten(1).amax(dim=1) > 0).all()


def test_masks_lie_on_the_tokens_of_their_words(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [SceneExamples(32, 0).example(place) for place in range(24)]
    batch = collator(tokenizer, dropout=0.0)(list(enumerate(examples)))
    for place, masks in enumerate(batch.masks):
        scene = scenes.scene(0, place, language="zh" if place % 2 else "en")
        assert scene.caption == examples[place].caption
        _, objects = scenes.render(scene, 32)
        offsets = tokenizer(scene.caption, return_offsets_mapping=True)["offset_mapping"]
        left = set(range(masks.shape[0]))
        for word in scene.words:
            where = scenes.word_mask(word, objects)
            tokens = tokens_of(word.start, word.end, offsets)
            assert tokens
            if where is None:
                continue
            pooled = torch.from_numpy(where).view(GRID, 4, GRID, 4).mean(dim=(1, 3))
            for token in tokens:
                torch.testing.assert_close(masks[token], pooled)
            left -= set(tokens)
        assert (masks[sorted(left)] == 0).all()  # "a", "and", punctuation, relations, start, end and padding


def test_a_word_of_several_tokens_has_its_mask_on_all_of_them(tokenizer: PreTrainedTokenizerFast) -> None:
    caption, where = "a medium-sized star", np.zeros((32, 32), np.float32)
    where[:8, 8:] = 1
    example = Example(np.zeros((32, 32, 3), np.uint8), caption, [(2, 14, where)])
    batch = collator(tokenizer, dropout=0.0)([(0, example)])
    tokens = split_words(caption, tokenizer)[1].tokens
    assert len(tokens) > 1
    assert batch.masks[0].amax(dim=(1, 2)).nonzero().flatten().tolist() == list(tokens)
    assert (batch.masks[0, tokens[0], :2, 2:] == 1).all() and batch.masks[0, tokens[0]].sum() == 12


def test_a_caption_longer_than_the_model_reads_is_cut_not_fatal(tokenizer: PreTrainedTokenizerFast) -> None:
    example = Example(np.zeros((32, 32, 3), np.uint8), "red circle " * 100, [(1090, 1098, np.ones((32, 32)))])
    batch = collator(tokenizer, dropout=0.0)([(0, example)])
    assert batch.ids.shape == (1, tokenizer.model_max_length)
    assert batch.ids[0, -1] == tokenizer.eos_token_id
    assert (batch.masks == 0).all()


def test_a_tokenizer_is_a_function_of_its_captions() -> None:
    captions = ["a red circle", "A Blue square!", "红色的圆"]
    one, other = train_tokenizer(captions), train_tokenizer(iter(captions))
    assert one.get_vocab() == other.get_vocab()
    assert one.init_kwargs["known_words"] == sorted(["a", "red", "circle", "blue", "square", *"红色的圆"])


def test_case_makes_no_difference_and_no_character_is_too_odd(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("A RED Circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    ids = tokenizer("🦊 \u202e ß 圆 \x00")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id in ids


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_can_be_spelt_out_again(language: str) -> None:
    captions = [scenes.scene(3, i, language=language).caption for i in range(200)]
    tokenizer = train_tokenizer(captions)
    for caption in captions:
        spelt = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
        assert spelt == unicodedata.normalize("NFKC", caption).lower()


def test_extra_spaces_make_no_difference(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("  a red \n\t circle ")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_a_known_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in ("red", "circle", "square", "turquoise", "background", *scenes.SHAPES, *scenes.COLOURS):
        assert len(tokenizer(word)["input_ids"]) == 3, word


# Folders of captioned pictures.


def grey(example: Example) -> int:
    """Which of `make_folder`'s pictures this is."""
    assert (example.picture == example.picture[0, 0, 0]).all()
    return int(example.picture[0, 0, 0]) // 8


@pytest.mark.parametrize("count", [5, 30])
def test_each_epoch_shows_every_picture_once_in_an_order_of_its_own(make_folder: MakeFolder, count: int) -> None:
    folder = make_folder("pictures", [f"number {i}" for i in range(count)])
    examples = FolderExamples(folder, 32, seed=0)
    held_back = {grey(example) for example in examples.validation(99)} if count >= 20 else set()
    length = count - len(held_back)
    epochs = [[grey(examples.example(e * length + i)) for i in range(length)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(set(range(count)) - held_back)
    assert epochs[0] != epochs[1] != epochs[2]
    again = FolderExamples(folder, 32, seed=0)
    assert [grey(again.example(length + i)) for i in range(length)] == epochs[1]
    other = FolderExamples(folder, 32, seed=1)
    assert [grey(other.example(i)) for i in range(length)] != epochs[0]


def test_a_caption_stays_with_its_picture(make_folder: MakeFolder) -> None:
    examples = FolderExamples(make_folder("pictures", [f"number {i}" for i in range(25)]), 32, seed=0)
    for example in [*map(examples.example, range(24)), *examples.validation(9)]:
        assert example.caption == f"number {grey(example)}"


def test_one_picture_in_twenty_is_kept_for_validation_and_never_trained_on(make_folder: MakeFolder) -> None:
    examples = FolderExamples(make_folder("pictures", [f"number {i}" for i in range(31)]), 16, seed=0)
    held_back = {grey(example) for example in examples.validation(128)}
    assert len(held_back) == 2
    assert held_back.isdisjoint(grey(examples.example(i)) for i in range(29))
    assert len(examples.validation(1)) == 1
    assert not any(f"number {i}" in examples.captions() for i in held_back)


def test_a_handful_of_pictures_is_validated_on_itself(make_folder: MakeFolder) -> None:
    examples = FolderExamples(make_folder("pictures", ["one"]), 16, seed=0)
    assert grey(examples.example(0)) == grey(examples.example(1)) == grey(examples.validation(4)[0]) == 0


# Pictures as people bring them.


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (0, 0, 32, 8))  # the top, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the stored top is the right side
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = load_picture(tmp_path / "turned.png", 32)
    assert (shown[:, 24:] == 0).all() and (shown[:, :24] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_colour_hides_there(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 16))
    picture.convert(mode).save(tmp_path / "cut-out.png")
    shown = load_picture(tmp_path / "cut-out.png", 16)
    assert (shown[:, 8:] == 255).all() and (shown[:, :8] == 0).all()


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert np.abs(load_picture(tmp_path / "half.png", 16).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("CMYK", "tiff"), ("P", "gif"), ("RGB", "jpg")]
)
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new("RGB", (20, 20), "white").convert(mode).save(tmp_path / f"picture.{suffix}")
    shown = load_picture(tmp_path / f"picture.{suffix}", 16)
    assert shown.shape == (16, 16, 3) and shown.dtype == np.uint8
    assert shown.min() >= 254


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    shown = load_picture(tmp_path / "scan.png", 32)[0, :, 0].astype(int)
    assert np.abs(shown - np.linspace(0, 255, 32)).max() <= 2


@pytest.mark.parametrize("tall", [False, True])
def test_the_middle_is_kept_of_pictures_that_are_not_square(tmp_path: Path, tall: bool) -> None:
    bands = np.zeros((30, 90, 3), np.uint8)
    bands[:, 30:60] = (0, 200, 0)
    Image.fromarray(bands.transpose(1, 0, 2) if tall else bands).save(tmp_path / "bands.png")
    shown = load_picture(tmp_path / "bands.png", 30)
    assert shown.shape == (30, 30, 3) and (shown == (0, 200, 0)).all()


def test_the_first_frame_stands_for_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "moving.gif", 16).min() == 255
