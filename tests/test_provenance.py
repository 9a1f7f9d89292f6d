"""Which word each column of a denoiser's text is. Shapes: B texts, L tokens, D width."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import tiny_parts as parts
import torch
from torch import Tensor
from transformers import ByT5Tokenizer

from pipelines.tracing.provenance import Provenance, align
from unet_xattn.words import PADDING

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "clip": parts.clip_tokenizer,
    "t5": parts.t5_tokenizer,
    "xlm": parts.xlm_tokenizer,
    "bert": parts.bert_tokenizer,
    "gemma": parts.gemma_tokenizer,
    "qwen": parts.qwen_tokenizer,
    "glm": parts.glm_tokenizer,
    "byt5": lambda: ByT5Tokenizer(extra_ids=0),  # a byte is a token, and nothing tells their characters
}


@cache
def tokenizer_of(name: str) -> Any:
    return TOKENIZERS[name]()


def aligned(string: str, name: str, ids: Sequence[int]) -> dict[str, list[str]]:
    """Each word of a string -> what the tokens that were found for it spell."""
    tokens = tokenizer_of(name).convert_ids_to_tokens(list(ids))
    found, _ = align(string, tokenizer_of(name), ids)
    return {string[start:end]: [tokens[i] for i in positions] for (start, end), positions in found.items()}


def spelled(tokens: Sequence[str]) -> str:
    """The letters of tokens, without the marks of spaces, of words' ends and of pieces inside a word."""
    return "".join(token.replace("</w>", "").strip("▁Ġ#") for token in tokens)


# Words of a string among the ids that were read


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "change",
    [str, str.lower, str.strip, lambda s: f" {s}", lambda s: s.lower().strip(), lambda s: f"Describe the dog: {s}"],
    ids=["as it is", "lower case", "stripped", "a space before", "both", "template"],
)
def test_words_are_found_however_a_pipeline_changes_their_string(name: str, change: Callable[[str], str]) -> None:
    string = "  A red skateboard,\nleft of a  dog "
    ids = tokenizer_of(name)(change(string))["input_ids"]
    found = aligned(string, name, ids)
    assert list(found) == ["A", "red", "skateboard", "left", "of", "a", "dog"]
    assert [spelled(tokens).lower() for tokens in found.values()] == [word.lower() for word in found]
    positions = [i for tokens in align(string, tokenizer_of(name), ids)[0].values() for i in tokens]
    assert positions == sorted(positions)  # the last "dog" is the prompt's, not the template's


@pytest.mark.parametrize("string", ["a user circle", "user", "system color: a red cat", "a cat\nuser assistant dog"])
def test_a_word_inside_a_chat_template_is_found_where_the_prompt_is(string: str) -> None:
    tokenizer = tokenizer_of("qwen")
    said = [{"role": "system", "content": "Describe the color: a cat"}, {"role": "user", "content": string}]
    ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))["input_ids"]
    first = ids.index(tokenizer.convert_tokens_to_ids("user")) + 2  # after "user" and the end of the line
    inside = range(first, len(ids) - 5)
    found, _ = align(string, tokenizer, ids)
    assert [spelled(tokenizer.convert_ids_to_tokens([ids[i] for i in own])) for own in found.values()] == [
        string[start:end] for start, end in found
    ]
    assert all(i in inside for own in found.values() for i in own)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_beyond_a_cut_have_no_tokens(name: str) -> None:
    string = "a red circle left of a blue square and a photo of a dog"
    whole = tokenizer_of(name)(string)["input_ids"]
    kept, _ = align(string, tokenizer_of(name), whole)
    cut = max(kept[start, end][-1] for start, end in kept if string[start:end] == "blue") + 1
    found, _ = align(string, tokenizer_of(name), whole[:cut])
    for (start, end), tokens in found.items():
        assert tokens == (kept[start, end] if end <= string.index(" square") else ()), string[start:end]


