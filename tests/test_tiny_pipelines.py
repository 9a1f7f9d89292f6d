"""The tiny pipelines of diffusers that other tests record draw pictures, read text, and are the same every time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_parts
import torch
from tiny_pipelines import FAMILIES, VARIANTS, pipeline

EVERY = FAMILIES | VARIANTS
SAME = {"sd_fused", "sd_sliced", "sd_explicit"}
"""Variants that compute what their family does in another way."""


@pytest.fixture(params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    """Each family and each variant whose packages are there."""
    if needs := EVERY[request.param].needs:
        pytest.importorskip(needs)
    return request.param


def test_pictures_have_the_size_asked_for_and_are_the_same_every_time(name: str) -> None:
    family, pipe = EVERY[name], pipeline(name)
    picture = family.draw(pipe, family.prompts[0])
    assert picture.shape == (1, family.call.get("height", 64), family.call.get("width", 96), 3)
    assert np.isfinite(picture).all() and picture.std() > 0.02
    np.testing.assert_array_equal(family.draw(pipe, family.prompts[0]), picture)
    np.testing.assert_array_equal(family.draw(family.build(), family.prompts[0]), picture)
    assert np.abs(family.draw(pipe, family.prompts[0], seed=1) - picture).max() > 0.01


def test_another_prompt_gives_another_picture(name: str) -> None:
    family, pipe = EVERY[name], pipeline(name)
    one, other = (family.draw(pipe, prompt) for prompt in family.prompts)
    assert np.abs(one - other).max() > 0.01 or family.kind == "none"


@pytest.mark.parametrize("name", VARIANTS, indirect=True)
def test_a_variant_draws_something_else_than_its_family_unless_it_only_computes_it_in_another_way(name: str) -> None:
    variant = VARIANTS[name]
    usual = FAMILIES[variant.family].draw(pipeline(variant.family), variant.prompts[0])
    difference = np.abs(variant.draw(pipeline(name), variant.prompts[0]) - usual).max()
    assert (difference < 1e-4) == (name in SAME)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    FAMILIES["sd"].build()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["qwenimage", "hunyuanimage"])
def test_a_template_takes_as_many_tokens_as_the_pipeline_drops(name: str) -> None:
    pipe = pipeline(name)
    before, _, _ = pipe.prompt_template_encode.partition("{}")
    assert len(pipe.tokenizer(before).input_ids) == pipe.prompt_template_encode_start_idx


@pytest.mark.parametrize(
    "make",
    [
        tiny_parts.clip_tokenizer,
        tiny_parts.t5_tokenizer,
        tiny_parts.xlm_tokenizer,
        tiny_parts.bert_tokenizer,
        tiny_parts.gemma_tokenizer,
        tiny_parts.qwen_tokenizer,
        tiny_parts.glm_tokenizer,
    ],
)
def test_a_known_word_is_one_token_and_others_are_several(make: Callable[[], Any]) -> None:
    tokenizer = make()
    assert len(tokenizer.tokenize("red")) == 1 and len(tokenizer.tokenize("skateboard")) > 1
    text = "a red skateboard, an astronaut"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ,", ",").strip() == text
