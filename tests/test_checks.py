"""Checks of what a person asks for. Pipeline, files of prompts, command and page have tests of their own calls."""

import re

import numpy as np
import pytest

from pipelines.checks import (
    MAX_PROMPT,
    MAX_SEED,
    check_guidance,
    check_prompt,
    check_seed,
    check_steps,
    check_text,
    parse_seed,
)


@pytest.mark.parametrize("text", ["0", " 42 ", str(MAX_SEED), 7])
def test_a_seed_is_any_integer_of_64_bits(text: str | int) -> None:
    assert parse_seed(text) == int(text)


@pytest.mark.parametrize("text", ["", "-1", str(MAX_SEED + 1), "1.5", "1e3", "seed", "9" * 10_000, 1.0, True])
def test_anything_else_is_not_a_seed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the seed is a whole number from 0 to 18446744073709551615 .*$"):
        parse_seed(text)


@pytest.mark.parametrize("seed", ["7", -1, MAX_SEED + 1, 1.0, True, None])
def test_a_seed_in_a_file_is_a_number_not_a_text(seed: object) -> None:
    with pytest.raises(ValueError, match=rf"^the seed is a whole number .*, not {re.escape(repr(str(seed)))}$"):
        check_seed(seed)


@pytest.mark.parametrize("text", ["a" * (MAX_PROMPT + 1), "a" * 100_000, "half \ud83d a smile", None, ["a star"]])
def test_a_text_that_no_tokenizer_should_read_is_refused_in_one_line(text: object) -> None:
    for check in (check_prompt, lambda text: check_text(text, "prompt")):
        with pytest.raises(ValueError, match=r"^.*\bprompt\b.*$") as error:
            check(text)
        assert 20 <= len(str(error.value)) <= 120


def test_only_a_prompt_must_not_be_empty() -> None:
    for empty in ("", " \n"):
        check_text(empty)
        with pytest.raises(ValueError, match=r"^the prompt is empty"):
            check_prompt(empty)


@pytest.mark.parametrize("steps", [0, 1001, -3, 2.5, "4", True, None])
def test_steps_are_a_whole_number(steps: object) -> None:
    with pytest.raises(ValueError, match=rf"number of steps must be a whole number between 1 and 1000, got {steps}$"):
        check_steps(steps)


@pytest.mark.parametrize("scale", [-0.1, 100.5, float("nan"), float("inf"), "3", True, None, 10**400])
def test_a_guidance_scale_is_a_number(scale: object) -> None:
    with pytest.raises(ValueError, match=r"^the guidance scale must be a number between 0 and 100, got .{1,40}$"):
        check_guidance(scale, [""], guidable=True)


@pytest.mark.parametrize("value", ["3\n4", np.eye(2), 10**5000], ids=["lines", "array", "digits"])
def test_whatever_is_given_the_message_is_one_line(value: object) -> None:
    for check in (check_steps, check_seed, parse_seed, lambda value: check_guidance(value, ["a"], guidable=True)):
        with pytest.raises(ValueError, match=r"^the [^\n]{20,120}$"):
            check(value)


def test_guidance_with_an_empty_negative_prompt_needs_a_model_trained_with_caption_dropout() -> None:
    for scale, negatives in ((1, [""]), (3.0, ["a star"])):
        check_guidance(scale, negatives, guidable=False)
    check_guidance(3.0, [""], guidable=True)
    for negatives in ([""], [" "], ["a star", ""]):
        with pytest.raises(ValueError, match=r"guidance 0\.5 with an empty negative prompt"):
            check_guidance(0.5, negatives, guidable=False)