@pytest.mark.parametrize("name", ["clip", "gemma", "qwen", "glm", "byt5"])
def test_characters_that_are_several_tokens_are_found(name: str) -> None:
    string = "一只红猫 🐈 a café"
    tokenizer = tokenizer_of(name)
    ids = tokenizer(string)["input_ids"]
    found, _ = align(string, tokenizer, ids)
    assert [string[start:end] for start, end in found] == ["一", "只", "红", "猫", "🐈", "a", "café"]
    for (start, end), positions in found.items():
        assert tokenizer.decode([ids[i] for i in positions]).strip() == string[start:end]
    assert sum(map(len, found.values())) == len({i for positions in found.values() for i in positions})


@pytest.mark.parametrize("name", ["clip", "qwen", "byt5"])
def test_a_cut_inside_a_character_loses_that_character_only(name: str) -> None:
    string = "红猫 狗"
    tokenizer = tokenizer_of(name)
    whole, _ = align(string, tokenizer, tokenizer(string)["input_ids"])
    last = whole[3, 4][0]
    found, _ = align(string, tokenizer, tokenizer(string)["input_ids"][: last + 1])
    assert found == {(0, 1): whole[0, 1], (1, 2): whole[1, 2], (3, 4): ()}


@pytest.mark.parametrize("name", ["t5", "xlm", "bert"])
@pytest.mark.parametrize("change", [str, str.lower, lambda s: f"Describe: {s}"])
def test_characters_that_a_vocabulary_lacks_are_found_too(name: str, change: Callable[[str], str]) -> None:
    """Also by a tokenizer that has just been told to pad, as pipelines do."""
    string = "a 红 Café ★ dog"
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(change(string), padding="max_length", max_length=40, truncation=True)["input_ids"]
    found, _ = align(string, tokenizer, ids)
    assert [string[start:end] for start, end in found] == ["a", "红", "Café", "★", "dog"]
    for (start, end), positions in found.items():
        if string[start:end] in ("红", "★"):
            assert ids[positions[-1]] == tokenizer.unk_token_id
        else:
            letters = tokenizer.decode([ids[i] for i in positions], skip_special_tokens=True).lower()
            assert letters.strip().startswith(string[start:end].lower()[:3])


def test_a_learnt_token_has_all_its_vectors() -> None:
    tokenizer = parts.clip_tokenizer()
    tokenizer.add_tokens(["<disc>", "<disc>_1", "<disc>_2"])
    ids = tokenizer("a <disc> <disc>_1 <disc>_2 and a dog")["input_ids"]  # as diffusers writes it
    found, _ = align("a <disc> and a dog", tokenizer, ids)
    assert list(found.values()) == [(1,), (2, 3, 4), (5,), (6,), (7,)]


# Rows of a batch


