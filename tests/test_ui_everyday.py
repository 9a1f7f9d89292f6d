"""The page with a model of the world of everyday things: the verdict, the list of its words, and data to train on."""

import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline
from pipelines.data.scenes import SceneExamples
from pipelines.scenes.everyday import EVERYDAY_KINDS, render, scene
from pipelines.scenes.everyday_words import THINGS
from pipelines.scenes.typed_grammar import parse_typed
from pipelines.scenes.worlds import world_of
from pipelines.tokenizer import train_tokenizer
from ui import DEFAULT_MODEL
from ui.data import preview
from ui.reading import read as read_line
from ui.texts import text
from ui.training import usual_size
from ui.verdict import read, verdict
from ui.vocabulary import EXAMPLES, describe, surprise
from unet_xattn.words import unknown_words


@cache
def words() -> PreTrainedTokenizerFast:
    """The tokenizer that a model of this world has."""
    return train_tokenizer(SceneExamples(32, 0, "everyday").captions())


def said(prompt: str, picture: np.ndarray, language: str = "en") -> dict[str, bool | None]:
    found = verdict(prompt, picture, "everyday") or []
    return {text(one.says[0], language, **one.says[1]): one.ok for one in found}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", EVERYDAY_KINDS)
def test_an_exact_render_shows_all_and_another_does_not(kind: str, language: str) -> None:
    right, other = scene(3, 0, kind, language=language), scene(3, 1, kind, language=language)
    assert all(said(right.caption, render(right, 128)[0]).values())
    assert not all(said(right.caption, render(other, 128)[0]).values())


@pytest.mark.parametrize("prompt", ["a dream of red", "red", "earthly", "on a blue background"])
def test_a_prompt_without_a_thing_has_no_verdict(prompt: str) -> None:
    assert verdict(prompt, np.full((64, 64, 3), 255, np.uint8), "everyday") is None


@pytest.mark.parametrize(
    ("typed", "things"),
    [
        ("kitten", ["cat"]),
        ("Kitties!", ["cat", "cat"]),
        ("poop next to earth", ["poop", "earth"]),
        ("一只猫在月亮旁边", ["cat", "moon"]),
    ],
)
def test_other_names_of_a_thing_are_read(typed: str, things: list[str]) -> None:
    shown, whole = read(typed, "everyday")
    assert whole and shown is not None and sorted(o.shape for o in shown.objects) == sorted(things)


def test_what_no_grammar_reads_still_names_things_and_a_red_cat_is_only_a_cat() -> None:
    shown, whole = read("a red kitten rides a red circle", "everyday")
    assert not whole and shown is not None
    assert [(o.shape, o.colour) for o in shown.objects] == [("cat", ""), ("circle", "red")]


def test_statements_are_sentences_in_both_languages() -> None:
    shown = parse_typed("an elephant in the top left and a dog on the right")
    blank = np.full((128, 128, 3), 255, np.uint8)
    assert shown is not None
    assert list(said(shown.caption, blank)) == [
        "Number of things: 2",
        "A dog is there",
        "An elephant is there",
        "The dog is on the right",
        "The elephant is in the top left",
    ]
    assert "大象在左上角" in said(shown.caption, blank, "zh")
    assert "猫在香蕉和狗之间" in said("a cat between a dog and a banana", blank, "zh")
    assert "Poop is there" in said("poop", blank)


def test_only_what_is_said_is_judged() -> None:
    blank = np.full((128, 128, 3), 255, np.uint8)
    assert not any("大小" in line for line in said("大象", blank, "zh"))  # 大 alone means big
    assert any("background" in line for line in said("a cat on black", blank))


def test_its_model_is_known_by_its_words() -> None:
    assert world_of(words()) == "everyday"
    about = describe(words())
    assert about["sentence"][0] == "vocabulary.lively" and about["sentence"][1]["count"] == len(THINGS)
    assert about["examples"] == EXAMPLES["everyday"]
    for example in about["examples"]:
        assert parse_typed(example) is not None and not unknown_words(example, words())
    listed = {key: some for key, some in about["groups"]}
    assert {"cat", "kitten", "earth", "loaf of bread", "circle"} <= set(listed["vocabulary.things"])
    assert "" not in listed["vocabulary.things"] and "cats" not in listed["vocabulary.things"]
    assert "four" in listed["vocabulary.numbers"] and "in the top left" in listed["vocabulary.relations"]
    assert "猫" in listed["vocabulary.chinese"]


def test_a_surprise_is_a_scene_of_its_own() -> None:
    for seed in range(60):
        prompt = surprise(words(), random.Random(seed))
        assert parse_typed(prompt) is not None, prompt
        assert not unknown_words(prompt, words())


def test_a_word_it_does_not_know_gets_the_nearest_of_its_own() -> None:
    (unknown,) = read_line("a bananna", words())["unknown"]
    assert unknown["instead"] == "banana"


def test_the_train_tab_shows_its_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = preview("everyday", 64)
    assert found.usable and len({example.caption for example in found.examples}) == 8
    assert usual_size("everyday") == 128 and usual_size("shapes") == 64


def test_what_a_person_sees_first_is_right() -> None:
    pipe = TextToImagePipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    world = world_of(pipe.tokenizer)
    for example in EXAMPLES[world]:
        picture = pipe(example, generator=torch.Generator().manual_seed(0)).images[0]
        found = verdict(example, np.asarray(picture), world)
        assert found and all(one.ok for one in found), example
