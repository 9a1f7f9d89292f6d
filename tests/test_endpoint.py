"""What a client of the API may send: values that fit, or one line that says what was expected."""

from typing import Any

import gradio as gr
import pytest

from ui.endpoint import Seed, endpoint


def draw(prompt: str, seed: Seed = "0", steps: int | None = None, guidance: float = 1.0) -> tuple[Any, ...]:
    """Answers its arguments."""
    if prompt == "missing":
        raise OSError("no such\nfile")
    return prompt, seed, steps, guidance


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (("a",), ("a", "0", None, 1.0)),
        (("a", 7, 2.0, 3), ("a", 7, 2, 3.0)),
        (("a", "7", "2", "3"), ("a", "7", 2, 3.0)),
        (("a", None, None, None), ("a", "0", None, 1.0)),
        (("5", 2**64 - 1), ("5", 2**64 - 1, None, 1.0)),
    ],
)
def test_values_that_fit_arrive_as_their_types(sent: tuple, expected: tuple) -> None:
    found = endpoint(draw)(*sent)
    assert found == expected and list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ((5,), "prompt must be a text, got '5'"),
        ((None,), "prompt must be a text"),
        (({"a": 1},), "prompt must be a text"),
        (("a", []), r"seed must be a text or a whole number, got '\[\]'"),
        (("a", True), "seed must be a text or a whole number"),
        (("a", "0", "x"), "steps must be a whole number, got 'x'"),
        (("a", "0", 2.5), "steps must be a whole number"),
        (("a", "0", float("inf")), "steps must be a whole number"),
        (("a", "0", float("nan")), "steps must be a whole number"),
        (("a", "0", 2, "x" * 1000), "guidance must be a number, got 'x{40}'"),
        (("a", "0", 2, [1]), "guidance must be a number"),
        (("a", "0", 2, 10**400), "guidance must be a number"),
        (("missing",), "no such file"),
    ],
)
def test_values_that_do_not_fit_are_one_line(sent: tuple, message: str) -> None:
    with pytest.raises(gr.Error, match=message) as error:
        endpoint(draw)(*sent)
    assert "\n" not in error.value.message and not error.value.print_exception
