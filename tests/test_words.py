from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.tokenizer import train_tokenizer
from unet_xattn.words import Word, find_phrase, read_text, shown, split_words, tokens_of, unknown_words

PROMPT = "A red circle, left of a Big blue square!"


@pytest.fixture(scope="module")
def chinese() -> PreTrainedTokenizerFast:
    return train_tokenizer(["一个红色的圆在蓝色的方块左边", "两个绿色的三角形, on a white ground", "A red circle"])


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


def pieces(prompt: str, tokenizer: PreTrainedTokenizerFast, word: Word) -> list[str]:
    """The word's tokens without "▁", which stands for the space before."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
    return [piece for i in word.tokens if (piece := tokens[i].lstrip("▁"))]


def test_words_are_the_prompts_own_characters_without_punctuation(tokenizer: PreTrainedTokenizerFast) -> None:
    words = split_words(PROMPT, tokenizer)
    assert texts(words) == ["A", "red", "circle", "left", "of", "a", "Big", "blue", "square"]
    assert all(PROMPT[word.start : word.end] == word.text for word in words)
    assert [str(word) for word in words] == texts(words)


def test_the_tokens_of_a_word_spell_it(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in split_words(PROMPT, tokenizer):
        assert "".join(pieces(PROMPT, tokenizer, word)) == word.text.lower()


@pytest.mark.parametrize("word", ["zebraquilt", "medium-sized", "don't", "x2y"])
def test_a_word_of_several_tokens_is_one_word(tokenizer: PreTrainedTokenizerFast, word: str) -> None:
    prompt = f"a {word} circle"
    (_, found, circle) = split_words(prompt, tokenizer)
    assert found.text == word
    assert len(found.tokens) > 1
    assert "".join(pieces(prompt, tokenizer, found)) == word
    assert found.tokens == tuple(range(found.tokens[0], circle.tokens[0]))


def test_every_token_belongs_to_one_word_but_for_punctuation_and_special_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = split_words(PROMPT, tokenizer)
    owned = [token for word in words for token in word.tokens]
    assert len(owned) == len(set(owned))
    ids = tokenizer(PROMPT)["input_ids"]
    left = [token for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if i not in owned]
    assert left == ["[START]", ",", "!", "[END]"]


@pytest.mark.parametrize("prompt", ["", "  ", "!?", "…", "\n"])
def test_a_prompt_without_letters_has_no_words(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    assert split_words(prompt, tokenizer) == []


@pytest.mark.parametrize("prompt", ["a ﬁsh", "ＲＥＤ circle", "café au lait", "İstanbul red", "a\tred\u00a0circle"])
def test_offsets_survive_normalisation(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    words = split_words(prompt, tokenizer)
    assert all(prompt[word.start : word.end] == word.text and word.tokens for word in words)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
    owned = {token for word in words for token in word.tokens}
    assert {tokens[i] for i in range(1, len(tokens) - 1) if i not in owned} <= {"▁"}


def test_a_token_counts_for_every_stretch_it_touches_and_special_ones_for_none() -> None:
    offsets = [(0, 0), (0, 3), (3, 7), (0, 0)]
    assert tokens_of(0, 3, offsets) == (1,)
    assert tokens_of(2, 4, offsets) == (1, 2)
    assert tokens_of(7, 9, offsets) == ()


def test_each_han_character_is_a_word_with_a_token_of_its_own(chinese: PreTrainedTokenizerFast) -> None:
    prompt = "红色的圆，on a white ground"
    words = split_words(prompt, chinese)
    assert texts(words) == ["红", "色", "的", "圆", "on", "a", "white", "ground"]
    for word in words[:4]:
        assert pieces(prompt, chinese, word) == [word.text]
    assert len({word.tokens for word in words}) == len(words)


def test_a_chinese_phrase_is_found_where_it_stands(chinese: PreTrainedTokenizerFast) -> None:
    prompt = "一个红色的圆在蓝色的方块左边"
    words = split_words(prompt, chinese)
    assert find_phrase("红色", prompt, words) == words[2].tokens + words[3].tokens
    assert find_phrase("色", prompt, words, occurrence=1) == words[prompt.index("蓝") + 1].tokens


def test_a_phrase_is_found_in_any_case_and_spacing(tokenizer: PreTrainedTokenizerFast) -> None:
    words = split_words(PROMPT, tokenizer)
    assert find_phrase("RED  Circle", PROMPT, words) == words[1].tokens + words[2].tokens
    assert find_phrase("big blue square", PROMPT, words) == sum((w.tokens for w in words[6:]), ())
    assert find_phrase("big\nBLUE", "a BIG \t blue", split_words("a BIG \t blue", tokenizer)) == (2, 3)


def test_a_phrase_covers_its_words_and_not_the_punctuation_between(tokenizer: PreTrainedTokenizerFast) -> None:
    words = split_words(PROMPT, tokenizer)
    assert find_phrase("circle, left", PROMPT, words) == words[2].tokens + words[3].tokens


def test_repeated_words_are_told_apart_by_occurrence(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "a red circle and a red square"
    words = split_words(prompt, tokenizer)
    assert find_phrase("red", prompt, words) == words[1].tokens
    assert find_phrase("red", prompt, words, occurrence=1) == words[5].tokens
    for occurrence in (2, -1):
        with pytest.raises(ValueError, match="'red' occurs 2 time"):
            find_phrase("red", prompt, words, occurrence)


def test_part_of_a_word_is_not_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "a redder red circle"
    words = split_words(prompt, tokenizer)
    assert find_phrase("red", prompt, words) == words[2].tokens
    with pytest.raises(ValueError, match="'circ' is not in the prompt"):
        find_phrase("circ", prompt, words)


def test_a_phrase_is_found_although_it_also_begins_inside_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "infrared red red circle"
    words = split_words(prompt, tokenizer)
    assert find_phrase("red red", prompt, words) == words[1].tokens + words[2].tokens


@pytest.mark.parametrize("query", ["green", "circle red", "", "  ", ".*", "a("])
def test_a_phrase_that_is_not_there_is_answered_with_the_words_that_are(
    tokenizer: PreTrainedTokenizerFast, query: str
) -> None:
    words = split_words("a red circle", tokenizer)
    with pytest.raises(ValueError, match="is not in the prompt; its words are: a, red, circle"):
        find_phrase(query, "a red circle", words)


def test_half_a_character_is_refused_in_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    for read in (split_words, read_text, unknown_words):
        with pytest.raises(ValueError, match=r"^character 3 of the text is half a character: delete it$"):
            read("a \ud83d circle", tokenizer)


def test_the_key_of_a_digit_and_letters_beside_it_are_one_word_as_for_the_tokenizer() -> None:
    prompt = "1\ufe0f\u20e3st place"
    words = split_words(prompt, train_tokenizer([prompt] * 9))
    assert texts(words) == prompt.split() and not {*words[0].tokens} & {*words[1].tokens}


def test_composed_and_decomposed_signs_are_words_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    composed = "2\U0001d15e"  # a half note, which no normal form keeps
    for prompt in (composed, normalize("NFC", composed)):
        two, note = split_words(prompt, tokenizer)
        assert two.text == "2" and not {*two.tokens} & {*note.tokens}
        assert find_phrase(composed, prompt, [two, note]) == two.tokens + note.tokens


def test_values_in_messages_are_short_and_on_one_line() -> None:
    assert [shown(value) for value in (2, "a\n\tb", np.eye(2), "\x1b[2J\u202ex", "a" * 99)] == [
        "2",
        "a b",
        "[[1. 0.] [0. 1.]]",
        "[2J x",
        "a" * 40,
    ]
    assert shown(10**5000) == "<int>"  # which Python refuses to write


def test_unknown_words_are_those_no_caption_said(tokenizer: PreTrainedTokenizerFast) -> None:
    assert unknown_words("A RED circle, on a zebra-like Quilt!", tokenizer) == ["zebra-like", "Quilt"]
    assert unknown_words(PROMPT, tokenizer) == []
    assert unknown_words("红 狐 circle", tokenizer) == ["狐"]


def test_known_words_survive_the_disk(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "a red zebra circle"
    assert unknown_words(prompt, loaded) == unknown_words(prompt, tokenizer) == ["zebra"]
    assert split_words(prompt, loaded) == split_words(prompt, tokenizer)
    assert loaded(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]
    assert loaded.model_max_length == tokenizer.model_max_length
    assert loaded.pad_token == tokenizer.pad_token


def test_for_another_tokenizer_a_word_is_unknown_if_it_cannot_be_spelt() -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "circle": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert unknown_words("red zebra, circle", other) == ["zebra"]
