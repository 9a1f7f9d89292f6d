"""Shapes: B batch, T tokens, h×w pixels."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pipelines import scenes
from pipelines.captions import LANGUAGES
from pipelines.dataset import Batch, Collator, Example, SceneExamples, Shuffled, batches, seed_of
from pipelines.pictures import to_tensor
from pipelines.sources import DataError, read_folder
from pipelines.tokenizer import train_tokenizer
from unet_xattn import flow
from unet_xattn.words import split_words, tokens_of

MakeFolder = Callable[..., Path]
GRID = 8


def collator(tokenizer: PreTrainedTokenizerFast, seed: int = 0, dropout: float = 0.3) -> Collator:
    return Collator(tokenizer, seed, caption_dropout=dropout, cell=32 // GRID)


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


def test_rows_come_as_often_as_they_weigh_and_each_time_is_counted() -> None:
    weights = [2, 1, 0.5, 0.25, 0, 1 / 3, 2.5]
    order, epochs = Shuffled(weights, seed=0), 120
    found = [order[place] for place in range(int(sum(weights) * epochs))]
    for row, weight in enumerate(weights):
        times = [t for r, t in found if r == row]
        assert len(times) == pytest.approx(weight * epochs, abs=4)
        assert times == list(range(len(times)))


def test_a_row_of_weight_two_comes_twice_in_every_epoch_and_of_weight_a_half_in_every_other() -> None:
    order = Shuffled([2, 1, 0.5], seed=0)
    for start in range(0, 70, 7):
        rows = [order[place][0] for place in range(start, start + 7)]  # two epochs
        assert [rows.count(row) for row in range(3)] == [4, 2, 1]


def test_the_order_is_the_same_from_wherever_one_begins() -> None:
    order = Shuffled([1, 0.4, 3, 0.7], seed=5)
    expected = [order[place] for place in range(100)]
    for place in (99, 0, 57, 56, 98, 3):
        assert Shuffled([1, 0.4, 3, 0.7], seed=5)[place] == order[place] == expected[place]


def test_rows_of_half_a_weight_do_not_all_come_in_the_same_epoch() -> None:
    order = Shuffled([0.5] * 100, seed=0)
    first = {order[place][0] for place in range(40)}
    assert len(first) == 40
    assert len({order[place][0] for place in range(100)} | first) > 80


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


def test_a_folder_is_read_with_its_captions(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a cat", "Zwei Hunde", "三只猫"])
    assert read_folder(folder) == [(folder / f"{i}.png", t) for i, t in enumerate(["a cat", "Zwei Hunde", "三只猫"])]
    assert read_folder(str(folder)) == read_folder(folder)


def test_captions_may_come_as_a_table(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["", ""])
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text\n0.png,a cat\n1.png,"a dog, asleep"\n')
    assert [caption for _, caption in read_folder(folder)] == ["a cat", "a dog, asleep"]


def test_pictures_may_lie_in_folders_within(make_folder: MakeFolder) -> None:
    folder = make_folder(
        "pictures", ["a"], rows=[{"file_name": "0.png", "text": "a"}, {"file_name": "x/y.png", "text": "b"}]
    )
    (folder / "x").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "x" / "y.png")
    assert sorted(caption for _, caption in read_folder(folder)) == ["a", "b"]


@pytest.mark.parametrize("name", ["my pictures", "2024 [holiday]", "what*", "test", "图片"])
def test_a_folder_may_be_called_anything_and_hold_other_files(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder(name, ["a", "b"])
    (folder / "notes.txt").write_text("taken in spring")
    (folder / ".DS_Store").write_bytes(b"\x00")
    assert [(path.name, caption) for path, caption in read_folder(folder)] == [("0.png", "a"), ("1.png", "b")]


def test_edited_captions_are_read_anew(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a cat"])
    read_folder(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a very black cat"}')
    assert read_folder(folder)[0][1] == "a very black cat"


def test_file_names_that_sound_like_splits_are_only_names(make_folder: MakeFolder) -> None:
    """datasets would take test.png for the test split, and the rest for nothing."""
    names = ["test.png", "train/0.png", "dog.png", "validation.png"]
    folder = make_folder("pictures", [], rows=[{"file_name": name, "text": name} for name in names])
    (folder / "train").mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    assert sorted(caption for _, caption in read_folder(folder)) == sorted(names)


# Folders that cannot be used.


def refusal(folder: Path) -> str:
    """The one line a folder is refused with; it names the folder."""
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")


def test_a_folder_without_pictures_is_refused(make_folder: MakeFolder) -> None:
    assert "has no pictures" in refusal(make_folder("pictures", [], rows=[{"file_name": "0.png", "text": "a"}]))


def test_a_folder_without_captions_is_refused_with_an_example(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a"])
    (folder / "metadata.jsonl").unlink()
    assert '{"file_name": "cat.png", "text": "a black cat"}' in refusal(folder)


@pytest.mark.parametrize("content", ["", "\n", "{", "[1, 2]", '{"file": "0.png", "text": "a"}'])
def test_metadata_that_is_no_metadata_is_refused(make_folder: MakeFolder, content: str) -> None:
    folder = make_folder("pictures", ["a", "b"])
    (folder / "metadata.jsonl").write_text(content)
    refusal(folder)


def test_metadata_without_a_text_column_is_refused_with_the_columns_it_has(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a"], rows=[{"file_name": "0.png", "caption": "a"}])
    assert "no column 'text'" in (message := refusal(folder)) and "caption" in message


@pytest.mark.parametrize("caption", [None, "", "  \n", 7])
def test_pictures_without_a_caption_are_named(make_folder: MakeFolder, caption: object) -> None:
    texts: Sequence[object] = ["a", caption, "c", caption] if not isinstance(caption, int) else [7, 8, 9, 10]
    bad = [f"{i}.png" for i, text in enumerate(texts) if text not in ("a", "c")]
    folder = make_folder(
        "pictures", ["x"] * 4, rows=[{"file_name": f"{i}.png", "text": text} for i, text in enumerate(texts)]
    )
    message = refusal(folder)
    assert f"{len(bad)} of 4 rows cannot be used" in message
    assert re.findall(r"(\d\.png): no caption", message) == bad


def broken_chunk(data: bytes) -> bytes:
    """A PNG whose second data chunk lost its name."""
    place = data.index(b"IDAT", data.index(b"IDAT") + 4)
    return data[:place] + b"\x00\x01\x02\x03" + data[place + 4 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is no picture",
        lambda data: data[: len(data) // 2],
        lambda data: data[:20_000] + bytes(100) + data[20_100:],
        broken_chunk,
    ],
    ids=["empty", "text", "cut short", "overwritten", "broken chunk"],
)
def test_a_broken_picture_is_named(make_folder: MakeFolder, damage: Callable[[bytes], bytes]) -> None:
    folder = make_folder("pictures", ["a", "b", "c"])
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    (folder / "1.png").write_bytes(damage((folder / "1.png").read_bytes()))
    message = refusal(folder)
    assert "1 of 3 rows cannot be used" in message and "1.png" in message and "0.png" not in message


def test_a_picture_that_is_not_there_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a", "b"])
    (folder / "1.png").unlink()
    assert "1.png" in refusal(folder)


def test_every_bad_row_is_named_at_once(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a", "", "c", "d"])
    (folder / "3.png").write_bytes(b"")
    message = refusal(folder)
    assert "2 of 4 rows" in message and "1.png" in message and "3.png" in message
