"""Shapes: B batch, T tokens, h×w pixels."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines.components import to_tensor
from pipelines.data.batches import Batch, Collator, batches
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Example, Shuffled, seed_of
from pipelines.scenes.captions import LANGUAGES
from pipelines.scenes.scene import COLOURS, word_mask
from pipelines.scenes.shapes import SHAPES, render, scene
from pipelines.tokenizer import train_tokenizer
from unet_xattn import flow
from unet_xattn.words import split_words, tokens_of

MakeFolder = Callable[..., Path]
GRID = 8


def collator(tokenizer: PreTrainedTokenizerFast, seed: int = 0, dropout: float = 0.3) -> Collator:
    return Collator(tokenizer, seed, caption_dropout=dropout, cell=32 // GRID)


def rows(batch: Batch) -> list[tuple]:
    """Each example of a batch without padding."""
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


def test_validation_scenes_are_the_same_for_every_run_and_never_trained_on() -> None:
    first = [example.caption for example in SceneExamples(32, seed=0).validation(8)]
    assert first == [example.caption for example in SceneExamples(32, seed=5).validation(8)]
    trained = {example.picture.tobytes() for example in map(SceneExamples(32, seed=0).example, range(200))}
    assert not any(example.picture.tobytes() in trained for example in SceneExamples(32, seed=0).validation(50))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_example_at_a_place_does_not_depend_on_the_batch_size(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    def stream(batch_size: int, start: int = 0, workers: int = 0) -> list[tuple]:
        examples = SceneExamples(32, seed)
        loader = batches(examples, collator(tokenizer, seed), batch_size, start, 16, workers)
        return [row for batch in loader for row in rows(batch)]

    expected = stream(8)
    assert len(expected) == 16
    torch.testing.assert_close(stream(4), expected, rtol=0, atol=0)
    torch.testing.assert_close(stream(4, start=8), expected[8:], rtol=0, atol=0)  # so a run can resume anywhere
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
    shifted = flow.TIME_SHIFT / (1 + flow.TIME_SHIFT)  # the median of unshifted times, 1/2, after the shift
    assert batch.times.median().item() == pytest.approx(shifted, abs=0.05)


def test_times_are_shifted_by_the_collators_shift(tokenizer: PreTrainedTokenizerFast) -> None:
    items = [(place, SceneExamples(32, 0).example(0)) for place in range(256)]
    times = Collator(tokenizer, 0, 0.0, 32 // GRID, shift=0.75)(items).times
    assert times.median().item() == pytest.approx(0.75 / 1.75, abs=0.05)


def test_pictures_lie_between_minus_one_and_one(tokenizer: PreTrainedTokenizerFast) -> None:
    grey = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 255)])
    assert to_tensor(grey)[:, 0, 0, 0].tolist() == [-1, 1]
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[1, 2] = (10, 20, 30)
    torch.testing.assert_close(to_tensor(picture[None])[0, :, 1, 2], torch.tensor([10.0, 20.0, 30.0]) / 127.5 - 1)


def test_seeds_of_all_places_differ() -> None:
    seeds = [seed_of(seed, place) for seed in range(30) for place in range(30)]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(1, 2) != seed_of(2, 1)
    torch.Generator().manual_seed(max(seeds))  # torch accepts them all


# The order of rows.


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(count: int) -> None:
    order = Shuffled([1] * count, seed=3)
    epochs = [[order[epoch * count + i] for i in range(count)] for epoch in range(4)]
    for epoch, rows in enumerate(epochs):
        assert sorted(row for row, _ in rows) == list(range(count))
        assert {times for _, times in rows} == {epoch}
    if count == 30:
        assert len({tuple(row for row, _ in epoch) for epoch in epochs}) == 4
        assert [order[i] for i in range(30)] != [Shuffled([1] * 30, seed=4)[i] for i in range(30)]


def test_rows_appear_as_often_as_they_weigh_and_each_time_is_counted() -> None:
    weights = [2, 1, 0.5, 0.25, 0, 1 / 3, 2.5]
    order, epochs = Shuffled(weights, seed=0), 120
    found = [order[place] for place in range(int(sum(weights) * epochs))]
    for row, weight in enumerate(weights):
        times = [t for r, t in found if r == row]
        assert len(times) == pytest.approx(weight * epochs, abs=4)
        assert times == list(range(len(times)))


def test_a_row_of_weight_two_appears_twice_in_every_epoch_and_of_weight_a_half_in_every_other() -> None:
    order = Shuffled([2, 1, 0.5], seed=0)
    for start in range(0, 70, 7):
        rows = [order[place][0] for place in range(start, start + 7)]  # two epochs
        assert [rows.count(row) for row in range(3)] == [4, 2, 1]


def test_the_order_is_the_same_wherever_reading_begins() -> None:
    order = Shuffled([1, 0.4, 3, 0.7], seed=5)
    expected = [order[place] for place in range(100)]
    for place in (99, 0, 57, 56, 98, 3):
        assert Shuffled([1, 0.4, 3, 0.7], seed=5)[place] == order[place] == expected[place]


def test_rows_of_half_a_weight_do_not_all_appear_in_the_same_epoch() -> None:
    order = Shuffled([0.5] * 100, seed=0)
    first = {order[place][0] for place in range(40)}
    assert len(first) == 40
    assert len({order[place][0] for place in range(100)} | first) > 80


# Captions.


@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_the_given_share_of_captions_is_dropped(tokenizer: PreTrainedTokenizerFast, dropout: float) -> None:
    example = SceneExamples(32, 0).example(0)
    batch = collator(tokenizer, dropout=dropout)([(place, example) for place in range(400)])
    dropped = batch.token_mask.sum(dim=1) == 2  # start and end tokens remain to attend to
    assert dropped.float().mean().item() == pytest.approx(dropout, abs=0.06)
    assert (batch.masks[dropped] == 0).all()
    assert (batch.masks[~dropped].flatten(1).amax(dim=1) > 0).all()


def test_masks_lie_on_the_tokens_of_their_words(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [SceneExamples(32, 0).example(place) for place in range(24)]
    batch = collator(tokenizer, dropout=0.0)(list(enumerate(examples)))
    for place, masks in enumerate(batch.masks):
        shown = scene(0, place, language="zh" if place % 2 else "en")
        assert shown.caption == examples[place].caption
        _, objects = render(shown, 32)
        offsets = tokenizer(shown.caption, return_offsets_mapping=True)["offset_mapping"]
        left = set(range(masks.shape[0]))
        for word in shown.words:
            where = word_mask(word, objects)
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


def test_a_caption_longer_than_the_model_reads_is_truncated(tokenizer: PreTrainedTokenizerFast) -> None:
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


def test_case_makes_no_difference_and_every_character_is_accepted(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("A RED Circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    ids = tokenizer("🦊 \u202e ß 圆 \x00")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id in ids


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_can_be_decoded_again(language: str) -> None:
    captions = [scene(3, i, language=language).caption for i in range(200)]
    tokenizer = train_tokenizer(captions)
    for caption in captions:
        decoded = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
        assert decoded == unicodedata.normalize("NFKC", caption).lower()


def test_extra_spaces_make_no_difference(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("  a red \n\t circle ")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_a_known_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in ("red", "circle", "square", "turquoise", "background", *SHAPES, *COLOURS):
        assert len(tokenizer(word)["input_ids"]) == 3, word