def provenance(names: Sequence[str], **arguments: Any) -> tuple[Provenance, Callable[..., Tensor]]:
    """A call with these text encoders, and a function that lets one of them read texts and gives their encodings."""
    encoders, tokenizers = {}, {}
    for number, name in enumerate(names, 1):
        part = "text_encoder" if number == 1 else f"text_encoder_{number}"
        encoders[part], tokenizers[part] = getattr(parts, name)()
        encoders[part].eval()
    call = Provenance(tokenizers, arguments)

    @torch.no_grad()
    def read(texts: list[str], part: str = "text_encoder", length: int = 12, masked: bool = True) -> Tensor:
        given = tokenizers[part](
            texts,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        mask = given["attention_mask"] if masked else None
        out = encoders[part](given["input_ids"], attention_mask=mask, output_hidden_states=True)
        call.add(part, given["input_ids"], mask, out)
        return out.last_hidden_state

    return call, read


def texts_of(call: Provenance, rows: Sequence[Tensor]) -> list[tuple[str, str, list[int]]]:
    """For each row its branch, its text and the columns of its tokens."""
    found = []
    for branch, row in call.rows([[encodings] for encodings in rows]):
        text, columns = call.text(branch, row, (PADDING,))
        found.append((branch, text.text, columns))
    return found


def test_each_row_is_found_whatever_the_order_of_the_batch() -> None:
    call, read = provenance(["t5"], prompt=["a red dog", "a cat"], negative_prompt="low quality")
    prompts, negatives = read(["a red dog", "a cat"]), read(["low quality"] * 2)
    dog, cat = ("prompt", "a red dog", [0, 1, 2, 3]), ("prompt", "a cat", [0, 1, 2])
    low = ("negative", "low quality", [0, 1, 2])
    assert texts_of(call, [*negatives, *prompts]) == [low, low, dog, cat]
    assert texts_of(call, [*prompts, *negatives]) == [dog, cat, low, low]
    assert texts_of(call, prompts) == [dog, cat]


@pytest.mark.parametrize("name", ["t5", "clip", "qwen3", "gemma2"])
def test_a_dropped_beginning_moves_the_columns(name: str) -> None:
    call, read = provenance([name], prompt="a red dog")
    (encodings,) = read(["a red dog"])
    (whole,), (rest,) = texts_of(call, [encodings]), texts_of(call, [encodings[1:]])
    assert rest[2] == [column - 1 for column in whole[2] if column]


def test_several_pictures_of_a_prompt_and_a_changed_precision() -> None:
    call, read = provenance(["t5"], prompt=["a dog", "a cat"], num_images_per_prompt=2)
    dog, cat = read(["a dog", "a cat"]).to(torch.bfloat16)
    assert [text for _, text, _ in texts_of(call, [dog, dog, cat, cat])] == ["a dog", "a dog", "a cat", "a cat"]


def test_equal_prompts_of_a_batch_are_told_apart_by_their_order() -> None:
    call, read = provenance(["t5"], prompt=["a dog", "a dog"], negative_prompt=["a dog", "a dog"])
    prompts, negatives = read(["a dog"] * 2), read(["a dog"] * 2)
    for rows in ([*negatives, *prompts], [*prompts, *negatives]):
        branches = [branch for branch, _, _ in texts_of(call, rows)]
        assert sorted(branches) == ["negative", "negative", "prompt", "prompt"]


@pytest.mark.parametrize("images", [1, 2])
def test_prompts_that_are_each_others_negative_prompts(images: int) -> None:
    prompts = ["a dog", "a red cat"]
    call, read = provenance(["t5"], prompt=prompts, negative_prompt=prompts[::-1], num_images_per_prompt=images)
    rows = [*read(prompts).repeat_interleave(images, dim=0), *read(prompts[::-1]).repeat_interleave(images, dim=0)]
    expected = [
        (branch, text) for branch, texts in (("prompt", prompts), ("negative", prompts[::-1])) for text in texts
    ]
    found = [(branch, text) for branch, text, _ in texts_of(call, rows)]
    assert found[::images] == found[images - 1 :: images] == expected
    turned = texts_of(call, rows[2 * images :] + rows[: 2 * images])
    assert [branch for branch, _, _ in turned] == ["negative"] * 2 * images + ["prompt"] * 2 * images


def test_prompts_that_are_read_one_by_one() -> None:
    prompts, negatives = ["a dog", "a red cat"], ["a red cat", "low"]
    call, read = provenance(["t5"], prompt=prompts, negative_prompt=negatives)
    rows = [encodings for text in (*prompts, *negatives) for encodings in read([text])]
    expected = [*(("prompt", text) for text in prompts), *(("negative", text) for text in negatives)]
    assert [(branch, text) for branch, text, _ in texts_of(call, rows)] == expected
    assert [(branch, text) for branch, text, _ in texts_of(call, rows[2:] + rows[:2])] == expected[2:] + expected[:2]


def test_a_second_pass_with_the_prompt_once_more_is_the_negative_one() -> None:
    call, read = provenance(["t5"], prompt="a dog", negative_prompt="a dog")
    one, other = read(["a dog"]), read(["a dog"])
    ((branch, row),) = call.rows([[one[0]]])
    used = {token.source for tokens in row.values() for token in tokens}
    assert branch == "prompt"
    assert [branch for branch, _ in call.rows([[other[0]]], used)] == ["negative"]


def test_equal_encodings_are_taken_in_their_order() -> None:
    """Those that go into an encoder know nothing of the words around."""
    call, read = provenance(["t5"], prompt="a dog a dog")
    read(["a dog a dog"], length=6)
    inputs = call.readings[0].marks[1, 0]  # after what the encoder gave in the end
    ((branch, row),) = call.rows([[inputs]])
    assert (inputs[0] == inputs[2]).all() and branch == "prompt"
    assert [[token.position for token in row[column]] for column in range(4)] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("prompt_first", [True, False])
def test_both_branches_read_at_once(prompt_first: bool) -> None:
    call, read = provenance(["t5"], prompt=["a red dog", "a cat"], negative_prompt=["low quality"] * 2)
    texts = ["a red dog", "a cat", *["low quality"] * 2]
    order = range(4) if prompt_first else (2, 3, 0, 1)
    rows = read([texts[i] for i in order])
    found = [(branch, text) for branch, text, _ in texts_of(call, rows)]
    assert found == [("prompt" if i < 2 else "negative", texts[i]) for i in order]


def test_what_no_encoder_gave_is_no_text() -> None:
    call, read = provenance(["t5"], prompt="a dog")
    (dog,) = read(["a dog"])
    assert call.rows([[torch.zeros_like(dog)], [torch.randn_like(dog)]]) == [("", {}), ("", {})]
    assert [branch for branch, _ in call.rows([[torch.zeros_like(dog)], [dog]])] == ["", "prompt"]
    call.add("text_encoder", torch.zeros(1, 12, dtype=torch.long), None, dog[None] * 0)  # nor is an encoder's zero
    assert call.rows([[torch.zeros_like(dog)]]) == [("", {})]


@pytest.mark.parametrize(
    ("name", "masked"), [("t5", True), ("t5", False), ("clip", True), ("clip", False), ("bert", False), ("qwen3", True)]
)
def test_padding_has_no_column_of_its_own(name: str, masked: bool) -> None:
    call, read = provenance([name], prompt="a dog")
    ((_, _, columns),) = texts_of(call, read(["a dog"], masked=masked))
    assert columns == list(range(len(call.tokenizers["text_encoder"]("a dog")["input_ids"])))


def test_padding_on_the_left_moves_the_columns() -> None:
    call, read = provenance(["qwen3"], prompt="a dog")
    call.tokenizers["text_encoder"].padding_side = "left"
    for masked in (True, False):
        assert texts_of(call, read(["a dog"], masked=masked)) == [("prompt", "a dog", [10, 11])]
        call.readings.clear()


def test_two_encoders_after_each_other_and_side_by_side() -> None:
    call, read = provenance(["clip", "t5"], prompt="a red dog", prompt_2="a blue cat")
    (clip,), (t5,) = read(["a red dog"], length=77), read(["a blue cat"], "text_encoder_2")
    for parts_, shift in (([clip, t5], 77), ([torch.cat([clip, t5])], 77), ([torch.cat([clip[:12], t5], dim=1)], 0)):
        ((branch, row),) = call.rows([parts_])
        text, columns = call.text(branch, row, (PADDING,))
        assert text.text == "a red dog\na blue cat"
        assert [word.text for word in text.words] == ["a", "red", "dog", "a", "blue", "cat"]
        assert [[columns[i] for i in word.tokens] for word in text.words] == [
            *[[1], [2], [3]],
            *[[shift], [shift + 1], [shift + 2]],
        ]
        assert text.tokens[-1] == PADDING


def test_an_encoder_that_reads_only_some_texts() -> None:
    """ByT5 in HunyuanImage reads what is quoted, here in the negative prompt only."""
    call, read = provenance(["t5", "byt5"], prompt="a dog", negative_prompt='a "low" cat')
    (dog,), (low,) = read(["a dog"]), read(['a "low" cat'])
    (quoted,) = read(['Text "low".'], "text_encoder_2", 30)
    found = call.rows([[dog, torch.zeros_like(quoted)], [low, quoted]])
    assert [branch for branch, _ in found] == ["prompt", "negative"]
    text, columns = call.text(*found[1], (PADDING,))
    word = next(word for word in text.words if word.text == "low")
    assert [i for i in (columns[token] for token in word.tokens) if i >= 12] == [12 + 6, 12 + 7, 12 + 8]
